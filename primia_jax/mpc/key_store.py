"""Numbered single-use keys: which of them are used up, and the material of those that are not.

A mask that hides two values gives away their difference, so no key may ever serve twice. A number
is *burned* before anything of its key is used: whatever happens afterwards (a failed run, a crash,
a second process), nobody gets that key again.

    folder/ledger                       the burned numbers; only ever grows
    folder/ledger.lock                  held while a number is burned
    folder/key_0000000007/level_0003    what key 7 has for gate level 3
    folder/key_0000000007/complete      the levels of key 7, written when all of them are there

Not promised: a folder that is copied, or restored from a backup or a snapshot, brings back its old
ledger together with keys that were used since. Nothing in the folder can tell; begin a new session
then. Files are unlinked, not overwritten on the medium.
"""

import contextlib
import hashlib
import io
import json
import math
import operator
import os
import pathlib
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

import jax
import numpy as np

from primia_jax.errors import ProtocolError, StorageError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Message = Any  # nested dicts (with strings as keys), tuples and lists of arrays

_MAX_DIGITS = 18  # of a key number, which then fits 63 bits
_LEDGER_FORMAT, _LEDGER_VERSION = "primia_jax key ledger", 1

_MAGIC, _VERSION = b"PRIMIAKY", 1
_PREFIX = struct.Struct("<8sIIQ")  # magic, version, bytes of the JSON header, bytes of the file
_ALIGNMENT = 64  # of every array in the file and in memory, as XLA likes it
_DIGEST_BYTES = 32
_CHUNK = 1 << 20  # bytes that are hashed while they are in the processor's cache
_TYPES = frozenset(
    np.dtype(kind).newbyteorder("<").str
    for kind in ("?", *"bhiq", *"BHIQ", "f2", "f4", "f8", "c8", "c16")
)
_KEY_NAME, _LEVEL_NAME = re.compile(r"key_(\d+)"), re.compile(r"level_(\d+)")
_COMPLETE, _PARTIAL = "complete", ".partial"


