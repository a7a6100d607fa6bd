"""Metrics of reconstructions, against scikit-image and plain loops in float64."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from primia_jax.errors import DataError
from primia_jax.inversion.similarity import all_mse, compare, match, mse, psnr, ssim, summarise


def pairs():
    """Three images, and the same under little, some and much noise."""
    rng = np.random.Generator(np.random.Philox(7))
    a = rng.random((3, 24, 20))
    noise = np.array([0.02, 0.2, 1.0])[:, None, None] * rng.normal(size=a.shape)
    return a, np.clip(a + noise, 0, 1)


def test_ssim_and_psnr_are_scikit_images():
    # Recorded from scikit-image 0.26: structural_similarity(gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False, data_range=1.0), peak_signal_noise_ratio(data_range=1.0).
    a, b = pairs()
    expected = [0.9974921473802486, 0.8117488458094876, 0.23283703655573654]
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-12)
    expected = [33.99968183592111, 14.956116417318242, 6.954398039605181]
    np.testing.assert_allclose(psnr(mse(a, b)), expected, rtol=1e-12)


def test_ssim_is_its_definition():
    # Wang et al. 2004, equation 13, window by window.
    a, b = pairs()
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for r, c in itertools.product(range(14), range(10)):
        x, y = a[1, r : r + 11, c : c + 11], b[1, r : r + 11, c : c + 11]
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        vxy = (window * (x - mx) * (y - my)).sum()
        top = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4)
        values.append(top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    np.testing.assert_allclose(ssim(a, b)[1], np.mean(values), rtol=1e-10)


images = npst.arrays(np.float64, (2, 12, 12), elements=st.floats(0, 1, width=32))


@given(images, images)
def test_ssim_is_symmetric_bounded_and_one_for_equals(a, b):
    forth, back = ssim(a, b), ssim(b, a)
    np.testing.assert_allclose(forth, back, atol=1e-12)
    assert (np.abs(forth) <= 1 + 1e-9).all()
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-9)


@given(st.permutations(range(5)), st.integers(0, 99))
def test_shuffled_reconstructions_find_their_originals(order, seed):
    rng = np.random.default_rng(seed)
    originals = rng.random((5, 12, 12, 1))
    found = np.clip(originals + 0.01 * rng.normal(size=originals.shape), 0, 1)[list(order)]
    result = compare(originals, found)
    assert [order[i] for i in result.order] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(result.mse, mse(originals, found[result.order]))


def test_matching_is_the_best_of_all_orders_not_greedy():
    rng = np.random.default_rng(0)
    a, b = rng.random((4, 3, 3)), rng.random((6, 3, 3))
    chosen = match(a, b)
    costs = all_mse(a, b)
    orders = itertools.permutations(range(6), 4)
    best = min(sum(costs[i, j] for i, j in enumerate(order)) for order in orders)
    np.testing.assert_allclose(costs[np.arange(4), chosen].sum(), best)


def test_values_outside_the_grey_scale_are_clamped_first():
    originals = np.zeros((1, 12, 12, 1))
    originals[0, 6:] = 1
    wild = originals * 7 - 3
    result = compare(originals, wild)
    assert result.mse == 0 and result.psnr == 200
    np.testing.assert_allclose(result.ssim, 1)


def test_images_smaller_than_the_window_have_no_ssim():
    small = np.zeros((2, 8, 8, 1))
    assert np.isnan(compare(small, small).ssim).all()
    with pytest.raises(DataError, match="at least 11 pixels"):
        ssim(small, small)


def test_the_worst_image_is_the_one_given_away_most():
    assert summarise([0.2, 0.1, 0.6], low_is_close=True) == pytest.approx(
        (3, 0.3, np.std([0.2, 0.1, 0.6], ddof=1), 0.2, 0.1, 1)
    )
    assert summarise([0.2, 0.1, 0.6], low_is_close=False).worst_image == 2
    assert np.isnan(summarise([0.2], low_is_close=True).std)
    for bad in ([], [0.1, np.nan]):
        with pytest.raises(DataError, match="finite values"):
            summarise(bad, low_is_close=True)


@pytest.mark.parametrize(
    ("originals", "found", "message"),
    [
        (np.zeros((2, 12, 12, 1)), np.zeros((1, 12, 12, 1)), "cannot be compared"),
        (np.zeros((2, 12, 12, 3)), np.zeros((2, 12, 12, 3)), "grey images"),
        (np.zeros((1, 12, 12, 1)), np.full((1, 12, 12, 1), np.nan), "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(originals, found, message):
    with pytest.raises(DataError, match=message):
        compare(originals, found)
    with pytest.raises(DataError, match="too few for 2 images"):
        match(np.zeros((2, 4, 4)), np.zeros((1, 4, 4)))
