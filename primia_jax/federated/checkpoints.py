"""Checkpoints of the parties, and the commit that makes a round count.

    workdir/checkpoints/latest.json          which round is complete: written last, atomically
    workdir/checkpoints/round_000012/        the model owner's state (orbax) and about.json
    workdir/sites/hospital_0/round_000012/   that hospital's own state; it never leaves the site

A round is complete once `latest.json` names it. What a crash leaves of a later one is overwritten.
"""

import errno
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from primia_jax.errors import CheckpointError, StorageError

LATEST = "latest.json"
# Orbax numbers its operations for the whole process: threads that save at once would mix theirs up.
_ORBAX = threading.Lock()
_OVERHEAD_BYTES = 1 << 19  # of orbax's own files, generously


def round_folder(folder: pathlib.Path, round_number: int) -> pathlib.Path:
    """Where a party keeps its state after `round_number`."""
    return folder / f"round_{round_number:06d}"


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
        with _ORBAX, ocp.StandardCheckpointer() as checkpointer:
            for name, tree in trees.items():
                if jax.tree.leaves(tree):
                    checkpointer.save(partial.absolute() / name, jax.tree.map(np.asarray, tree))
        write_json(partial / "about.json", about)
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
    if not jax.tree.leaves(template):
        return template
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), template)
    try:
        with _ORBAX, ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(target.absolute() / name, abstract)
    except Exception as error:
        raise CheckpointError(
            f"{target} does not hold the state of this model: {_reason(error)}"
        ) from error
    tree = jax.tree.map(np.asarray, tree)
    for (path, found), wanted in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(template)):
        if found.shape != wanted.shape:  # orbax does not object
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise CheckpointError(
                f"{target} does not hold the state of this model: {where} has shape "
                f"{found.shape}, not {wanted.shape}"
            )
    return tree


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


def newest(folder: pathlib.Path, number: int) -> int:
    """The last round up to `number` that there is a checkpoint of; 0 if there is none."""
    rounds = [int(path.name.removeprefix("round_")) for path in folder.glob("round_*")]
    return max((found for found in rounds if found <= number), default=0)


def prune(folder: pathlib.Path, keep: Collection[int]) -> None:
    """Removes the checkpoints of all rounds but those in `keep`."""
    names = {round_folder(folder, number).name for number in keep}
    for path in folder.glob("round_*"):
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` whole or not at all.

    Raises:
      StorageError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w") as file:
            json.dump(value, file, indent=2)
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
