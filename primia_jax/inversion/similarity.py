"""Similarity of reconstructed images and the originals, image by image.

Everything is computed in float64 on grey values clamped to [0, 1].

Axis letters: n images, s their side, t restored images that may outnumber them.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment

from primia_jax.errors import DataError

# Of Wang et al. 2004, section III-C: an 11×11 Gaussian window.
SSIM_SIDE = 11
_SSIM_SIGMA, _SSIM_TRUNCATE = 1.5, 3.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_EXACT_PSNR = 200.0  # given to identical images, so that means stay finite


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Originals beside what was found of them.

    Attributes:
      order: [n] int; original i is compared with found image order[i].
      mse: [n] mean squared error.
      psnr: [n] peak signal-to-noise ratio in dB, at most 200.
      ssim: [n] structural similarity; NaN where images are smaller than its window of 11 pixels.
    """

    order: np.ndarray
    mse: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray


class Summary(NamedTuple):
    """A metric over a set of images."""

    n: int
    mean: float
    std: float  # of the sample (n - 1); NaN for one image
    median: float
    worst: float  # of the image given away most
    worst_image: int


def compare(originals: Any, reconstructions: Any) -> Similarity:
    """Matches the images of one batch, then compares them pair by pair.

    Args:
      originals: [n s s 1] or [n s s], grey values.
      reconstructions: likewise, in any order.

    Raises:
      DataError: if shapes differ, or a value is not finite.
    """
    originals, reconstructions = (
        _grey(originals, "originals"),
        _grey(reconstructions, "reconstructions"),
    )
    if originals.shape != reconstructions.shape:
        raise DataError(
            f"{reconstructions.shape} reconstructions cannot be compared with {originals.shape}"
        )
    order = match(originals, reconstructions)
    reconstructions = reconstructions[order]
    error = mse(originals, reconstructions)
    small = min(originals.shape[1:]) < SSIM_SIDE
    return Similarity(
        order=order,
        mse=error,
        psnr=psnr(error),
        ssim=np.full(len(error), np.nan) if small else ssim(originals, reconstructions),
    )


def match(originals: Any, reconstructions: Any) -> np.ndarray:
    """For each original a found image of its own, [n], so that the sum of their MSE is least.

    Args:
      originals: [n s s 1] or [n s s].
      reconstructions: [t s s 1] or [t s s] with t >= n.
    """
    originals, reconstructions = (
        _grey(originals, "originals"),
        _grey(reconstructions, "reconstructions"),
    )
    if len(reconstructions) < len(originals):
        raise DataError(
            f"{len(reconstructions)} reconstructions are too few for {len(originals)} images"
        )
    return linear_sum_assignment(all_mse(originals, reconstructions))[1]


def all_mse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n t] mean squared errors between all of a [n …] and all of b [t …]."""
    a = np.asarray(a, np.float64).reshape(len(a), -1)
    b = np.asarray(b, np.float64).reshape(len(b), -1)
    return np.stack([np.square(b - row).mean(1) for row in a]) if len(a) else np.zeros((0, len(b)))


def mse(a: Any, b: Any) -> np.ndarray:
    """[n] mean squared errors of images [n …], pair by pair."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.square(a - b).reshape(len(a), -1).mean(1)


def psnr(mse: Any) -> np.ndarray:
    """Peak signal-to-noise ratios in dB of mean squared errors, for a peak of 1; at most 200."""
    floor = 10 ** (-_EXACT_PSNR / 10)
    return -10 * np.log10(np.maximum(np.asarray(mse, np.float64), floor))


def ssim(a: Any, b: Any) -> np.ndarray:
    """[n] structural similarities (Wang et al. 2004, equation 13), pair by pair.

    With their Gaussian window, averaged over the places where it lies wholly within the image; the
    range of values is 1.

    Raises:
      DataError: if images are smaller than the window.
    """
    a, b = _grey(a, "images"), _grey(b, "images")
    if min(a.shape[1:]) < SSIM_SIDE:
        raise DataError(f"SSIM needs images of at least {SSIM_SIDE} pixels a side, not {a.shape}")
    edge = SSIM_SIDE // 2
    inside = np.s_[:, edge:-edge, edge:-edge]

    def local(images: np.ndarray) -> np.ndarray:
        sigma = (0, _SSIM_SIGMA, _SSIM_SIGMA)
        return gaussian_filter(images, sigma, truncate=_SSIM_TRUNCATE)[inside]

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _SSIM_C1) / (mean_a**2 + mean_b**2 + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (var_a + var_b + _SSIM_C2)
    return (luminance * structure).mean((1, 2))


def summarise(values: Any, *, low_is_close: bool) -> Summary:
    """A metric over images, the image given away most beside the mean.

    Args:
      values: [n] of one metric.
      low_is_close: whether low values mean a good reconstruction (MSE), or high ones (PSNR, SSIM).

    Raises:
      DataError: if there are no values, or one is not finite.
    """
    values = np.asarray(values, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise DataError("a metric needs at least one image, and finite values, to be summed up")
    worst = int(values.argmin() if low_is_close else values.argmax())
    return Summary(
        n=values.size,
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if values.size > 1 else float("nan"),
        median=float(np.median(values)),
        worst=float(values[worst]),
        worst_image=worst,
    )


def _grey(images: Any, what: str) -> np.ndarray:
    """[n s s] float64 in [0, 1]."""
    images = np.asarray(images, np.float64)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3:
        raise DataError(f"{what} of shape {images.shape}: grey images [n s s 1] are compared")
    if not np.isfinite(images).all():
        raise DataError(f"{what} have values that are not finite")
    return np.clip(images, 0, 1)
