"""Differences and agreement of two raters of the same images. Raters: models, people.

A model trained several times, from several seeds, is one rater with several sets of ratings.

Axis letters: n images, k classes, s seeds, b bootstrap resamples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats import contingency_tables, inter_rater, multitest

from primia_jax.evaluation.metrics import INTERVAL, resampling_weights

EXACT_BELOW = 25  # images on which just one rater is right, under which the chi-square misleads


class McNemar(NamedTuple):
    """McNemar's test of two raters' accuracies on the same images."""

    first_only: int  # images on which only the first is right
    second_only: int
    p: float  # two-sided
    exact: bool  # by the binomial distribution; else chi-square with continuity correction


def mcnemar(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> McNemar:
    """Tests whether two raters are right equally often (Q. McNemar, 1947; A. Edwards, 1948).

    Args:
      labels: [n] the true classes.
      first: [n] the classes that the first rater names.
      second: [n] likewise.

    Returns:
      The exact test where the raters differ on fewer than `EXACT_BELOW` images, else the
      chi-square with Edwards' continuity correction. Where they differ on none, p is 1.
    """
    right, other = np.asarray(first) == labels, np.asarray(second) == labels
    return mcnemar_from_counts(int((right & ~other).sum()), int((other & ~right).sum()))


def mcnemar_from_counts(first_only: int, second_only: int, exact: bool | None = None) -> McNemar:
    """The test by its two counts; `exact` None chooses as `mcnemar` does.

    The chi-square that is asked for by `exact` False is as printed by Edwards, also where the
    counts are equal and its correction goes beyond equality; else p is 1 there.
    """
    differing = first_only + second_only
    as_printed = exact is False
    if exact is None:
        exact = differing < EXACT_BELOW
    if not differing or (first_only == second_only and not as_printed):
        return McNemar(first_only, second_only, 1.0, exact)
    table = [[0, first_only], [second_only, 0]]  # where both are right or wrong tells nothing
    test = contingency_tables.mcnemar(table, exact=exact, correction=True)
    return McNemar(first_only, second_only, float(test.pvalue), exact)


class Kappa(NamedTuple):
    """Cohen's kappa with its asymptotic 95 % interval."""

    value: float | None  # None where both raters name one class alone: undefined
    low: float | None  # None where one does, whatever the other says: then kappa is 0
    high: float | None


def cohen_kappa(first: np.ndarray, second: np.ndarray, n_classes: int) -> Kappa:
    """Agreement beyond chance of two raters (J. Cohen, 1960), unweighted.

    The interval is that of Fleiss, Cohen and Everitt (1969), cut at ±1. It has no width where the
    raters agree on every image.

    Args:
      first: [n] int, the classes that the first rater names.
      second: [n] likewise.
      n_classes: k.
    """
    table = pair_counts(first, second, n_classes)
    by_chance = float(table.sum(0) @ table.sum(1)) / table.sum() ** 2
    if by_chance == 1:
        return Kappa(None, None, None)
    if np.trace(table) == table.sum():
        return Kappa(1.0, 1.0, 1.0)
    if 1 in (np.count_nonzero(table.sum(0)), np.count_nonzero(table.sum(1))):
        return Kappa(0.0, None, None)
    with np.errstate(invalid="ignore", divide="ignore"):  # in its z-value, which is not used
        kappa = inter_rater.cohens_kappa(table)
    return Kappa(
        float(kappa.kappa), max(-1.0, float(kappa.kappa_low)), min(1.0, float(kappa.kappa_upp))
    )


def pair_counts(first: np.ndarray, second: np.ndarray, n_classes: int) -> np.ndarray:
    """[k k] float64: how many images the first rater puts into the row's class, the second into
    the column's."""
    cells = np.asarray(first, np.int64) * n_classes + second
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes).astype(float)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (S. Holm, 1979), in the order given."""
    if not len(p_values):
        return []
    return [float(p) for p in multitest.multipletests(p_values, method="holm")[1]]


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval over images and seeds."""

    mean: float | None
    low: float | None
    high: float | None
    std: float | None  # over seeds, with s - 1; None of one seed
    by_seed: tuple[float | None, ...]


