"""Three hospitals train a small network with differential privacy of every image, ε = 8.

python -m primia_jax.launch --config=configs/private.py --workdir=runs/private
python -m primia_jax.launch --config=configs/private.py:client --workdir=runs/private_client

`:client` protects whole hospitals instead: 100 of them, updates noised within the secure sum.
docs/privacy.md says what either protects, and how good the model is at which ε.
"""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict
from primia_jax.errors import ConfigError


def get_config(variant: str = "record") -> ConfigDict:
    if variant not in ("record", "client"):
        raise ConfigError(f"configs/private.py:{variant}: there are record and client")
    config = to_config_dict(ExperimentConfig())
    config.name = "Differential privacy of " + ("images" if variant == "record" else "hospitals")
    config.data.image_size = 32
    config.data.phantom.n_train = 6000
    config.data.phantom.difficulty = 0.0
    config.data.partition = "iid"
    config.model.name = "simple"
    config.model.width = 8
    config.model.norm = "group"
    # Large samples and few parameters: noise is added once a sample, to every parameter.
    config.training.batch_size = 400
    config.training.learning_rate = 2e-2
    config.training.end_learning_rate = 2e-3
    config.federated.rounds = 30
    config.privacy.mode = variant
    if variant == "client":
        config.federated.hospitals = 100
        config.federated.rounds = 12
        config.training.batch_size = 16
        config.training.optimizer = "sgd"
        config.training.learning_rate = 0.05
        config.training.end_learning_rate = 0.02
        config.privacy.clip_norm = 0.3
        config.runtime.driver = "local"
    return config
