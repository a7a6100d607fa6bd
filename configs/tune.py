"""A search for the settings of the demonstration's training, over the whole confederation.

python -m primia_jax.launch --config=configs/tune.py --mode=tune --workdir=runs/tune
python -m primia_jax.launch --config=configs/tune.py:quick --mode=tune --workdir=runs/tune_quick

60 trials of up to 15 rounds of ResNet-18 on phantoms: hours, since one training takes minutes on 2
cores. `:quick`: 4 trials of a small CNN, two at a time, in less than three minutes on 2 cores; the
best has a validation MCC of 0.39.

Ranges of the original PriMIA system (Ziller et al. 2020, arXiv:2012.06354) are those of the
learning rate, the weight decay, rotation, scale and the passes over the data before models are
averaged (1 to 3). It searched the end of the learning rate, restarts, Adam's decays, noise, each
augmentation, MixUp and weighting too; the ranges of these are this project's. Its synchronisation
after 1 to 5 batches is "federated.sync_every uniform 1 5" with federated.sync_unit = "steps".
"""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict
from primia_jax.errors import ConfigError

_ORIGINAL = (
    "training.learning_rate log 1e-5 1e-3",
    "training.weight_decay log 1e-12 1e-3",
    "augmentation.rotation_degrees uniform 0 90",
    "augmentation.scale uniform 0 0.5",
    "federated.sync_every uniform 1 3",
)
_OURS = (
    "training.end_learning_rate log 1e-7 1e-4",
    "training.restarts uniform 0 3",
    "training.beta1 uniform 0.5 0.95",
    "training.beta2 uniform 0.9 0.999",
    "training.class_weights choice true false",
    "augmentation.noise uniform 0 0.1",
    "augmentation.brightness uniform 0 0.3",
    "augmentation.gamma uniform 0 0.6",
    "augmentation.blur_p uniform 0 0.5",
    "augmentation.elastic_p uniform 0 0.5",
    "augmentation.grid_p uniform 0 0.5",
    "augmentation.equalise_p uniform 0 0.5",
    "augmentation.mixup_p uniform 0 0.9",
    "augmentation.mixup_alpha uniform 0.05 0.5",
)


def get_config(variant: str = "full") -> ConfigDict:
    config = to_config_dict(ExperimentConfig())
    config.name = "Settings for paediatric chest films"
    config.data.phantom.n_train = 1200
    config.federated.rounds = 15
    config.tuning.space = _ORIGINAL + _OURS
    config.tuning.trials = 60
    config.tuning.startup_trials = 10
    if variant == "quick":
        config.name = "Settings for a small network"
        config.data.image_size = 32
        config.data.phantom.n_train = 240
        config.data.phantom.n_test = 60
        config.data.phantom.difficulty = 0.5
        config.model.name = "simple"
        config.model.width = 16
        config.training.batch_size = 8
        config.federated.rounds = 5
        config.evaluation.bootstrap = 200
        config.tuning.space = (
            "training.learning_rate log 1e-3 1e-1",
            "training.optimizer choice adam sgd",
            "training.weight_decay log 1e-12 1e-3",
            "augmentation.rotation_degrees uniform 0 90",
            "augmentation.scale uniform 0 0.5",
        )
        config.tuning.trials = 4
        config.tuning.parallel = 2
        config.tuning.startup_trials = 2
        config.tuning.warmup_rounds = 2
    elif variant != "full":
        raise ConfigError(f"configs/tune.py:{variant}: there are full and quick")
    return config
