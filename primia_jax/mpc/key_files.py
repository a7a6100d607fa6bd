"""The file of one level of a key: a prefix, a JSON header, the arrays, a digest; no pickle."""

import hashlib
import io
import math
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from primia_jax.core.names import shortened
from primia_jax.core.storage import parse_json, storing
from primia_jax.errors import ProtocolError

Message = Any  # nested dicts (with strings as keys), tuples and lists of arrays

_MAGIC, _VERSION = b"PRIMIAKY", 1
_PREFIX = struct.Struct("<8sIIQ")  # magic, version, bytes of the JSON header, bytes of the file
_ALIGNMENT = 64  # of every array in the file and in memory, as XLA likes it
_DIGEST_BYTES = 32
_CHUNK = 1 << 20  # bytes that are hashed while they are in the processor's cache
_TYPES = frozenset(
    np.dtype(kind).newbyteorder("<").str
    for kind in ("?", *"bhiq", *"BHIQ", "f2", "f4", "f8", "c8", "c16")
)


class DamagedKeyError(ProtocolError):
    """A file of a key that is not as it was written."""


def damaged(path: pathlib.Path, what: str) -> DamagedKeyError:
    """The error that says what is wrong with a file, and what to do."""
    return DamagedKeyError(
        f"{path} is damaged ({what}): its key is of no use and counts as used; run again with the "
        "next key"
    )


class LevelFile:
    """An open file of one level, whose name may be gone: prefix, JSON header, arrays, digest."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file = io.FileIO(path)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def check(self, about: Mapping[str, Any]) -> None:
        """Checks that the file is whole in length, and of this program, session, key and level."""
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
                    f"{self._path} is of {name} '{shortened(header.get(name))}', not "
                    f"'{shortened(wanted)}': use it with its own, or make keys in another folder"
                )

    def load(self) -> Message:
        """The message; closes the file."""
        with storing(f"{self._path} cannot be read"):
            size, _, header = self._header()
            contents = self._contents(size)
        self._file.close()
        position = _padded(_PREFIX.size + self._header_bytes)

        def next_bytes(n_bytes: int) -> np.ndarray:
            nonlocal position
            start, position = position, position + _padded(n_bytes)
            return contents[start : start + n_bytes]

        return rebuilt(header["message"], next_bytes)

    def _header(self) -> tuple[int, int, dict[str, Any]]:
        """Bytes of the file, version of the format, and the header (of this version only)."""
        self._file.seek(0)
        prefix = self._file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
            raise damaged(self._path, "it does not begin as a key does")
        _, version, self._header_bytes, size = _PREFIX.unpack(prefix)
        n_bytes = os.fstat(self._file.fileno()).st_size
        if n_bytes != size:
            raise damaged(self._path, f"{n_bytes} bytes instead of {size}")
        if version != _VERSION:
            return size, version, {}
        try:
            header = parse_json(self._file.read(self._header_bytes))
        except ValueError as error:
            raise damaged(self._path, "its header cannot be read") from error
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
            raise damaged(self._path, "its checksum is wrong")
        return buffer[:end]


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def structure_of(message: Message, leaves: list[Any]) -> Any:
    """`message` as JSON, its arrays as types and shapes; appends the arrays to `leaves`."""
    if type(message) is dict:
        for key in message:
            if type(key) is not str:
                raise ProtocolError(f"a key's dicts have strings as keys, not {key!r}")
        return {"dict": [[key, structure_of(part, leaves)] for key, part in message.items()]}
    if type(message) in (tuple, list):
        return {type(message).__name__: [structure_of(part, leaves) for part in message]}
    if isinstance(message, (np.ndarray, np.generic, jax.Array)):
        kind = message.dtype
        name = kind.newbyteorder("<").str if isinstance(kind, np.dtype) else ""
        if name in _TYPES:
            leaves.append(message)
            return {"array": [name, list(message.shape)]}
        raise ProtocolError(f"a key cannot hold an array of {kind}")
    raise ProtocolError(f"a key holds dicts, tuples, lists and arrays, no {type(message).__name__}")


def rebuilt(structure: Any, next_bytes: Callable[[int], np.ndarray]) -> Message:
    """The inverse of `structure_of`; `next_bytes` gives the arrays' bytes in their order."""
    ((form, parts),) = structure.items()
    if form == "dict":
        return {key: rebuilt(part, next_bytes) for key, part in parts}
    if form in ("tuple", "list"):
        items = [rebuilt(part, next_bytes) for part in parts]
        return tuple(items) if form == "tuple" else items
    kind, shape = np.dtype(parts[0]), parts[1]
    array = next_bytes(kind.itemsize * math.prod(shape)).view(kind).reshape(shape)
    return array.astype(kind.newbyteorder("="), copy=False)


def file_pieces(header: bytes, leaves: list[Any]) -> Iterator[Any]:
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
