"""Adds and takes away the expansions of many seeds: the masks of a pairwise-masked sum.

The vector is walked through once, a piece at a time, and every seed's stream meets the piece while
it lies in the processor's cache; no stream ever stands in memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from primia_jax.mpc import prg, ring, sharing

_PIECE = 1 << 15  # elements: 256 KB, and as much of a stream


def mask(words: Any, plus: Sequence[np.ndarray] = (), minus: Sequence[np.ndarray] = ()) -> Any:
    """words + Σ expand(plus_j) − Σ expand(minus_j) modulo 2^64, see `prg.expand`.

    Args:
      words: uint64 [n]; consumed: a NumPy array that may be written to is overwritten.
      plus: seeds, uint8 [32] each, none of them expanded for any other purpose.
      minus: seeds likewise.

    Returns:
      uint64 [n].
    """
    words = ring.checked(words)
    if not (isinstance(words, np.ndarray) and words.flags.writeable):
        return sharing.sum_of_shares(sharing.own_share(words, minus), plus)
    streams: list[tuple[Any, Any]] = [(np.add, prg.encryptor(seed)) for seed in plus]
    streams += [(np.subtract, prg.encryptor(seed)) for seed in minus]
    zeros = np.zeros(8 * min(_PIECE, len(words)), np.uint8)
    stream = np.empty_like(zeros)
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE]
        n_bytes = 8 * len(piece)
        for operation, cipher in streams:
            cipher.update_into(zeros[:n_bytes].data, stream[:n_bytes].data)
            operation(piece, stream[:n_bytes].view("<u8"), out=piece)
    return words
