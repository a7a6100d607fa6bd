"""Parts of the networks: convolution, normalisation and pooling chosen by the settings.

Axis letters: n images, h/w rows and columns, c channels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from primia_jax.models import convolution

EPSILON = 1e-5
MOMENTUM = 0.9
GROUP_CHANNELS = 16
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Network(nn.Module):
    """A network by its settings.

    Attributes:
      n_classes: outputs, of an image or of each pixel.
      width: channels of the first convolution.
      pooling: 'max' or 'avg'.
      norm: 'batch' | 'group' | 'frozen' | 'none'.
      convolution: how convolutions run (`primia_jax.models.convolution`).
    """

    n_classes: int
    width: int = 16
    pooling: str = "max"
    norm: str = "batch"
    convolution: str = "auto"


class BatchNorm(nn.Module):
    """Batch normalisation with the variables of Flax's own: scale, bias; mean, var.

    The running variance averages the batches' *biased* variances (PyTorch's averages unbiased
    ones), so that the moments of several hospitals pool exactly. Weight of the past: 0.9.

    Attributes:
      frozen: whether the moments are constants, in training too; scale and bias still train.
      scale_init: initial value of the scale.
    """

    frozen: bool = False
    scale_init: Callable[..., jax.Array] = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[n h w c] -> [n h w c]; with `train`, normalises by the batch and updates the moments."""
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if train and not self.frozen:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(x, axes)
            var = jnp.maximum(jnp.mean(lax.square(x), axes) - lax.square(mean), 0.0)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * var
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + EPSILON)
        return x * factor + (bias - mean * factor)


def norm(kind: str, channels: int, name: str) -> Callable[[jax.Array, bool], jax.Array]:
    """The normalisation `kind` ('batch' | 'group' | 'frozen') of `channels` channels.

    Group norm (Wu and He 2018) has groups of 16 channels, the fewest at which it does not suffer
    in their table 3, or one group where the channels are fewer or do not divide.
    """
    if kind == "group":
        groups = math.gcd(channels, max(1, channels // GROUP_CHANNELS))
        module = nn.GroupNorm(num_groups=groups, epsilon=EPSILON, name=name)
        return lambda x, train: module(x)
    return BatchNorm(frozen=kind == "frozen", name=name)


def conv(
    channels: int,
    kernel: int,
    stride: int,
    kind: str,
    name: str,
    use_bias: bool = False,
) -> nn.Conv:
    """A convolution padded by half its kernel, initialised as He et al. 2015 (fan out)."""
    return nn.Conv(
        channels,
        (kernel, kernel),
        (stride, stride),
        padding=kernel // 2,
        use_bias=use_bias,
        kernel_init=KAIMING_FAN_OUT,
        conv_general_dilated=convolution.convolution(kind),
        name=name,
    )


def conv_norm_relu(
    x: jax.Array, channels: int, norm_kind: str, kind: str, number: int, train: bool
) -> jax.Array:
    """[n h w c] -> [n h w channels]: 3×3 convolution, normalisation and ReLU.

    With norm 'none' the convolution has a bias. The layers are named `conv{number}` and
    `bn{number}`.
    """
    plain = norm_kind == "none"
    x = conv(channels, 3, 1, kind, f"conv{number}", use_bias=plain)(x)
    if not plain:
        x = norm(norm_kind, channels, f"bn{number}")(x, train)
    return nn.relu(x)


def dense(channels: int, fan_in: int, name: str) -> nn.Dense:
    """A linear layer, initialised as PyTorch does: both uniform within 1/√fan_in."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> Any:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(channels, kernel_init=uniform, bias_init=uniform, name=name)


def pool(
    x: jax.Array, window: int, stride: int, padding: int, pooling: str, kind: str
) -> jax.Array:
    """[n h w c] -> [n h w c]: the largest value ('max') or the mean ('avg') of each window.

    Padding never wins a maximum but counts in a mean, as in PyTorch.

    Args:
      x: images.
      window: side of the window, in pixels.
      stride: pixels between windows.
      padding: pixels added on each side.
      pooling: 'max' or 'avg'.
      kind: the network's convolution. 'xla' is `reduce_window`; 'im2col' takes strided slices;
        'auto' on a CPU also has a gradient of its own, some 6 times as fast as that of the slices
        and far more so than that of `reduce_window`. It gives every pixel that ties for a maximum
        the whole gradient, which changes nothing after a ReLU: only its zeros tie, and they stop
        the gradient.
    """
    if kind == "xla" or jax.default_backend() != "cpu":
        pooled = nn.max_pool if pooling == "max" else nn.avg_pool
        pads = ((padding, padding), (padding, padding))
        return pooled(x, (window, window), (stride, stride), pads)
    sliced = _pool_with_gradient if kind == "auto" else _pool
    return sliced(x, window, stride, padding, pooling)


def _pool(x: jax.Array, window: int, stride: int, padding: int, pooling: str) -> jax.Array:
    fill = -jnp.inf if pooling == "max" else 0.0
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, pads, constant_values=fill)
    h = (x.shape[1] - window) // stride + 1
    w = (x.shape[2] - window) // stride + 1
    slices = [
        x[:, k : k + (h - 1) * stride + 1 : stride, m : m + (w - 1) * stride + 1 : stride]
        for k in range(window)
        for m in range(window)
    ]
    if pooling == "max":
        return functools.reduce(jnp.maximum, slices)
    return functools.reduce(jnp.add, slices) / window**2


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _pool_with_gradient(
    x: jax.Array, window: int, stride: int, padding: int, pooling: str
) -> jax.Array:
    return _pool(x, window, stride, padding, pooling)


def _pool_forward(x: jax.Array, window: int, stride: int, padding: int, pooling: str) -> Any:
    out = _pool(x, window, stride, padding, pooling)
    return out, (x, out)


def _pool_backward(
    window: int, stride: int, padding: int, pooling: str, saved: Any, g: jax.Array
) -> tuple[jax.Array]:
    """Gathers, for every pixel, from the few windows that contain it: one fused loop."""
    x, out = saved
    _, h, w, _ = x.shape

    def per_pixel(values: jax.Array, up: int, left: int) -> jax.Array:
        """[n h w c]: for each pixel the value of the window `up` and `left` of its last one."""
        n, rows, columns, c = values.shape
        spread = (n, rows, stride, columns, stride, c)
        values = jnp.broadcast_to(values[:, :, None, :, None], spread)
        values = values.reshape(n, rows * stride, columns * stride, c)
        before = (stride * up - padding, stride * left - padding)
        after = (h - rows * stride - before[0], w - columns * stride - before[1])
        sides = ((0, 0, 0), (before[0], after[0], 0), (before[1], after[1], 0), (0, 0, 0))
        return lax.pad(values, jnp.zeros((), values.dtype), sides)

    steps = range(-(-window // stride))
    row, column = ((np.arange(length) + padding) % stride for length in (h, w))
    dx = jnp.zeros_like(x)
    for up in steps:
        for left in steps:
            inside = np.logical_and.outer(
                row + stride * up < window, column + stride * left < window
            )
            taken = jnp.asarray(inside[None, :, :, None])
            if pooling == "max":
                taken = taken & (x == per_pixel(out, up, left))
            dx += jnp.where(taken, per_pixel(g, up, left), 0.0)
    return (dx if pooling == "max" else dx / window**2,)


_pool_with_gradient.defvjp(_pool_forward, _pool_backward)
