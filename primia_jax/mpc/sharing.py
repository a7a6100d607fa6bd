"""Additive sharing in Z_2^n: x = Σ_j x_j mod 2^n, any proper subset of the x_j being uniform.

n is 64 or 32, the width of the words given: "words" below are uint64 or uint32.

Shares are compressed: every other party's share is the expansion of a 32-byte seed, so that the
dealer sends seeds, and only its own share is as long as the secret.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from primia_jax.mpc import masking, ring


def own_share(secret: Any, seeds: Sequence[Any], received: Sequence[Any] = ()) -> Any:
    """The dealer's own share: secret − Σ_j expand(seed_j), words [n].

    With the seeds `received` from other dealers it is the sum of all shares that the dealer holds,
    as by `sum_of_shares`, in one walk through memory.

    Args:
      secret: words [n]; consumed: a NumPy array that may be written to is overwritten.
      seeds: one fresh seed (uint8 [32]) for each of the other parties.
      received: seeds of the shares that they dealt to this one.
    """
    return masking.mask(secret, plus=received, minus=seeds)


def sum_of_shares(own: Any, seeds: Sequence[Any]) -> Any:
    """own + Σ_i expand(seed_i): the sum of all shares that one party holds, words [n].

    Args:
      own: words [n]; consumed, as by `own_share`.
      seeds: the seeds received from the other dealers.
    """
    return masking.mask(own, plus=seeds)


def reconstruct(shares: Iterable[Any]) -> Any:
    """Σ_j x_j mod 2^n, words [n]; the shares are left as they are."""
    total = None
    for share in shares:
        total = include(total, share)
    return total


def include(total: Any, share: Any) -> Any:
    """total + share, words [n], for shares that come one by one.

    Args:
      total: what was summed before, consumed; None at the first share.
      share: words [n]; left as it is.
    """
    share = ring.checked(share, 32, 64)
    if isinstance(share, np.ndarray) and (total is None or isinstance(total, np.ndarray)):
        return np.array(share) if total is None else np.add(total, share, out=total)
    if total is None:
        return share
    with ring.x64():
        return total + share
