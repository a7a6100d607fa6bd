"""Partition over hospitals: complete, disjoint, patients whole, shares met, and reproducible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import catalogue, with_rule

from primia_jax.data import assign_splits, hospital_names, partition
from primia_jax.errors import DataError


def many(n_patients: int, seed: int, n_classes: int = 3, largest: int = 4):
    """Patients with one to `largest` images, some of them of two classes."""
    rng = np.random.Generator(np.random.Philox(seed))
    images = rng.integers(1, largest + 1, n_patients)
    labels = np.repeat(np.arange(n_patients) % n_classes, images)
    odd = rng.random(len(labels)) < 0.02
    labels = np.where(odd, (labels + 1) % n_classes, labels)
    return catalogue(labels, np.repeat([f"p{i}" for i in range(n_patients)], images))


def check(c, indices, parts, hospitals):
    """What every rule promises."""
    assert len(parts) == hospitals
    joined = np.concatenate(parts)
    np.testing.assert_array_equal(np.sort(joined), np.sort(indices))
    owners = [set(c.patients[part]) for part in parts]
    assert all(owners)
    assert sum(map(len, owners)) == len(set(c.patients[indices]))


@settings(deadline=None, max_examples=60)
@given(
    rule=st.sampled_from(["iid", "dirichlet", "size"]),
    n_patients=st.integers(30, 120),
    hospitals=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
    with_splits=st.booleans(),
)
def test_invariants(rule, n_patients, hospitals, seed, with_splits):
    c = many(n_patients, seed % 1000)
    config = with_rule(rule, dirichlet_alpha=5.0)
    splits = assign_splits(c, 0.3, 0.1, seed)
    indices = np.flatnonzero(splits != "test")
    options = {"splits": splits} if with_splits else {}
    parts = partition(c, indices, hospitals, config, seed, **options)
    check(c, indices, parts, hospitals)
    if with_splits:
        for part in parts:
            assert {"train", "validation"} == set(splits[part])
    again = partition(c, indices[::-1], hospitals, config, seed, **options)
    for one, other in zip(parts, again):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=30)
@given(n_patients=st.integers(30, 200), hospitals=st.integers(2, 6), seed=st.integers(0, 999))
def test_iid_is_stratified(n_patients, hospitals, seed):
    """Each hospital has its share of each class within about two patients' images."""
    c = many(n_patients, seed)
    parts = partition(c, np.arange(len(c)), hospitals, with_rule("iid"), seed)
    counts = np.array([np.bincount(c.labels[part], minlength=3) for part in parts])
    share = np.bincount(c.labels, minlength=3) / hospitals
    assert np.abs(counts - share).max() <= 9
    assert np.abs(counts.sum(1) - len(c) / hospitals).max() <= 5


@settings(deadline=None, max_examples=30)
@given(ratio=st.floats(1, 20), hospitals=st.integers(2, 5), seed=st.integers(0, 999))
def test_size_ratio(ratio, hospitals, seed):
    """Sizes fall geometrically from the first to the last hospital."""
    c = many(600, seed, largest=2)
    parts = partition(c, np.arange(len(c)), hospitals, with_rule("size", size_ratio=ratio), seed)
    falling = np.geomspace(ratio, 1, hospitals)
    expected = len(c) * falling / falling.sum()
    assert np.abs([len(part) for part in parts] - expected).max() <= 3


def test_splits_are_spread_alike():
    """Each hospital's validation patients are the same share of its patients."""
    c = many(300, 5, largest=1)
    splits = assign_splits(c, 0.2, 0, 0)
    for rule in ("iid", "size"):
        for part in partition(c, np.arange(len(c)), 3, with_rule(rule), 0, splits=splits):
            assert abs((splits[part] == "validation").mean() - 0.2) < 0.04


def test_dirichlet_skew_follows_alpha():
    """Small alpha: hospitals of few classes; large alpha: as good as iid."""
    c = many(600, 1, largest=1)

    def skew(alpha, seed):
        parts = partition(
            c, np.arange(len(c)), 4, with_rule("dirichlet", dirichlet_alpha=alpha), seed
        )
        counts = np.array([np.bincount(c.labels[part], minlength=3) for part in parts])
        return np.abs(counts / counts.sum(0) - 0.25).mean()

    mean = [np.mean([skew(alpha, seed) for seed in range(10)]) for alpha in (0.1, 1.0, 1000.0)]
    assert mean[0] > mean[1] + 0.05 > mean[2] + 0.15
    assert mean[2] < 0.02


