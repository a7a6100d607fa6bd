"""A finished model, read back from a run's checkpoints, and its predictions."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from primia_jax import tasks
from primia_jax.config import ExperimentConfig, ModelConfig, from_config_dict, to_plain
from primia_jax.errors import CheckpointError
from primia_jax.federated import checkpoints, local_training, model_owner
from primia_jax.federated.local_training import Learner, Statistics

_FREE = ("convolution", "pretrained")  # how a network runs or began, not what it is


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A network ready to diagnose."""

    learner: Learner
    variables: Any
    statistics: Statistics
    class_names: tuple[str, ...]
    image_size: int
    round: int  # whose model it is: the best one by federated validation
    config: ModelConfig

    @property
    def task(self) -> tasks.Task:
        """The task that it was trained for."""
        return self.learner.task

    def predictions(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """[n …] for grey images [n s s 1], uint8 or uint16, s = `image_size`."""
        return local_training.predict(
            self.learner, self.variables, images, self.statistics, batch_size
        )


def load_trained(workdir: pathlib.Path, config: ExperimentConfig) -> TrainedModel:
    """The best model of the run in `workdir`.

    Raises:
      CheckpointError: if there is none, or it is another network than `config.model`.
    """
    folder = workdir / "checkpoints"
    number = checkpoints.latest(folder).best_round
    about = checkpoints.about(folder, number, ["task", "model", "class_names", "image_size"])
    if about["task"] != config.task:
        raise CheckpointError(
            f"the checkpoint in {folder} has task = {about['task']!r}, the configuration "
            f"{config.task!r}; add --config.task={about['task']}"
        )
    configured, stored = to_plain(config.model), about["model"]
    for key, value in stored.items():
        if key not in _FREE and configured[key] != value:
            raise CheckpointError(
                f"the checkpoint in {folder} has model.{key} = {value!r}, the configuration "
                f"{configured[key]!r}; add --config.model.{key}={value}"
            )
    model_config = dataclasses.replace(
        from_config_dict(ModelConfig, stored), convolution=config.model.convolution
    )
    config = dataclasses.replace(config, model=model_config)
    class_names = tuple(about["class_names"])
    learner = local_training.make_learner(config, tasks.make(config, class_names))
    template = local_training.template(learner.module, about["image_size"], model_config.channels)
    model = model_owner.load_model(folder, number, template, len(class_names))
    return TrainedModel(
        learner,
        jax.tree.map(jax.numpy.asarray, model["variables"]),
        model["statistics"],
        class_names,
        about["image_size"],
        number,
        model_config,
    )
