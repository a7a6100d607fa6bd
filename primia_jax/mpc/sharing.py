"""Additive sharing in Z_2^64: x = Σ_j x_j mod 2^64, any proper subset of the x_j being uniform.

Shares are compressed: every other party's share is the expansion of a 32-byte seed, so that the
dealer sends seeds, and only its own share is as long as the secret.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from primia_jax.mpc import prg, ring


def own_share(secret: Any, seeds: Sequence[Any]) -> Any:
    """The dealer's own share: secret − Σ_j expand(seed_j), uint64 [n].

    Args:
      secret: uint64 [n]; consumed: its memory may be reused for the share.
      seeds: one fresh seed (uint8 [32]) for each of the other parties.
    """
    share = ring.checked(secret)
    for seed in seeds:
        share = _subtract(share, prg.expand(seed, share.shape[0]))
    return share


def sum_of_shares(own: Any, seeds: Sequence[Any]) -> Any:
    """own + Σ_i expand(seed_i): the sum of all shares that one party holds, uint64 [n].

    Args:
      own: uint64 [n]; consumed.
      seeds: the seeds received from the other dealers.
    """
    total = ring.checked(own)
    for seed in seeds:
        total = _add(total, prg.expand(seed, total.shape[0]))
    return total


def reconstruct(shares: Iterable[Any]) -> Any:
    """Σ_j x_j mod 2^64, uint64 [n]; the shares are left as they are."""
    total = None
    for share in shares:
        if total is None:
            total = np.array(share) if isinstance(share, np.ndarray) else ring.checked(share)
        else:
            total = _add(total, ring.checked(share))
    return total


def _add(left: Any, right: Any) -> Any:
    if _in_place(left, right):
        return np.add(left, right, out=left)
    with ring.x64():
        return left + right


def _subtract(left: Any, right: Any) -> Any:
    if _in_place(left, right):
        return np.subtract(left, right, out=left)
    with ring.x64():
        return left - right


def _in_place(left: Any, right: Any) -> bool:
    """Both in main memory and `left` ours to overwrite: sums of 90 MB want no copies."""
    return isinstance(left, np.ndarray) and isinstance(right, np.ndarray) and left.flags.writeable
