"""Distances between two sets of images by their features: FID and KID, with what to hold them to.

FID on a few hundred images is mostly bias: two halves of the same images are far apart too. So
every distance here comes with a floor, real images against other real images, and a ceiling, real
images against noise, all three of the same number of images.

Axis letters: n and m images of the two sets, d features, b bootstrap resamples.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from primia_jax.errors import DataError

SMALLEST_SET = 4  # images: two halves of two, of which a variance can be had
_INTERVAL = (2.5, 97.5)  # percentiles
_KID_DEGREE = 3  # of the polynomial kernel (Bińkowski et al. 2018, section 4)


class Halves(NamedTuple):
    """Mean and standard deviation, over random splits, of a distance between two halves."""

    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class SetDistance:
    """One kind of distance between original and reconstructed images.

    Attributes:
      value: over the whole sets.
      interval: 95 % bootstrap interval, by its basic form: twice the value less the percentiles of
        the resamples. Resamples of FID are biased upwards from the value as the value is from the
        truth, so that this takes the bias off once and may lie below the value; it ends at 0.
      reconstructions: half of the originals against reconstructions of the other half.
      floor: half of the originals against the other half.
      ceiling: half of the originals against noise of their mean and standard deviation.
    """

    value: float
    interval: tuple[float, float]
    reconstructions: Halves
    floor: Halves
    ceiling: Halves


class SetDistances(NamedTuple):
    """FID and KID of one pair of sets."""

    n: int  # images of each set
    n_features: int
    rank_deficient: bool  # whether covariances cannot have full rank: FID is then mostly bias
    fid: SetDistance
    kid: SetDistance


def fid(a: Any, b: Any) -> float:
    """Fréchet distance of two sets of features (Heusel et al. 2017, equation 6).

    |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁Σ₂)^½, with unbiased covariances. The last trace is the sum
    of singular values of the n×m products of all centred features, so that no square root of a
    singular d×d matrix is taken.

    Args:
      a: [n d] features, n at least 2.
      b: [m d], m at least 2.

    Raises:
      DataError: if sets are too small, do not fit or are not finite.
    """
    a, b = _features(a, b)
    return _fid(_Products.of(a, b), np.arange(len(a)), np.arange(len(b)))


def kid(a: Any, b: Any) -> float:
    """Unbiased squared maximum mean discrepancy of two sets (Bińkowski et al. 2018, section 4).

    The kernel is (x·y / d + 1)³. The estimate may be negative.

    Args:
      a: [n d] features, n at least 2.
      b: [m d], m at least 2.

    Raises:
      DataError: if sets are too small, do not fit or are not finite.
    """
    a, b = _features(a, b)
    return _kid(_Products.of(a, b), np.arange(len(a)), np.arange(len(b)))


def judge(
    originals: Any,
    reconstructions: Any,
    extract: Callable[[Any], Any],
    key: jax.Array,
    *,
    n_splits: int = 20,
    n_bootstrap: int = 200,
) -> SetDistances:
    """FID and KID of reconstructions, with floor, ceiling and intervals.

    Args:
      originals: [n s s 1] grey values.
      reconstructions: [n s s 1]; reconstructions[i] is a reconstruction of originals[i].
      extract: features [n d] of images [n s s 1] in [0, 1], as `features.penultimate` makes it.
      key: a key of `jax.random`; consumed.
      n_splits: random splits into halves.
      n_bootstrap: resamples of the pairs.

    Raises:
      DataError: if there are fewer than four images, or they do not fit.
    """
    originals = np.clip(np.asarray(originals, np.float32), 0, 1)
    reconstructions = np.clip(np.asarray(reconstructions, np.float32), 0, 1)
    n = len(originals)
    if originals.shape != reconstructions.shape:
        raise DataError(
            f"{reconstructions.shape} reconstructions cannot be compared with {originals.shape}"
        )
    if n < SMALLEST_SET:
        raise DataError(f"{n} images are too few for FID and KID: take at least {SMALLEST_SET}")
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
    noise = np.clip(rng.normal(originals.mean(), originals.std(), originals.shape), 0, 1)
    real, fake = _features(extract(originals), extract(reconstructions))
    random, _ = _features(extract(noise.astype(np.float32)), real)
    pairs = [_Products.of(real, other) for other in (fake, real, random)]
    splits = [rng.permutation(n) for _ in range(n_splits)]
    draws = [rng.integers(0, n, n) for _ in range(n_bootstrap)]

    def of_kind(distance: Callable[..., float], low: float) -> SetDistance:
        everything = np.arange(n)
        value = distance(pairs[0], everything, everything)
        halves = []
        for pair in pairs:
            over = [distance(pair, p[: n // 2], p[n // 2 : n // 2 * 2]) for p in splits]
            halves.append(Halves(float(np.mean(over)), float(np.std(over))))
        resampled = [distance(pairs[0], draw, draw) for draw in draws]
        high_end, low_end = 2 * value - np.percentile(resampled, _INTERVAL)
        return SetDistance(value, (max(low, float(low_end)), max(low, float(high_end))), *halves)

    return SetDistances(
        n=n,
        n_features=real.shape[1],
        rank_deficient=n <= real.shape[1],
        fid=of_kind(_fid, 0.0),
        kid=of_kind(_kid, -np.inf),
    )


class _Products(NamedTuple):
    """Inner products of two sets' features; every distance of subsets follows from them."""

    aa: np.ndarray  # [n n]
    bb: np.ndarray  # [m m]
    ab: np.ndarray  # [n m]
    d: int

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> "_Products":
        return cls(a @ a.T, b @ b.T, a @ b.T, a.shape[1])


def _fid(products: _Products, i: np.ndarray, j: np.ndarray) -> float:
    """FID of the images i of one set and j of the other."""
    aa, bb = products.aa[np.ix_(i, i)], products.bb[np.ix_(j, j)]
    ab = products.ab[np.ix_(i, j)]
    apart = aa.mean() + bb.mean() - 2 * ab.mean()
    trace_a = (np.trace(aa) - len(i) * aa.mean()) / (len(i) - 1)
    trace_b = (np.trace(bb) - len(j) * bb.mean()) / (len(j) - 1)
    centred = ab - ab.mean(0) - ab.mean(1)[:, None] + ab.mean()
    singular = np.linalg.svd(centred, compute_uv=False)
    shared = singular.sum() / np.sqrt((len(i) - 1) * (len(j) - 1))
    return max(0.0, float(apart + trace_a + trace_b - 2 * shared))


def _kid(products: _Products, i: np.ndarray, j: np.ndarray) -> float:
    """KID of the images i of one set and j of the other; no image is paired with itself."""

    def kernel(inner: np.ndarray) -> np.ndarray:
        return (inner / products.d + 1) ** _KID_DEGREE

    def within(inner: np.ndarray, chosen: np.ndarray) -> float:
        others = chosen[:, None] != chosen
        if not others.any():  # a resample of one image over and over
            others = np.ones_like(others)
        return float(kernel(inner[np.ix_(chosen, chosen)])[others].mean())

    between = float(kernel(products.ab[np.ix_(i, j)]).mean())
    return within(products.aa, i) + within(products.bb, j) - 2 * between


def _features(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0:
        raise DataError(f"features of shapes {a.shape} and {b.shape}: take [n d] and [m d]")
    if min(len(a), len(b)) < 2:
        raise DataError(f"sets of {len(a)} and {len(b)} images: a variance needs at least 2")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("features are not finite")
    return a, b
