"""VGG-16 (Simonyan and Zisserman 2015, configuration D) as torchvision builds it.

Axis letters: n images, s side, h/w rows and columns, c channels, k classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.models import layers

# Channels of each convolution in units of the width; 0 is a pooling.
PLAN = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)
SMALLEST_SIDE = 2 ** PLAN.count(0)
POOLED_SIDE = 7
DROPOUT = 0.5


class VGG(layers.Network):
    """Sixteen layers of weights; with norm 'none' torchvision's vgg16, with 'batch' vgg16_bn.

    Layers are named as in torchvision (dots written `_`). Dropout acts only in training and only
    where the caller hands in a key: `apply(…, rngs={'dropout': key})`. The hidden layers have 64
    times the width.
    """

    width: int = 64
    norm: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[n s s c] float32, s at least 32 -> logits [n k]."""
        position = 0  # in torchvision's list of layers, which numbers activations and pools too
        for multiple in PLAN:
            if not multiple:
                x = layers.pool(x, 2, 2, 0, self.pooling, self.convolution)
                position += 1
                continue
            c, name = multiple * self.width, f"features_{position}"
            x = layers.conv(c, 3, 1, self.convolution, name, use_bias=True)(x)
            if self.norm != "none":
                position += 1
                x = layers.norm(self.norm, c, f"features_{position}")(x, train)
            x = nn.relu(x)
            position += 2
        x = adaptive_mean(x, POOLED_SIDE).reshape(len(x), -1)
        drop = train and self.has_rng("dropout")
        for layer, outputs in ((0, 64 * self.width), (3, 64 * self.width), (6, self.n_classes)):
            kernel_init = nn.initializers.normal(0.01)
            x = nn.Dense(outputs, kernel_init=kernel_init, name=f"classifier_{layer}")(x)
            if layer < 6:
                x = nn.Dropout(DROPOUT, deterministic=not drop)(nn.relu(x))
        return x


def adaptive_mean(x: jax.Array, side: int) -> jax.Array:
    """[n h w c] -> [n side side c]: means over even shares of the image, as PyTorch divides it.

    The share of output row i is the input rows floor(i·h/side) up to, not including,
    ceil((i+1)·h/side): shares overlap where side does not divide h.
    """
    if x.shape[1:3] == (side, side):
        return x
    rows, columns = (jnp.asarray(_shares(length, side), x.dtype) for length in x.shape[1:3])
    return jnp.einsum("ah,nhwc,bw->nabc", rows, x, columns)


def _shares(length: int, side: int) -> np.ndarray:
    """[side length]: row i averages the share of output i."""
    shares = np.zeros((side, length))
    for i in range(side):
        start, stop = i * length // side, -(-(i + 1) * length // side)
        shares[i, start:stop] = 1 / (stop - start)
    return shares
