"""Checkpoints of the parties, and the commit that makes a round count.

    workdir/checkpoints/latest.json          which round is complete: written last, atomically
    workdir/checkpoints/round_000012/        the model owner's state (orbax) and what it is
    workdir/sites/hospital_0/round_000012/   that hospital's own state; it never leaves the site

Of each tree all arrays of one type are stored as one vector, uncompressed: orbax takes some eight
times longer for a hundred compressed arrays. `layout.json` says what is where in it.

A round is complete once `latest.json` names it. What a crash leaves of a later one is overwritten.
"""

import collections
import errno
import itertools
import json
import math
import os
import pathlib
import shutil
import threading
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from primia_jax.errors import CheckpointError, StorageError

LATEST = "latest.json"
_LAYOUT = "layout.json"
# Orbax numbers its operations for the whole process: threads that save at once would mix theirs up.
_ORBAX = threading.Lock()
_OVERHEAD_BYTES = 1 << 19  # of orbax's own files, generously


def round_folder(folder: pathlib.Path, round_number: int) -> pathlib.Path:
    """Where a party keeps its state after `round_number`."""
    return folder / f"round_{round_number:06d}"


def site_folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Where the hospital `name` keeps what is its own."""
    return workdir / "sites" / name


def save(
    folder: pathlib.Path, round_number: int, trees: dict[str, Any], about: dict[str, Any]
) -> None:
    """Writes a party's state after a round; atomic: the folder exists whole or not at all.

    Args:
      folder: the party's folder of checkpoints.
      round_number: 0 is the state before training.
      trees: pytrees of arrays by name; each can be restored alone.
      about: JSON-able facts needed to read them.

    Raises:
      StorageError: if it cannot be written, e.g. on a full disk; earlier rounds are untouched.
    """
    target = round_folder(folder, round_number)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(target.parent, trees)
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with _ORBAX, _checkpointer() as checkpointer:
            for name, tree in trees.items():
                if vectors := _packed(tree):
                    tensors = ocp.args.PyTreeSave(vectors)
                    checkpointer.save(partial.absolute() / name, args=tensors)
        write_json(partial / "about.json", about)
        layout = {name: _layout(tree) for name, tree in trees.items()}
        write_json(partial / _LAYOUT, layout, indent=None)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except Exception as error:  # orbax and tensorstore wrap a full disk in kinds of their own
        shutil.rmtree(target.with_name(f".{target.name}.partial"), ignore_errors=True)
        raise StorageError(
            f"checkpoint of round {round_number} could not be written below {folder} "
            f"({_reason(error)}); free some space and go on with --resume"
        ) from error


def _check_space(folder: pathlib.Path, trees: Any) -> None:
    """Orbax meets a full disk in several threads at once; better not to let it."""
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
    stored, wanted = read_json(target / _LAYOUT).get(name, []), _layout(template)
    for here, there in itertools.zip_longest(wanted, stored):
        if here != there:
            raise CheckpointError(
                f"{target} does not hold the state of this model: it has {_entry(there)}, not "
                f"{_entry(here)}"
            )
    sizes: collections.Counter[str] = collections.Counter()
    for _, dtype, shape in wanted:
        sizes[dtype] += math.prod(shape)
    vectors = {}
    if any(sizes.values()):
        try:
            with _ORBAX, _checkpointer() as checkpointer:
                as_stored = ocp.args.PyTreeRestore()
                vectors = checkpointer.restore(target.absolute() / name, args=as_stored)
            for dtype, size in sizes.items():
                if size and vectors[dtype].size != size:
                    raise ValueError(f"{vectors[dtype].size} numbers ({dtype}), not {size}")
        except Exception as error:
            raise CheckpointError(
                f"{target} does not hold the state of this model: {_reason(error)}"
            ) from error
    return _unpacked(template, vectors)


def _checkpointer() -> ocp.Checkpointer:
    """Weights do not compress, and trying takes longer than the training of a small network."""
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False, use_zarr3=True))


def _packed(tree: Any) -> dict[str, np.ndarray]:
    """All elements of a tree's arrays of one type, by its name; types without any are left out."""
    groups: dict[str, list[np.ndarray]] = {}
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        groups.setdefault(leaf.dtype.name, []).append(leaf.ravel())
    vectors = {dtype: np.concatenate(parts) for dtype, parts in groups.items()}
    return {dtype: vector for dtype, vector in vectors.items() if vector.size}


def _unpacked(template: Any, vectors: Mapping[str, Any]) -> Any:
    """The tree of `template`'s structure from what `_packed` made of it."""
    leaves, structure = jax.tree.flatten(template)
    at: collections.Counter[str] = collections.Counter()
    found = []
    for leaf in leaves:
        dtype, size = np.dtype(leaf.dtype).name, math.prod(leaf.shape)
        vector = np.asarray(vectors[dtype]) if size else np.zeros(0, dtype)
        found.append(vector[at[dtype] : at[dtype] + size].reshape(leaf.shape))
        at[dtype] += size
    return jax.tree.unflatten(structure, found)


def _layout(tree: Any) -> list[list[Any]]:
    """[path, type, shape] of every array, in the order of the vectors."""
    return [
        [jax.tree_util.keystr(path, simple=True, separator="/"), *_kind(leaf)]
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def _kind(leaf: Any) -> tuple[str, list[int]]:
    return np.dtype(leaf.dtype).name, list(leaf.shape)


def _entry(entry: list[Any] | None) -> str:
    if entry is None:
        return "no more arrays"
    path, dtype, shape = entry
    return f"{path} of shape {tuple(shape)} ({dtype})"


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


def prune(folder: pathlib.Path, keep: Collection[int]) -> None:
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
