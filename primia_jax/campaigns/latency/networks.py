"""The networks of the latency study, and their images."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from primia_jax import models
from primia_jax.config import ModelConfig, PhantomConfig
from primia_jax.data import phantom
from primia_jax.models import layers

_CALIBRATION_IMAGES = 8


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) for grey images of 28 × 28, with ReLU.

    Attributes:
      n_classes: outputs.
      pooling: 'avg', as published, or 'max'.
    """

    n_classes: int = 10
    pooling: str = "avg"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[n 28 28 1] float32 -> logits [n k]."""
        for channels, padding in ((6, 2), (16, 0)):
            x = nn.relu(nn.Conv(channels, (5, 5), padding=padding)(x))
            x = layers.pool(x, 2, 2, 0, self.pooling, "xla")
        x = x.reshape((x.shape[0], -1))
        for features in (120, 84):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(self.n_classes)(x)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the study, for grey images.

    Attributes:
      title: for readers.
      image_size: side of the images, in pixels.
      build: (pooling) -> the module.
    """

    title: str
    image_size: int
    build: Callable[[str], nn.Module]

    def params(self, pooling: str, seed: int) -> Any:
        """Random weights."""
        return models.init(self.build(pooling), jax.random.key(seed), self.image_size, 1)

    def apply_fn(self, pooling: str) -> Callable[[Any, Any], Any]:
        """(params, images [n s s 1]) -> logits [n k]."""
        return functools.partial(_apply, self.build(pooling))


def _apply(module: nn.Module, params: Any, images: Any) -> Any:
    return module.apply(params, images, train=False)


def _lenet(pooling: str) -> nn.Module:
    return LeNet(pooling=pooling)


def _resnet18(pooling: str) -> nn.Module:
    config = ModelConfig(name="resnet18", channels=1, pooling=pooling, convolution="xla")
    return models.build(config, len(phantom.CLASS_NAMES))


NETWORKS: Mapping[str, Network] = {
    "lenet": Network("LeNet-5, 28 × 28", 28, _lenet),
    "resnet18_64": Network("ResNet-18, 64 × 64", 64, _resnet18),
    "resnet18_224": Network("ResNet-18, 224 × 224", 224, _resnet18),
}


def films(size: int, n_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Phantom radiographs in [0, 1]: for calibration [m s s 1], and others [n s s 1]."""
    config = PhantomConfig(n_train=_CALIBRATION_IMAGES, n_test=n_images)
    catalogue = phantom.catalogue(config, hospitals=1, seed=seed)
    pixels = np.stack([catalogue.read(i, size).pixels for i in range(len(catalogue.names))])
    unit = pixels[..., None].astype(np.float32) / 255
    held_out = catalogue.splits == "test"
    return unit[~held_out], unit[held_out]
