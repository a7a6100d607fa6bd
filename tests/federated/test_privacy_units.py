"""Draws of a private step: of every unit alike, and independently of the others."""

import dataclasses

import numpy as np
import pytest

from primia_jax.config import PrivacyConfig
from primia_jax.data import Dataset
from primia_jax.federated import discrete_noise, privacy_units
from primia_jax.mpc import prg

PATIENTS = ["b", "a", "b", "c", "b", "b", "a"]


def data_of(patients):
    n = len(patients)
    return Dataset(
        np.zeros((n, 8, 8, 1), np.uint8),
        np.zeros(n, np.int32),
        tuple(map(str, range(n))),
        np.asarray(patients),
        np.full(n, "h"),
        ("x", "y"),
    )


def units_of(patients=PATIENTS, most=2):
    config = PrivacyConfig(mode="record", unit="patient", images_per_patient=most)
    return privacy_units.units_of(config, data_of(patients))


def test_units_are_images_or_patients():
    units = units_of()
    assert [own.tolist() for own in units.members] == [[0, 2, 4, 5], [1, 6], [3]]
    assert len(units) == 3 and units.n_images == 7
    singly = privacy_units.units_of(PrivacyConfig(), data_of(PATIENTS))
    assert [own.tolist() for own in singly.members] == [[i] for i in range(7)]


def test_a_unit_s_mean_is_no_longer_than_its_longest_image():
    values = np.random.default_rng(0).standard_normal((7, 3))
    means = units_of().means(values)
    np.testing.assert_allclose(means[0], values[[0, 2, 4, 5]].mean(0))
    np.testing.assert_allclose(means[2], values[3])
    longest = np.linalg.norm(values, axis=1).max()
    assert np.linalg.norm(means, axis=1).max() <= longest


def drawn(monkeypatch, chosen, units):
    """A sample of given units under fixed keys."""
    with monkeypatch.context() as patch:
        seeds = iter(range(100))
        patch.setattr(prg, "new_seed", lambda: np.full(32, next(seeds), np.uint8))
        patch.setattr(discrete_noise, "poisson_sample", lambda seed, n, rate: np.asarray(chosen))
        return privacy_units.draw(units, 0.5)


def test_who_else_is_drawn_changes_no_draw_of_a_unit(monkeypatch):
    """Neither which of a patient's images are taken, nor the keys of their augmentation."""
    everyone = drawn(monkeypatch, [0, 1, 2], units_of())
    without = drawn(monkeypatch, [1, 2], units_of())
    np.testing.assert_array_equal(everyone.keys, without.keys)
    for a, b in zip(everyone.images[1:], without.images, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_patient_of_many_images_has_as_many_as_are_allowed(monkeypatch):
    counts = np.zeros(7)
    for _ in range(200):
        (images,) = (
            sample
            for sample in privacy_units.draw(units_of(), 1.0).images
            if len(PATIENTS) > sample[0] and PATIENTS[sample[0]] == "b"
        )
        assert len(images) == 2 and all(np.diff(images) > 0)
        counts[images] += 1
    assert counts[[1, 3, 6]].sum() == 0
    assert all(abs(counts[[0, 2, 4, 5]] - 100) < 6 * np.sqrt(50))


def test_every_image_of_every_step_has_a_key_of_its_own():
    """They come from the operating system: not from a run's seed, nor from a sample's order."""
    keys = [privacy_units.draw(units_of(), 0.5).keys for _ in range(20)]
    distinct = {tuple(key) for step in keys for key in step.tolist()}
    assert len(distinct) == 20 * 7


@pytest.mark.parametrize("most", [1, 3, 64])
def test_limits_hold_in_every_draw(most):
    units = dataclasses.replace(units_of(), most_images=most)
    sample = privacy_units.draw(units, 1.0)
    assert [len(images) for images in sample.images] == [min(n, most) for n in (4, 2, 1)]
