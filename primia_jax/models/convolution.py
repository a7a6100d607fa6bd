"""Convolution as an argument of the networks: XLA's own, or one made for CPUs.

Axis letters: n images, h/w rows and columns, i/o input and output channels, k/m kernel offsets.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Convolution = Callable[..., jax.Array]
Pads = tuple[tuple[int, int], tuple[int, int]]

LARGEST_IM2COL_SIDE = 64  # of the input, in pixels; see `_auto`


def convolution(kind: str) -> Convolution:
    """The convolution that goes by the name `kind`, called as `lax.conv_general_dilated` is.

    Args:
      kind: 'xla' is `lax.conv_general_dilated` itself, which the encryption of a network traces;
        'im2col' is one matrix product over patches; 'auto' chooses by backend and shape.
    """
    kinds: dict[str, Convolution] = {
        "xla": lax.conv_general_dilated,
        "im2col": im2col,
        "auto": _auto,
    }
    return kinds[kind]


def im2col(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """A convolution as one matrix product over patches; differentiable any number of times.

    Args:
      lhs: images [n h w i].
      rhs: kernel [k m i o].
      window_strides: rows and columns between windows.
      padding: 'SAME', 'VALID' or ((top, bottom), (left, right)).
      lhs_dilation: as in `lax.conv_general_dilated`, like all that follow.
      rhs_dilation: likewise.
      dimension_numbers: likewise.
      feature_group_count: likewise.
      **options: likewise (`precision` and so on).

    Returns:
      [n h w o]. Dilated, grouped and other unusual convolutions are passed on to XLA.
    """
    if not _is_plain(lhs, rhs, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count):
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            **options,
        )
    pads = _pads(lhs, rhs, window_strides, padding)
    patches = _patches(lhs, rhs.shape[:2], window_strides, pads)
    n, h, w, depth = patches.shape
    out = jnp.dot(
        patches.reshape(n * h * w, depth),
        rhs.reshape(depth, rhs.shape[3]),
        precision=options.get("precision"),
        preferred_element_type=options.get("preferred_element_type"),
    )
    return out.reshape(n, h, w, rhs.shape[3])


def _auto(
    lhs: jax.Array,
    rhs: jax.Array,
    *args: Any,
    **options: Any,
) -> jax.Array:
    if jax.default_backend() == "cpu" and lhs.shape[1] <= LARGEST_IM2COL_SIDE:
        return im2col(lhs, rhs, *args, **options)
    return lax.conv_general_dilated(lhs, rhs, *args, **options)


def _is_plain(
    lhs: jax.Array,
    rhs: jax.Array,
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    dimension_numbers: Any,
    feature_group_count: int,
) -> bool:
    """Whether this is a two-dimensional NHWC/HWIO convolution without dilation or groups."""
    if lhs.ndim != 4 or rhs.ndim != 4 or feature_group_count != 1:
        return False
    if any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ()))):
        return False
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    return layout == lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def _pads(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
) -> Pads:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return (top, bottom), (left, right)


def _patches(x: jax.Array, kernel: Sequence[int], strides: Sequence[int], pads: Pads) -> jax.Array:
    """[n h w k·m·i]: what each window sees, in the order of a flattened [k m i o] kernel."""
    (top, bottom), (left, right) = pads
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))
    n, rows, columns, channels = x.shape
    h = (rows - kernel[0]) // strides[0] + 1
    w = (columns - kernel[1]) // strides[1] + 1
    windows = [
        lax.slice(
            x,
            (0, k, m, 0),
            (n, k + (h - 1) * strides[0] + 1, m + (w - 1) * strides[1] + 1, channels),
            (1, *strides, 1),
        )
        for k in range(kernel[0])
        for m in range(kernel[1])
    ]
    return lax.concatenate(windows, 3) if len(windows) > 1 else windows[0]