class Ledger:
    """The key numbers of a session that one party has burned. They rise; skipped ones are burned.

    In a file, a number is on disk before `burn` returns, and processes that share the file exclude
    one another. A line is the number of digits as a letter, and the number: what a crash leaves of
    a line bounds what it was to be, and all up to that bound counts as burned.
    """

    def __init__(self, path: pathlib.Path | None, session: str = ""):
        """Opens the ledger, or begins it.

        Args:
          path: of the file; None to keep it in memory, for one process and its life.
          session: whose numbers they are.

        Raises:
          ProtocolError: if the file is damaged or of another session.
          StorageError: if it cannot be written or locked.
        """
        self.path, self.session = path, session
        self._highest, self._read_to = -1, 0
        self._mutex = threading.Lock() if path is None else None
        if path is not None:
            with _storing(f"ledger {path} cannot be made"):
                _make_folder(path.parent)
            with self._locked():
                pass

    def next(self) -> int:
        """The lowest number that is not burned."""
        with self._locked():
            return self._highest + 1

    def burn(self, number: SupportsIndex) -> None:
        """Uses `number` up, and all below it, for good.

        Raises:
          ProtocolError: if it was burned before.
          StorageError: if that cannot be written down; then the number must not be used.
        """
        checked = _checked_number(number)
        with self._locked():
            self._burn(checked)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Shuts out all others, and reads what they burned."""
        if self._mutex is not None:
            with self._mutex:
                yield
            return
        assert self.path is not None
        with _file_lock(self.path.with_name(f"{self.path.name}.lock")):
            self._read()
            yield

    def _check(self, number: int) -> None:
        if number <= self._highest:
            session = f" of session {self.session}" if self.session else ""
            raise ProtocolError(
                f"key {number}{session} was used before: a key serves one run, even one that "
                f"fails; go on with a fresh key, from number {self._highest + 1}"
            )

    def _burn(self, number: int) -> None:
        self._check(number)
        if self.path is not None:
            digits = str(number)
            self._append(f"{chr(96 + len(digits))}{digits}\n".encode())
        self._highest = number

    def _read(self) -> None:
        """Takes over the lines that were not read yet."""
        assert self.path is not None
        with _storing(f"ledger {self.path} cannot be read"):
            if not self.path.exists() and not self._read_to:
                about = {"format": _LEDGER_FORMAT, "version": _LEDGER_VERSION}
                header = json.dumps({**about, "session": self.session}) + "\n"
                _write_whole(self.path, [header.encode()])
                _sync_folder(self.path.parent)
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(self._read_to)
                text = file.read()
        if size < self._read_to:
            raise self._damaged("it has become shorter")
        *lines, torn = text.split(b"\n")
        if not self._read_to:
            self._check_header(lines.pop(0) if lines else b"")
        for line in lines:
            self._highest = self._number(line, line)
        self._read_to += len(text) - len(torn)
        if torn:
            completed = _largest_line(torn)
            highest = self._number(completed, torn)
            self._append((completed or b"")[len(torn) :] + b"\n", torn)
            self._highest = highest

    def _number(self, line: bytes | None, found: bytes) -> int:
        if line is None or _largest_line(line) != line or int(line[1:]) <= self._highest:
            raise self._damaged(f"it has the line {found[:40]!r}")
        return int(line[1:])

    def _check_header(self, line: bytes) -> None:
        try:
            header = json.loads(line)
            form, version, session = (header[key] for key in ("format", "version", "session"))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged("its first line cannot be read") from error
        if (form, version) != (_LEDGER_FORMAT, _LEDGER_VERSION):
            raise self._damaged(f"it is '{form}' of version {version}")
        if session != self.session:
            raise ProtocolError(
                f"ledger {self.path} is of session '{_short(session)}', not "
                f"'{_short(self.session)}': name another folder for the new session"
            )

    def _damaged(self, what: str) -> ProtocolError:
        return ProtocolError(
            f"ledger {self.path} is damaged ({what}), so that nobody knows which keys were used: "
            "begin a new session in another folder"
        )

    def _append(self, text: bytes, torn: bytes = b"") -> None:
        """Adds `text` to the file (after the beginning of a line, `torn`), on disk at return."""
        assert self.path is not None
        with _storing(f"ledger {self.path} cannot be written"):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                written = os.write(descriptor, text)
                if written != len(text):  # a full disk; nothing was used yet
                    os.ftruncate(descriptor, self._read_to + len(torn))
                    raise OSError(f"{written} of {len(text)} bytes were written")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._read_to += len(torn) + len(text)


class TakenKey:
    """A key that is burned and may be used now: each level once, in any order.

    Levels come off the disk one by one; the files' names are gone already, so that a crash leaves
    nothing behind.
    """

    def __init__(self, number: int, levels: Mapping[int, Callable[[], Message]]):
        self.number = number
        self._left = dict(levels)
        self._all = frozenset(levels)

    def __getitem__(self, level: int) -> Message:
        """The message of `level`.

        Raises:
          ProtocolError: if there is none, it is damaged, or it was loaded before.
          StorageError: if it cannot be read.
        """
        if level not in self._all:
            raise ProtocolError(f"key {self.number} has no level {level}, only {self._all_names()}")
        if level not in self._left:
            raise ProtocolError(
                f"level {level} of key {self.number} was loaded before: it serves once"
            )
        return self._left.pop(level)()

    def __iter__(self) -> Iterator[int]:
        """The levels that were not loaded yet, ascending."""
        return iter(sorted(self._left))

    def items(self) -> Iterator[tuple[int, Message]]:
        """The levels that were not loaded yet, ascending, with their messages, one at a time."""
        for level in self:
            yield level, self[level]

    def _all_names(self) -> str:
        return f"{min(self._all)} to {max(self._all)}" if self._all else "none"


class KeyStore:
    """One party's keys of one session and program, each an entry a gate level, each for one use.

    On disk, arrays come back as NumPy arrays (scalars with shape ()); folders have mode 0700, files
    0600. In memory, arrays come back as they were put; do not change them after `put`. Several
    processes may use one folder. All methods may raise StorageError, e.g. on a full disk.
    """

    def __init__(self, folder: pathlib.Path | None, fingerprint: str, session: str):
        """Opens the store, or begins one.

        Args:
          folder: of the store alone; made if missing. None to keep keys in memory.
          fingerprint: of the program that the keys are for.
          session: of the parties' seeds.

        Raises:
          ProtocolError: if the folder holds other files, or keys of another session or program.
          StorageError: if it cannot be used.
        """
        self._where = "memory" if folder is None else str(folder)
        self._keys: _MemoryKeys | _FolderKeys
        if folder is None:
            self._ledger = Ledger(None, session)
            self._keys = _MemoryKeys()
            return
        with _storing(f"keys cannot be kept in {folder}"):
            _prepare_store_folder(folder)
        self._ledger = Ledger(folder / "ledger", session)
        self._keys = _FolderKeys(folder, fingerprint, session)
        with self._locked():
            self._keys.remove_up_to(self._ledger._highest)  # what a crash left
            for number in sorted(self._fresh())[:1]:
                with contextlib.suppress(_DamagedKeyError):  # `take` is to say that
                    self._keys.open(number)  # of this program?

    @property
    def session(self) -> str:
        """Of the parties' seeds that the keys belong to."""
        return self._ledger.session

    @property
    def made(self) -> int:
        """One more than the highest number that was put or burned: the number for a new key."""
        with self._locked():
            return self._made()

    def available(self) -> int:
        """How many complete keys are left."""
        with self._locked():
            return len(self._fresh())

    def next(self) -> int:
        """The number of the next complete key; `made` if none is left."""
        with self._locked():
            return min(self._fresh(), default=self._made())

    def put(self, number: int, level: int, message: Message) -> None:
        """Adds a level to a key that is being made; it lasts once the key is closed.

        Args:
          number: of the key, below 10^18.
          level: of the gates.
          message: nested dicts (with strings as keys), tuples and lists of arrays of booleans,
            integers, floats or complex numbers.

        Raises:
          ProtocolError: for another message, or if the key is used or complete, or has the level.
          StorageError: if it cannot be written; the key remains incomplete.
        """
        number, level = _checked_number(number), _checked_number(level, "level")
        _structure(message, [])  # refuses what cannot be kept
        with self._locked():
            self._check_open(number)
            if level in self._keys.levels(number):
                raise ProtocolError(f"key {number} in {self._where} has level {level} already")
        with _storing(f"level {level} of key {number} cannot be written to {self._where}"):
            self._keys.put(number, level, message)

    def close_key(self, number: int) -> None:
        """Marks a key as complete: only now it can be taken.

        Raises:
          ProtocolError: if it has no level, or is used or complete already.
          StorageError: if that cannot be written.
        """
        number = _checked_number(number)
        with self._locked():
            self._check_open(number)
            if not self._keys.levels(number):
                raise ProtocolError(f"key {number} in {self._where} has no level yet")
            self._keys.complete(number)

    def burn(self, number: SupportsIndex) -> None:
        """Uses `number` up without its material, as for a key that is made while it is used.

        Raises:
          ProtocolError: if it was used before.
        """
        checked = _checked_number(number)
        with self._locked():
            self._burn(checked)

    def take(self, number: int) -> TakenKey:
        """Burns `number` and hands out its key; keys of lower numbers are gone as well.

        Raises:
          ProtocolError: if it was used before, is not there, or is of another program or session
            (then it is not burned), or if it is damaged (then it is).
        """
        number = _checked_number(number)
        damage, levels = None, {}
        with self._locked():
            self._ledger._check(number)
            self._check_there(number)
            try:
                levels = self._keys.open(number)
            except _DamagedKeyError as error:
                damage = error  # burned too, or every further run would meet it again
            self._burn(number)
        if damage is not None:
            raise damage
        return TakenKey(number, levels)

    def _burn(self, number: int) -> None:
        self._ledger._burn(number)
        self._keys.remove_up_to(number)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._ledger._locked(), _storing(f"keys in {self._where} cannot be read or changed"):
            yield

    def _made(self) -> int:
        return max([self._ledger._highest, *self._keys.numbers()]) + 1

    def _fresh(self) -> list[int]:
        highest = self._ledger._highest
        return [n for n in self._keys.numbers() if n > highest and self._keys.is_complete(n)]

    def _check_open(self, number: int) -> None:
        self._ledger._check(number)
        if self._keys.is_complete(number):
            raise ProtocolError(f"key {number} in {self._where} is complete already")

    def _check_there(self, number: int) -> None:
        if self._keys.is_complete(number):
            return
        fresh = self._fresh()
        if not fresh:
            raise ProtocolError(
                f"no key is left in {self._where}: {self._made()} were made; "
                "make more with prepare()"
            )
        what = "is not complete" if self._keys.levels(number) else "is not there"
        raise ProtocolError(
            f"key {number} {what} in {self._where}: the next one that is has number {min(fresh)}"
        )


