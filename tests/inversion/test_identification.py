"""Whose image it is: ranks, ties, and a chance level that matching cannot beat."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primia_jax.errors import DataError
from primia_jax.inversion import identify
from primia_jax.inversion.identification import of_ranks


def test_exact_reconstructions_are_always_identified_in_any_order():
    images = np.random.default_rng(0).random((22, 8, 8, 1))
    ranks = identify(images[[2, 0, 1]], images[:3], images[3:])
    result = of_ranks(ranks, 20, [0, 0, 0])
    assert result.ranks.tolist() == [1, 1, 1] and result.top1 == 1
    assert result.chance == 1 / 20
    assert result.p == pytest.approx(6 / (22 * 21 * 20))  # the first three of 22 are the true ones
    assert result.interval == pytest.approx((0.025 ** (1 / 3), 1.0))  # of three hits in three
    assert of_ranks(ranks, 20, [0, 1, 2]).p == pytest.approx(1 / 20**3)


def test_one_grey_image_for_all_identifies_nobody():
    # Everybody is equally near: the mean rank, and no hit.
    ranks = identify(np.full((4, 5), 0.5), np.zeros((4, 5)), np.zeros((6, 5)))
    assert ranks.tolist() == [4, 4, 4, 4]
    result = of_ranks(ranks, 7, np.arange(4))
    assert result.top1 == 0 and result.p == 1


@given(st.integers(0, 999), st.integers(1, 8))
def test_ranks_are_those_of_the_sorted_distances(seed, n):
    rng = np.random.default_rng(seed)
    found, truths, decoys = rng.random((n, 6)), rng.random((3, 6)), rng.random((9, 6))
    for image, rank in zip(truths, identify(found, truths, decoys)):
        gallery = np.concatenate([image[None], decoys])
        distances = [min(np.linalg.norm(one - r) for r in found) for one in gallery]
        assert rank == 1 + sorted(distances).index(distances[0])


@pytest.mark.parametrize("n", [1, 3, 16, 48])
def test_reconstructions_that_know_nothing_reach_the_chance_level(n):
    """Whatever the number of images behind an update; the matching of images would lift it."""
    rng = np.random.default_rng(n)
    updates = 1200 // n
    ranks = [identify(*(rng.random((size, 5)) for size in (n, n, 19))) for _ in range(updates)]
    result = of_ranks(np.concatenate(ranks), 20, np.repeat(np.arange(updates), n))
    assert abs(result.top1 - result.chance) < 0.03
    assert result.p > 0.01


def test_p_is_exact_for_images_that_share_their_decoys():
    # By hand: every order of two true images and three decoys is as likely.
    orders = list(itertools.permutations(["a", "b", "x", "y", "z"]))
    for hits, ranks in ((1, [1, 2]), (2, [1, 1])):
        reached = sum(
            next(i for i, one in enumerate(order) if one > "b") >= hits for order in orders
        )
        assert of_ranks(ranks, 4, [0, 0]).p == pytest.approx(reached / len(orders))


def test_without_decoys_nothing_is_shown():
    result = of_ranks(identify(np.ones((1, 4)), np.zeros((2, 4)), np.zeros((0, 4))), 1, [0, 0])
    assert result.top1 == result.chance == result.p == 1


@pytest.mark.parametrize(
    ("found", "truths", "message"),
    [
        (np.zeros((0, 4)), np.zeros((2, 4)), "cannot be sought"),
        (np.zeros((2, 3)), np.zeros((2, 4)), "cannot be sought"),
        (np.zeros((2, 4)), np.zeros((0, 4)), "cannot be sought"),
        (np.full((2, 4), np.nan), np.zeros((2, 4)), "not finite"),
    ],
)
def test_what_cannot_be_sought_is_refused(found, truths, message):
    with pytest.raises(DataError, match=message):
        identify(found, truths, np.zeros((5, 4)))
