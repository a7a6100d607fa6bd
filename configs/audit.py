"""What can be stolen from model updates: plain, securely summed, pooled, and under defences.

python -m primia_jax.launch --config=configs/audit.py --mode=audit --workdir=runs/audit
python -m primia_jax.launch --config=configs/audit.py:quick --mode=audit --workdir=runs/audit_quick

It trains small runs that are the attacker's best case (a small network without normalisation, one
image a step, one step a round), records what their model owners saw, and attacks that. The
same mode attacks a run of one's own, if it recorded its updates: give its folder as --workdir.
"""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict
from primia_jax.errors import ConfigError


def get_config(variant: str = "full") -> ConfigDict:
    config = to_config_dict(ExperimentConfig())
    config.name = "What model updates give away"
    config.data.image_size = 32
    config.data.validation_fraction = 0.1
    config.data.phantom.n_train = 300
    config.data.phantom.n_test = 120
    config.data.phantom.difficulty = 0.0
    config.data.phantom.site_shift = 0.0
    for key in config.augmentation:
        if key.endswith("_p"):
            config.augmentation[key] = 0.0
    config.model.name = "simple"
    config.model.norm = "none"
    config.training.batch_size = 1
    config.training.optimizer = "sgd"
    config.training.beta1 = 0.0
    config.training.weight_decay = 0.0
    config.training.schedule = "constant"
    config.training.learning_rate = 0.05
    config.federated.mode = "federated"
    config.federated.sync_unit = "steps"
    config.federated.rounds = 100
    config.federated.rule = "fedadam"
    config.federated.server_learning_rate = 1e-3
    config.federated.server_tau = 1e-6
    config.federated.optimizer_state = "reset"
    config.federated.record_updates = True
    config.federated.record_rounds = tuple(range(1, 11))
    config.runtime.driver = "local"
    noised = "federated.update_clip=0.05 federated.update_noise="
    config.audit.defences = (
        *(f"noise {sigma}: {noised}{sigma}" for sigma in ("0.0003", "0.001", "0.003")),
        "4 images a step: training.batch_size=4",
        "16 images a step: training.batch_size=16",
        "3 local steps: federated.sync_every=3",
    )
    config.audit.defence_images = 12
    if variant == "quick":
        config.data.phantom.n_train = 120
        config.data.phantom.n_test = 60
        config.federated.rounds = 30
        config.audit.steps = 80
        config.audit.control_steps = 300
        config.audit.images = 9
        config.audit.defence_images = 6
        config.audit.defences = config.audit.defences[1:2]
    elif variant != "full":
        raise ConfigError(f"configs/audit.py:{variant}: there are full and quick")
    return config
