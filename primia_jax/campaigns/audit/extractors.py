"""Features of images for FID and KID: the project's ResNet-18, by default with random weights.

Inception's weights are published for TensorFlow and PyTorch only, neither of which runs here; a
function with the features of any other network can be given to `audit` in their place.
"""

import dataclasses
import pathlib

import jax

from primia_jax import models
from primia_jax.campaigns.audit.judging import Extract
from primia_jax.config import ExperimentConfig, ModelConfig
from primia_jax.errors import CheckpointError
from primia_jax.federated.trained_model import load_trained
from primia_jax.inversion import penultimate
from primia_jax.workdir import recorded_config

_SIDE = 64  # of the images that the random network is made for; it takes others as well
_MEAN, _STD = 0.5, 0.25  # of grey values, for networks without statistics of their own


def check(config: ExperimentConfig) -> None:
    """Checks that the target of `config.audit.features` exists; computes nothing.

    Raises:
      CheckpointError: if it is not.
    """
    named = config.audit.features
    if named and not pathlib.Path(named).exists():
        raise CheckpointError(
            f"config.audit.features = {named!r}: no such folder of a run or file of weights"
        )


def make(config: ExperimentConfig, extract: Extract | None) -> tuple[Extract, str]:
    """Makes the extractor of features, and its description for readers.

    Args:
      config: its `audit.features` names a run's folder or a file of torchvision weights.
      extract: given by the caller; None to make one.

    Raises:
      CheckpointError: if what is named cannot be read.
    """
    if extract is not None:
        return extract, "a function given by the caller"
    check(config)
    named = config.audit.features
    model = ModelConfig(name="resnet18")
    if named and pathlib.Path(named).is_dir():
        return _of_run(pathlib.Path(named).absolute(), config)
    module = models.build(model, 3)
    variables = models.init(module, jax.random.key(0), _SIDE, 1)
    if not named:
        description = (
            "the project's ResNet-18 with random weights (config.audit.features names others)"
        )
        return penultimate(module, variables, mean=_MEAN, std=_STD), description
    variables = models.load_torch(named, model, 3, variables)
    return penultimate(
        module, variables, mean=_MEAN, std=_STD
    ), f"ResNet-18 with the weights in {named}"


def _of_run(folder: pathlib.Path, config: ExperimentConfig) -> tuple[Extract, str]:
    own = recorded_config(folder).model
    model = load_trained(folder, dataclasses.replace(config, model=own))
    extract = penultimate(
        model.learner.module,
        model.variables,
        mean=float(model.statistics.mean),
        std=float(model.statistics.std),
        channels=model.config.channels,
    )
    return extract, f"the {model.config.name} of round {model.round} of the run in {folder}"
