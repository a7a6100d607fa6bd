"""Trains a network of your own over three hospitals, with secure sums, and diagnoses with it.

python examples/own_network.py [WORKDIR]

About 10 s on 2 cores, on phantom images of 16 pixels. The contract is in docs/own_parts.md.
"""

import pathlib
import sys
import tempfile

import flax.linen as nn
import jax
from ml_collections import ConfigDict

import primia_jax
from primia_jax.config import ExperimentConfig, to_config_dict


class SmallNet(nn.Module):
    """A convolution with batch norm, then the mean over the image."""

    n_classes: int
    width: int = 8  # given `config.model.width`

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[n h w c] float32 -> logits [n k]."""
        x = nn.Conv(self.width, (3, 3), strides=(2, 2), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.n_classes)(x.mean((1, 2)))


def get_config() -> ConfigDict:
    """Three hospitals, two rounds, tiny phantom images."""
    config = to_config_dict(ExperimentConfig())
    config.model.name = "own_network:SmallNet"
    config.model.width = 8
    config.data.image_size = 16
    config.data.phantom.n_train = 60
    config.data.phantom.n_test = 12
    config.training.batch_size = 8
    for change in ("rotation", "scale", "translation", "brightness", "gamma", "noise"):
        config.augmentation[f"{change}_p"] = 0.0  # a shorter step to compile
    config.federated.mode = "federated_secure"
    config.federated.rounds = 2
    config.evaluation.bootstrap = 100
    config.runtime.driver = "local"  # all parties in this process; 'ray' gives each its own
    return config


def main(workdir: str) -> primia_jax.Result:
    """Trains in `workdir`; the result holds the scores of the test set."""
    result = primia_jax.train(get_config(), workdir)
    print(f"test accuracy {result.metrics['test']['accuracy']:.2f}; see {workdir}/report.html")
    return result


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(pathlib.Path(tempfile.mkdtemp()) / "run"))
