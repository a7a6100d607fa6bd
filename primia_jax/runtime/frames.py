"""Messages between two parties as sealed frames: who carries them can neither read nor alter them.

A message is packed into one run of bytes, and sealed by AES-256-GCM (NIST SP 800-38D), which
processors with AES instructions compute several times faster than ChaCha20-Poly1305. Each
direction of each link has a key of its own, which HKDF derives from an X25519 agreement, the
session's transcript and both names. The nonce counts the frames of a direction over the whole
session, so it never repeats under its key; the message's place in its run is authenticated with it.

A message for several parties is sealed once, under a fresh key; each receiver is sent that key and
the digest of the sealed bytes, so that another receiver, who has the key too, cannot change them.

What this protects against: whoever sees or changes frames on their way, and other parties of the
run. The agreement is signed by every party's long-lived key (`core.identity`), so whoever carries
it, the driver for instance, cannot put its own keys in. It could only where a party meets a peer
for the first time and no fingerprint is pinned.

Packing is free of pickle on purpose. A seal proves who sent a frame, not that the sender is
honest, and the parties of a protocol need not trust one another with running code: unpickling what
an authentic sender chose would let it do just that. A frame describes its tree in JSON; a
NamedTuple is rebuilt by a class of its name that the receiver has imported already, or not at all.

    payload = length of head (4 bytes) | head (JSON: tree, types, shapes) | arrays, each from a
              multiple of 64 bytes on
"""

import hashlib
import hmac
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from primia_jax.core import identity
from primia_jax.errors import ProtocolError

_ALIGNMENT = 64
_LENGTH = struct.Struct("<I")
_NONCE = struct.Struct("<IQ")  # zero, number of the frame: 96 bits
_MALFORMED = (
    *(ValueError, TypeError, LookupError, AttributeError, OverflowError),
    *(RecursionError, StopIteration, struct.error),
)
_TAG_BYTES = 16
_KEY_BYTES = 32
_PURPOSE = "sealed frames"
_LONGEST = 2**31 - 1  # bytes that the cipher takes at once


class Seals:
    """One party's keys: two for each peer, to seal with and to open with, agreed on in a session.

    Every party calls `sign` with everybody's `hello`, then `agree` with everybody's signature.
    """

    def __init__(self, me: str, credentials: identity.Credentials | None = None):
        """Draws a fresh key pair; without credentials those of a party that has met nobody."""
        self._me = me
        self._handshake = identity.Handshake(credentials or identity.ephemeral(me))
        self._seal: dict[str, AESGCM] = {}
        self._open: dict[str, AESGCM] = {}
        self._sealed: dict[str, int] = {}  # frames so far
        self._opened: dict[str, int] = {}  # number of the last frame

    @property
    def hello(self) -> bytes:
        """Public keys of this party for its peers, 96 bytes."""
        return self._handshake.hello

    def sign(self, hellos: Mapping[str, bytes]) -> bytes:
        """Signature over the hellos of all parties, this one's included, 64 bytes.

        Raises:
          ProtocolError: if a party is not the one that is pinned, or two show the same key.
        """
        return self._handshake.sign(hellos)

    def agree(self, signatures: Mapping[str, bytes]) -> None:
        """Derives the keys of all links, once; `signatures` are everybody's.

        Raises:
          ProtocolError: for a signature that does not fit the hellos, or a key that is none.
        """
        if self._seal:
            raise ProtocolError(f"{self._me} has agreed on keys already")
        session = self._handshake.finish(signatures)
        for peer in session.secrets:
            self._seal[peer] = AESGCM(session.key(_PURPOSE, self._me, peer))
            self._open[peer] = AESGCM(session.key(_PURPOSE, peer, self._me))
            self._sealed[peer] = self._opened[peer] = 0

    def seal(self, to: str, payload: np.ndarray, associated: bytes) -> tuple[int, np.ndarray]:
        """Seals uint8 [n]: the number and the bytes, uint8 [n + 16], of a frame for `to` alone.

        Raises:
          ProtocolError: for more than 2 GiB.
        """
        if payload.size > _LONGEST - _TAG_BYTES:
            raise ProtocolError(
                f"{self._me} to {to}: a message of {payload.size} bytes; send it in parts of less "
                "than 2 GiB"
            )
        self._sealed[to] += 1
        number = self._sealed[to]
        frame = _aligned(payload.size + _TAG_BYTES)
        self._seal[to].encrypt_into(_NONCE.pack(0, number), payload.data, associated, frame.data)
        return number, frame

    def open(self, sender: str, number: int, frame: np.ndarray, associated: bytes) -> np.ndarray:
        """The payload of the frame, uint8 [n].

        Raises:
          ProtocolError: if it was altered, cut short, seen before, or not sealed by `sender` for
            this party, at this place.
        """
        if number <= self._opened[sender]:
            raise ProtocolError(f"{sender} to {self._me}: a frame came twice or out of its order")
        payload = _aligned(max(0, frame.size - _TAG_BYTES))
        try:
            nonce = _NONCE.pack(0, number)
            self._open[sender].decrypt_into(nonce, frame.data, associated, payload.data)
        except (InvalidTag, ValueError, TypeError, struct.error):
            raise ProtocolError(
                f"{sender} to {self._me}: a frame is not authentic, or not the one due here"
            ) from None
        self._opened[sender] = number
        return payload


