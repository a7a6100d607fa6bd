"""The networks: built from settings, given variables, or loaded from torchvision-named weights.

A network is a Flax Linen module: `module.apply(variables, images, train=False)` takes images
[n s s c] float32 and gives logits [n k], or [n s s k] of each pixel (U-Net). In training,
`module.apply(variables, images, train=True, mutable=['batch_stats'])` also gives the new moments.
A user's own networks keep to the same (`custom.py`).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from primia_jax.config.sections import ModelConfig
from primia_jax.core import objects
from primia_jax.errors import ConfigError
from primia_jax.models import custom, resnet, simple, unet, vgg
from primia_jax.models.custom import check
from primia_jax.models.torch_file import check_weights
from primia_jax.models.torch_import import classes_in, load_torch

__all__ = [
    "build",
    "check",
    "check_importable",
    "check_weights",
    "classes_in",
    "init",
    "load_torch",
]


def build(config: ModelConfig, n_classes: int) -> nn.Module:
    """The network that `config` describes, with `n_classes` outputs.

    Raises:
      ConfigError: for a residual network without normalisation, or a user's own network that
        cannot be made.
    """
    if objects.is_reference(config.name):
        return custom.build(config, n_classes)
    common: dict[str, Any] = {
        "n_classes": n_classes,
        "width": config.width,
        "pooling": config.pooling,
        "norm": config.norm,
        "convolution": config.convolution,
    }
    if config.name == "vgg16":
        return vgg.VGG(**common)
    if config.name == "simple":
        return simple.Simple(**common)
    if config.name == "unet":
        return unet.UNet(**common)
    if config.norm == "none":
        raise ConfigError(
            f"config.model.norm = 'none': {config.name} needs a norm; take batch | group | frozen"
        )
    return resnet.ResNet(blocks=resnet.BLOCKS[config.name], stem=config.stem, **common)


def check_importable(config: ModelConfig) -> None:
    """Raises ConfigError if the network is a user's own and cannot be imported in this process."""
    if objects.is_reference(config.name):
        objects.load(config.name, custom.WHERE)


def init(module: nn.Module, key: jax.Array, image_size: int, channels: int) -> dict[str, Any]:
    """Fresh variables: 'params', and 'batch_stats' where the norm has moments.

    Args:
      module: a network made by `build`.
      key: a key of `jax.random`; consumed.
      image_size: side of the images, in pixels.
      channels: of the images.

    Raises:
      ConfigError: if the images are too small for the network.
    """
    if isinstance(module, vgg.VGG) and image_size < vgg.SMALLEST_SIDE:
        raise ConfigError(
            f"config.data.image_size = {image_size}: vgg16 halves the image five times and needs "
            f"at least {vgg.SMALLEST_SIDE} pixels"
        )
    if isinstance(module, unet.UNet) and image_size % unet.MULTIPLE:
        raise ConfigError(
            f"config.data.image_size = {image_size}: unet halves the image {unet.LEVELS} times and "
            f"doubles it again; take a multiple of {unet.MULTIPLE}"
        )
    return dict(_init(module, key, image_size, channels))


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _init(module: nn.Module, key: jax.Array, image_size: int, channels: int) -> Any:
    # XLA's own generator: with JAX's, a ResNet-18's initial values take four times as long to
    # compile, most of them the unrolled rounds of one Threefry a layer.
    key = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key), 2)[:4], impl="rbg")
    return module.init(
        key, jnp.zeros((1, image_size, image_size, channels), jnp.float32), train=False
    )
