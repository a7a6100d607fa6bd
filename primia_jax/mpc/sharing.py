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
      secret: uint64 [n]; consumed: a NumPy array that may be written to is overwritten.
      seeds: one fresh seed (uint8 [32]) for each of the other parties.
    """
    return _accumulate(np.subtract, secret, seeds)


def sum_of_shares(own: Any, seeds: Sequence[Any]) -> Any:
    """own + Σ_i expand(seed_i): the sum of all shares that one party holds, uint64 [n].

    Args:
      own: uint64 [n]; consumed, as by `own_share`.
      seeds: the seeds received from the other dealers.
    """
    return _accumulate(np.add, own, seeds)


def reconstruct(shares: Iterable[Any]) -> Any:
    """Σ_j x_j mod 2^64, uint64 [n]; the shares are left as they are."""
    total = None
    for share in shares:
        total = include(total, share)
    return total


def include(total: Any, share: Any) -> Any:
    """total + share, uint64 [n], for shares that come one by one.

    Args:
      total: what was summed before, consumed; None at the first share.
      share: uint64 [n]; left as it is.
    """
    share = ring.checked(share)
    if isinstance(share, np.ndarray) and (total is None or isinstance(total, np.ndarray)):
        return np.array(share) if total is None else np.add(total, share, out=total)
    if total is None:
        return share
    with ring.x64():
        return total + share


def _accumulate(operation: np.ufunc, total: Any, seeds: Sequence[Any]) -> Any:
    """`total` with the expansions of all `seeds` added or subtracted."""
    total = ring.checked(total)
    if isinstance(total, np.ndarray) and total.flags.writeable:
        for seed in seeds:
            at = 0
            for piece in prg.chunks(np.asarray(seed), len(total)):
                part = total[at : at + len(piece)]
                operation(part, piece, out=part)
                at += len(piece)
        return total
    with ring.x64():
        for seed in seeds:
            mask = prg.expand(seed, total.shape[0])
            total = total + mask if operation is np.add else total - mask
    return total
