"""Runs so small that training, recording and attacking them takes seconds."""

import pytest

import primia_jax
from primia_jax.config import ExperimentConfig, to_config_dict


def tiny(mode="federated", **federated):
    """A run of one-image steps on 16×16 phantoms, with recorded updates."""
    config = to_config_dict(ExperimentConfig())
    config.data.image_size = 16
    config.data.phantom.n_train = 36
    config.data.phantom.n_test = 9
    config.model.name = "simple"
    config.model.width = 4
    config.model.norm = "none"
    config.training.batch_size = 1
    config.training.optimizer = "sgd"
    config.training.beta1 = 0.0
    config.training.schedule = "constant"
    config.training.learning_rate = 0.1
    config.federated.mode = mode
    config.federated.rounds = 2
    config.federated.sync_unit = "steps"
    config.federated.optimizer_state = "reset"
    config.federated.record_updates = True
    config.federated.update(federated)
    config.secure_aggregation.min_participants = 2
    config.evaluation.bootstrap = 10
    config.runtime.driver = "local"
    config.audit.steps = 3
    config.audit.images = 6
    config.audit.control_steps = 0
    config.audit.splits = 2
    config.audit.bootstrap = 10
    return config


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """{mode: folder} of recorded runs."""
    folders = {}
    for mode in ("local", "federated", "federated_secure"):
        folders[mode] = tmp_path_factory.mktemp(mode)
        primia_jax.train(tiny(mode), folders[mode])
    return folders
