"""Checkpoints of the parties, and the commit that makes a round count.

    workdir/checkpoints/latest.json          which round is complete: written last, atomically
    workdir/checkpoints/round_000012/        the model owner's state (safetensors) and what it is
    workdir/sites/hospital_0/round_000012/   that hospital's own state; it never leaves the site

The folder of a hospital is named by `core.names.safe_file_name`: its name comes from outside.
Each tree is a file of its arrays by their paths, written from where they lie. Orbax copies them all
first and takes some three times the processor's time, which hospitals on one machine share.

A round is complete once `latest.json` names it. What a crash leaves of a later one is overwritten.
"""

import errno
import pathlib
import shutil
from collections.abc import Collection
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np

from primia_jax.core.arrays import read_tensors, write_tensors
from primia_jax.core.names import safe_file_name
from primia_jax.core.storage import (
    private_folder,
    read_json,
    reason,
    replacing_folder,
    write_json,
)
from primia_jax.errors import CheckpointError, StorageError

LATEST = "latest.json"
_FORMAT, _VERSION = "primia_jax checkpoint", 2  # in about.json
_OVERHEAD_BYTES = 1 << 19  # of headers, folders and facts, generously


def round_folder(folder: pathlib.Path, round_number: int) -> pathlib.Path:
    """Path of a party's state after `round_number`."""
    return folder / f"round_{round_number:06d}"


def site_folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Folder of the hospital `name`, for its files alone."""
    return workdir / "sites" / safe_file_name(name)


def save(
    folder: pathlib.Path,
    round_number: int,
    trees: dict[str, Any],
    about: dict[str, Any],
    keep: Collection[int],
) -> None:
    """Writes a party's state after a round; atomic: the folder exists whole or not at all.

    Args:
      folder: the party's folder of checkpoints.
      round_number: 0 is the state before training.
      trees: pytrees of arrays by name; each can be restored alone.
      about: JSON-able facts needed to read them.
      keep: the rounds that stay beside it. The others are removed while the disk is busy.

    Raises:
      StorageError: if it cannot be written, e.g. on a full disk; those kept are untouched.
    """
    target = round_folder(folder, round_number)
    try:
        private_folder(folder)
        _check_space(folder, trees)
        with replacing_folder(target) as partial:
            write_json(
                partial / "about.json", {"format": _FORMAT, "version": _VERSION, "facts": about}
            )
            with futures.ThreadPoolExecutor(1) as beside:
                beside.submit(_prune, folder, (round_number, *keep))
                for name, tree in trees.items():
                    write_tensors(_file(partial, name), by_path(tree))
    except (OSError, StorageError) as error:
        raise StorageError(
            f"checkpoint of round {round_number} could not be written below {folder} "
            f"({reason(error)}); free some space and go on with --resume"
        ) from error


def _check_space(folder: pathlib.Path, trees: Any) -> None:
    """Refuses state that does not fit: it would be written up to the last free byte."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) + _OVERHEAD_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} free")


def restore(folder: pathlib.Path, round_number: int, name: str, template: Any) -> Any:
    """Reads the tree `name` that `save` wrote; `template` gives structure, shapes and types.

    Raises:
      CheckpointError: if there is none, it is of another version of the format, has another
        structure, or holds values that are not finite.
    """
    target = round_folder(folder, round_number)
    about(folder, round_number)  # or refuses: of another version
    file = _file(target, name)
    stored, _ = read_tensors(file)
    paths, structure = jax.tree.flatten_with_path(template)
    wanted = {_path(path): leaf for path, leaf in paths}
    for path in dict.fromkeys((*wanted, *stored)):
        here, there = _kind(wanted.get(path)), _kind(stored.get(path))
        if here != there:
            raise CheckpointError(
                f"{target} does not hold the state of this model: {path} is {there} there, not "
                f"{here}"
            )
    for path, array in stored.items():
        if jax.numpy.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            raise CheckpointError(
                f"{file} is damaged: {path} holds values that are not finite; restore the file, "
                "or train again"
            )
    return jax.tree.unflatten(structure, [stored[path] for path in wanted])


