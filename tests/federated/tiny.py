"""Trainings of a tiny network in one process, for tests."""

import jax
import numpy as np

from primia_jax.config import ExperimentConfig, from_config_dict, resolved
from primia_jax.data import make_plan
from primia_jax.federated import checkpoints, records
from primia_jax.federated.aggregation import OWNER
from primia_jax.federated.federation import Federation
from primia_jax.federated.makers import party_makers
from primia_jax.runtime import LocalDriver

TINY = {
    "seed": 5,
    "data": {"image_size": 16, "phantom": {"n_train": 60, "n_test": 6}},
    "model": {"name": "simple", "width": 4},
    "training": {"batch_size": 8},
    "augmentation": {"rotation_p": 0.0, "noise_p": 0.0, "gamma_p": 0.0},
    "federated": {"mode": "federated", "rounds": 2, "sync_every": 2, "sync_unit": "steps"},
    # By name, so that three hospitals are enough for one to be lost.
    "secure_aggregation": {"min_participants": 2},
}


def merged(base, changes):
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(base.get(key, {}), value) if isinstance(value, dict) else value
    return result


def config_with(base=TINY, **changes):
    return resolved(from_config_dict(ExperimentConfig, merged(base, changes)))


def start(workdir, base=TINY, **changes):
    config = config_with(base, **changes)
    plan = make_plan(config)
    names = tuple(site.site for site in plan.sites)
    check = records.check(plan.class_names, names)
    driver = LocalDriver(party_makers(config, plan), check_report=check)
    return Federation(driver, config, names, workdir)


def train(federation, first=0, rounds=None, save=False):
    """The reports of each round."""
    federation.set_up(first)
    reports = []
    for number in range(first + 1, (rounds or federation.config.federated.rounds) + 1):
        reports.append(federation.train_round(number)[0])
        if save:
            federation.save(number)
            best = reports[-1][OWNER].best_round
            checkpoints.commit(federation.owner_folder, checkpoints.Progress(number, best))
    return reports


def model(federation):
    return federation.driver.states[OWNER].vectors


def at(federation, name):
    return federation.driver.states[name]


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)
