"""Tests between settings, against scipy, statsmodels and textbook formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from primia_jax.errors import DataError
from primia_jax.inversion import anova, compare_pairs
from primia_jax.inversion.comparison import holm


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
def test_unpaired_comparisons(seed):
    data = groups(seed)
    found = compare_pairs(data)
    assert [(c.first[-1], c.second[-1]) for c in found] == [("0", "1"), ("0", "2"), ("1", "2")]
    for c in found:
        a, b = data[c.first], data[c.second]
        n, m = len(a), len(b)
        pooled = np.sqrt(((n - 1) * a.var(ddof=1) + (m - 1) * b.var(ddof=1)) / (n + m - 2))
        t = (a.mean() - b.mean()) / (pooled * np.sqrt(1 / n + 1 / m))
        np.testing.assert_allclose((c.t, c.degrees), (t, n + m - 2))
        np.testing.assert_allclose(c.p, 2 * stats.t.sf(abs(t), n + m - 2))
        np.testing.assert_allclose(c.cohens_d, (a.mean() - b.mean()) / pooled)
        width = stats.t.ppf(0.975, n + m - 2) * pooled * np.sqrt(1 / n + 1 / m)
        np.testing.assert_allclose(c.interval, (c.difference - width, c.difference + width))
    np.testing.assert_allclose([c.p_holm for c in found], holm([c.p for c in found]))


@given(st.integers(0, 999))
def test_paired_comparisons_are_on_differences(seed):
    data = groups(seed, (10, 10))
    (c,) = compare_pairs(data, paired=True)
    difference = data[c.first] - data[c.second]
    d = difference.mean() / difference.std(ddof=1)
    np.testing.assert_allclose((c.cohens_d, c.t, c.degrees), (d, d * np.sqrt(10), 9))
    np.testing.assert_allclose(c.p, stats.ttest_1samp(difference, 0).pvalue)
    assert c.p_holm == c.p


def test_holm_is_statsmodels():
    # Recorded from statsmodels 0.15: multipletests(method='holm').
    p = [0.01, 0.04, 0.03, 0.005, 0.9, 0.03]
    np.testing.assert_allclose(holm(p), [0.05, 0.12, 0.12, 0.03, 0.9, 0.12])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p):
    corrected = holm(p)
    assert (corrected >= np.array(p)).all() and (corrected <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()
    assert (corrected <= np.minimum(1, np.array(p) * len(p)) + 1e-15).any()


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, of a constant setting
def test_settings_without_variance_have_no_test():
    data = {"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [1.0, 3.0]}
    first, *others = compare_pairs(data)
    assert first.difference == -1
    undefined = (first.interval, first.t, first.p, first.p_holm, first.cohens_d)
    assert undefined == (None,) * 5
    assert all(c.p_holm is not None for c in others)
    assert anova({"a": [1, 1], "b": [2, 2]}).p is None
    (same,) = compare_pairs({"a": [0.1, 0.7], "b": [0.3, 0.9]}, paired=True)
    assert same.p is None  # a constant difference but for rounding


def test_too_little_is_refused():
    with pytest.raises(DataError, match="1 setting: at least two"):
        anova({"a": [1, 2]})
    with pytest.raises(DataError, match="b: 1 values"):
        compare_pairs({"a": [1, 2], "b": [1]})
    with pytest.raises(DataError, match="b: 2 values; take two or more, all finite"):
        anova({"a": [1, 2], "b": [1, np.nan]})
    with pytest.raises(DataError, match="a has 2 values and b 3"):
        compare_pairs({"a": [1, 2], "b": [1, 2, 3]}, paired=True)
