"""Noised contributions of hospitals with differential privacy, and the model owner's decoding.

Statistics and validation sums of mode `record` are noised by each hospital for itself. In mode
`client` each adds its share of the noise of the sum. `privacy` says how much; every contribution is
charged to the hospital's ledger before it leaves.

Axis letters: k classes, m summed numbers, p_j parameters of the j-th leaf, n images, u units.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from primia_jax.config import ExperimentConfig
from primia_jax.data import Dataset
from primia_jax.errors import ConfigError
from primia_jax.federated import discrete_noise, privacy_units
from primia_jax.federated.aggregation import Contribution, Total
from primia_jax.federated.local_training import Score, Statistics
from primia_jax.federated.privacy import (
    Site,
    fingerprint,
    noisy_hospitals,
    releases_statistics,
    room,
)
from primia_jax.federated.privacy_ledger import TRAINING, Entry
from primia_jax.federated.privacy_units import Units
from primia_jax.mpc import prg
from primia_jax.runtime import Steps
from primia_jax.tasks import Task

# Of statistics and counts, of which a unit's share is at most 1: so fine that their noise is as
# good as continuous.
_GRID = 2.0**-16
_STATISTICS_NORM = math.sqrt(3)  # of a unit: two moments and its classes, each of norm at most 1
_PSEUDO_IMAGES = 1000  # client: what shares of a validation sum are counted in
_NEUTRAL = (0.5, 0.25)  # pixel mean and deviation that stand for none known


def statistics_contribution(site: Site, data: Dataset, task: Task) -> Contribution:
    """Noised sums over the units of 2·mean(x − ½), 4·mean((x − ½)²) and classes; charged.

    A unit of several images counts with their mean. The very numbers that were released before are
    given again, at no further cost, as long as the images, their units and the noise are the same.

    Raises:
      BudgetError: if the ledger cannot bear it.
    """
    release, units = site.mechanisms.statistics, site.train
    assert release is not None and units is not None, "statistics are not released"
    print_ = fingerprint(data, with_patients=units.kind == privacy_units.PATIENT)
    for entry in site.ledger.entries():
        about = entry.about
        if (entry.release, entry.unit) == (release, units.kind) and about.get("images") == print_:
            return _statistics(np.asarray(about["released"], np.int64), len(units))
    moments = units.means(_pixel_moments(data))
    sums = np.rint(moments / _GRID).astype(np.int64).sum(0)
    counts = _shares(units, task.presence(data) / task.largest_presence)
    deviation = release.noise_multiplier * _STATISTICS_NORM / _GRID
    noised = _with_share_of_noise(np.concatenate([sums, counts]), deviation, 1)
    about = {"what": "pixel statistics", "images": print_, "released": noised.tolist()}
    entry = Entry(TRAINING, release, about, site.mechanisms.split, units.kind)
    site.ledger.charge([entry], "the pixel statistics")
    return _statistics(noised, len(units))


def collect_statistics(
    config: ExperimentConfig, collect: Callable[[Sequence[int], int], Steps], task: Task
) -> Steps:
    """The owner's part; returns `Statistics`, from constants where nothing is released."""
    n_classes = len(task.class_names)
    if not releases_statistics(config):
        grey, deviation = map(np.float32, _NEUTRAL)
        return Statistics(grey, deviation, np.ones(n_classes, np.float32))
    total: Total = yield from collect((2 + n_classes,), 0)
    sums, n = total.values[0], max(1, total.weight)
    offset, second = np.clip(sums[0] / (2 * n), -0.5, 0.5), sums[1] / (4 * n)
    mean, std = 0.5 + offset, math.sqrt(max(second - offset**2, 1e-3))  # noise can make it negative
    counts = np.maximum(sums[2:] * task.largest_presence, 1.0)
    weights = np.ones(n_classes)
    if config.training.class_weights:
        weights = counts.sum() / (n_classes * counts)
    return Statistics(np.float32(mean), np.float32(std), weights.astype(np.float32))


def _pixel_moments(data: Dataset) -> np.ndarray:
    """[n, 2] 2·mean(x − ½) and 4·mean((x − ½)²) over each image's pixels without its padding.

    About the middle, the two range over less and need less noise. All padding counts as grey.
    """
    grey = data.images[..., 0] / np.float64(np.iinfo(data.images.dtype).max)
    grey -= 0.5
    if data.padding is None:
        return np.stack([2 * grey.mean((1, 2)), 4 * (grey**2).mean((1, 2))], 1)
    grey[data.padding] = 0
    counted = np.maximum(1, (~data.padding).sum((1, 2)))
    return np.stack([2 * grey.sum((1, 2)), 4 * (grey**2).sum((1, 2))], 1) / counted[:, None]


def _statistics(noised: np.ndarray, n: int) -> Contribution:
    # The aggregation multiplies by n again, and rounds to the grid's very numbers, or coarser ones.
    return Contribution((noised * _GRID / n,), n, np.zeros(0, np.int64))


