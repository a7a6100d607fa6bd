"""Tests for differences in leakage between scenarios: analysis of variance and t-tests.

Axis letters: g settings (groups), n values of one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from primia_jax.errors import DataError
from primia_jax.evaluation.agreement import holm

_LEVEL = 0.95


class Anova(NamedTuple):
    """One-way analysis of variance; values that the data do not define are None."""

    f: float | None
    p: float | None
    between: int  # degrees of freedom
    within: int
    eta_squared: float | None  # share of the variance that the settings explain


class Comparison(NamedTuple):
    """A t-test of two settings, two-sided; values the data do not define are None."""

    first: str
    second: str
    difference: float  # mean of the first less that of the second
    interval: tuple[float, float] | None  # 95 %, of the difference, not corrected
    t: float | None
    degrees: float | None
    p: float | None
    p_holm: float | None  # corrected for all comparisons made together
    cohens_d: float | None  # difference over the deviation, see `compare_two`
    paired: bool  # whether it is the test of pairs; else Welch's


def anova(groups: Mapping[str, Any]) -> Anova:
    """Tests that all scenarios have the same mean (Fisher's one-way analysis of variance).

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


def compare_two(groups: Mapping[str, Any], *, paired: bool) -> Comparison:
    """The t-test of two settings, with an effect size; not corrected, see `corrected`.

    Args:
      groups: {setting: [n] values}, two of them with at least two values.
      paired: whether value i is of the same image in both. The test is then on differences, and the
        effect size over their deviation (Cohen's d_z); else it is Welch's, which takes neither
        variances nor numbers for equal, and the effect size is over the root of the mean variance.

    Raises:
      DataError: if there are too few settings or values, one is not finite, or pairs do not fit.
    """
    (first, a), (second, b) = _checked(groups).items()
    if paired and len(a) != len(b):
        raise DataError(
            f"{first} has {len(a)} values and {second} {len(b)}: pairs need one of each an image"
        )
    comparison = Comparison(
        first, second, float(a.mean() - b.mean()), None, None, None, None, None, None, paired
    )
    if _constant([a - b] if paired else [a, b]):
        return comparison
    if paired:
        spread = (a - b).std(ddof=1)
        test: Any = stats.ttest_rel(a, b)
    else:
        spread = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        test = stats.ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(_LEVEL)
    return comparison._replace(
        interval=(float(interval.low), float(interval.high)),
        t=float(test.statistic),
        degrees=float(test.df),
        p=float(test.pvalue),
        cohens_d=float(comparison.difference / spread),
    )


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same, with p-values corrected for all that are defined (Holm)."""
    defined = [one.p for one in comparisons if one.p is not None]
    adjusted = iter(holm(defined))
    return [one if one.p is None else one._replace(p_holm=next(adjusted)) for one in comparisons]


def _constant(values: Sequence[np.ndarray]) -> bool:
    """True if no group varies beyond rounding, so that no test is defined."""
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
