"""Rings Z_2^n: unsigned words that wrap around.

A signed value v with |v| < 2^(n-1) stands for itself modulo 2^n (two's complement). Secure
aggregation computes in Z_2^64 or Z_2^32, encrypted inference in Z_2^n with n up to 32 in 32-bit
words or in Z_2^64. Sums and products of 32-bit words wrap modulo 2^32, a multiple of 2^n: bits
above the n-th mean nothing, and are cut off only where they would matter (`low_bits`, `signed`,
`pack`).
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ProtocolError

N_BITS = 64
HALF = 1 << (N_BITS - 1)


@contextlib.contextmanager
def x64() -> Iterator[None]:
    """The context in which JAX keeps 64-bit words; outside it they are cut to 32 bits silently."""
    with jax.enable_x64(True):
        yield


def x64_steps(program: Any) -> Any:
    """Makes each step of a party program run inside `x64()`, and what is between them outside.

    JAX keeps the width of words for each thread, not for each generator: a `with x64()` around a
    `yield` would hold until that program goes on, and programs end in any order.
    """

    @functools.wraps(program)
    def steps(*args: Any, **kwargs: Any) -> Any:
        inner, message = program(*args, **kwargs), None
        try:
            while True:
                try:
                    with x64():
                        event = inner.send(message)
                except StopIteration as stop:
                    return stop.value
                message = yield event
        finally:
            inner.close()

    return steps


def checked(words: Any, *widths: int) -> Any:
    """`words` if they are unsigned ones of 64 bits, or of one of `widths` where any are given.

    Raises:
      ProtocolError: for another type, such as the 32-bit words that JAX makes outside `x64()`.
    """
    allowed = [f"uint{width}" for width in widths or (N_BITS,)]
    if str(words.dtype) not in allowed:
        raise ProtocolError(
            f"ring elements must be {' or '.join(allowed)}, not {words.dtype}: "
            "work inside ring.x64()"
        )
    return words


def is_vector(message: Any, length: int, n_bits: int = N_BITS) -> bool:
    """True if a message is `length` words of n bits."""
    shape, kind = (getattr(message, name, None) for name in ("shape", "dtype"))
    return shape == (length,) and kind == word_type(n_bits)


def to_signed(words: Any, n_bits: int = N_BITS) -> Any:
    """uint64 [...] -> int64 [...]: the representative in [-2^63, 2^63); or of 32 bits."""
    words = checked(words, n_bits)
    if isinstance(words, (np.ndarray, np.generic)):
        return words.view(f"i{n_bits // 8}")
    return jax.lax.bitcast_convert_type(words, f"int{n_bits}")


def from_signed(values: Any) -> Any:
    """int64 [...] -> uint64 [...], int32 [...] -> uint32 [...]."""
    kind = np.dtype(f"u{values.dtype.itemsize}")
    if isinstance(values, (np.ndarray, np.generic)):
        return values.view(kind)
    return jax.lax.bitcast_convert_type(values, kind)


def word_type(n_bits: int) -> Any:
    """The type of the words of Z_2^n."""
    return np.uint32 if n_bits <= 32 else np.uint64


def word_bits(n_bits: int) -> int:
    """32 or 64: the bits of a word of Z_2^n."""
    return 8 * np.dtype(word_type(n_bits)).itemsize


def low_bits(words: Any, n_bits: int) -> Any:
    """`words` modulo 2^n."""
    if n_bits >= 8 * words.dtype.itemsize:
        return words
    return words & words.dtype.type((1 << n_bits) - 1)


def signed(words: Any, n_bits: int) -> Any:
    """Words -> int32 or int64 of the same width: the representative in [-2^(n-1), 2^(n-1))."""
    width = 8 * words.dtype.itemsize
    target = jnp.int32 if width == 32 else jnp.int64
    values = jax.lax.bitcast_convert_type(words, target)
    spare = width - n_bits
    return (values << spare) >> spare if spare else values


def packed_type(n_bits: int) -> tuple[Any, int]:
    """Type in which an n-bit word travels, and the number of them a word takes."""
    for bits, kind in ((8, np.uint8), (16, np.uint16)):
        if n_bits <= bits:
            return kind, 1
    if n_bits <= 24:
        return np.uint8, 3
    return (np.uint32, 1) if n_bits <= 32 else (np.uint64, 1)


def packed_bytes(n_bits: int) -> int:
    """Bytes of an n-bit word on its way."""
    kind, pieces = packed_type(n_bits)
    return np.dtype(kind).itemsize * pieces


def pack(words: Any, n_bits: int) -> Any:
    """Words [m] -> what travels: whole bytes, nothing of the bits above the n-th.

    Returns:
      uint8 [m], uint16 [m], uint8 [3m], uint32 [m] or uint64 [m], see `packed_type`.
    """
    words = low_bits(words, n_bits)
    kind, pieces = packed_type(n_bits)
    if pieces == 1:
        return words.astype(kind)
    return jax.lax.bitcast_convert_type(words, jnp.uint8)[:, :pieces].reshape(-1)


def unpack(packed: Any, n_bits: int) -> Any:
    """The inverse of `pack`, words [m]."""
    kind, pieces = packed_type(n_bits)
    if packed.dtype != kind:
        raise ProtocolError(f"{n_bits}-bit words travel as {np.dtype(kind)}, not {packed.dtype}")
    if pieces == 1:
        return packed.astype(word_type(n_bits))
    parts = packed.reshape(-1, pieces).astype(jnp.uint32)
    return parts[:, 0] | (parts[:, 1] << 8) | (parts[:, 2] << 16)


def pack_bits(bits: Any) -> Any:
    """uint8 [m] of zeros and ones -> uint8 [ceil(m / 8)], the first bit lowest."""
    return jnp.packbits(bits, bitorder="little")


def unpack_bits(packed: Any, count: int) -> Any:
    """The inverse of `pack_bits`, uint8 [count]."""
    return jnp.unpackbits(packed, count=count, bitorder="little")
