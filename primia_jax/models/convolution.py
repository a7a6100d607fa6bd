"""Convolution as an argument of the networks: XLA's own, or one made for CPUs.

XLA's own convolution is fast on CPUs (jax 0.10) and compiles fast, but for three things: images
smaller than the kernel, for which it swaps the two and ends in a plain loop hundreds of times
slower; the input's gradient under strides, likewise; and weight gradients of large images, whose
sum over all pixels it computes at a third of a matrix product's speed. `auto` therefore chooses,
for each shape and for each of the output and the two gradients, between XLA, one matrix product
over patches (im2col) and Winograd's minimal filtering F(2×2, 3×3) (Lavin and Gray 2016).

Axis letters: n images, h/w rows and columns, i/o input and output channels, k/m kernel offsets,
a/b rows and columns within a tile (4×4 inputs, 2×2 outputs).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Convolution = Callable[..., jax.Array]
Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Implementation = Callable[[jax.Array, jax.Array, Pair, Pads], jax.Array]

NHWC = ("NHWC", "HWIO", "NHWC")
# Outputs of at least so many pixels a side and kernels of at least so many channels make XLA's
# weight gradient slow.
LARGE_SIDE, MANY_CHANNELS = 20, 64


def convolution(kind: str) -> Convolution:
    """The convolution that goes by the name `kind`, called as `lax.conv_general_dilated` is.

    Dilated, grouped and other unusual convolutions are XLA's under every name.

    Args:
      kind: 'xla' is `lax.conv_general_dilated` itself, which the encryption of a network traces;
        'im2col' is one matrix product over patches; 'auto' is the fastest known on this backend.
        All can be differentiated in reverse any number of times; on CPUs 'auto' cannot be
        differentiated forwards (`jax.jvp`).
    """
    kinds: dict[str, Convolution] = {
        "xla": lax.conv_general_dilated,
        "im2col": functools.partial(_convolve, _im2col),
        "auto": functools.partial(_convolve, _auto),
    }
    return kinds[kind]


def _convolve(
    implementation: Implementation,
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[Pair],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated`, by `implementation` where it is a plain convolution of images."""
    plain = (
        lhs.ndim == rhs.ndim == 4
        and lhs.dtype == rhs.dtype == jnp.float32
        and feature_group_count == batch_group_count == 1
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and precision is None
        and preferred_element_type is None
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    strides = (window_strides[0], window_strides[1])
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return implementation(lhs, rhs, strides, ((top, bottom), (left, right)))


def _xla(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    """[n h w i] and [k m i o] -> [n h w o], as all the implementations."""
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


def _im2col(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    """One matrix product of all that the windows see with the kernel."""
    rows, columns, i, o = kernel.shape
    (top, bottom), (left, right) = pads
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))
    h = (x.shape[1] - rows) // strides[0] + 1
    w = (x.shape[2] - columns) // strides[1] + 1
    windows = [
        x[:, k : k + (h - 1) * strides[0] + 1 : strides[0]][
            :, :, m : m + (w - 1) * strides[1] + 1 : strides[1]
        ]
        for k in range(rows)
        for m in range(columns)
    ]
    patches = lax.concatenate(windows, 3) if len(windows) > 1 else windows[0]
    depth = rows * columns * i
    out = patches.reshape(-1, depth) @ kernel.reshape(depth, o)
    return out.reshape(len(x), h, w, o)


def _auto(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    on_cpu = jax.default_backend() == "cpu"
    return (_mixed if on_cpu else _xla)(x, kernel, strides, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mixed(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    """The convolution, each direction by the means that measured fastest on a CPU."""
    return _for_output(x, kernel)(x, kernel, strides, pads)


def _mixed_forward(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> Any:
    return _mixed(x, kernel, strides, pads), (x, kernel)


def _mixed_backward(strides: Pair, pads: Pads, saved: Any, g: jax.Array) -> Any:
    # Only x is kept: making patches or tiles again costs less than the memory for them.
    x, kernel = saved
    strided = strides != (1, 1)
    for_input = _im2col if strided else _for_output(x, kernel)
    (dx,) = jax.vjp(lambda x: for_input(x, kernel, strides, pads), x)[1](g)
    large = min(g.shape[1:3]) >= LARGE_SIDE and min(kernel.shape[2:]) >= MANY_CHANNELS
    if large and not strided and _is_winograd_shape(kernel, g):
        return dx, _winograd_kernel_gradient(x, g, pads)
    for_kernel = _im2col if large and strided else _for_output(x, kernel)
    (dkernel,) = jax.vjp(lambda kernel: for_kernel(x, kernel, strides, pads), kernel)[1](g)
    return dx, dkernel


_mixed.defvjp(_mixed_forward, _mixed_backward)


def _for_output(x: jax.Array, kernel: jax.Array) -> Implementation:
    """XLA, but for 1×1 kernels and images with few pixels beside their channels.

    The former are matrix products as they are. Of XLA's time patches take 0.7 at 7×7 pixels of 512
    channels and at 4×4 of 256, less than 0.01 where the image is smaller than the kernel; at 8×8
    of 128 they take 1.3.
    """
    h, w, channels = x.shape[1:]
    few = min(h, w) < max(kernel.shape[:2]) or 4 * h * w < channels
    return _im2col if few or kernel.shape[:2] == (1, 1) else _xla


def _is_winograd_shape(kernel: jax.Array, g: jax.Array) -> bool:
    return kernel.shape[:2] == (3, 3) and g.shape[1] % 2 == 0 and g.shape[2] % 2 == 0


def _winograd_kernel_gradient(x: jax.Array, g: jax.Array, pads: Pads) -> jax.Array:
    """The gradient [3 3 i o] of a 3×3 convolution's kernel, by 16 products over tiles.

    A tile of 2×2 outputs depends on 4×4 inputs; the transforms B, A and G of Lavin and Gray (their
    equation 10), transposed, turn its 36 products of an input and an output channel into 16. The
    rounding error is that of a sum over tiles of values up to four times as large. Against XLA it
    takes 0.4 of the time at 28×28 pixels of 128 channels and 0.6 at 56×56 of 64; of smaller images
    or fewer channels XLA's own is faster, or compiles sooner for little loss.

    Args:
      x: the convolution's input [n h w i].
      g: the gradient of its output [n h w o], h and w even.
      pads: the convolution's padding.
    """
    (top, bottom), (left, right) = pads
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    h, w = g.shape[1:3]
    inputs = [[x[:, a : a + h - 1 : 2, b : b + w - 1 : 2] for b in range(4)] for a in range(4)]
    outputs = [[g[:, a::2, b::2] for b in range(2)] for a in range(2)]
    inputs = _both_axes(lambda x0, x1, x2, x3: [x0 - x2, x1 + x2, x2 - x1, x1 - x3], inputs)
    outputs = _both_axes(lambda g0, g1: [g0, g0 + g1, g0 - g1, -g1], outputs)
    products = [[_sum_of_products(u, v) for u, v in zip(*rows)] for rows in zip(inputs, outputs)]
    kernel = _both_axes(
        lambda p0, p1, p2, p3: [p0 + (p1 + p2) / 2, (p1 - p2) / 2, (p1 + p2) / 2 + p3], products
    )
    return jnp.stack([jnp.stack(row) for row in kernel])


def _sum_of_products(u: jax.Array, v: jax.Array) -> jax.Array:
    """[n h w i] and [n h w o] -> [i o]: the sum over all pixels of all images."""
    n, i, o = len(u), u.shape[3], v.shape[3]
    if o >= 2 * MANY_CHANNELS:
        return u.reshape(-1, i).T @ v.reshape(-1, o)
    # One product an image: a slender product that sums over very many rows is slow in itself.
    return jnp.sum(u.reshape(n, -1, i).swapaxes(1, 2) @ v.reshape(n, -1, o), axis=0)


def _both_axes(
    transform: Callable[..., list[jax.Array]], grid: Sequence[Sequence[jax.Array]]
) -> list[list[jax.Array]]:
    """Applies a 1-D transform to the columns of a square of arrays, then to its rows."""
    columns = [transform(*column) for column in zip(*grid)]
    return [transform(*row) for row in zip(*columns)]
