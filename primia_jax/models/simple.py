"""A small network of three convolutions, for quick runs and tests.

Axis letters: n images, s side, c channels, k classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from primia_jax.models import layers


class Simple(nn.Module):
    """Three times 3×3 convolution, normalisation, ReLU and 2×2 pooling; then the mean.

    Attributes:
      n_classes: outputs.
      width: channels of the first convolution; the others double them.
      pooling: 'max' or 'avg'.
      norm: 'batch' | 'group' | 'frozen' | 'none'.
      convolution: how convolutions run (`primia_jax.models.convolution`).
    """

    n_classes: int
    width: int = 16
    pooling: str = "max"
    norm: str = "batch"
    convolution: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[n s s c] float32, s at least 8 -> logits [n k]."""
        for layer in range(3):
            c, plain = self.width * 2**layer, self.norm == "none"
            x = layers.conv(c, 3, 1, self.convolution, f"conv{layer + 1}", use_bias=plain)(x)
            if not plain:
                x = layers.norm(self.norm, c, f"bn{layer + 1}")(x, train)
            x = layers.pool(nn.relu(x), 2, 2, 0, self.pooling, self.convolution)
        x = jnp.mean(x, (1, 2))
        return layers.dense(self.n_classes, x.shape[-1], "fc")(x)
