"""A hundred simulated hospitals train a small ResNet-18 in few actors, with secure aggregation.

python -m primia_jax.launch --config=configs/many_hospitals.py --mode=train --workdir=runs/many

The hospitals take turns in `config.runtime.hospital_actors` processes; each has its own images,
keys and state, and what computing needs of memory is needed once a process. In every round half of
them are drawn; their updates are summed under pairwise masks, which survives dropouts, in words of
32 bits: that none of them has more than 128 images is known beforehand.

Some four minutes on 2 cores: 45 s for the first round, in which all is compiled, then 10 s each.
The rounds show how it runs and are too few to learn much from: test MCC 0.18 (95 % interval 0.09 to
0.27).
"""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict


def get_config() -> ConfigDict:
    config = to_config_dict(ExperimentConfig())
    config.name = "A hundred hospitals"
    config.data.phantom.n_train = 4000
    config.data.image_size = 32
    config.data.partition = "size"
    config.data.size_ratio = 4.0
    config.model.width = 8
    config.training.batch_size = 8  # no hospital has fewer images: one shape is compiled
    config.training.learning_rate = 3e-3
    config.federated.hospitals = 100
    config.federated.participation = 0.5
    config.federated.optimizer_state = "reset"  # else each would keep moments of its own
    config.federated.rounds = 15
    config.secure_aggregation.word_bits = 32
    config.secure_aggregation.max_samples = 128
    config.secure_aggregation.clip = 512.0
    config.secure_aggregation.frac_bits = 8
    config.runtime.hospital_actors = 2
    return config