class _MemoryKeys:
    def __init__(self) -> None:
        self._messages: dict[int, dict[int, Message]] = {}
        self._complete: set[int] = set()

    def numbers(self) -> Iterable[int]:
        return list(self._messages)

    def levels(self, number: int) -> set[int]:
        return set(self._messages.get(number, ()))

    def is_complete(self, number: int) -> bool:
        return number in self._complete

    def put(self, number: int, level: int, message: Message) -> None:
        self._messages.setdefault(number, {})[level] = message

    def complete(self, number: int) -> None:
        self._complete.add(number)

    def open(self, number: int) -> dict[int, Callable[[], Message]]:
        return {level: _held(m) for level, m in self._messages[number].items()}

    def remove_up_to(self, number: int) -> None:
        self._messages = {n: key for n, key in self._messages.items() if n > number}
        self._complete = {n for n in self._complete if n > number}


def _held(message: Message) -> Callable[[], Message]:
    return lambda: message


class _FolderKeys:
    def __init__(self, folder: pathlib.Path, fingerprint: str, session: str):
        self._folder = folder
        self._about = {"program": fingerprint, "session": session}

    def numbers(self) -> Iterable[int]:
        return _numbered(self._folder, _KEY_NAME)

    def levels(self, number: int) -> set[int]:
        return set(_numbered(self._key(number), _LEVEL_NAME))

    def is_complete(self, number: int) -> bool:
        return (self._key(number) / _COMPLETE).exists()

    def put(self, number: int, level: int, message: Message) -> None:
        _make_folder(self._key(number))
        leaves: list[Any] = []
        about = {**self._about, "key": number, "level": level}
        header = json.dumps({**about, "message": _structure(message, leaves)}).encode()
        _write_whole(self._level(number, level), _pieces(header, leaves))

    def complete(self, number: int) -> None:
        key = self._key(number)
        _write_whole(key / _COMPLETE, [json.dumps(sorted(self.levels(number))).encode()])
        _sync_folder(key)

    def open(self, number: int) -> dict[int, Callable[[], Message]]:
        marker, files = self._key(number) / _COMPLETE, {}
        try:
            levels = [operator.index(level) for level in json.loads(marker.read_bytes())]
        except (ValueError, TypeError) as error:
            raise _damaged(marker, "it cannot be read") from error
        for level in levels:
            try:
                files[level] = _LevelFile(self._level(number, level))
            except FileNotFoundError as error:
                raise _damaged(self._level(number, level), "it is missing") from error
            files[level].check({**self._about, "key": number, "level": level})
        return {level: file.load for level, file in files.items()}

    def remove_up_to(self, number: int) -> None:
        for other in self.numbers():
            if other <= number:
                shutil.rmtree(self._key(other))

    def _key(self, number: int) -> pathlib.Path:
        return self._folder / f"key_{number:010d}"

    def _level(self, number: int, level: int) -> pathlib.Path:
        return self._key(number) / f"level_{level:04d}"


