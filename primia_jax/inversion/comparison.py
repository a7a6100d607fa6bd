"""Whether settings differ in what they give away: analysis of variance and t-tests.

Axis letters: g settings (groups), n values of one.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from primia_jax.errors import DataError

_LEVEL = 0.95


class Anova(NamedTuple):
    """One-way analysis of variance; values that the data do not define are None."""

    f: float | None
    p: float | None
    between: int  # degrees of freedom
    within: int
    eta_squared: float | None  # share of the variance that the settings explain


class Comparison(NamedTuple):
    """Student's t-test of two settings, two-sided; values the data do not define are None."""

    first: str
    second: str
    difference: float  # mean of the first less that of the second
    interval: tuple[float, float] | None  # 95 %, of the difference, not corrected
    t: float | None
    degrees: float
    p: float | None
    p_holm: float | None  # corrected for all comparisons made together
    cohens_d: float | None  # difference over the pooled deviation, or over that of the differences


def anova(groups: Mapping[str, Any]) -> Anova:
    """Whether all settings have the same mean (Fisher's one-way analysis of variance).

    Args:
      groups: {setting: [n] values}, at least two of them with at least two values.

    Raises:
      DataError: if there are too few settings or values, or one is not finite.
    """
    values = list(_checked(groups).values())
    total = np.concatenate(values)
    within = sum(float(np.square(v - v.mean()).sum()) for v in values)
    between = sum(len(v) * float(np.square(v.mean() - total.mean())) for v in values)
    degrees = (len(values) - 1, len(total) - len(values))
    if _constant(values):
        return Anova(None, None, *degrees, None)
    test = stats.f_oneway(*values)
    return Anova(float(test.statistic), float(test.pvalue), *degrees, between / (between + within))


def compare_pairs(groups: Mapping[str, Any], *, paired: bool = False) -> list[Comparison]:
    """t-tests of every two settings, with Holm's correction and effect sizes.

    Args:
      groups: {setting: [n] values}, at least two of them with at least two values.
      paired: whether value i is of the same image in every setting. The test is then on
        differences and the effect size theirs (Cohen's d_z); else deviations are pooled.

    Raises:
      DataError: if there are too few settings or values, one is not finite, or pairs do not fit.
    """
    groups = _checked(groups)
    found = [
        _compare(first, second, groups[first], groups[second], paired)
        for first, second in itertools.combinations(groups, 2)
    ]
    defined = [i for i, one in enumerate(found) if one.p is not None]
    for i, p in zip(defined, holm([found[i].p for i in defined])):
        found[i] = found[i]._replace(p_holm=float(p))
    return found


def holm(p_values: Sequence[Any]) -> np.ndarray:
    """p-values corrected for making all these tests (Holm 1979), in the order given."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(scaled, 1)
    return corrected


def _compare(first: str, second: str, a: np.ndarray, b: np.ndarray, paired: bool) -> Comparison:
    difference = float(a.mean() - b.mean())
    if paired and len(a) != len(b):
        raise DataError(
            f"{first} has {len(a)} values and {second} {len(b)}: pairs need one of each an image"
        )
    degrees = len(a) - 1 if paired else len(a) + len(b) - 2
    if _constant([a - b] if paired else [a, b]):
        return Comparison(first, second, difference, None, None, degrees, None, None, None)
    if paired:
        spread = (a - b).std(ddof=1)
        test: Any = stats.ttest_rel(a, b)
    else:
        squares = np.square(a - a.mean()).sum() + np.square(b - b.mean()).sum()
        spread = np.sqrt(squares / degrees)
        test = stats.ttest_ind(a, b)
    interval = test.confidence_interval(_LEVEL)
    return Comparison(
        first=first,
        second=second,
        difference=difference,
        interval=(float(interval.low), float(interval.high)),
        t=float(test.statistic),
        degrees=float(test.df),
        p=float(test.pvalue),
        p_holm=None,
        cohens_d=float(difference / spread),
    )


def _constant(values: Sequence[np.ndarray]) -> bool:
    """Whether no group varies beyond rounding, so that no test is defined."""
    largest = max(float(np.abs(v).max()) for v in values)
    return all(float(np.ptp(v)) <= 1e-12 * largest for v in values)


def _checked(groups: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(values, np.float64).ravel() for name, values in groups.items()}
    if len(arrays) < 2:
        raise DataError(f"{len(arrays)} setting: at least two are needed to be compared")
    for name, values in arrays.items():
        if len(values) < 2 or not np.isfinite(values).all():
            raise DataError(f"{name}: {len(values)} values; take two or more, all finite")
    return arrays
