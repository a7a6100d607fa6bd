"""Whose image it is: ranks, ties, and the chance level beside the share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from primia_jax.errors import DataError
from primia_jax.inversion import identify


def test_exact_reconstructions_are_always_identified():
    gallery = np.random.default_rng(0).random((20, 8, 8, 1))
    truth = np.array([3, 19, 0])
    result = identify(gallery[truth], gallery, truth)
    assert result.ranks.tolist() == [1, 1, 1] and result.top1 == 1
    assert result.chance == 1 / 20
    assert result.p == pytest.approx(1 / 20**3)
    assert result.interval == pytest.approx((0.025 ** (1 / 3), 1.0))  # of three hits in three


def test_one_grey_image_for_all_identifies_nobody():
    # Everybody is equally near: the mean rank, and no hit.
    result = identify(np.full((4, 5), 0.5), np.zeros((7, 5)), np.arange(4))
    assert result.ranks.tolist() == [4, 4, 4, 4] and result.top1 == 0 and result.p == 1


@given(st.integers(0, 999), st.integers(1, 8))
def test_ranks_are_those_of_the_sorted_distances(seed, n):
    rng = np.random.default_rng(seed)
    gallery, found = rng.random((9, 6)), rng.random((n, 6))
    truth = rng.integers(0, 9, n)
    result = identify(found, gallery, truth)
    for i in range(n):
        order = np.argsort(np.linalg.norm(gallery - found[i], axis=1))
        assert result.ranks[i] == 1 + np.flatnonzero(order == truth[i])[0]
    hits = int((result.ranks == 1).sum())
    assert result.p == pytest.approx(stats.binom.sf(hits - 1, n, 1 / 9))


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        (np.zeros((0, 4)), np.zeros(0, int), "cannot be sought"),
        (np.zeros((2, 3)), np.arange(2), "cannot be sought"),
        (np.zeros((2, 4)), np.array([0, 5]), "true images 0 to 5 in a gallery of 5"),
        (np.full((2, 4), np.nan), np.arange(2), "not finite"),
    ],
)
def test_what_cannot_be_sought_is_refused(found, truth, message):
    with pytest.raises(DataError, match=message):
        identify(found, np.zeros((5, 4)), truth)
