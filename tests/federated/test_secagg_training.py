"""Trainings whose rounds go on when hospitals drop out on the way."""

import copy
import dataclasses

import numpy as np
import pytest

from primia_jax.config import ExperimentConfig, from_config_dict, resolved
from primia_jax.data import make_plan
from primia_jax.errors import PartyLost
from primia_jax.federated import secagg, variables
from primia_jax.federated.aggregation import OWNER, PROVIDER
from primia_jax.federated.federation import Federation
from primia_jax.federated.makers import party_makers
from primia_jax.mpc import fixed_point
from primia_jax.runtime import LocalDriver, Vanish

HOSPITALS = tuple(f"hospital_{i}" for i in range(6))


def config(scheme="secagg", mode="federated_secure", **more):
    return resolved(
        from_config_dict(
            ExperimentConfig,
            {
                "seed": 5,
                "data": {"image_size": 16, "phantom": {"n_train": 96, "n_test": 6}},
                "model": {"name": "simple", "width": 4},
                "training": {"batch_size": 8},
                "augmentation": {"rotation_p": 0.0, "noise_p": 0.0, "gamma_p": 0.0},
                "federated": {
                    "mode": mode,
                    "hospitals": 6,
                    "rounds": 3,
                    "sync_every": 2,
                    "sync_unit": "steps",
                },
                "secure_aggregation": {"scheme": scheme, **more},
            },
        )
    )


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A federation after its set-up; what is compiled and what is exchanged serves all tests."""
    own = config()
    plan = make_plan(own)
    driver = LocalDriver(party_makers(own, plan))
    federation = Federation(driver, own, HOSPITALS, tmp_path_factory.mktemp("run"))
    federation.set_up()
    return federation


@pytest.fixture
def federation(ready, tmp_path):
    """The same, to be changed by one test."""
    fresh, driver = copy.copy(ready), copy.copy(ready.driver)
    driver.states = dict(driver.states)
    fresh.driver, fresh.workdir = driver, tmp_path
    fresh._open_journals(0)
    return fresh


def weights(federation):
    return np.concatenate([np.ravel(v) for v in federation.driver.states[OWNER].vectors.params])


def samples(federation, names=HOSPITALS):
    return sum(len(federation.driver.states[name].train) for name in names)


def trained_anew(federation, own, states):
    """The weights after round 1 with another configuration, from `states` on."""
    federation.driver.states.update(
        {
            name: dataclasses.replace(state, config=own)
            for name, state in states.items()
            if name != PROVIDER
        }
    )
    federation.config = own
    federation.workdir /= "anew"  # another run, in which round 1 was not revealed yet
    federation._open_journals(0)
    _, trace = federation.train_round(1)
    assert trace.lost == {}
    return weights(federation), trace.bytes_sent


def test_both_schemes_train_the_same(federation):
    """Without dropouts the sums are the same ring elements, whatever hides them."""
    states = dict(federation.driver.states)
    masked, _ = trained_anew(federation, config(), states)
    additive, _ = trained_anew(federation, config(scheme="additive"), states)
    np.testing.assert_array_equal(additive, masked)


@pytest.mark.parametrize("scheme", ["additive", "secagg"])
def test_words_of_32_bits_train_the_same_to_their_grid(federation, scheme):
    """The words of the two sums of a round are half as long; all else stays as it is."""
    states = dict(federation.driver.states)
    wide, wide_bytes = trained_anew(federation, config(scheme), states)
    narrow = {"word_bits": 32, "frac_bits": 12, "clip": 512.0, "max_samples": 100}
    narrowed, bytes_sent = trained_anew(federation, config(scheme, **narrow), states)
    bound = fixed_point.sum_error(6, 12, 32) / samples(federation)
    assert 0 < np.abs(narrowed - wide).max() <= 1.01 * bound
    vectors, n_classes = states[OWNER].vectors, len(states[OWNER].class_names)
    update = sum(len(vector) for vector in (*vectors.params, vectors.moments)) + 2
    validation = 1 + 1 + n_classes**2
    assert wide_bytes - bytes_sent == len(HOSPITALS) * 4 * (update + validation)


@pytest.mark.parametrize("stage", secagg.STAGES)
def test_a_round_goes_on_without_one_that_vanishes(federation, stage):
    driver = federation.driver
    federation.driver = driver.with_faults(Vanish("hospital_2", stage=stage))
    reports, trace = federation.train_round(1)
    federation.save(1)
    federation.driver = driver
    assert set(trace.lost) == {"hospital_2"} and "hospital_2" not in reports
    others = tuple(name for name in HOSPITALS if name != "hospital_2")
    assert set(reports) == {OWNER, *others}
    masked = stage in (secagg.AGREE, secagg.UNMASK)  # its input was there by then
    summed = HOSPITALS if masked else others
    assert reports[OWNER].samples == samples(federation, summed)
    # It comes back with the model of the others, and is in the next round's sum.
    reports, trace = federation.train_round(2)
    assert trace.lost == {} and reports[OWNER].samples == samples(federation)
    first, third = (
        variables.to_vectors(driver.states[name].variables).params
        for name in ("hospital_0", "hospital_2")
    )
    for a, b in zip(first, third, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_round_without_enough_hospitals_fails_and_changes_nothing(federation):
    before, driver = weights(federation), federation.driver
    gone = [Vanish(name, stage=secagg.MASK) for name in HOSPITALS[:3]]
    federation.driver = driver.with_faults(*gone)
    with pytest.raises(PartyLost, match=r"given up, nothing of it was opened.*hospital_1") as found:
        federation.train_round(1)
    assert set(found.value.parties) == set(HOSPITALS[:3])  # they are to be started again
    federation.driver = driver
    np.testing.assert_array_equal(weights(federation), before)
    assert federation.train_round(1)[1].lost == {}


def test_a_round_over_fewer_than_the_quorum_fails_and_changes_nothing(federation):
    """Though the sum itself would go on without one."""
    before, driver = weights(federation), federation.driver
    all_of_them = dataclasses.replace(federation.config.federated, quorum=1.0)
    owner = driver.states[OWNER]
    driver.states[OWNER] = dataclasses.replace(
        owner, config=dataclasses.replace(owner.config, federated=all_of_them)
    )
    federation.driver = driver.with_faults(Vanish("hospital_2", stage=secagg.MASK))
    with pytest.raises(PartyLost, match=r"over 5 hospitals, 6 must be in it.*hospital_2"):
        federation.train_round(1)
    federation.driver = driver
    np.testing.assert_array_equal(weights(federation), before)


def test_the_judging_of_a_model_goes_on_too(federation):
    """One that vanishes between the two sums of a round is in the first of them."""
    driver = federation.driver
    # The stage comes twice: its events are those of the first sum, then those of the second.
    federation.driver = driver.with_faults(Vanish("hospital_1", 2, stage=secagg.ADVERTISE))
    reports, trace = federation.train_round(1)
    assert set(trace.lost) == {"hospital_1"}
    assert reports[OWNER].samples == samples(federation)
