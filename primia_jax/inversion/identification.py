"""Re-identification of images by their reconstructions: nearest neighbours in a gallery.

The truth must not choose what it is judged by: reconstructions of an update come in no order, and
of many of them the one matched with an image is near it by the matching alone. So none is matched
here. An image counts as identified where it lies nearer to *some* reconstruction of its update than
any decoy does; of reconstructions that know nothing this is so for one image in m, however many
stand behind an update.

Axis letters: t reconstructions of an update, n true images, d decoys, m = d + 1 of a gallery.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import special, stats

from primia_jax.errors import DataError
from primia_jax.inversion.similarity import all_mse

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Identification:
    """Ranks of true images in their galleries, and the share that are nearest.

    Attributes:
      ranks: [n] rank of the true image in its gallery, 1 for the nearest; images at the same
        distance share the mean of their ranks.
      top1: share of true images that are nearest, no decoy being as near.
      interval: 95 % interval of that share (Clopper and Pearson 1934), taking images for
        independent.
      chance: the share that reconstructions which know nothing reach, 1/m.
      p: probability that those reach so large a share (one-sided, exact).
    """

    ranks: np.ndarray
    top1: float
    interval: tuple[float, float]
    chance: float
    p: float


def identify(reconstructions: Any, truths: Any, decoys: Any) -> np.ndarray:
    """Ranks each true image among decoys by its distance to the nearest reconstruction.

    Args:
      reconstructions: [t …] all reconstructions of an update, clamped to [0, 1], in any order.
      truths: [n …] the images of one hospital behind it.
      decoys: [d …] others of that hospital, drawn at random and treated alike.

    Returns:
      [n] ranks among d + 1 images, see `Identification`.

    Raises:
      DataError: if there is nothing to compare, or a value is not finite.
    """
    reconstructions, truths, decoys = (
        np.asarray(reconstructions),
        np.asarray(truths),
        np.asarray(decoys),
    )
    shapes = {images.shape[1:] for images in (reconstructions, truths, decoys)}
    if not len(reconstructions) or not len(truths) or len(shapes) > 1:
        raise DataError(
            f"{truths.shape} true images and {decoys.shape} decoys cannot be sought in "
            f"{reconstructions.shape} reconstructions"
        )
    distances = all_mse(reconstructions, np.concatenate([truths, decoys])).min(0)
    if not np.isfinite(distances).all():
        raise DataError("reconstructions or gallery have values that are not finite")
    own, other = np.split(distances, [len(truths)])
    nearer, as_near = other < own[:, None], other == own[:, None]
    return 1 + nearer.sum(1) + as_near.sum(1) / 2


def of_ranks(ranks: Any, m: int, groups: Any) -> Identification:
    """Summarises the ranks of true images.

    Images that were ranked among the same decoys are not independent: where none of the decoys is
    near, all of them are nearest. Knowing nothing, every order of n such images and d decoys is as
    likely, so that the first k are all true with probability n(n-1)…/((n+d)(n+d-1)…), k factors
    each. The p-value is exact for the sum of these.

    Args:
      ranks: [n] by `identify`.
      m: images of each gallery.
      groups: [n] int; equal for images ranked by one call of `identify`.
    """
    ranks = np.asarray(ranks)
    hits, n = ranks == 1, len(ranks)
    total = np.ones(1)  # of hits so far, the probability of each number
    for size in np.unique(np.asarray(groups), return_counts=True)[1]:
        total = np.convolve(total, _hits_by_chance(int(size), m - 1))
    interval = stats.binomtest(int(hits.sum()), n).proportion_ci(_LEVEL, method="exact")
    return Identification(
        ranks=ranks,
        top1=float(hits.mean()),
        interval=(float(interval.low), float(interval.high)),
        chance=1 / m,
        p=min(1.0, float(total[hits.sum() :].sum())),
    )


def _hits_by_chance(n: int, d: int) -> np.ndarray:
    """[n + 1] probabilities that just so many of n true images come before all d decoys."""
    k = np.arange(n + 2)
    at_least = np.zeros(n + 2)
    at_least[:-1] = special.comb(n + d - k[:-1], d) / special.comb(n + d, d)
    return at_least[:-1] - at_least[1:]
