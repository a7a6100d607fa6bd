"""Splits: nobody and no picture on both sides, classes and sites on every side, fixed ones kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import catalogue

from primia_jax.data import assign_splits
from primia_jax.data.splits import group_ids
from primia_jax.errors import DataError


@st.composite
def catalogues(draw):
    """Patients with one to four images of one class each, at sites."""
    n_classes = draw(st.integers(2, 3))
    n_patients = draw(st.integers(4 * n_classes, 60))
    rng = np.random.Generator(np.random.Philox(draw(st.integers(0, 1000))))
    images = rng.integers(1, 5, n_patients)
    labels = np.repeat(np.arange(n_patients) % n_classes, images)
    patients = np.repeat([f"p{i}" for i in range(n_patients)], images)
    sites = np.repeat([f"s{i}" for i in rng.integers(0, 3, n_patients)], images)
    return catalogue(labels, patients, sites=sites)


def patients_of(c, mask):
    return set(c.patients[mask])


@settings(deadline=None, max_examples=60)
@given(c=catalogues(), seed=st.integers(0, 2**31 - 1), f=st.floats(0.05, 0.4), t=st.floats(0, 0.4))
def test_invariants(c, seed, f, t):
    """Disjoint by patient, every class in training and validation, shares met, reproducible."""
    splits = assign_splits(c, f, t, seed)
    sets = {name: patients_of(c, splits == name) for name in ("train", "validation", "test")}
    assert sum(map(len, sets.values())) == len(set(c.patients))
    for label in range(len(c.class_names)):
        mine = c.labels == label
        total = len(patients_of(c, mine))
        n_test = len(patients_of(c, mine & (splits == "test")))
        n_validation = len(patients_of(c, mine & (splits == "validation")))
        assert 1 <= n_validation < total - n_test
        assert abs(n_test - t * total) <= 1
        # One patient for rounding, and at most one a site that would have none.
        assert -1 <= n_validation - f * (total - n_test) <= 4
    assert (t == 0) == (not sets["test"])
    np.testing.assert_array_equal(splits, assign_splits(c, f, t, seed))


def test_shares_hold_at_each_site():
    """A quarter of each hospital's patients of each class, not of all hospitals' together."""
    labels = np.tile([0, 1], 120)
    sites = np.repeat(["a", "b", "c"], [40, 120, 80])
    splits = assign_splits(c := catalogue(labels, np.arange(240), sites=sites), 0.25, 0, 3)
    for site, total in (("a", 20), ("b", 60), ("c", 40)):
        for label in (0, 1):
            mine = (sites == site) & (c.labels == label)
            assert abs((splits[mine] == "validation").sum() - total / 4) <= 1


def test_small_sites_get_validation_patients():
    """A site of two patients among large ones still can watch its validation loss."""
    sites = np.array(["big"] * 60 + ["tiny"] * 2 + ["alone"])
    splits = assign_splits(catalogue(np.arange(63) % 2, np.arange(63), sites=sites), 0.1, 0, 0)
    assert sorted(splits[60:62]) == ["train", "validation"]
    assert splits[62] in ("train", "validation")


def test_small_sites_never_give_up_the_last_of_a_class():
    """Two patients of a rare class: one trains, one validates, though a small site goes without."""
    labels = np.array([0] * 30 + [1, 1])
    sites = np.array(["big"] * 30 + ["p", "q"])
    for seed in range(20):
        splits = assign_splits(catalogue(labels, np.arange(32), sites=sites), 0.1, 0, seed)
        assert sorted(splits[30:]) == ["train", "validation"]
    sites = np.array(["big"] * 28 + ["p", "q"] * 2)
    for seed in range(20):
        splits = assign_splits(catalogue(labels, np.arange(32), sites=sites), 0.1, 0, seed)
        assert sorted(splits[30:]) == ["train", "validation"]


def test_seed_matters():
    c = catalogue(np.arange(60) % 2, np.arange(60))
    assert (assign_splits(c, 0.2, 0.2, 0) != assign_splits(c, 0.2, 0.2, 1)).any()


def test_identical_images_stay_together():
    """Two patients who share a picture are one group, also over a chain of pictures."""
    n = 40
    digests = [f"d{i}" for i in range(n)]
    digests[7] = digests[6]
    digests[9] = digests[8]
    patients = [f"p{i}" for i in range(n)]
    patients[8] = patients[7]
    c = catalogue(np.arange(n) // 2 % 2, patients, digests=digests)
    assert len({group_ids(c)[i] for i in (6, 7, 8, 9)}) == 1
    for seed in range(20):
        assert len(set(assign_splits(c, 0.3, 0.3, seed)[6:10])) == 1


def test_fixed_splits_are_kept():
    labels = np.arange(40) % 2
    fixed = np.array(["train"] * 20 + ["validation"] * 10 + ["test"] * 10)
    c = catalogue(labels, np.arange(40), splits=fixed)
    np.testing.assert_array_equal(assign_splits(c, 0.5, 0.5, 0), fixed)


def test_fixed_train_gives_up_validation():
    """Kermany has train and test alone: validation patients come from train, test is untouched."""
    fixed = np.array(["train"] * 30 + ["test"] * 10)
    splits = assign_splits(catalogue(np.arange(40) % 2, np.arange(40), splits=fixed), 0.2, 0.5, 0)
    assert (splits[30:] == "test").all()
    assert (splits[:30] == "validation").sum() == 6 and (splits[:30] == "train").sum() == 24


def test_fixed_train_gives_up_test_where_nothing_is_free():
    fixed = np.array(["train"] * 40)
    splits = assign_splits(catalogue(np.arange(40) % 2, np.arange(40), splits=fixed), 0.2, 0.2, 0)
    assert (splits == "test").sum() == 8


def test_test_set_comes_from_free_records_first():
    fixed = np.array(["train"] * 20 + [""] * 20)
    splits = assign_splits(catalogue(np.arange(40) % 2, np.arange(40), splits=fixed), 0.2, 0.5, 0)
    assert (splits[20:] == "test").sum() == 10 and not (splits[:20] == "test").any()


def test_free_records_follow_their_patient():
    fixed = np.array(["test", ""] * 4 + [""] * 20)
    patients = [0, 0, 1, 1, 2, 2, 3, 3, *range(10, 30)]
    labels = [0, 0, 1, 1, 0, 0, 1, 1, *([0, 1] * 10)]
    splits = assign_splits(catalogue(labels, patients, splits=fixed), 0.2, 0.2, 0)
    assert (splits[:8] == "test").all() and not (splits[8:] == "test").any()


@pytest.mark.parametrize(
    ("patients", "digests", "message"),
    [
        ("aabcdefg", "01234567", "image0 .train. and image1 .test. are the same patient"),
        ("abcdefgh", "00234567", "image0 .train. and image1 .test. are identical images"),
        ("abcdefgh", "01100567", r"image1 .test. and image2 .train. .* \(1 more"),
        ("abcaefgh", "01223567", "image0 .train. and image3 .test. are the same patient"),
    ],
)
def test_leaks_in_fixed_splits(patients, digests, message):
    """Both records and both splits are named."""
    fixed = ["train", "test", "train", "test", "train", "train", "train", "train"]
    c = catalogue([0, 1] * 4, list(patients), splits=fixed, digests=list(digests))
    with pytest.raises(DataError, match=message):
        assign_splits(c, 0.2, 0.2, 0)


def test_leak_through_a_free_record():
    """A free patient whose pictures stand in two fixed splits joins what must be apart."""
    c = catalogue(
        [0, 0, 0, 0, 1, 1],
        ["a", "b", "b", "c", "d", "e"],
        splits=["train", "", "", "test", "train", "test"],
        digests=["x", "x", "y", "y", "z", "w"],
    )
    with pytest.raises(DataError, match=r"image0 .train. and image3 .test. are joined by"):
        assign_splits(c, 0.2, 0.2, 0)


def test_class_of_one_patient():
    c = catalogue([0] * 10 + [1], np.arange(11))
    with pytest.raises(
        DataError, match=r"class class1 has no record in the validation set .* 1 pat"
    ):
        assign_splits(c, 0.2, 0.2, 0)
    assert set(assign_splits(c, 0, 0, 0)) == {"train"}


def test_class_that_fixed_splits_leave_out():
    fixed = ["train"] * 5 + ["validation"]
    c = catalogue([0, 1, 0, 1, 0, 1], np.arange(6), splits=fixed)
    with pytest.raises(DataError, match="class class0 has no record in the validation set"):
        assign_splits(c, 0.2, 0, 0)


def test_a_hospital_may_lack_a_class():
    """A class may be missing or stand in one set alone; no set is empty."""
    c = catalogue([0] * 8 + [2], range(9))
    with pytest.raises(DataError, match="class class1 has no record in the train set"):
        assign_splits(c, 0.2, 0, 0)
    splits = assign_splits(c, 0.2, 0, 0, all_classes=False)
    assert set(splits) == {"train", "validation"} and splits[8] == "train"
    with pytest.raises(
        DataError, match="no record for the validation set: 1 records of 1 patients"
    ):
        assign_splits(catalogue([0], [0]), 0.2, 0, 0, all_classes=False)
