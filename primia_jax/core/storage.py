"""Files on disk: written whole or not at all, for their owner alone, by one writer at a time.

Every file of the house is written through this module. A crash or a full disk leaves the former
file as it was. Files have mode 0600, folders 0700. Locks are those of the system (flock): they end
with the process that holds them, however it ends.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import platform
import shutil
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from primia_jax.errors import CheckpointError, DataError, StorageError, UserError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # ends the name of a file or folder that is being written
LOCK = ".lock"  # of a folder, see `lock_folder`
_MAX_NAME_BYTES = 255
_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def write_bytes(path: pathlib.Path, data: bytes | Iterable[Any], durable: bool = True) -> None:
    """Replaces the file `path` by one that holds `data`, whole or not at all.

    Args:
      path: of the file; its folder is made if missing.
      data: the contents, in one piece or several.
      durable: True if they must survive a loss of power once this returns.

    Raises:
      StorageError: if it cannot be written; the former file is still there.
    """
    with replacing(path, durable) as partial, open(partial, "wb") as file:
        pieces: Iterable[Any] = [data] if isinstance(data, bytes) else data
        file.writelines(pieces)


def write_text(path: pathlib.Path, text: str, durable: bool = True) -> None:
    """Replaces the file `path` by `text` in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), durable)


def write_json(
    path: pathlib.Path, value: Any, indent: int | None = 2, durable: bool = True
) -> None:
    """Replaces the file `path` by `value` as JSON; see `write_bytes`."""
    write_bytes(path, json.dumps(value, indent=indent).encode(), durable)


def read_json(path: pathlib.Path) -> Any:
    """The value in `path`.

    Raises:
      CheckpointError: if it is missing, damaged or no regular file.
    """
    check_regular(path, error=CheckpointError)
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({reason(error)})") from error


@contextlib.contextmanager
def replacing(path: pathlib.Path, durable: bool = True) -> Iterator[pathlib.Path]:
    """Gives the path of an empty file that replaces `path` at the end of the block.

    For libraries that write a file themselves. If the block fails, `path` stays as it was.

    Raises:
      StorageError: for an OSError within the block, or if `path` cannot be replaced.
    """
    partial = _partial(path)
    with storing(f"{path} cannot be written"):
        make_folder(path.parent)
        descriptor = _open_alone(partial, _exclude)
        try:
            try:
                os.ftruncate(descriptor, 0)
                yield partial
                _settle(partial, durable)
                partial.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise
        finally:
            os.close(descriptor)
        if durable:
            sync_folder(path.parent)


@contextlib.contextmanager
def replacing_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the path of an empty folder that replaces the folder `path` at the end of the block.

    For one writer at a time. If the block fails, `path` stays as it was.

    Raises:
      StorageError: for an OSError within the block, or if `path` cannot be replaced.
    """
    partial = _partial(path)
    with storing(f"{path} cannot be written"):
        make_folder(path.parent)
        if partial.exists():
            shutil.rmtree(partial)
        try:
            partial.mkdir(mode=0o700)
            yield partial
            for folder, _, names in os.walk(partial):
                for name in names:
                    _settle(pathlib.Path(folder, name), durable=True)
                sync_folder(pathlib.Path(folder))
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(path.parent)


def append_line(path: pathlib.Path, text: str) -> None:
    """Adds a line to the file `path`, on disk when this returns; see `append_lines`."""
    append_lines(path, [text])


def append_lines(path: pathlib.Path, texts: Iterable[str]) -> None:
    """Adds lines to the file `path`, on disk when this returns; makes the file if missing.

    What a crash left of an unfinished last line is removed first.

    Raises:
      StorageError: if they cannot be written; then none of them is in the file.
    """
    lines = "".join(f"{text}\n" for text in texts).encode("utf-8", "backslashreplace")
    with storing(f"{path} cannot be written"):
        make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _exclude(descriptor)
            end = _end_of_lines(descriptor)
            os.ftruncate(descriptor, end)
            try:
                if os.pwrite(descriptor, lines, end) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
        if not end:
            sync_folder(path.parent)


def make_folder(folder: pathlib.Path) -> None:
    """Makes `folder` and those above it, on disk before this returns; those there stay as they are.

    Raises:
      OSError: if it cannot be made.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)


def private_folder(folder: pathlib.Path) -> pathlib.Path:
    """Makes `folder`, or closes it to everyone but its owner; returns it.

    Raises:
      StorageError: if it cannot be made or closed.
    """
    with storing(f"the folder {folder} cannot be made"):
        make_folder(folder)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            os.chmod(folder, 0o700)
    return folder


def private_file(path: pathlib.Path) -> None:
    """Makes an empty file for a library that writes it, or closes it to everyone but its owner.

    Raises:
      StorageError: if it cannot be made or closed.
    """
    with storing(f"{path} cannot be written"):
        make_folder(path.parent)
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(path.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """Puts the entries of a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        descriptor = _open_alone(folder / LOCK, lambda file: _take_or_refuse(file, folder))
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
            _exclude(descriptor)
        yield
    finally:
        os.close(descriptor)


def move_aside(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Moves what `folder` has under `names`, if anything, to `previous/N` in it.

    Raises:
      StorageError: if it cannot be moved.
    """
    there = [name for name in names if os.path.lexists(folder / name)]
    if not there:
        return
    with storing(f"the earlier files in {folder} cannot be moved to {folder / 'previous'}"):
        numbered = [int(p.name) for p in (folder / "previous").glob("*") if p.name.isdecimal()]
        target = folder / "previous" / str(max(numbered, default=0) + 1)
        make_folder(target)
        for name in there:
            shutil.move(folder / name, target / name)


def check_regular(
    path: pathlib.Path,
    max_bytes: int | None = None,
    error: type[UserError] = DataError,
) -> int:
    """Returns the size of the regular file `path`, which may be reached by links.

    Args:
      path: of a file that comes from outside.
      max_bytes: the largest size that is allowed.
      error: the class of the error that is raised.

    Raises:
      UserError: if it is missing, a folder, a named pipe, a socket, a device, or larger.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as failure:
        raise error(f"{path} cannot be read ({reason(failure)})") from failure
    for test, kind in _SPECIAL:
        if test(status.st_mode):
            raise error(f"{path} is {kind}, not a regular file; name a file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise error(f"{path} has {status.st_size:,} bytes; at most {max_bytes:,} are allowed")
    return status.st_size


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
    """Turns an OSError within the block into a StorageError: `what`, and the reason."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what} ({reason(error)}); see to the disk's space and permissions"
        ) from error


def reason(error: BaseException) -> str:
    """First line of the error that caused `error`, at most 200 letters."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _partial(path: pathlib.Path) -> pathlib.Path:
    """Name beside `path` under which it is written, also where that name is as long as allowed."""
    name = f".{path.name}{PARTIAL}"
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}{PARTIAL}"
    return path.with_name(name)


def _open_alone(path: pathlib.Path, lock: Callable[[int], None]) -> int:
    """Opens a file that its writers lock by `lock`, and remove or rename before they let go."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        descriptor = os.open(path, flags, 0o600)
        try:
            lock(descriptor)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it is no longer the file of that name


def _exclude(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


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


def _end_of_lines(descriptor: int) -> int:
    """Position after the last line that is whole."""
    position = os.fstat(descriptor).st_size
    while position:
        start = max(0, position - (1 << 16))
        newline = os.pread(descriptor, position - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def _settle(path: pathlib.Path, durable: bool) -> None:
    """Gives a written file its mode, and puts it on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o600)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
