"""The published protocols of encrypted inference beside this project's, under links of all kinds.

python -m primia_jax.launch --config=configs/latency_study.py --mode=benchmark --workdir=runs/study
python -m primia_jax.launch --config=configs/latency_study.py:quick --mode=benchmark \\
    --workdir=runs/study_quick

LeNet-5, ResNet-18 at 64 × 64 and at 224 × 224 by fss, ariann and securenn; 20 images with fresh
keys, each judged at four latencies and three bandwidths. Some 20 minutes on 2 cores, at most 7 GB;
`:quick` (without 224 × 224, 3 images) some 5 minutes.
"""

from ml_collections import ConfigDict

from primia_jax.config import ExperimentConfig, to_config_dict
from primia_jax.errors import ConfigError


def get_config(variant: str = "full") -> ConfigDict:
    config = to_config_dict(ExperimentConfig())
    config.name = "Latency of encrypted inference"
    if variant == "quick":
        config.latency_study.networks = ("lenet", "resnet18_64")
        config.latency_study.latencies_ms = (0.0, 10.0, 100.0)
        config.latency_study.repetitions = 3
        config.latency_study.validated = "lenet"
    elif variant != "full":
        raise ConfigError(f"configs/latency_study.py:{variant}: there are full and quick")
    return config