def _file(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / f"{name}.safetensors"


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """Arrays of a tree by path (`params/conv1/kernel`), laid out as their file is."""
    leaves = jax.tree.leaves_with_path(tree)
    arrays = {_path(path): np.asarray(leaf, order="C") for path, leaf in leaves}
    assert len(arrays) == len(leaves), "two arrays of the same path"
    return arrays


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _kind(leaf: Any) -> str:
    return "missing" if leaf is None else f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def about(folder: pathlib.Path, round_number: int, names: Collection[str] = ()) -> dict[str, Any]:
    """The facts stored beside a checkpoint.

    Args:
      folder: the party's folder of checkpoints.
      round_number: of the checkpoint.
      names: facts that it must have.

    Raises:
      CheckpointError: if there is no checkpoint, or one that is damaged or of another version of
        the format.
    """
    target = round_folder(folder, round_number)
    if not target.is_dir():
        raise CheckpointError(
            f"no checkpoint of round {round_number} in {folder}; restore that folder, or begin "
            "anew without --resume"
        )
    stored = read_json(target / "about.json")
    version = stored.get("version") if stored.get("format") == _FORMAT else "unknown"
    facts = stored.get("facts")
    if version != _VERSION or not isinstance(facts, dict) or not facts.keys() >= set(names):
        raise CheckpointError(
            f"the checkpoint {target} is damaged or of another version (it says {version!r}; this "
            f"program reads {_VERSION}); use the version of primia_jax that wrote it, or train "
            "again"
        )
    return facts


class Progress(NamedTuple):
    """Progress of a run."""

    round: int = 0  # the last complete one
    best_round: int = 0  # the one with the best federated validation so far
    finished: bool = False  # nothing is left to train, though rounds may be left


def commit(folder: pathlib.Path, progress: Progress) -> None:
    """Declares a round complete.

    Raises:
      StorageError: if it cannot be written; the round before stays the complete one.
    """
    write_json(folder / LATEST, progress._asdict())


def check_begun(folder: pathlib.Path) -> None:
    """Refuses a folder in which no round was ever completed, without opening a file.

    Raises:
      CheckpointError: saying how to train.
    """
    if not (folder / LATEST).is_file():
        raise CheckpointError(
            f"no checkpoint in {folder}; train one with --mode=train --workdir={folder.parent}"
        )


def latest(folder: pathlib.Path) -> Progress:
    """The last complete round.

    Raises:
      CheckpointError: if no round was ever completed there, or the file is damaged.
    """
    check_begun(folder)
    stored = read_json(folder / LATEST)
    try:
        progress = Progress(**stored)
        if any(type(value) is not int or value < 0 for value in progress[:2]):
            raise ValueError(f"round {progress.round!r}, best_round {progress.best_round!r}")
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / LATEST} is damaged or of another version ({reason(error)}); restore it, or "
            "train again"
        ) from error
    return progress


def committed_best(folder: pathlib.Path) -> int:
    """The best round as of the last commit; 0 before the first one."""
    return latest(folder).best_round if (folder / LATEST).is_file() else 0


def newest(folder: pathlib.Path, number: int | None = None) -> int:
    """The last round, up to `number` if given, that there is a checkpoint of; 0 if none."""
    rounds = [there for there, _ in _rounds(folder) if number is None or there <= number]
    return max(rounds, default=0)


def drop_after(folder: pathlib.Path, number: int) -> None:
    """Removes the checkpoints of rounds after `number`: they never became complete."""
    for there, path in _rounds(folder):
        if there > number:
            shutil.rmtree(path, ignore_errors=True)


def _prune(folder: pathlib.Path, keep: Collection[int]) -> None:
    """Removes the checkpoints of all rounds but those in `keep`."""
    for there, path in _rounds(folder):
        if there not in keep:
            shutil.rmtree(path, ignore_errors=True)


def _rounds(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """Numbers and folders of the rounds that there are checkpoints of."""
    names = [(path.name.removeprefix("round_"), path) for path in folder.glob("round_*")]
    return [(int(number), path) for number, path in names if number.isdecimal()]
