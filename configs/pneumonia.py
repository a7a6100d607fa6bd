"""The paper's run: ResNet-18 at 224×224 on paediatric chest films, three hospitals, secure.

python -m primia_jax.launch --config=configs/pneumonia.py \
    --config.data.path=/data/chest_xray --workdir=runs/pneumonia

`data.path` is the folder with `train` and `test` of Kermany et al. 2018 (5,163 and 624 images once
cleaned). Some two minutes a thousand images and epoch on 2 cores. Start from ImageNet weights, as
the paper does, with --config.model.pretrained=resnet18.safetensors. Paper: accuracy 0.88, MCC 0.83
on its test set 1 (federated secure).
"""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict


def get_config() -> ConfigDict:
    config = to_config_dict(ExperimentConfig())
    config.name = "Paediatric pneumonia"
    config.data.source = "folder"
    config.data.path = "chest_xray"
    config.data.image_size = 224
    config.data.validation_fraction = 0.1
    config.data.partition = "iid"
    config.training.learning_rate = 1e-4
    config.training.end_learning_rate = 1e-5
    config.training.beta1 = 0.5
    config.training.restarts = 1
    config.augmentation.rotation_degrees = 30.0
    config.augmentation.scale = 0.15
    config.augmentation.elastic_p = 0.2
    config.augmentation.grid_p = 0.2
    config.augmentation.equalise_p = 0.2
    config.augmentation.blur_p = 0.2
    config.augmentation.mixup_p = 0.9
    config.federated.sync_every = 3
    config.federated.sync_unit = "steps"
    config.federated.rounds = 40 * 36
    config.federated.early_stopping.enabled = False
    return config
