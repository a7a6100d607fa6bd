"""Locks of the system (flock): one writer at a time, until its process ends, however that ends."""

import contextlib
import json
import os
import pathlib
import platform
import threading
import time
import weakref
from collections.abc import Iterator

from primia_jax.core.storage import exclude, make_folder, open_alone, storing
from primia_jax.errors import StorageError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # of a folder, see `lock_folder`

_held = threading.local()  # .folders: locked by this thread, {path: number of blocks}


@contextlib.contextmanager
def lock_folder(folder: pathlib.Path, activity: str = "a run") -> Iterator[None]:
    """Makes this thread the only writer of `folder` until the end of the block, or of the process.

    Blocks of one thread may be nested. Readers need no lock.

    Args:
      folder: made if missing.
      activity: what is done there, for the message that others get: "a training".

    Raises:
      StorageError: if another process or thread holds it, naming it.
    """
    folders = _held.__dict__.setdefault("folders", {})
    key = os.path.realpath(folder)
    if folders.get(key):
        folders[key] += 1
        try:
            yield
        finally:
            folders[key] -= 1
        return
    with storing(f"the folder {folder} cannot be locked"):
        make_folder(folder)
        descriptor = open_alone(folder / LOCK, lambda file: _take_or_refuse(file, folder))
    try:
        with storing(f"the folder {folder} cannot be locked"):
            about = {"activity": activity, "pid": os.getpid(), "host": platform.node()}
            holder = json.dumps({**about, "since": time.strftime("%Y-%m-%d %H:%M:%S")})
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
        folders[key] = 1
        try:
            yield
        finally:
            del folders[key]
            with contextlib.suppress(OSError):
                os.unlink(folder / LOCK)
    finally:
        os.close(descriptor)


class Hold:
    """Sole use of a folder, beyond a block: until `close`, or the end of the process.

    Threads and programs of one process exclude one another too.
    """

    def __init__(self, path: pathlib.Path, refusal: str):
        """Takes the lock `path`; its folder is made if missing.

        Raises:
          StorageError: `refusal`, if another holds it; or if it cannot be locked.
        """
        with storing(f"{path} cannot be locked"):
            make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.close = weakref.finalize(self, os.close, descriptor)
        if fcntl is None:
            return
        try:
            with storing(f"{path} cannot be locked"):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except StorageError as error:
            self.close()
            if isinstance(error.__cause__, BlockingIOError):
                raise StorageError(refusal) from None
            raise


@contextlib.contextmanager
def file_lock(path: pathlib.Path) -> Iterator[None]:
    """Waits for the lock `path`, and excludes other threads and processes within the block.

    Raises:
      StorageError: if it cannot be locked.
    """
    if fcntl is None:
        raise StorageError(f"{path}: locks need a POSIX system (flock)")
    with storing(f"{path} cannot be locked"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with storing(f"{path} cannot be locked"):
            exclude(descriptor)
        yield
    finally:
        os.close(descriptor)


def _take_or_refuse(descriptor: int, folder: pathlib.Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        try:
            holder = json.loads(os.pread(descriptor, 4096, 0))
            activity = holder["activity"]
            who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        except (ValueError, KeyError, TypeError):  # it has only just begun
            activity, who = "a run", "of another process"
        raise StorageError(
            f"{activity} goes on in {folder} ({who}); wait until it has ended, or name another "
            "folder by --workdir"
        ) from error