def validation_contribution(
    config: ExperimentConfig, site: Site, score: Score, task: Task, number: int, n_attending: int
) -> Contribution:
    """A noised sum for validation, charged anew whenever it is made: its noise is new each time.

    What an image adds (`Task.summable`) is divided by the largest norm that it can have. Sums over
    units in mode `record`, where one of several images counts with their mean; in mode `client`
    means over the hospital's images, and the noise is this hospital's share of the sum's.

    Args:
      config: of the experiment.
      site: whose sum it is.
      score: of the new model on its validation images.
      task: that it is scored for.
      number: of the round.
      n_attending: hospitals in the sum.

    Raises:
      BudgetError: if the ledger cannot bear it.
    """
    release = site.mechanisms.validation
    assert release is not None, "validation sums are not released"
    rows = score.rows / task.largest_row(config.data.image_size)
    charge = site.mechanisms.of_validation(config.privacy.mode, number)
    site.ledger.charge(charge, f"the confusion matrix of round {number}")
    if config.privacy.mode == "record":
        assert site.validation is not None
        n, counts = len(site.validation), _shares(site.validation, rows)
        in_units = _with_share_of_noise(counts, release.noise_multiplier / _GRID, 1)
        return Contribution((in_units * _GRID / n,), n, np.zeros(0, np.int64))
    scale = 2**config.secure_aggregation.frac_bits
    mean = rows.sum(0) / max(1, len(rows)) * (1 - 2.0**-40)  # less float64's error in the mean
    shares = np.floor(mean * scale).astype(np.int64)  # rounded down: their norm stays at most 1
    deviation, n_noisy = release.noise_multiplier * scale, noisy_hospitals(config, n_attending)
    limit = room(config, 1.0, deviation / math.sqrt(n_noisy))
    values = np.clip(_with_share_of_noise(shares, deviation, n_noisy), -limit, limit)
    return Contribution((values / scale,), 1, np.zeros(0, np.int64))


def collect_validation(
    config: ExperimentConfig,
    collect: Callable[[Sequence[int], int], Steps],
    task: Task,
) -> Steps:
    """The owner's part: the noised sum [m] int64; None if nothing is released."""
    if config.privacy.validation == "none":
        return None
    total: Total = yield from collect((task.n_summed,), 0)
    counts = total.values[0] * task.largest_row(config.data.image_size)
    if config.privacy.mode == "client":
        counts = counts * _PSEUDO_IMAGES
    return np.rint(np.maximum(counts, 0)).astype(np.int64)


def client_update(
    config: ExperimentConfig,
    site: Site,
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    n_attending: int,
) -> Contribution:
    """A hospital's clipped change of the weights with its share of the noise.

    All hospitals have weight 1. Weights by images would let one hospital's presence change the sum
    by its number of images times the clip, and the sum of the weights would need noise as well.

    Args:
      config: of the experiment.
      site: whose update it is.
      before: [p_j] weights at the beginning of the round.
      after: [p_j] after the local steps. If they are not all finite, the change is zero: an error
        would tell the others of this hospital's images.
      n_attending: hospitals in the sum.

    Returns:
      Values [p_j] float64, whole multiples of 2^-f, so that the aggregation encodes them exactly.

    Raises:
      ConfigError: if the fixed point is too coarse or too narrow for the clip and its noise.
    """
    frac_bits = config.secure_aggregation.frac_bits
    scale = 2.0**frac_bits
    changes = np.concatenate(
        [np.asarray(new, np.float64) - old for old, new in zip(before, after, strict=True)]
    )
    integers = clipped_update(changes, config.privacy.clip_norm, frac_bits)
    deviation = site.mechanisms.training.noise_multiplier * config.privacy.clip_norm * scale
    n_noisy = noisy_hospitals(config, n_attending)
    limit = room(config, config.privacy.clip_norm, deviation / math.sqrt(n_noisy))
    noised = np.clip(_with_share_of_noise(integers, deviation, n_noisy), -limit, limit)
    ends = np.cumsum([len(leaf) for leaf in before])[:-1]
    return Contribution(tuple(np.split(noised / scale, ends)), 1, np.zeros(0, np.int64))


def clipped_update(changes: np.ndarray, clip_norm: float, frac_bits: int) -> np.ndarray:
    """int64 [p]: `changes` in units of 2^-f, their norm at most `clip_norm` after rounding.

    If they are not all finite numbers, all are taken for zero.

    Rounding is to the nearest. It can add √p/2 units to the norm, which the clip leaves room for:
    in 64 bits units are so fine that this costs next to nothing, and rounding at random, which
    coarser rings need (Kairouz et al. 2021, section 4.1), would gain nothing.

    Raises:
      ConfigError: if the room left for rounding takes half of the clip.
    """
    room = math.sqrt(len(changes)) / 2 * 2.0**-frac_bits
    if 2 * room > clip_norm:
        raise ConfigError(
            f"config.privacy.clip_norm = {clip_norm:g} is too small for updates of {len(changes)} "
            f"numbers in steps of 2^-{frac_bits}; raise it or config.secure_aggregation.frac_bits"
        )
    if not np.isfinite(changes).all():
        return np.zeros(len(changes), np.int64)
    norm = float(np.linalg.norm(changes))
    inner = (clip_norm - room) * (1 - 2.0**-30)  # for float64's error in the norm
    factor = min(1.0, inner / norm) if norm else 1.0
    return np.rint(changes * (factor * 2.0**frac_bits)).astype(np.int64)


def _shares(units: Units, rows: np.ndarray) -> np.ndarray:
    """int64 [c] in grid units: the sum over units of the means of their images' rows.

    Args:
      units: u of them, of n images.
      rows: [n c] of each image, at least 0 and of norm at most 1.

    Means are rounded down, so that a unit's have a norm of at most 1 too.
    """
    return np.floor(units.means(rows) / _GRID).astype(np.int64).sum(0)


def _with_share_of_noise(values: np.ndarray, deviation: float, n_hospitals: int) -> np.ndarray:
    """`values` with 1/N of a noise of `deviation` units, in variance; int64, of the same shape."""
    variance = deviation**2 / n_hospitals
    return values + discrete_noise.discrete_gaussian(prg.new_seed(), len(values), variance)