class _DamagedKeyError(ProtocolError):
    """A file of a key that is not as it was written."""


def _damaged(path: pathlib.Path, what: str) -> _DamagedKeyError:
    return _DamagedKeyError(
        f"{path} is damaged ({what}): its key is of no use and counts as used; run again with the "
        "next key"
    )


class _LevelFile:
    """An open file of one level, whose name may be gone: prefix, JSON header, arrays, digest."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file = io.FileIO(path)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def check(self, about: Mapping[str, Any]) -> None:
        """That the file is whole in length, and of this program, session, key and level."""
        size, version, header = self._header()
        if version != _VERSION:
            self._contents(size)  # or rather damaged?
            raise ProtocolError(
                f"{self._path} is of version {version} of the format, this program reads version "
                f"{_VERSION}: make the keys anew in another folder"
            )
        for name, wanted in about.items():
            if header.get(name) != wanted:
                self._contents(size)
                raise ProtocolError(
                    f"{self._path} is of {name} '{_short(header.get(name))}', not "
                    f"'{_short(wanted)}': use it with its own, or make keys in another folder"
                )

    def load(self) -> Message:
        """The message; closes the file."""
        with _storing(f"{self._path} cannot be read"):
            size, _, header = self._header()
            contents = self._contents(size)
        self._file.close()
        position = _padded(_PREFIX.size + self._header_bytes)

        def next_bytes(n_bytes: int) -> np.ndarray:
            nonlocal position
            start, position = position, position + _padded(n_bytes)
            return contents[start : start + n_bytes]

        return _rebuilt(header["message"], next_bytes)

    def _header(self) -> tuple[int, int, dict[str, Any]]:
        """Bytes of the file, version of the format, and the header (of this version only)."""
        self._file.seek(0)
        prefix = self._file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
            raise _damaged(self._path, "it does not begin as a key does")
        _, version, self._header_bytes, size = _PREFIX.unpack(prefix)
        found = os.fstat(self._file.fileno()).st_size
        if found != size:
            raise _damaged(self._path, f"{found} bytes instead of {size}")
        if version != _VERSION:
            return size, version, {}
        try:
            header = json.loads(self._file.read(self._header_bytes))
        except (ValueError, RecursionError) as error:
            raise _damaged(self._path, "its header cannot be read") from error
        if not isinstance(header, dict):
            raise _damaged(self._path, "its header cannot be read")
        return size, version, header

    def _contents(self, size: int) -> np.ndarray:
        """uint8 [size - digest], aligned: all but the digest, which is checked."""
        room = np.empty(size + _ALIGNMENT, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT
        buffer = room[start : start + size]
        end, digest, position = size - _DIGEST_BYTES, hashlib.sha256(), 0
        self._file.seek(0)
        while position < size:
            n_read = self._file.readinto(buffer[position : position + _CHUNK].data)
            if not n_read:
                break
            digest.update(buffer[position : min(position + n_read, end)].data)
            position += n_read
        if digest.digest() != buffer[max(end, 0) :].tobytes():
            raise _damaged(self._path, "its checksum is wrong")
        return buffer[:end]


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def _structure(message: Message, leaves: list[Any]) -> Any:
    """`message` as JSON, its arrays as types and shapes; appends the arrays to `leaves`."""
    if type(message) is dict:
        for key in message:
            if type(key) is not str:
                raise ProtocolError(f"a key's dicts have strings as keys, not {key!r}")
        return {"dict": [[key, _structure(part, leaves)] for key, part in message.items()]}
    if type(message) in (tuple, list):
        return {type(message).__name__: [_structure(part, leaves) for part in message]}
    if isinstance(message, (np.ndarray, np.generic, jax.Array)):
        kind = message.dtype
        name = kind.newbyteorder("<").str if isinstance(kind, np.dtype) else ""
        if name in _TYPES:
            leaves.append(message)
            return {"array": [name, list(message.shape)]}
        raise ProtocolError(f"a key cannot hold an array of {kind}")
    raise ProtocolError(f"a key holds dicts, tuples, lists and arrays, no {type(message).__name__}")


def _rebuilt(structure: Any, next_bytes: Callable[[int], np.ndarray]) -> Message:
    ((form, parts),) = structure.items()
    if form == "dict":
        return {key: _rebuilt(part, next_bytes) for key, part in parts}
    if form in ("tuple", "list"):
        items = [_rebuilt(part, next_bytes) for part in parts]
        return tuple(items) if form == "tuple" else items
    kind, shape = np.dtype(parts[0]), parts[1]
    array = next_bytes(kind.itemsize * math.prod(shape)).view(kind).reshape(shape)
    return array.astype(kind.newbyteorder("="), copy=False)


def _pieces(header: bytes, leaves: list[Any]) -> Iterator[Any]:
    """A level's file: everything begins at a multiple of the alignment, the digest comes last."""
    sizes = [_PREFIX.size + len(header), *(leaf.size * leaf.dtype.itemsize for leaf in leaves)]
    size = sum(map(_padded, sizes)) + _DIGEST_BYTES
    digest = hashlib.sha256()
    for part in (_PREFIX.pack(_MAGIC, _VERSION, len(header), size) + header, *leaves):
        if not isinstance(part, bytes):
            order = part.dtype.newbyteorder("<")
            part = np.asarray(part, dtype=order, order="C").reshape(-1).view(np.uint8)
        for start in range(0, len(part), _CHUNK):
            digest.update(part[start : start + _CHUNK])
            yield part[start : start + _CHUNK]
        padding = bytes(_padded(len(part)) - len(part))
        digest.update(padding)
        yield padding
    yield digest.digest()


