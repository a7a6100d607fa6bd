"""Files that are there whole or not at all, for their owner alone."""

import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from primia_jax.errors import StorageError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # ends the name of a file that is being written


def make_folder(folder: pathlib.Path) -> None:
    """Makes `folder` and those above it, on disk before this returns."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """Puts the entries of a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: pathlib.Path, pieces: Iterable[Any]) -> None:
    """Writes a file whole or not at all; the folder's entry is the caller's to sync."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def file_lock(path: pathlib.Path) -> Iterator[None]:
    """Shuts out other threads and processes until the end of the block, or of this process."""
    if fcntl is None:
        raise StorageError(f"{path}: keys on disk need a POSIX system (flock); keep them in memory")
    with storing(f"{path} cannot be locked"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with storing(f"{path} cannot be locked"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
    """Tells an error of the system as one of storage: `what` and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{what} ({reason}); see to the disk's space and permissions") from error


def short(name: Any) -> str:
    """`name`, or its beginning: for messages."""
    return str(name) if len(str(name)) <= 12 else f"{str(name)[:12]}…"
