"""The bilinear operations of a secret and a weight: convolution, dot product, element by element.

Axes of the secret, of the weight and of the output belong together in two ways. A factor along a
*contracted* axis of the secret can as well multiply the weight along its axis; so can a factor
along an axis of the output that runs along one of the weight.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from primia_jax.mpc.plan import Product, Shape

_SMALL_SIDE = 8  # pixels of an output up to which a convolution runs as a matrix product


@dataclasses.dataclass(frozen=True, eq=False)
class Contraction:
    """A product, and which axes belong together.

    Attributes:
      product: the operation.
      shape: of the output.
      contracted: axis of the secret -> axis of the weight.
      along: axis of the output -> axis of the weight.
    """

    product: Product
    shape: Shape
    contracted: Mapping[int, int]
    along: Mapping[int, int]


def _multiply(x: Any, w: Any, out_dtype: Any = None) -> jax.Array:
    if out_dtype is None:
        return x * w
    return x.astype(out_dtype) * w.astype(out_dtype)


ELEMENTWISE = Product(_multiply, depth=1, channel_axis=None, out_channel_axis=None)


def _precision(x: Any) -> Any:
    """Products of floats are not to be rounded on the way."""
    return lax.Precision.HIGHEST if x.dtype in (jnp.float32, jnp.float64) else None


def convolution(
    params: Mapping[str, Any], w_shape: Sequence[int], shape: Sequence[int]
) -> Contraction:
    """`conv_general_dilated` of a secret with a kernel.

    Args:
      params: of the primitive; its batch_group_count is 1.
      w_shape: of the kernel.
      shape: of the output.
    """
    numbers = params["dimension_numbers"]
    groups = params["feature_group_count"]
    x_feature = numbers.lhs_spec[1]
    w_out, w_in, *w_spatial = numbers.rhs_spec
    out_feature = numbers.out_spec[1]
    same = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
    options = {name: params[name] for name in same} | {"feature_group_count": groups}

    small = _is_small(params, shape)

    def apply(x: Any, w: Any, out_dtype: Any = None) -> jax.Array:
        if small and jax.default_backend() == "cpu":
            return _patches_product(x, w, out_dtype, params)
        return lax.conv_general_dilated(
            x, w, precision=_precision(x), preferred_element_type=out_dtype, **options
        )

    channels = w_shape[w_in]

    def split(x: Any, w: Any, n_parts: int) -> list[tuple[Any, Any]]:
        parts = []
        for start, stop in _chunks(channels, n_parts):
            first = np.arange(groups)[:, None] * channels  # of each group
            taken = (first + np.arange(start, stop)).reshape(-1)
            x_part = (
                lax.slice_in_dim(x, start, stop, axis=x_feature)
                if groups == 1
                else jnp.take(x, taken, axis=x_feature)
            )
            parts.append((x_part, lax.slice_in_dim(w, start, stop, axis=w_in)))
        return parts

    depth = channels * math.prod(w_shape[axis] for axis in w_spatial)
    return Contraction(
        Product(apply, depth, w_out, out_feature, split, _pads_3x3(params, w_shape)),
        tuple(shape),
        {x_feature: w_in} if groups == 1 else {},
        {out_feature: w_out},
    )


def _pads_3x3(params: Mapping[str, Any], w_shape: Sequence[int]) -> Any:
    """`Product.pads_3x3` of a convolution."""
    numbers = params["dimension_numbers"]
    layouts = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    steps = (*params["window_strides"], *params["lhs_dilation"], *params["rhs_dilation"])
    pads = tuple((int(before), int(after)) for before, after in params["padding"])
    plain = (
        layouts == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
        and tuple(w_shape[:2]) == (3, 3)
        and params["feature_group_count"] == 1
        and all(step == 1 for step in steps)
        and min(map(min, pads)) >= 0
    )
    return pads if plain else None


def _is_small(params: Mapping[str, Any], shape: Sequence[int]) -> bool:
    """True if a convolution is a plain one with few output pixels."""
    sides = [shape[axis] for axis in params["dimension_numbers"].out_spec[2:]]
    plain = params["feature_group_count"] == 1 and all(
        step == 1 for step in (*params["lhs_dilation"], *params["rhs_dilation"])
    )
    pads = [side for pair in params["padding"] for side in pair]
    return plain and len(sides) == 2 and max(sides) <= _SMALL_SIDE and min(pads) >= 0


def _patches_product(x: Any, w: Any, out_dtype: Any, params: Mapping[str, Any]) -> jax.Array:
    """A convolution as one matrix product over patches (im2col).

    XLA's own convolution on a CPU takes twice the time for images of 7×7 pixels, and a hundred
    times as long where they are smaller than the kernel.
    """
    numbers = params["dimension_numbers"]
    x = jnp.transpose(x, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    w = jnp.transpose(w, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    (down, across), pads = params["window_strides"], params["padding"]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows = (x.shape[1] - w.shape[0]) // down + 1
    columns = (x.shape[2] - w.shape[1]) // across + 1
    patches = [
        x[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across]
        for i in range(w.shape[0])
        for j in range(w.shape[1])
    ]
    out = lax.dot(
        jnp.concatenate(patches, axis=-1).reshape(-1, math.prod(w.shape[:3])),
        w.reshape(-1, w.shape[3]),
        precision=_precision(x),
        preferred_element_type=out_dtype,
    ).reshape(x.shape[0], rows, columns, w.shape[3])
    n, feature, height, width = numbers.out_spec
    order = np.argsort((n, height, width, feature))
    return jnp.transpose(out, tuple(int(axis) for axis in order))


def dot_product(
    numbers: Any, x_shape: Sequence[int], w_shape: Sequence[int], secret_first: bool
) -> Contraction:
    """`dot_general` of a secret with a weight, in either order.

    Args:
      numbers: dimension numbers of the primitive.
      x_shape: of the secret.
      w_shape: of the weight.
      secret_first: whether the secret is the left operand.
    """
    (left, right), (left_batch, right_batch) = numbers
    x_sum, w_sum = (left, right) if secret_first else (right, left)
    x_batch, w_batch = (left_batch, right_batch) if secret_first else (right_batch, left_batch)
    x_free = [i for i in range(len(x_shape)) if i not in (*x_sum, *x_batch)]
    w_free = [i for i in range(len(w_shape)) if i not in (*w_sum, *w_batch)]
    n_batch = len(x_batch)
    first_w = n_batch + (len(x_free) if secret_first else 0)
    along = {i: axis for i, axis in enumerate(w_batch)}
    along |= {first_w + i: axis for i, axis in enumerate(w_free)}
    x_sizes, w_sizes = [x_shape[i] for i in x_free], [w_shape[i] for i in w_free]
    free = x_sizes + w_sizes if secret_first else w_sizes + x_sizes
    shape = tuple(x_shape[i] for i in x_batch) + tuple(free)

    def apply(x: Any, w: Any, out_dtype: Any = None) -> jax.Array:
        pair = (x, w) if secret_first else (w, x)
        return lax.dot_general(
            *pair, numbers, precision=_precision(x), preferred_element_type=out_dtype
        )

    split: Callable[..., Any] | None = None
    if x_sum:
        at = max(range(len(x_sum)), key=lambda i: x_shape[x_sum[i]])

        def split(x: Any, w: Any, n_parts: int) -> list[tuple[Any, Any]]:
            return [
                (
                    lax.slice_in_dim(x, start, stop, axis=x_sum[at]),
                    lax.slice_in_dim(w, start, stop, axis=w_sum[at]),
                )
                for start, stop in _chunks(x_shape[x_sum[at]], n_parts)
            ]

    channel = max(along, key=lambda axis: w_shape[along[axis]], default=None)
    product = Product(
        apply,
        math.prod(x_shape[axis] for axis in x_sum),
        None if channel is None else along[channel],
        channel,
        split,
    )
    contracted = dict(zip((*x_sum, *x_batch), (*w_sum, *w_batch)))
    return Contraction(product, shape, contracted, along)


def _chunks(size: int, n_parts: int) -> list[tuple[int, int]]:
    step = -(-size // n_parts)
    return [(start, min(start + step, size)) for start in range(0, size, step)]