# --- files


def _checked_number(number: SupportsIndex, what: str = "key number") -> int:
    value = operator.index(number)
    if not 0 <= value < 10**_MAX_DIGITS:
        raise ProtocolError(f"{what} {value}: expected 0 to 10^{_MAX_DIGITS} - 1")
    return value


def _largest_line(beginning: bytes) -> bytes | None:
    """The line of the largest number that begins so; None if none does."""
    n_digits, digits = beginning[:1].ljust(1, b"\0")[0] - 96, beginning[1:]
    if not 1 <= n_digits <= _MAX_DIGITS or len(digits) > n_digits:
        return None
    if digits and (not digits.isdigit() or (digits[:1] == b"0" and n_digits > 1)):
        return None
    return beginning + b"9" * (n_digits - len(digits))


def _short(name: Any) -> str:
    return str(name) if len(str(name)) <= 12 else f"{str(name)[:12]}…"


def _numbered(folder: pathlib.Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers in the names of what is in `folder`; none if it is missing."""
    try:
        matches = [pattern.fullmatch(name) for name in os.listdir(folder)]
    except FileNotFoundError:
        return []
    return [int(match[1]) for match in matches if match]


def _prepare_store_folder(folder: pathlib.Path) -> None:
    """Makes `folder` or, if it is empty or a store, closes it to others."""
    if not folder.exists():
        return _make_folder(folder)
    others = [n for n in os.listdir(folder) if n != "ledger.lock" and not n.endswith(_PARTIAL)]
    if others and not (folder / "ledger").exists():
        raise ProtocolError(
            f"{folder} has files but no ledger of used keys: name a new folder (keys without their "
            "ledger are of no use)"
        )
    os.chmod(folder, 0o700)


def _make_folder(folder: pathlib.Path) -> None:
    """Makes `folder` and those above it, on disk before this returns."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_whole(path: pathlib.Path, pieces: Iterable[Any]) -> None:
    """Writes a file whole or not at all; the folder's entry is the caller's to sync."""
    partial = path.with_name(path.name + _PARTIAL)
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
def _file_lock(path: pathlib.Path) -> Iterator[None]:
    """Shuts out other threads and processes until the end of the block, or of this process."""
    if fcntl is None:
        raise StorageError(f"{path}: keys on disk need a POSIX system (flock); keep them in memory")
    with _storing(f"{path} cannot be locked"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with _storing(f"{path} cannot be locked"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{what} ({reason}); see to the disk's space and permissions") from error
