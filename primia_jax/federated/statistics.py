"""Pooled pixel statistics and class weights, from sums in which no hospital can be told apart."""

from typing import NamedTuple

import numpy as np

from primia_jax.data import Dataset
from primia_jax.errors import DataError
from primia_jax.federated.aggregation import Contribution, Total
from primia_jax.federated.local_training import Statistics

_MIN_STD = 1e-3
_GRID = 2.0**-16  # far above the error of 64-bit words: secure and plain runs start alike


class PixelMoments(NamedTuple):
    """Of one site's training images, black 0 to white 1; all images have the same size."""

    mean: float
    second: float


def pixel_moments(images: np.ndarray) -> PixelMoments:
    """Mean and mean square over all pixels of [n s s 1] grey levels, exact but for one rounding."""
    levels = np.iinfo(images.dtype).max
    histogram = np.bincount(images.reshape(-1), minlength=levels + 1).astype(np.float64)
    values = np.arange(levels + 1) / levels
    return PixelMoments(
        float(histogram @ values / images.size), float(histogram @ values**2 / images.size)
    )


def contribution(data: Dataset) -> Contribution:
    """What a hospital adds: its pixel moments, weighted by its images, and its class counts."""
    moments = np.asarray(pixel_moments(data.images), np.float64)
    return Contribution((moments,), len(data), data.class_counts())


def pooled(total: Total, class_names: tuple[str, ...], weighted: bool) -> Statistics:
    """Mean and standard deviation over all pixels of all hospitals, and class weights.

    Mean and deviation are rounded to multiples of 2^-16. A class's weight is inversely proportional
    to its count, with mean 1 over the records.

    Raises:
      DataError: if a class has no training image anywhere.
    """
    (moments,) = total.mean()
    mean, second = float(moments[0]), float(moments[1])
    missing = [name for name, count in zip(class_names, total.counts) if count == 0]
    if missing:
        raise DataError(f"no hospital has a training image of class {', '.join(missing)}")
    std = max(np.sqrt(max(second - mean**2, 0.0)), _MIN_STD)
    mean, std = (round(value / _GRID) * _GRID for value in (mean, std))
    counts = total.counts.astype(np.float64)
    weights = counts.sum() / (len(counts) * counts) if weighted else np.ones(len(counts))
    return Statistics(np.float32(mean), np.float32(std), weights.astype(np.float32))
