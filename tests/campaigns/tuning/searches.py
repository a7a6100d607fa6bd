"""A search small enough to be run many times: tiny films, a tiny network, one process."""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict


def tiny_search() -> ConfigDict:
    """Three trials of two rounds; their settings change the training, but no compiled program."""
    config = to_config_dict(ExperimentConfig())
    config.name = "tiny"
    config.data.image_size = 16
    config.data.phantom.n_train = 60
    config.data.phantom.n_test = 6
    config.model.name = "simple"
    config.model.width = 4
    config.training.batch_size = 8
    for name in config.augmentation:
        if name.endswith("_p"):
            config.augmentation[name] = 0.0
    config.federated.rounds = 2
    config.federated.sync_every = 2
    config.federated.sync_unit = "steps"
    config.runtime.driver = "local"
    config.runtime.threads = 1
    config.tuning.trials = 3
    config.tuning.startup_trials = 2
    config.tuning.warmup_rounds = 1
    config.tuning.space = (
        "training.learning_rate log 1e-3 1e-1",
        "federated.server_tau uniform 0.1 0.2",
    )
    return config