def test_identical_images_stay_in_one_hospital():
    digests = [f"d{i}" for i in range(60)]
    digests[1] = digests[0]
    c = catalogue(np.arange(60) % 2, np.arange(60), digests=digests)
    for seed in range(10):
        parts = partition(c, np.arange(60), 5, with_rule("iid"), seed)
        assert any({0, 1} <= set(part.tolist()) for part in parts)


def test_seed_matters():
    c = many(60, 0)
    one, other = (partition(c, np.arange(len(c)), 3, with_rule("iid"), seed) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other))


def test_every_hospital_gets_a_patient_at_any_ratio():
    """Four patients, four hospitals, a ratio of 100: one each."""
    c = catalogue([0, 1, 0, 1], np.arange(4))
    parts = partition(c, np.arange(4), 4, with_rule("size", size_ratio=100.0), 0)
    assert [len(part) for part in parts] == [1, 1, 1, 1]


def test_given_sites():
    """Hospitals come in natural order, site_2 before site_10, and have the sites' names."""
    sites = [f"site_{i}" for i in (10, 2, 10, 2, 1, 1)]
    c = catalogue([0, 1] * 3, np.arange(6), sites=sites)
    parts = partition(c, np.array([5, 0, 1, 3, 4]), 3, with_rule("given"), 0)
    assert [part.tolist() for part in parts] == [[4, 5], [1, 3], [0]]
    assert hospital_names(c, 3) == ("site_1", "site_2", "site_10")
    assert hospital_names(c, 2) == ("hospital_0", "hospital_1")
    assert hospital_names(c, 3, "iid") == ("hospital_0", "hospital_1", "hospital_2")


@pytest.mark.parametrize(
    ("sites", "hospitals", "message"),
    [
        (None, 3, "names no sites.*choose iid, dirichlet or size"),
        (list("aabbaabb"), 3, r"has 2 sites \(a, b\), but config.federated.hospitals = 3"),
        (list("abaabbbb"), 2, "image1: its patient has images at site a and at site b"),
        (list("aaaaaaac"), 2, "0 of 7 images to divide are at site c"),
    ],
)
def test_given_mistakes(sites, hospitals, message):
    c = catalogue([0, 1] * 4, [0, 0, 1, 1, 2, 3, 4, 5], sites=sites)
    with pytest.raises(DataError, match=message):
        partition(c, np.arange(7), hospitals, with_rule("given"), 0)


def test_given_site_without_validation():
    c = catalogue([0, 1] * 3, np.arange(6), sites=list("aaaaab"))
    splits = np.array(["train", "validation"] * 2 + ["train"] * 2)
    with pytest.raises(DataError, match="no validation images at site b"):
        partition(c, np.arange(6), 2, with_rule("given"), 0, splits=splits)


@pytest.mark.parametrize("rule", ["iid", "dirichlet", "size"])
def test_too_few_patients(rule):
    c = catalogue([0, 1] * 4, [0, 0, 0, 0, 1, 1, 1, 1])
    with pytest.raises(DataError, match="2 patients cannot be divided over 3 hospitals"):
        partition(c, np.arange(8), 3, with_rule(rule), 0)
    with pytest.raises(DataError, match="0 patients"):
        partition(c, np.arange(0), 3, with_rule(rule), 0)


def test_too_few_validation_patients():
    c = catalogue([0, 1] * 5, np.arange(10))
    splits = np.array(["validation"] * 2 + ["train"] * 8)
    with pytest.raises(DataError, match=r"2 validation patients .* to the validation set"):
        partition(c, np.arange(10), 3, with_rule("iid"), 0, splits=splits)


def test_dirichlet_that_leaves_hospitals_empty():
    """Bounded patience: twenty hospitals cannot share two classes one of which goes to each."""
    c = many(60, 0, n_classes=2)
    config = with_rule("dirichlet", dirichlet_alpha=0.01)
    with pytest.raises(DataError, match=r"20 hospitals .*alpha = 0.01 .*\d+ hospitals empty"):
        partition(c, np.arange(len(c)), 20, config, 0)


@pytest.mark.parametrize("site", ["all", "Model_Owner", "crypto_provider", "north\n", "x" * 300])
def test_a_hospital_cannot_be_called_like_a_party(site):
    c = catalogue([0, 1] * 3, np.arange(6), sites=["south", site] * 3)
    with pytest.raises(DataError, match=r"reserved|control characters|bytes"):
        hospital_names(c, 2)
    assert hospital_names(c, 2, "iid") == ("hospital_0", "hospital_1")
