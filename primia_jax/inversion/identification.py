"""Whether a reconstruction tells whose image it is: its nearest neighbour among a gallery.

Axis letters: n reconstructions, m images of the gallery, d features.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import stats

from primia_jax.errors import DataError
from primia_jax.inversion.similarity import all_mse

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Identification:
    """How often the true image is the nearest one.

    Attributes:
      ranks: [n] rank of the true image by distance, 1 for the nearest; images at the same distance
        share the mean of their ranks.
      top1: share of reconstructions whose true image is nearest, and no other as near.
      interval: 95 % interval of that share (Clopper and Pearson 1934).
      chance: the share that guessing would reach, 1/m.
      p: probability of so large a share by guessing (one-sided binomial test).
    """

    ranks: np.ndarray
    top1: float
    interval: tuple[float, float]
    chance: float
    p: float


def identify(found: Any, gallery: Any, truth: Any) -> Identification:
    """Ranks the true image behind each reconstruction among a gallery, by mean squared error.

    Args:
      found: [n …] images clamped to [0, 1], or their features [n d].
      gallery: [m …] likewise; the hospital's own images, the true ones among them.
      truth: [n] int; the true image of found[i] is gallery[truth[i]].

    Raises:
      DataError: if there is nothing to compare, or a true image is not in the gallery.
    """
    found, gallery, truth = np.asarray(found), np.asarray(gallery), np.asarray(truth)
    n, m = len(found), len(gallery)
    if not n or not m or truth.shape != (n,) or found.shape[1:] != gallery.shape[1:]:
        raise DataError(
            f"{found.shape} reconstructions with {truth.shape} true images cannot be sought in a "
            f"gallery of {gallery.shape}"
        )
    if truth.min() < 0 or truth.max() >= m:
        raise DataError(f"true images {truth.min()} to {truth.max()} in a gallery of {m}")
    distances = all_mse(found, gallery)
    if not np.isfinite(distances).all():
        raise DataError("reconstructions or gallery have values that are not finite")
    return of_ranks(stats.rankdata(distances, axis=1)[np.arange(n), truth], m)


def of_ranks(ranks: np.ndarray, m: int) -> Identification:
    """What the ranks [n] of the true images say, each among m images of a gallery of its own."""
    n, hits = len(ranks), int((ranks == 1).sum())
    test = stats.binomtest(hits, n, 1 / m, alternative="greater")
    interval = stats.binomtest(hits, n).proportion_ci(_LEVEL, method="exact")
    return Identification(
        ranks=ranks,
        top1=hits / n,
        interval=(float(interval.low), float(interval.high)),
        chance=1 / m,
        p=float(test.pvalue),
    )
