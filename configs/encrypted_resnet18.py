"""A ResNet-18 whose diagnoses run encrypted: average-pooled stem, 224 pixels.

Train it once, then diagnose films that the model's owner may not see, with a model that the films'
owner may not see:

python -m primia_jax.launch --config=configs/encrypted_resnet18.py --mode=train --workdir=runs/enc
python -m primia_jax.launch --config=configs/encrypted_resnet18.py --mode=predict --encrypted \\
    --input=FILE|FOLDER --workdir=runs/enc
"""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict


def get_config() -> ConfigDict:
    config = to_config_dict(ExperimentConfig())
    config.name = "Encrypted diagnosis of paediatric chest films"
    config.data.image_size = 224
    config.data.phantom.n_train = 600
    config.data.phantom.n_test = 150
    config.model.pooling = "avg"
    config.federated.rounds = 6
    return config
