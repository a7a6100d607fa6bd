"""The ring Z_2^64: unsigned words that wrap around.

A signed value v with |v| < 2^63 stands for itself modulo 2^64 (two's complement).
"""

import contextlib
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


def checked(words: Any) -> Any:
    """`words` if they are 64-bit unsigned ones.

    Raises:
      ProtocolError: for another type, such as the 32-bit words that JAX makes outside `x64()`.
    """
    if words.dtype != np.uint64:
        raise ProtocolError(
            f"ring elements must be uint64, not {words.dtype}: work inside ring.x64()"
        )
    return words


def to_signed(words: Any) -> Any:
    """uint64 [...] -> int64 [...]: the representative in [-2^63, 2^63)."""
    words = checked(words)
    if isinstance(words, (np.ndarray, np.generic)):
        return words.view(np.int64)
    return jax.lax.bitcast_convert_type(words, jnp.int64)


def from_signed(values: Any) -> Any:
    """int64 [...] -> uint64 [...]."""
    if isinstance(values, (np.ndarray, np.generic)):
        return values.view(np.uint64)
    return jax.lax.bitcast_convert_type(values, jnp.uint64)
