"""A U-Net (Ronneberger, Fischer and Brox 2015, figure 1) that gives every pixel a class.

It differs from the paper's network as most do today: padded convolutions, normalisation, and
upsampling by repetition in place of transposed convolutions. Repetition and concatenation only move
values, so that they cost nothing where the network runs encrypted.

Axis letters: n images, s side, h/w rows and columns, c channels, k classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from primia_jax.models import layers

LEVELS = 3  # resolutions below the image's own
MULTIPLE = 2**LEVELS  # that the image's side must be


class Block(nn.Module):
    """Two 3×3 convolutions, each with normalisation and ReLU.

    Attributes:
      channels: output channels.
      norm: 'batch' | 'group' | 'frozen' | 'none'.
      convolution: how convolutions run (`primia_jax.models.convolution`).
    """

    channels: int
    norm: str
    convolution: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[n h w c] -> [n h w channels]."""
        for i in (1, 2):
            x = layers.conv_norm_relu(x, self.channels, self.norm, self.convolution, i, train)
        return x


class UNet(layers.Network):
    """Blocks down to 1/8 of the side and up again, with skip connections.

    Each lower resolution has twice the channels of the one above.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[n s s c] float32, s a multiple of 8 -> logits [n s s k]."""
        skips = []
        for level in range(LEVELS):
            x = self._block(level, f"down{level}")(x, train)
            skips.append(x)
            x = layers.pool(x, 2, 2, 0, self.pooling, self.convolution)
        x = self._block(LEVELS, "bottom")(x, train)
        for level in reversed(range(LEVELS)):
            x = jnp.concatenate([doubled(x), skips[level]], -1)
            x = self._block(level, f"up{level}")(x, train)
        return layers.conv(self.n_classes, 1, 1, self.convolution, "head", use_bias=True)(x)

    def _block(self, level: int, name: str) -> Block:
        return Block(self.width * 2**level, self.norm, self.convolution, name=name)


def doubled(x: jax.Array) -> jax.Array:
    """[n h w c] -> [n 2h 2w c]: every pixel four times."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)
