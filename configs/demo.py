"""Three hospitals train a ResNet-18 on phantom chest films with secure aggregation.

python -m primia_jax.launch --config=configs/demo.py --workdir=runs/demo
"""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict


def get_config() -> ConfigDict:
    config = to_config_dict(ExperimentConfig())
    config.name = "Paediatric chest films, three hospitals"
    config.federated.rounds = 14
    return config
