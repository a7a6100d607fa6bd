"""A small network of three convolutions, for quick runs and tests.

Axis letters: n images, s side, c channels, k classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from primia_jax.models import layers


class Simple(layers.Network):
    """Three times 3×3 convolution, normalisation, ReLU and 2×2 pooling; then the mean.

    Each convolution has twice the channels of the one before.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[n s s c] float32, s at least 8 -> logits [n k]."""
        for layer in range(3):
            c = self.width * 2**layer
            x = layers.conv_norm_relu(x, c, self.norm, self.convolution, layer + 1, train)
            x = layers.pool(x, 2, 2, 0, self.pooling, self.convolution)
        x = jnp.mean(x, (1, 2))
        return layers.dense(self.n_classes, x.shape[-1], "fc")(x)