def estimate(
    by_seed: Sequence[float | None],
    samples: np.ndarray,
    bounds: tuple[float, float] = (-1.0, 1.0),
    least: float = 0.0,
) -> Estimate:
    """The mean over seeds of a statistic that was resampled over images.

    The interval holds for another sample of images *and* other trainings. It joins two, at either
    side by the root of the sum of squares of their lengths (MOVER; G. Zou and A. Donner, 2008): the
    percentiles of the bootstrap over images, which are the same for all seeds; and the t-interval
    of a mean of s seeds. Few seeds make it wide: of three, it reaches 2.5 deviations of a training
    to either side.

    Args:
      by_seed: [s] the statistic on the images themselves; None where it is undefined.
      samples: [b s] the statistic on resamples of the images, NaN where it is undefined.
      bounds: the least and greatest value that the statistic can take.
      least: to which the images' part extends to either side at the least.

    Returns:
      All None where a seed's statistic is undefined; no interval where more than half of the
      resamples are.
    """
    values = [v for v in by_seed if v is not None]
    if len(values) < len(by_seed):
        return Estimate(None, None, None, None, tuple(by_seed))
    s, mean = len(values), float(np.mean(values))
    std = float(np.std(values, ddof=1)) if s > 1 else None
    means = samples.mean(1)
    known = means[~np.isnan(means)]
    if 2 * len(known) < len(means):
        return Estimate(mean, None, None, std, tuple(values))
    q_low, q_high = np.percentile(known, INTERVAL)
    of_seeds = 0.0 if std is None else float(stats.t.ppf(0.975, s - 1)) * std / s**0.5
    low, high = (
        mean + side * float(np.hypot(max(part, least), of_seeds))
        for side, part in ((-1, mean - q_low), (1, q_high - mean))
    )
    return Estimate(mean, max(low, bounds[0]), min(high, bounds[1]), std, tuple(values))


def resampled_kappa(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    n_classes: int,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """[b] Cohen's kappa of two raters on resamples of the images, stratified by their true class.

    It is NaN on a resample that leaves it undefined.
    """
    cells = np.asarray(first, np.int64) * n_classes + second
    in_cell = np.eye(n_classes**2)[cells]
    blocks = []
    for weights in resampling_weights(labels, n_classes, n_bootstrap, seed):
        table = (weights @ in_cell).reshape(-1, n_classes, n_classes)
        table /= table.sum((1, 2), keepdims=True)
        agreed = np.trace(table, axis1=1, axis2=2)
        by_chance = (table.sum(1) * table.sum(2)).sum(1)
        with np.errstate(invalid="ignore"):
            kappa = (agreed - by_chance) / (1 - by_chance)
        blocks.append(np.where(by_chance > 1 - 1e-12, np.nan, kappa))
    return np.concatenate(blocks)


def unseen_share(n: int) -> float:
    """The share of images of which a sample of `n` shows none with a probability of 2.5 %.

    What a sample does not show need not be nothing (the "rule of three", with two sides).
    """
    return float(1 - 0.025 ** (1 / n))


EQUIVALENT, DIFFERENT, UNDECIDED = "equivalent", "different", "undecided"


class Equivalence(NamedTuple):
    """Verdict on the size of a difference, by its interval and not by a p-value's absence."""

    difference: Estimate
    margin: float
    verdict: str  # EQUIVALENT | DIFFERENT | UNDECIDED


def equivalence(difference: Estimate, margin: float) -> Equivalence:
    """Judges a difference by its 95 % interval.

    `EQUIVALENT` where the interval lies within ±margin (as two one-sided tests at 2.5 % each),
    `DIFFERENT` where it lies outside, on one side; else the images do not suffice: `UNDECIDED`.
    An interval within the margin that leaves out 0 is equivalent: there is a difference, too small
    to matter.
    """
    if difference.low is None or difference.high is None:
        return Equivalence(difference, margin, UNDECIDED)
    if -margin <= difference.low and difference.high <= margin:
        return Equivalence(difference, margin, EQUIVALENT)
    outside = difference.low > margin or difference.high < -margin
    return Equivalence(difference, margin, DIFFERENT if outside else UNDECIDED)


def plain(value: Any) -> Any:
    """The tuples of this module as dicts and lists, fit for JSON."""
    if hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    return list(value) if isinstance(value, tuple) else value
