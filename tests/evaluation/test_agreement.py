"""Protects the statistics between raters: McNemar's test, Cohen's kappa, intervals, equivalence.

Held against statsmodels, scikit-learn and scipy on random data, and against the printed figures of
A. Ziller et al. (arXiv:2012.06354), table 1, as far as its tables determine them.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.inter_rater import cohens_kappa

from primia_jax.evaluation import agreement, metrics

NAMES = ("normal", "bacterial", "viral")


def _raters(rng: np.random.Generator, n: int, right: float = 0.8) -> list[np.ndarray]:
    """The truth and two raters that are each right in a share `right` of n images."""
    labels = rng.integers(0, 3, n)
    found = [np.where(rng.random(n) < right, labels, rng.integers(0, 3, n)) for _ in range(2)]
    return [labels, *found]


@pytest.mark.parametrize("n", [12, 60, 400])
def test_mcnemar_equals_statsmodels_and_the_binomial(n):
    for seed in range(5):
        labels, first, second = _raters(np.random.default_rng(seed), n)
        found = agreement.mcnemar(labels, first, second)
        right = [first == labels, second == labels]
        table = [
            [(right[0] & right[1]).sum(), (right[0] & ~right[1]).sum()],
            [(~right[0] & right[1]).sum(), (~right[0] & ~right[1]).sum()],
        ]
        differing = found.first_only + found.second_only
        assert found.exact == (differing < 25)
        expected = statsmodels_mcnemar(table, exact=found.exact, correction=True).pvalue
        assert found.p == pytest.approx(expected)
        if found.exact and differing:
            assert found.p == pytest.approx(stats.binomtest(found.first_only, differing).pvalue)


def test_mcnemar_of_equal_raters_is_one():
    labels = np.array([0, 1, 2, 1])
    assert agreement.mcnemar(labels, labels, labels) == agreement.McNemar(0, 0, 1.0, True)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_equals_scikit_learn_and_statsmodels(seed):
    _, first, second = _raters(np.random.default_rng(seed), 200)
    found = agreement.cohen_kappa(first, second, 3)
    table = np.zeros((3, 3))
    np.add.at(table, (first, second), 1)
    expected = cohens_kappa(table)
    assert found.value == pytest.approx(cohen_kappa_score(first, second))
    assert (found.low, found.high) == pytest.approx((expected.kappa_low, expected.kappa_upp))


def test_kappa_without_disagreement_or_without_variety():
    """What statsmodels gives as NaN."""
    same = np.array([0, 1, 2, 0])
    assert agreement.cohen_kappa(same, same, 3) == (1.0, 1.0, 1.0)
    assert agreement.cohen_kappa(same * 0, same * 0, 3) == (None, None, None)
    half = agreement.cohen_kappa(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]), 3)
    assert half == (0, None, None)


def test_resamples_without_the_rare_class_say_nothing_of_kappa():
    """Two raters that agree on every image, on one of them on a rare class."""
    same = np.array([0] * 30 + [1])
    samples = agreement.resampled_kappa(same * 0, same, same, 2, 200)
    assert 0 < np.isnan(samples).sum() < 200
    assert set(samples[~np.isnan(samples)]) == {1.0}
    assert agreement.estimate([1.0], samples[:, None])[:3] == (1.0, 1.0, 1.0)
    mostly = np.where(np.arange(200) < 150, np.nan, 1.0)[:, None]
    assert agreement.estimate([1.0], mostly)[:3] == (1.0, None, None)


def test_equal_counts_are_no_difference_however_many():
    for count in (1, 12, 13, 200):
        assert agreement.mcnemar_from_counts(count, count).p == 1
        assert agreement.mcnemar_from_counts(count, count + 1).p == 1


def test_holm_by_hand():
    assert agreement.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert agreement.holm([0.5, 0.01, 1.0]) == pytest.approx([1.0, 0.03, 1.0])
    assert agreement.holm([]) == []


@pytest.mark.parametrize("seed", range(3))
def test_resampled_kappa_and_mcc_equal_scikit_learn_on_each_resample(seed):
    labels, first, second = _raters(np.random.default_rng(seed), 40)
    kappa = agreement.resampled_kappa(labels, first, second, 3, 6, seed)
    mcc = metrics.bootstrap_scores(labels, np.eye(3)[first], NAMES, 6, seed)["mcc"]
    (weights,) = metrics.resampling_weights(labels, 3, 6, seed)
    for row, k, m in zip(weights.astype(int), kappa, mcc):
        drawn = np.repeat(np.arange(40), row)
        assert k == pytest.approx(cohen_kappa_score(first[drawn], second[drawn]))
        assert m == pytest.approx(matthews_corrcoef(labels[drawn], first[drawn]))


def test_the_interval_of_a_difference_is_paired():
    """Of a model with itself it is exactly zero; unpaired resamples would spread it."""
    labels, first, _ = _raters(np.random.default_rng(0), 100)
    samples = [
        metrics.bootstrap_scores(labels, np.eye(3)[first], NAMES, 50, 7)["mcc"] for _ in range(2)
    ]
    found = agreement.estimate([0.0], (samples[0] - samples[1])[:, None])
    assert found == agreement.Estimate(0.0, 0.0, 0.0, None, (0.0,))


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    """Two raters, right in 85 and 80 % of balanced classes: the MCCs are 0.85 and 0.80 apart."""
    covered = 0
    for trial in range(120):
        rng = np.random.default_rng(trial)
        labels = rng.integers(0, 3, 150)
        rated = []
        for right in (0.85, 0.80):
            wrong = (labels + rng.integers(1, 3, 150)) % 3
            rated.append(np.where(rng.random(150) < right, labels, wrong))
        samples = [
            metrics.bootstrap_scores(labels, np.eye(3)[r], NAMES, 300, trial)["mcc"] for r in rated
        ]
        mcc = [matthews_corrcoef(labels, r) for r in rated]
        found = agreement.estimate([mcc[0] - mcc[1]], (samples[0] - samples[1])[:, None])
        expected = 1.5 * 0.05  # of three balanced classes, errors even: (3 accuracy - 1) / 2
        covered += found.low <= expected <= found.high
    assert covered / 120 > 0.89  # 95 % less three standard errors


def test_an_estimate_over_seeds_spreads_with_them():
    """Seeds that differ by far more than images do must widen the interval."""
    images = np.random.default_rng(0).normal(0, 0.01, (500, 1))
    alike = agreement.estimate([0.5, 0.5, 0.5], 0.5 + images + np.zeros(3))
    apart = agreement.estimate([0.3, 0.5, 0.7], images + np.array([0.3, 0.5, 0.7]))
    assert alike.std == 0 and apart.std == pytest.approx(0.2)
    assert alike.high - alike.low < 0.05
    assert apart.low < 0.4 and apart.high > 0.6
    assert alike.mean == pytest.approx(0.5) and apart.mean == pytest.approx(0.5)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_interval_over_few_seeds_covers_as_often_as_it_says(seeds, share):
    """Whatever share of the spread is that of trainings, and the rest that of images."""
    rng = np.random.default_rng(seeds)
    covered = 0
    for _ in range(400):
        image = rng.normal(0, (1 - share) ** 0.5)
        values = image + rng.normal(0, share**0.5, seeds)
        samples = values + rng.normal(0, (1 - share) ** 0.5, (400, 1))
        found = agreement.estimate(list(values), samples, (-99.0, 99.0))
        covered += found.low <= 0 <= found.high
    assert covered / 400 > 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5


def test_an_estimate_keeps_within_what_the_score_can_be():
    found = agreement.estimate([0.9, 0.99], np.array([[0.9, 0.99]] * 9), (0.0, 1.0))
    assert found.high == 1.0 and 0 < found.low < 0.9


def test_an_estimate_is_absent_where_a_seed_has_none():
    found = agreement.estimate([0.5, None], np.full((10, 2), 0.5))
    assert found.mean is None and found.low is None and found.by_seed == (0.5, None)
    assert agreement.equivalence(found, 0.02).verdict == agreement.UNDECIDED


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.01, 0.015, "equivalent"),
        (0.001, 0.02, "equivalent"),
        (-0.03, 0.01, "undecided"),
        (0.01, 0.05, "undecided"),
        (0.03, 0.05, "different"),
        (-0.08, -0.021, "different"),
    ],
)
def test_equivalence_is_judged_by_the_interval(low, high, verdict):
    difference = agreement.Estimate((low + high) / 2, low, high, None, ())
    assert agreement.equivalence(difference, 0.02).verdict == verdict


class Printed(NamedTuple):
    """What table 1 of the paper prints of Test Set 1."""

    accuracy: float
    sensitivity: tuple[float, float, float]  # normal, bacterial, viral


N = 145
PAPER = {
    "secure": Printed(0.88, (0.88, 0.88, 0.91)),
    "federated": Printed(0.89, (0.88, 0.88, 0.94)),
    "local": Printed(0.90, (0.90, 0.88, 0.94)),
    "expert 1": Printed(0.79, (0.96, 0.47, 0.88)),
    "expert 2": Printed(0.79, (0.96, 0.84, 0.41)),
}
MCNEMAR = {
    ("secure", "federated"): 1.0,
    ("local", "secure"): 0.47,
    ("local", "federated"): 1.0,
    ("secure", "expert 1"): 0.034,
    ("secure", "expert 2"): 0.025,
    ("federated", "expert 1"): 0.021,
    ("federated", "expert 2"): 0.014,
    ("local", "expert 1"): 0.012,
    ("local", "expert 2"): 0.008,
    ("expert 1", "expert 2"): 0.882,
}
# Images on which only the first, and only the second is right, as reconstructed in the test below.
COUNTS = {
    ("secure", "federated"): (0, 1),
    ("local", "secure"): (2, 0),
    ("local", "federated"): (1, 0),
    ("secure", "expert 1"): (26, 12),
    ("secure", "expert 2"): (24, 10),
    ("federated", "expert 1"): (26, 11),
    ("federated", "expert 2"): (24, 9),
    ("local", "expert 1"): (26, 10),
    ("local", "expert 2"): (24, 8),
    ("expert 1", "expert 2"): (23, 23),
}
RIGHT = {"secure": 129, "federated": 130, "local": 131, "expert 1": 115, "expert 2": 115}


def _fits(value: float, printed: float, digits: int) -> bool:
    """Whether `value` is printed so, rounded or cut off: the paper does both."""
    return abs(value - printed) <= 0.5 * 10**-digits + 1e-9 or (
        0 <= value - printed < 10**-digits - 1e-9
    )


def _right_of(printed: Printed, sizes: tuple[int, int, int]) -> set[int]:
    """The numbers of right answers that the printed accuracy and sensitivities allow."""
    hits = [
        [h for h in range(n + 1) if _fits(h / n, s, 2)] for s, n in zip(printed.sensitivity, sizes)
    ]
    totals = {sum(each) for each in itertools.product(*hits)}
    return {total for total in totals if _fits(total / N, printed.accuracy, 2)}


def _class_sizes() -> list[tuple[int, int, int]]:
    """The sizes of the three classes that all printed figures allow."""
    return [
        (a, b, N - a - b)
        for a in range(20, 110)
        for b in range(10, N - a - 9)
        if all(_right_of(printed, (a, b, N - a - b)) for printed in PAPER.values())
    ]


def test_the_papers_tables_determine_how_many_images_each_rater_got_right():
    """By classes of some sizes the totals may be others, but no others fit table 1b as well.

    Of the totals that table 1a allows, those that give every p of table 1b, for some number of
    images on which both are right, are just one set.
    """
    sizes = _class_sizes()
    assert sizes, "the printed figures contradict one another"
    possible = set()
    for each in sizes:
        options = [_right_of(printed, each) for printed in PAPER.values()]
        possible |= set(itertools.product(*options))
    fitting = [
        totals
        for totals in possible
        if all(_reachable(dict(zip(PAPER, totals)), pair) for pair in MCNEMAR)
    ]
    assert fitting == [tuple(RIGHT.values())]


def _reachable(right: dict[str, int], pair: tuple[str, str]) -> bool:
    """Whether some number of images on which the two differ gives the printed p.

    Between models Cohen's kappa says how many these are: at most two.
    """
    first, second = pair
    ahead = right[first] - right[second]
    models = not any("expert" in name for name in pair)
    most = 2 if models else N - max(right[first], right[second])
    digits = 2 if models else 3
    for second_only in range(most + 1):
        first_only = second_only + ahead
        if first_only < 0 or first_only + second_only > (2 if models else N):
            continue
        if first_only + second_only == 0:
            continue
        found = agreement.mcnemar_from_counts(first_only, second_only, exact=False)
        if _cut(found.p, digits) == MCNEMAR[pair]:
            return True
    return False


def _cut(value: float, digits: int) -> float:
    return math.floor(value * 10**digits + 1e-9) / 10**digits


@pytest.mark.parametrize("pair", list(MCNEMAR))
def test_the_papers_p_values_from_the_reconstructed_counts(pair):
    """All ten are the chi-square with continuity correction, its digits cut off, not rounded."""
    first_only, second_only = COUNTS[pair]
    assert first_only - second_only == RIGHT[pair[0]] - RIGHT[pair[1]]
    found = agreement.mcnemar_from_counts(first_only, second_only, exact=False)
    assert _cut(found.p, 2 if MCNEMAR[pair] == 0.47 else 3) == MCNEMAR[pair]


@pytest.mark.parametrize("pair", list(MCNEMAR))
def test_our_choice_of_test_leaves_the_papers_conclusions_as_they_are(pair):
    """Exact below 25 differing images: 0.47 becomes 0.50, and nothing crosses 0.05."""
    found = agreement.mcnemar_from_counts(*COUNTS[pair])
    assert found.exact == (sum(COUNTS[pair]) < 25)
    assert (found.p < 0.05) == (MCNEMAR[pair] < 0.05)
    if pair == ("local", "secure"):
        assert found.p == pytest.approx(0.5)


@pytest.mark.parametrize(("disagreements", "printed", "digits"), [(1, 0.99, 2), (2, 0.978, 3)])
def test_the_papers_kappas_between_models(disagreements, printed, digits):
    """1 and 2 images told apart of 145 give the printed values, whatever the exact margins.

    The margins (how often each model names each class) are not printed. Those near the classes'
    sizes give 0.989 to 0.990 and 0.978 to 0.979; three images cannot give 0.978.
    """
    values = []
    for sizes in _class_sizes():
        ratings = np.repeat(np.arange(3), sizes)
        for at in (0, N - 1):  # the images told apart are normal, or viral
            other = ratings.copy()
            told = slice(0, disagreements) if at == 0 else slice(N - disagreements, N)
            other[told] = 1
            values.append(agreement.cohen_kappa(ratings, other, 3).value)
    assert any(round(v, digits) == printed for v in values)
    assert max(abs(v - printed) for v in values) < 0.0015
    assert disagreements == 1 or printed - 0.005 > 1 - (3 / N) / (1 - 1 / 3)


KAPPA_WITH_EXPERTS = {
    ("secure", "expert 1"): 0.574,
    ("secure", "expert 2"): 0.609,
    ("federated", "expert 1"): 0.585,
    ("federated", "expert 2"): 0.621,
    ("local", "expert 1"): 0.631,
    ("local", "expert 2"): 0.594,
    ("expert 1", "expert 2"): 0.512,
}


@pytest.mark.parametrize("pair", list(KAPPA_WITH_EXPERTS))
def test_the_papers_kappas_with_experts_are_possible(pair):
    """They are not determined: which wrong class was named is not printed. But they must fit.

    Both are right on as many images as the counts above say, so they agree at least there, at most
    also where both are wrong; and chance agreement of three classes of these sizes is between 0.3
    and 0.45.
    """
    first_only, second_only = COUNTS[pair]
    both_right = RIGHT[pair[0]] - first_only
    both_wrong = N - both_right - first_only - second_only
    assert both_right == RIGHT[pair[1]] - second_only and both_wrong >= 0
    low = 1 - (1 - both_right / N) / (1 - 0.45)
    high = 1 - (1 - (both_right + both_wrong) / N) / (1 - 0.3)
    assert low <= KAPPA_WITH_EXPERTS[pair] <= high
