"""A few seconds of everything: a small CNN, tiny phantoms, three hospitals, secure aggregation.

python -m primia_jax.launch --config=configs/smoke.py --workdir=runs/smoke

About 40 s on 2 cores, most of it starting processes. It learns a little (MCC some 0.2), for nothing
but to see that everything turns.
"""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict


def get_config() -> ConfigDict:
    config = to_config_dict(ExperimentConfig())
    config.name = "smoke"
    config.data.image_size = 32
    config.data.phantom.n_train = 240
    config.data.phantom.n_test = 60
    config.data.phantom.difficulty = 0.5
    config.model.name = "simple"
    config.model.width = 16
    config.training.batch_size = 8
    config.training.learning_rate = 5e-3
    config.federated.rounds = 6
    config.evaluation.bootstrap = 200
    return config
