"""Adds and takes away the expansions of many seeds: the masks of a pairwise-masked sum.

The vector is walked through once, a piece at a time, and every seed's stream meets the piece while
it lies in the processor's cache; no stream ever stands in memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from primia_jax.mpc import prg, ring

_PIECE = 1 << 18  # bytes, and as much of a stream


def mask(words: Any, plus: Sequence[np.ndarray] = (), minus: Sequence[np.ndarray] = ()) -> Any:
    """words + Σ expand(plus_j) − Σ expand(minus_j) modulo 2^64 or 2^32, see `prg.expand`.

    Args:
      words: uint64 or uint32 [n]; consumed: a NumPy array that may be written to is overwritten.
      plus: seeds, uint8 [32] each, none of them expanded for any other purpose.
      minus: seeds likewise.

    Returns:
      Words [n] of the same type.
    """
    words = ring.checked(words, 32, 64)
    if not (isinstance(words, np.ndarray) and words.flags.writeable):
        return _whole(words, plus, minus)
    streams: list[tuple[Any, Any]] = [(np.add, prg.encryptor(seed)) for seed in plus]
    streams += [(np.subtract, prg.encryptor(seed)) for seed in minus]
    zeros = np.zeros(min(_PIECE, words.nbytes), np.uint8)
    stream = np.empty_like(zeros)
    per_piece = _PIECE // words.itemsize
    for start in range(0, len(words), per_piece):
        piece = words[start : start + per_piece]
        for operation, cipher in streams:
            cipher.update_into(zeros[: piece.nbytes].data, stream[: piece.nbytes].data)
            operation(piece, stream[: piece.nbytes].view(prg.little(words.dtype)), out=piece)
    return words


def _whole(words: Any, plus: Sequence[np.ndarray], minus: Sequence[np.ndarray]) -> Any:
    """Masks words that cannot be overwritten: JAX's, and read-only ones."""
    with ring.x64():
        for seed in plus:
            words = words + prg.expand(seed, words.shape[0], words=words.dtype)
        for seed in minus:
            words = words - prg.expand(seed, words.shape[0], words=words.dtype)
    return words