def seal_for_several(payload: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Seals uint8 [n] under a fresh key.

    Returns:
      opener: uint8 [64], to be sealed for each receiver.
      content: uint8 [n + 16], which anyone may carry.

    Raises:
      ProtocolError: for more than 2 GiB.
    """
    if payload.size > _LONGEST - _TAG_BYTES:
        raise ProtocolError(
            f"a message of {payload.size} bytes; send it in parts of less than 2 GiB"
        )
    key, content = AESGCM.generate_key(8 * _KEY_BYTES), _aligned(payload.size + _TAG_BYTES)
    AESGCM(key).encrypt_into(_NONCE.pack(0, 0), payload.data, b"", content.data)
    opener = key + hashlib.sha256(content.data).digest()
    return np.frombuffer(opener, np.uint8), content


def open_for_several(opener: np.ndarray, content: np.ndarray) -> np.ndarray:
    """The payload of `seal_for_several`, uint8 [n].

    Raises:
      ProtocolError: if `content` is not what the sender of `opener` sealed.
    """
    key, digest = opener[:_KEY_BYTES].tobytes(), opener[_KEY_BYTES:].tobytes()
    try:
        content = np.ascontiguousarray(content, np.uint8)
        payload = _aligned(max(0, content.size - _TAG_BYTES))
        if not hmac.compare_digest(hashlib.sha256(content.data).digest(), digest):
            raise ValueError("other bytes were sealed")
        AESGCM(key).decrypt_into(_NONCE.pack(0, 0), content.data, b"", payload.data)
    except (InvalidTag, ValueError, TypeError):
        raise ProtocolError(
            "a message for several parties is not authentic, or not the one due here"
        ) from None
    return payload


def pack(message: Any) -> np.ndarray:
    """uint8 [n] for a tree of dicts, lists, tuples and NamedTuples of arrays.

    Raises:
      ProtocolError: for any other kind of node, or an array of Python objects.
    """
    arrays: list[np.ndarray] = []
    tree = _described(message, arrays)
    head = json.dumps([tree, [[_type_name(a.dtype), a.shape] for a in arrays]]).encode()
    starts, end = [], _LENGTH.size + len(head)
    for array in arrays:
        starts.append(end + -end % _ALIGNMENT)
        end = starts[-1] + array.nbytes
    payload = _aligned(end)
    text = _LENGTH.pack(len(head)) + head
    filled = len(text)
    payload[:filled] = np.frombuffer(text, np.uint8)
    for start, array in zip(starts, arrays):
        payload[filled:start] = 0
        filled = start + array.nbytes
        payload[start:filled] = array.reshape(-1).view(np.uint8)
    return payload


def unpack(payload: np.ndarray) -> Any:
    """The message of `pack`; its arrays are NumPy's, read-only, and share the payload's memory.

    Raises:
      ProtocolError: if `payload` is not of that form.
    """
    payload = payload.view()
    payload.flags.writeable = False
    try:
        (length,) = _LENGTH.unpack_from(payload.data)
        end = _LENGTH.size + length
        tree, kinds = json.loads(payload[_LENGTH.size : end].tobytes())
        arrays: list[np.ndarray] = []
        for name, shape in kinds:
            dtype, start = _named_type(name), end + -end % _ALIGNMENT
            if not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"an array of shape {shape}")
            arrays.append(np.ndarray(shape, dtype, payload.data, start))
            end = start + arrays[-1].nbytes
        left = iter(arrays)
        message = _rebuilt(tree, left)
        if end != payload.size or next(left, None) is not None:
            raise ValueError("there is more than the head tells of")
    except _MALFORMED as error:
        raise ProtocolError(f"a message that cannot be unpacked: {error}") from None
    return message


def _aligned(size: int) -> np.ndarray:
    """uint8 [size], not set, on a multiple of 64 bytes: XLA takes arrays there without a copy.

    Large ones come in huge pages, which `bytes` do not: that halves the time of getting them.
    """
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size]


def _type_name(dtype: np.dtype) -> str:
    if dtype.hasobject or dtype.names or dtype.subdtype or not dtype.itemsize:
        raise ProtocolError(f"a sealed message may not hold arrays of type {dtype}")
    return dtype.name if dtype.kind == "V" else dtype.str  # bfloat16 and its like: by name


def _named_type(name: str) -> np.dtype:
    dtype = np.dtype(str(name))
    if dtype.hasobject or dtype.names or dtype.subdtype or not dtype.itemsize:
        raise ValueError(f"arrays of type {name}")
    return dtype


def _described(node: Any, arrays: list[np.ndarray]) -> Any:
    """The tree of `node` in JSON; adds its arrays to `arrays`."""
    if isinstance(node, (np.ndarray, np.generic, jax.Array)):
        arrays.append(np.asarray(node, order="C"))
        return None
    kind = type(node)
    if kind is dict:
        for key in node:
            if type(key) not in (str, int):
                raise ProtocolError(
                    f"a sealed message has the key {key!r}: keys must be text or whole numbers"
                )
        return {"dict": [[key, _described(child, arrays)] for key, child in node.items()]}
    if kind is list or kind is tuple:
        return {kind.__name__: [_described(child, arrays) for child in node]}
    if _is_named_tuple(kind):
        name = [kind.__module__, kind.__qualname__, list(kind._fields)]
        return {"named": name, "of": [_described(child, arrays) for child in node]}
    raise ProtocolError(
        f"a sealed message holds a {kind.__name__}: only dict, list, tuple and NamedTuple may be"
    )


def _rebuilt(tree: Any, arrays: Iterator[np.ndarray]) -> Any:
    if tree is None:
        return next(arrays)
    if "dict" in tree:
        return {key: _rebuilt(child, arrays) for key, child in tree["dict"]}
    if "list" in tree:
        return [_rebuilt(child, arrays) for child in tree["list"]]
    if "tuple" in tree:
        return tuple([_rebuilt(child, arrays) for child in tree["tuple"]])
    module, name, fields = tree["named"]
    kind: Any = sys.modules.get(module)  # imports nothing
    for part in name.split("."):
        kind = getattr(kind, part, None)
    if not _is_named_tuple(kind) or list(kind._fields) != fields:
        raise ValueError(f"the receiver knows no NamedTuple {module}.{name}({', '.join(fields)})")
    return kind._make([_rebuilt(child, arrays) for child in tree["of"]])


def _is_named_tuple(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")
