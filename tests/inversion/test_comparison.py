"""Tests between settings, against scipy and textbook formulas."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from primia_jax.errors import DataError
from primia_jax.inversion import anova, compare_two, corrected


def groups(seed=0, sizes=(12, 15, 9)):
    rng = np.random.default_rng(seed)
    return {f"setting {i}": rng.normal(i / 2, 1, n) for i, n in enumerate(sizes)}


@given(st.integers(0, 999))
def test_anova_is_the_ratio_of_variances(seed):
    data = groups(seed)
    result = anova(data)
    everything = np.concatenate(list(data.values()))
    between = sum(len(v) * (v.mean() - everything.mean()) ** 2 for v in data.values())
    within = sum(((v - v.mean()) ** 2).sum() for v in data.values())
    f = (between / 2) / (within / 33)
    assert (result.between, result.within) == (2, 33)
    np.testing.assert_allclose(result.f, f)
    np.testing.assert_allclose(result.p, stats.f.sf(f, 2, 33))
    total = ((everything - everything.mean()) ** 2).sum()
    np.testing.assert_allclose(result.eta_squared, between / total)


@given(st.integers(0, 999))
def test_unpaired_comparisons_are_welch_s(seed):
    data = groups(seed, (12, 15))
    c = compare_two(data, paired=False)
    a, b = data.values()
    assert (c.first[-1], c.second[-1], c.paired) == ("0", "1", False)
    parts = [v.var(ddof=1) / len(v) for v in (a, b)]
    error = np.sqrt(sum(parts))
    degrees = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (a, b)))
    t = (a.mean() - b.mean()) / error
    np.testing.assert_allclose((c.t, c.degrees), (t, degrees))
    np.testing.assert_allclose(c.p, 2 * stats.t.sf(abs(t), degrees))
    width = stats.t.ppf(0.975, degrees) * error
    np.testing.assert_allclose(c.interval, (c.difference - width, c.difference + width))
    deviation = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    np.testing.assert_allclose(c.cohens_d, c.difference / deviation)


@given(st.integers(0, 999))
def test_paired_comparisons_are_on_differences(seed):
    data = groups(seed, (10, 10))
    c = compare_two(data, paired=True)
    difference = data[c.first] - data[c.second]
    d = difference.mean() / difference.std(ddof=1)
    np.testing.assert_allclose((c.cohens_d, c.t, c.degrees), (d, d * np.sqrt(10), 9))
    np.testing.assert_allclose(c.p, stats.ttest_1samp(difference, 0).pvalue)
    assert c.paired and c.p_holm is None


def test_correction_leaves_out_what_is_undefined():
    # By hand: of p = 0.01, 0.04, 0.03 Holm makes 0.03, 0.06, 0.06.
    one = compare_two({"a": [1, 2], "b": [2, 4]}, paired=True)
    found = corrected([one._replace(p=p) for p in (0.01, 0.04, None, 0.03)])
    np.testing.assert_allclose([c.p_holm for c in found if c.p], [0.03, 0.06, 0.06])
    assert found[2].p_holm is None
    assert corrected([]) == []


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, of a constant setting
def test_settings_without_variance_have_no_test():
    data = {"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [1.0, 3.0]}
    first, *others = corrected(
        [
            compare_two({n: data[n] for n in two}, paired=False)
            for two in itertools.combinations(data, 2)
        ]
    )
    assert first.difference == -1
    undefined = (first.interval, first.t, first.p, first.p_holm, first.cohens_d)
    assert undefined == (None,) * 5
    assert all(c.p_holm is not None for c in others)
    assert anova({"a": [1, 1], "b": [2, 2]}).p is None
    same = compare_two({"a": [0.1, 0.7], "b": [0.3, 0.9]}, paired=True)
    assert same.p is None  # a constant difference but for rounding


def test_too_little_is_refused():
    with pytest.raises(DataError, match="1 setting: at least two"):
        anova({"a": [1, 2]})
    with pytest.raises(DataError, match="b: 1 values"):
        compare_two({"a": [1, 2], "b": [1]}, paired=False)
    with pytest.raises(DataError, match="b: 2 values; take two or more, all finite"):
        anova({"a": [1, 2], "b": [1, np.nan]})
    with pytest.raises(DataError, match="a has 2 values and b 3"):
        compare_two({"a": [1, 2], "b": [1, 2, 3]}, paired=True)
