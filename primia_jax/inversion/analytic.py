"""Input of a dense layer, recovered from the layer's gradient.

For one image, ∂L/∂W = a ⊗ ∂L/∂b with a the layer's input: every output whose bias has a gradient
gives a by a division (Phong et al. 2018, section 3; Geiping et al. 2020, proposition 3.1). Behind
convolutions that is a vector of features; in a network whose first layer is dense, the image.

Axis letters: n images, s their side, c channels, f inputs and m outputs of a dense layer.
"""

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ConfigError
from primia_jax.inversion.layers import dense_layer
from primia_jax.inversion.observed import Observed


def layer_input(kernel_gradient: jax.Array, bias_gradient: jax.Array) -> jax.Array:
    """The input [f] of a dense layer for one image, exact up to rounding.

    All m outputs are used, each by the square of its bias's gradient: the least squares solution.
    Of several images it is a mixture of their inputs, by how much each moves the loss. It is NaN
    where no bias has a gradient, behind dead ReLUs for instance.

    Args:
      kernel_gradient: [f m], of any scale, such as the weights' change by a step of SGD.
      bias_gradient: [m], of the same scale.
    """
    largest = jnp.max(jnp.abs(bias_gradient))  # against underflow of squares
    bias = bias_gradient / largest
    return (kernel_gradient / largest) @ bias / jnp.sum(jnp.square(bias))


def recover_input(observed: Observed, layer: str) -> np.ndarray:
    """The input [f] of the dense layer at path `layer`, such as 'fc'; see `layer_input`.

    Raises:
      ConfigError: if the network has no such layer.
    """
    gradient = dense_layer(observed.update, layer)
    return np.asarray(layer_input(gradient.kernel, gradient.bias))


def recover_image(observed: Observed, layer: str, shape: tuple[int, ...]) -> np.ndarray:
    """The image [1 s s 1] that a network whose first layer is dense was given.

    Args:
      observed: what the attacker sees, of one image.
      layer: path of the first layer, which must be dense over all pixels.
      shape: [1 s s 1] of the image sought.

    Raises:
      ConfigError: if the network has no such layer, or its inputs are not the image's pixels.
    """
    training = observed.training
    pixels = recover_input(observed, layer)
    expected = shape[1] * shape[2] * training.channels
    if pixels.size != expected:
        raise ConfigError(
            f"layer {layer!r} takes {pixels.size} inputs, an image has {expected} values: it is "
            "not dense over all pixels"
        )
    image = pixels.reshape(1, shape[1], shape[2], training.channels).mean(-1, keepdims=True)
    return np.clip(image * training.std + training.mean, 0, 1)
