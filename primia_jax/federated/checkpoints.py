"""Checkpoints of the parties, and the commit that makes a round count.

    workdir/checkpoints/latest.json          which round is complete: written last, atomically
    workdir/checkpoints/round_000012/        the model owner's state (safetensors) and what it is
    workdir/sites/hospital_0/round_000012/   that hospital's own state; it never leaves the site

Each tree is a file of its arrays by their paths, written from where they lie. Orbax copies them all
first and takes some three times the processor's time, which hospitals on one machine share.

A round is complete once `latest.json` names it. What a crash leaves of a later one is overwritten.
"""

import errno
import json
import os
import pathlib
import shutil
from collections.abc import Collection
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from primia_jax.errors import CheckpointError, StorageError

LATEST = "latest.json"
_OVERHEAD_BYTES = 1 << 19  # of headers, folders and facts, generously


def round_folder(folder: pathlib.Path, round_number: int) -> pathlib.Path:
    """Where a party keeps its state after `round_number`."""
    return folder / f"round_{round_number:06d}"


def site_folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Where the hospital `name` keeps what is its own."""
    return workdir / "sites" / name


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
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(target.parent, trees)
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_json(partial / "about.json", about)
        with futures.ThreadPoolExecutor(1) as beside:
            beside.submit(_prune, folder, (round_number, *keep))
            for name, tree in trees.items():
                file = _file(partial, name)
                save_file(_by_path(tree), file)
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except (OSError, SafetensorError, StorageError) as error:
        shutil.rmtree(target.with_name(f".{target.name}.partial"), ignore_errors=True)
        raise StorageError(
            f"checkpoint of round {round_number} could not be written below {folder} "
            f"({_reason(error)}); free some space and go on with --resume"
        ) from error


def _check_space(folder: pathlib.Path, trees: Any) -> None:
    """What does not fit is better not begun: it would be written up to the last free byte."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) + _OVERHEAD_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} free")


def restore(folder: pathlib.Path, round_number: int, name: str, template: Any) -> Any:
    """Reads the tree `name` that `save` wrote; `template` gives structure, shapes and types.

    Raises:
      CheckpointError: if there is none, or it has another structure.
    """
    target = round_folder(folder, round_number)
    if not target.is_dir():
        raise CheckpointError(
            f"no checkpoint of round {round_number} in {folder}; restore that folder, or begin "
            "anew without --resume"
        )
    try:
        stored = load_file(_file(target, name))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{target} does not hold the state of this model: {_reason(error)}"
        ) from error
    paths, structure = jax.tree.flatten_with_path(template)
    wanted = {_path(path): leaf for path, leaf in paths}
    for path in dict.fromkeys((*wanted, *stored)):
        here, there = _kind(wanted.get(path)), _kind(stored.get(path))
        if here != there:
            raise CheckpointError(
                f"{target} does not hold the state of this model: {path} is {there} there, not "
                f"{here}"
            )
    return jax.tree.unflatten(structure, [stored[path] for path in wanted])


def _file(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / f"{name}.safetensors"


def _by_path(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree, laid out as their file is."""
    leaves = jax.tree.leaves_with_path(tree)
    found = {_path(path): np.asarray(leaf, order="C") for path, leaf in leaves}
    assert len(found) == len(leaves), "two arrays of the same path"
    return found


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _kind(leaf: Any) -> str:
    return "missing" if leaf is None else f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def about(folder: pathlib.Path, round_number: int) -> dict[str, Any]:
    """The facts stored beside a checkpoint."""
    return read_json(round_folder(folder, round_number) / "about.json")


class Progress(NamedTuple):
    """How far a run has come."""

    round: int = 0  # the last complete one
    best_round: int = 0  # the one with the best federated validation so far
    finished: bool = False  # nothing is left to train, though rounds may be left


def commit(folder: pathlib.Path, progress: Progress) -> None:
    """Declares a round complete.

    Raises:
      StorageError: if it cannot be written; the round before stays the complete one.
    """
    write_json(folder / LATEST, progress._asdict())


def latest(folder: pathlib.Path) -> Progress:
    """The last complete round.

    Raises:
      CheckpointError: if no round was ever completed there.
    """
    if not (folder / LATEST).is_file():
        raise CheckpointError(
            f"no checkpoint in {folder}; train one with --mode=train --workdir={folder.parent}"
        )
    return Progress(**read_json(folder / LATEST))


def committed_best(folder: pathlib.Path) -> int:
    """The best round as of the last commit; 0 before the first one."""
    return latest(folder).best_round if (folder / LATEST).is_file() else 0


def newest(folder: pathlib.Path, number: int) -> int:
    """The last round up to `number` that there is a checkpoint of; 0 if there is none."""
    rounds = [int(path.name.removeprefix("round_")) for path in folder.glob("round_*")]
    return max((found for found in rounds if found <= number), default=0)


def drop_after(folder: pathlib.Path, number: int) -> None:
    """Removes the checkpoints of rounds after `number`: they never became complete."""
    for path in folder.glob("round_*"):
        if path.name > round_folder(folder, number).name:
            shutil.rmtree(path, ignore_errors=True)


def _prune(folder: pathlib.Path, keep: Collection[int]) -> None:
    """Removes the checkpoints of all rounds but those in `keep`."""
    names = {round_folder(folder, number).name for number in keep}
    for path in folder.glob("round_*"):
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def write_json(path: pathlib.Path, value: Any, indent: int | None = 2) -> None:
    """Writes `value` whole or not at all.

    Raises:
      StorageError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w") as file:
            json.dump(value, file, indent=indent)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{path} could not be written ({_reason(error)})") from error


def read_json(path: pathlib.Path) -> Any:
    """The value in `path`.

    Raises:
      CheckpointError: if it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
