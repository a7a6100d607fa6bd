"""ResNet-18 and ResNet-34 (He et al. 2016, table 1) as torchvision builds them.

Axis letters: n images, s side, h/w rows and columns, c channels, k classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from primia_jax.models import layers

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (figure 5, left).

    Attributes:
      channels: output channels.
      stride: of the first convolution and of the shortcut.
      norm: 'batch' | 'group' | 'frozen'.
      convolution: how convolutions run (`primia_jax.models.convolution`).
    """

    channels: int
    stride: int
    norm: str
    convolution: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[n h w c] -> [n h/stride w/stride channels]."""
        c, kind = self.channels, self.convolution
        y = layers.conv(c, 3, self.stride, kind, "conv1")(x)
        y = nn.relu(layers.norm(self.norm, c, "bn1")(y, train))
        y = layers.conv(c, 3, 1, kind, "conv2")(y)
        y = layers.norm(self.norm, c, "bn2")(y, train)
        if self.stride != 1 or x.shape[-1] != c:
            x = layers.conv(c, 1, self.stride, kind, "downsample_conv")(x)
            x = layers.norm(self.norm, c, "downsample_bn")(x, train)
        return nn.relu(y + x)


class ResNet(nn.Module):
    """A residual network of basic blocks.

    With stem 'imagenet', norm 'batch', pooling 'max', 3 channels and width 64 this is torchvision's
    network: the same layers, names (dots written `_`), padding and epsilon.

    Attributes:
      blocks: basic blocks of each stage.
      n_classes: outputs.
      width: channels of the first stage; each further stage doubles them.
      stem: 'imagenet' (7×7 stride 2, then pooling) or 'small' (3×3, no pooling).
      pooling: 'max' or 'avg', in the stem.
      norm: 'batch' | 'group' | 'frozen'.
      convolution: how convolutions run (`primia_jax.models.convolution`).
    """

    blocks: tuple[int, ...]
    n_classes: int
    width: int = 64
    stem: str = "imagenet"
    pooling: str = "max"
    norm: str = "batch"
    convolution: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[n s s c] float32 -> logits [n k]."""
        large = self.stem == "imagenet"
        x = layers.conv(
            self.width, 7 if large else 3, 2 if large else 1, self.convolution, "conv1"
        )(x)
        x = nn.relu(layers.norm(self.norm, self.width, "bn1")(x, train))
        if large:
            x = layers.pool(x, 3, 2, 1, self.pooling, self.convolution)
        for stage, n_blocks in enumerate(self.blocks):
            channels = self.width * 2**stage
            for block in range(n_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(
                    channels, stride, self.norm, self.convolution, name=f"layer{stage + 1}_{block}"
                )(x, train)
        x = jnp.mean(x, (1, 2))
        return layers.dense(self.n_classes, x.shape[-1], "fc")(x)
