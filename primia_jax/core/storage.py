"""Files on disk: written whole or not at all, for their owner alone, by one writer at a time.

Every file of the house is written through this module. A crash or a full disk leaves the former
file as it was. Files have mode 0600, folders 0700. JSON from disk is read here too: bounded, in
UTF-8, an object; anything else is an error of one line.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from primia_jax.errors import CheckpointError, DataError, StorageError, UserError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # ends the name of a file or folder that is being written
_MAX_NAME_BYTES = 255
_MAX_JSON_BYTES = 1 << 28  # records of some four million images
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


def read_json(
    path: pathlib.Path,
    fields: Collection[str] = (),
    max_bytes: int = _MAX_JSON_BYTES,
    error: type[UserError] = CheckpointError,
) -> dict[str, Any]:
    """The JSON object in `path`.

    Args:
      path: of the file.
      fields: keys that it must have.
      max_bytes: its largest size.
      error: the class of the error that is raised.

    Raises:
      UserError: if it is missing, damaged, no regular file or larger, or lacks a field.
    """
    check_regular(path, max_bytes, error)
    try:
        return parse_json(path.read_bytes(), fields)
    except (OSError, ValueError) as failure:
        raise error(f"{path} cannot be read ({reason(failure)}); restore it") from failure


def read_json_lines(path: pathlib.Path, fields: Collection[str] = ()) -> list[dict[str, Any]]:
    """The JSON objects in the lines of `path`; none if it is missing.

    A last line that a crash cut short is left out.

    Args:
      path: of the file.
      fields: keys that each must have.

    Raises:
      CheckpointError: if it is damaged or no regular file.
    """
    if not os.path.lexists(path):
        return []
    check_regular(path, error=CheckpointError)
    lines: list[dict[str, Any]] = []
    try:
        for text in whole_lines(path.read_bytes()).splitlines():
            lines.append(parse_json(text, fields))
    except (OSError, ValueError) as failure:
        raise CheckpointError(
            f"{path} is damaged in line {len(lines) + 1} ({reason(failure)}); restore it"
        ) from failure
    return lines


def parse_json(content: bytes, fields: Collection[str] = ()) -> dict[str, Any]:
    """The JSON object in `content`.

    Raises:
      ValueError: if it is no JSON in UTF-8, nested too deeply, no object, or lacks a field.
    """
    try:
        value = json.loads(content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    missing = [field for field in fields if field not in value]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return value


def whole_lines(content: bytes) -> bytes:
    """`content` without a last line that a crash cut short."""
    return content[: content.rfind(b"\n") + 1]


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
        descriptor = open_alone(partial, exclude)
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
            exclude(descriptor)
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
      StorageError: if it cannot be made or closed, or all users share it, as they do /tmp.
    """
    with storing(f"the folder {folder} cannot be made"):
        make_folder(folder)
        if folder.stat().st_mode & stat.S_ISVTX:
            raise StorageError(f"{folder} is a folder of all users; name one of your own")
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


def move_aside(folder: pathlib.Path, names: Iterable[str]) -> pathlib.Path | None:
    """Moves what `folder` has under `names` to `previous/N` in it; returns that, if there was any.

    Raises:
      StorageError: if it cannot be moved.
    """
    there = [name for name in names if os.path.lexists(folder / name)]
    if not there:
        return None
    with storing(f"the earlier files in {folder} cannot be moved to {folder / 'previous'}"):
        numbered = [int(p.name) for p in (folder / "previous").glob("*") if p.name.isdecimal()]
        target = folder / "previous" / str(max(numbered, default=0) + 1)
        make_folder(target)
        for name in there:
            shutil.move(folder / name, target / name)
    return target


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


def open_alone(path: pathlib.Path, lock: Callable[[int], None]) -> int:
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


def exclude(descriptor: int) -> None:
    """Waits until no other holds the lock of an open file, and takes it."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


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
