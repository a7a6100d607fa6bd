"""A finished model, read back from a run's checkpoints, and its predictions."""

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from primia_jax import tasks
from primia_jax.config import ExperimentConfig, ModelConfig, from_config_dict, to_plain
from primia_jax.errors import CheckpointError, DataError
from primia_jax.federated import checkpoints, local_training, model_owner
from primia_jax.federated.local_training import Learner, Statistics

_FREE = ("convolution", "pretrained")  # how a network runs or began, not what it is
_LEVELS = (np.uint8, np.uint16)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Values that turn a stored image into the network's input.

    Grey levels are scaled to black 0 and white 1, standardised to (x − mean) / std, and repeated
    over the channels.

    Attributes:
      image_size: side of the square images, in pixels.
      channels: of the network's input.
      mean: of all pixels of the training images.
      std: their standard deviation.
    """

    image_size: int
    channels: int
    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A network ready to diagnose: `model(images)` gives what `--mode=predict` writes.

    `module.apply(variables, preprocess(images), train=False)` gives its logits.

    Attributes:
      learner: the compiled functions of the network.
      variables: of the network, 'params' and, where the norm has moments, 'batch_stats'.
      statistics: of all hospitals' pixels and classes.
      class_names: k names, in the order of the outputs.
      image_size: side of the images, in pixels.
      round: the best one by federated validation, whose model it is.
      config: of the network.
    """

    learner: Learner
    variables: Any
    statistics: Statistics
    class_names: tuple[str, ...]
    image_size: int
    round: int
    config: ModelConfig

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities [n k] of grey images, or masks [n s s] (segmentation); see `predictions`.

        Args:
          images: [n s s] or [n s s 1] uint8 or uint16, s = `image_size`.

        Raises:
          DataError: if they are of another shape or type.
        """
        return self.predictions(self._checked(images))

    def preprocess(self, images: np.ndarray) -> jax.Array:
        """Grey images, as `__call__` takes them -> the network's input [n s s c] float32.

        Raises:
          DataError: if they are of another shape or type.
        """
        pixels = local_training.to_unit(jax.numpy.asarray(self._checked(images)))
        return local_training.standardise(pixels, self.statistics, self.config.channels)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        """`images` as [n s s 1]."""
        images, side = np.asarray(images), self.image_size
        shape = images.shape[:-1] if images.ndim == 4 and images.shape[-1] == 1 else images.shape
        if len(shape) != 3 or shape[1:] != (side, side) or images.dtype not in _LEVELS:
            raise DataError(
                f"images are {images.dtype} of shape {list(images.shape)}; this model takes uint8 "
                f"or uint16 of shape [n, {side}, {side}]"
            )
        return images.reshape(*shape, 1)

    @property
    def task_name(self) -> str:
        """Name of the task (`config.task`)."""
        return next(name for name, kind in tasks.TASKS.items() if isinstance(self.task, kind))

    @property
    def module(self) -> nn.Module:
        """The network; it takes preprocessed images."""
        return self.learner.module

    @property
    def preprocessing(self) -> Preprocessing:
        """Values that images were preprocessed with in training."""
        mean, std = float(self.statistics.mean), float(self.statistics.std)
        return Preprocessing(self.image_size, self.config.channels, mean, std)

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
