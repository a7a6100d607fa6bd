"""Pooled pixel statistics and class weights, from sums in which no hospital can be told apart."""

from typing import NamedTuple

import numpy as np

from primia_jax.data import Dataset
from primia_jax.errors import DataError
from primia_jax.federated.aggregation import Contribution, Total
from primia_jax.federated.local_training import Statistics
from primia_jax.tasks import Task

N_MOMENTS = 3  # numbers in `PixelMoments`
_MIN_STD = 1e-3
_MIN_SHARE = 1e-2  # of pixels that are no padding; with fewer, rounding errors of sums would show
_GRID = 2.0**-16  # far above the error of 64-bit words: secure and plain runs start alike


class PixelMoments(NamedTuple):
    """Sums over a site's training images, divided by all their pixels; black 0 to white 1.

    All images have the same size. Pixels of padding are in no sum.
    """

    first: float
    second: float
    share: float  # of the pixels that are in the sums: 1 without padding


def pixel_moments(images: np.ndarray, padding: np.ndarray | None = None) -> PixelMoments:
    """Sums of grey levels and of their squares, exact but for one rounding.

    Args:
      images: [n s s 1] uint8 or uint16.
      padding: [n s s] bool: pixels that do not count, if there are any.
    """
    levels = np.iinfo(images.dtype).max
    counted = images.reshape(-1) if padding is None else images[..., 0][~padding]
    histogram = np.bincount(counted, minlength=levels + 1).astype(np.float64)
    values = np.arange(levels + 1) / levels
    return PixelMoments(
        float(histogram @ values / images.size),
        float(histogram @ values**2 / images.size),
        counted.size / images.size,
    )


def contribution(data: Dataset, task: Task) -> Contribution:
    """Pixel moments of a hospital, weighted by its images, and images that show each class."""
    moments = np.asarray(pixel_moments(data.images, data.padding), np.float64)
    return Contribution((moments,), len(data), task.presence(data).sum(0, dtype=np.int64))


def pooled(total: Total, class_names: tuple[str, ...], weighted: bool) -> Statistics:
    """Mean and standard deviation over all pixels of all hospitals, and class weights.

    Pixels of padding do not count. Mean and deviation are rounded to multiples of 2^-16. A class's
    weight is inversely proportional to its count, with mean 1 over the records.

    Raises:
      DataError: if a class has no training image anywhere, or all pixels are padding.
    """
    (moments,) = total.mean()
    share = float(moments[2])
    if share < _MIN_SHARE:
        raise DataError(
            "nearly all pixels of the training images are padding; check PixelPaddingValue in "
            "the DICOM files"
        )
    mean, second = float(moments[0]) / share, float(moments[1]) / share
    missing = [name for name, count in zip(class_names, total.counts) if count == 0]
    if missing:
        raise DataError(f"no hospital has a training image of class {', '.join(missing)}")
    std = max(np.sqrt(max(second - mean**2, 0.0)), _MIN_STD)
    mean, std = (round(value / _GRID) * _GRID for value in (mean, std))
    counts = total.counts.astype(np.float64)
    weights = counts.sum() / (len(counts) * counts) if weighted else np.ones(len(counts))
    return Statistics(np.float32(mean), np.float32(std), weights.astype(np.float32))
