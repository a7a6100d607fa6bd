"""A few seconds of everything: a small CNN, tiny phantoms, three hospitals, secure aggregation.

python -m primia_jax.launch --config=configs/smoke.py --workdir=runs/smoke

About 30 s on 2 cores, most of it starting processes. What it learns in two rounds is of no use.
"""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict


def get_config() -> ConfigDict:
    config = to_config_dict(ExperimentConfig())
    config.name = "smoke"
    config.data.image_size = 32
    config.data.phantom.n_train = 150
    config.data.phantom.n_test = 60
    config.model.name = "simple"
    config.model.width = 8
    config.training.batch_size = 8
    config.federated.rounds = 3
    config.evaluation.bootstrap = 200
    return config
