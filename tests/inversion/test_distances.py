"""FID and KID against plain formulas in float64, and what they are held to."""

import jax
import networks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg
from sklearn.metrics.pairwise import polynomial_kernel

from primia_jax.errors import ConfigError, DataError
from primia_jax.inversion import fid, judge, kid, penultimate


def reference_fid(a, b):
    """By the square root of a d×d matrix, as Heusel et al. 2017 write it."""
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(covariance_a @ covariance_b).real
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    return apart + np.trace(covariance_a + covariance_b - 2 * root)


def reference_kid(a, b):
    n, m, d = len(a), len(b), a.shape[1]
    within = [
        sum((x[i] @ x[j] / d + 1) ** 3 for i in range(len(x)) for j in range(len(x)) if i != j)
        / (len(x) * (len(x) - 1))
        for x in (a, b)
    ]
    between = sum((x @ y / d + 1) ** 3 for x in a for y in b) / (n * m)
    return sum(within) - 2 * between


@given(st.integers(0, 999), st.integers(8, 30), st.integers(8, 30), st.integers(2, 6))
def test_both_equal_their_definitions(seed, n, m, d):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    b = rng.normal(size=(m, d)) + rng.normal(size=d)
    np.testing.assert_allclose(fid(a, b), reference_fid(a, b), rtol=1e-6)
    np.testing.assert_allclose(kid(a, b), reference_kid(a, b), rtol=1e-8, atol=1e-8)


def test_kid_has_scikit_learns_kernel():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 64)), rng.normal(0.3, 1.2, size=(50, 64))
    aa, bb, ab = (polynomial_kernel(*pair, degree=3) for pair in ((a, a), (b, b), (a, b)))
    off = ~np.eye(40, dtype=bool), ~np.eye(50, dtype=bool)
    np.testing.assert_allclose(kid(a, b), aa[off[0]].mean() + bb[off[1]].mean() - 2 * ab.mean())


def test_fid_with_more_features_than_images():
    # Singular covariances: where they commute, on axes of their own, the value is known.
    a, b = np.zeros((2, 2, 500))
    a[:, 0], b[:, 1] = [1, -1], [2, -2]
    assert fid(a, b) == pytest.approx(2 + 8)  # nothing shared: the sum of variances
    b[:, 0], b[:, 1] = [2, -2], 0
    assert fid(a, b) == pytest.approx((np.sqrt(8) - np.sqrt(2)) ** 2)


@given(st.integers(0, 999), st.floats(0.1, 10))
def test_fid_of_equals_is_nothing_and_it_scales_with_features(seed, scale):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(12, 5)), rng.normal(size=(9, 5)) + 0.5
    assert fid(a, a) < 1e-9
    np.testing.assert_allclose(fid(scale * a, scale * b), scale**2 * fid(a, b), rtol=1e-8)
    np.testing.assert_allclose(fid(a + 3, b + 3), fid(a, b), rtol=1e-8)
    np.testing.assert_allclose(fid(a, b), fid(b, a), rtol=1e-8)


def test_kid_of_one_population_is_about_nothing_and_fid_is_not():
    # The reason for both of them, and for the floor.
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 60, 100))
    assert abs(kid(a, b)) < 0.05
    assert fid(a, b) > 50


def flat(images):
    return np.asarray(images).reshape(len(images), -1)


def vivid(images):
    """Features of a size at which KID's kernel is far from linear."""
    return 10 * flat(images)


def test_real_against_real_is_the_floor_and_noise_the_ceiling():
    rng = np.random.default_rng(2)
    originals = np.clip(rng.normal(0.5, 0.2, (60, 1, 1, 1)) * np.ones((60, 6, 6, 1)), 0, 1)
    close = originals + 0.01 * rng.normal(size=originals.shape)
    bad = originals[::-1] * 0.5 + 0.1 * rng.random(originals.shape)
    near = judge(originals, close, vivid, jax.random.key(0))
    far = judge(originals, bad, vivid, jax.random.key(0))
    assert near.n == 60 and near.n_features == 36 and not near.rank_deficient
    for of_near, of_far in ((near.fid, far.fid), (near.kid, far.kid)):
        assert of_near.floor == of_far.floor and of_near.ceiling == of_far.ceiling
        assert of_near.reconstructions.mean < of_near.floor.mean + 2 * of_near.floor.std + 0.05
        assert of_near.reconstructions.mean < of_far.reconstructions.mean
        assert of_near.floor.mean < of_near.ceiling.mean
        assert of_far.interval[0] <= of_far.interval[1]
        assert of_near.interval[1] < of_far.interval[0]
    np.testing.assert_allclose(far.fid.value, fid(vivid(originals), vivid(bad)), rtol=1e-5)
    again = judge(originals, close, vivid, jax.random.key(0))
    assert again == near
    assert judge(originals, close, vivid, jax.random.key(1)).fid.ceiling != near.fid.ceiling


def test_equal_sets_lie_at_the_floor():
    images, _ = networks.phantoms(10, 16)
    result = judge(images, images, flat, jax.random.key(0), n_splits=10, n_bootstrap=20)
    assert result.fid.value < 1e-9 and result.rank_deficient
    np.testing.assert_allclose(result.fid.reconstructions, result.fid.floor)
    np.testing.assert_allclose(result.kid.reconstructions, result.kid.floor)


def test_features_of_a_network_in_batches_are_those_of_single_images():
    module, variables = networks.small_cnn(16, width=4)
    images, _ = networks.phantoms(5, 16)
    found = penultimate(module, variables, mean=0.4, std=0.3, batch_size=2)(images)
    assert found.shape == (5, 16)
    logits = module.apply(variables, (images - 0.4) / 0.3, train=False)
    layer = variables["params"]["fc"]
    np.testing.assert_allclose(found @ layer["kernel"] + layer["bias"], logits, atol=1e-5)
    with pytest.raises(ConfigError, match="no dense layer 'head' in the network; it has fc"):
        penultimate(module, variables, layer="head")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "at least 2"),
        (np.zeros((4, 3)), np.zeros((4, 2)), r"take \[n d\]"),
        (np.zeros((4, 3)), np.full((4, 3), np.inf), "not finite"),
    ],
)
def test_unfit_features_are_refused(a, b, message):
    for distance in (fid, kid):
        with pytest.raises(DataError, match=message):
            distance(a, b)


def test_sets_too_small_are_refused():
    images = np.zeros((3, 4, 4, 1))
    with pytest.raises(DataError, match="3 images are too few for FID and KID"):
        judge(images, images, flat, jax.random.key(0))
    with pytest.raises(DataError, match="cannot be compared"):
        judge(images, images[:2], flat, jax.random.key(0))
