"""Words of Z_L, L = 2^l, and elements of the odd ring Z_(L-1), which are words below L - 1.

All are uint64 [n]; l is at most 64. Arithmetic is NumPy's: it wraps modulo 2^64 with or without
`ring.x64()`.
"""

from typing import Any

import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import ring
from primia_jax.mpc.protocols.parties import SharedStream


def checked(share: Any, n: int, n_bits: int) -> np.ndarray:
    """A server's share, if it is one of n elements."""
    words = ring.checked(np.asarray(share))
    if words.shape != (n,) or not n:
        raise ProtocolError(f"a share of {n} elements, at least one, has shape {words.shape}")
    if n_bits < 64 and np.any(words > top(n_bits)):
        raise ProtocolError(f"a share is wider than {n_bits} bits")
    return words


def low(words: Any, n_bits: int) -> np.ndarray:
    """`words` modulo L."""
    return ring.low_bits(np.asarray(words), n_bits)


def wraps(a: np.ndarray, b: np.ndarray, n_bits: int) -> np.ndarray:
    """uint64 [n]: 1 where a + b >= L."""
    return (low(a + b, n_bits) < a).astype(np.uint64)


def top(n_bits: int) -> np.uint64:
    """L - 1."""
    return np.uint64((1 << n_bits) - 1)


def odd_sum(a: np.ndarray, b: np.ndarray, n_bits: int) -> np.ndarray:
    """a + b in Z_(L-1)."""
    total = low(a + b, n_bits)
    total += total < a  # L is 1
    total[total == top(n_bits)] = 0
    return total


def odd_difference(a: Any, b: np.ndarray, n_bits: int) -> np.ndarray:
    """a - b in Z_(L-1)."""
    return low(low(a - b, n_bits) - (a < b), n_bits)


def odd(words: np.ndarray, n_bits: int) -> np.ndarray:
    """Words of Z_L as elements of Z_(L-1)."""
    return np.where(words == top(n_bits), np.uint64(0), words)


def odd_words(stream: SharedStream, n: int, n_bits: int) -> np.ndarray:
    """Uniform elements [n] of Z_(L-1)."""
    words = low(stream.words(n), n_bits)
    while len(places := np.flatnonzero(words == top(n_bits))):
        words[places] = low(stream.words(len(places)), n_bits)
    return words


def shares(stream: SharedStream, values: Any, n_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares over Z_L of words [n]."""
    first = low(stream.words(len(values)), n_bits)
    return first, low(values - first, n_bits)


def odd_shares(stream: SharedStream, values: Any, n_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares over Z_(L-1) of elements [n]."""
    first = odd_words(stream, len(values), n_bits)
    return first, odd_difference(values, first, n_bits)
