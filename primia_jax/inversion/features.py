"""Features of images, by which sets and galleries are compared.

Any function from images [n s s 1] in [0, 1] to features [n d] will do; this one takes a network.

Axis letters: n images, s their side, b images at a time, c channels, d features.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ConfigError
from primia_jax.inversion.layers import dense_layers


def penultimate(
    module: nn.Module,
    variables: Any,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    channels: int = 1,
    layer: str = "",
    batch_size: int = 64,
) -> Callable[[Any], np.ndarray]:
    """A function from images to what a network's last dense layer is given.

    Args:
      module: the network.
      variables: its weights and moments.
      mean: of all pixels, by which the inputs are standardised.
      std: likewise.
      channels: of the inputs; grey images are repeated.
      layer: path of the dense layer; the last by name where empty.
      batch_size: images at a time.

    Raises:
      ConfigError: if the network has no such layer.
    """
    paths = [layer.path for layer in dense_layers(variables["params"])]
    if not paths or (layer and layer not in paths):
        raise ConfigError(f"no dense layer {layer!r} in the network; it has {', '.join(paths)}")
    path = tuple((layer or paths[-1]).split("/"))

    @jax.jit
    def extract(images: jax.Array) -> jax.Array:
        taken: list[jax.Array] = []

        def spy(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            if context.module.path == path and context.method_name == "__call__":
                taken.append(args[0])
            return call(*args, **kwargs)

        inputs = jnp.repeat((images - mean) / std, channels, axis=-1)
        with nn.intercept_methods(spy):
            module.apply(variables, inputs, train=False)
        return taken[0].reshape(len(images), -1)

    def in_batches(images: Any) -> np.ndarray:
        images = np.asarray(images, np.float32)
        size = max(1, min(batch_size, len(images)))
        parts = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            padded = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
            parts.append(np.asarray(extract(padded))[: len(batch)])
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    return in_batches
