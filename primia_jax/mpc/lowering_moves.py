"""Public linear maps of secrets: whatever moves elements about or sums them.

A rule is a function of what it works with, the primitive's parameters and its operands, each an
`Affine` or something known, at least one of them a secret. It gives one result, or a list of
several. Known operands broadcast as in JAX.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from primia_jax.mpc import lowering_pooling as pooling
from primia_jax.mpc import lowering_weights as weights
from primia_jax.mpc.lowering_gates import Builder
from primia_jax.mpc.lowering_nodes import Affine, Moves, UnsupportedError
from primia_jax.mpc.lowering_pooling import Window
from primia_jax.mpc.plan import Shape, Weight


@dataclasses.dataclass(frozen=True)
class Context:
    """Context that rules work with.

    Attributes:
      builder: makes nodes and gates.
      separable: how max pools run, see `pooling.maximum`.
      shapes: of the results.
    """

    builder: Builder
    separable: bool
    shapes: Sequence[Shape]

    @property
    def shape(self) -> Shape:
        """Shape of the only result."""
        return self.shapes[0]

    def fitted(self, a: Affine) -> Affine:
        """A secret broadcast to the shape of the result."""
        return a if a.shape == self.shape else _broadcast(self, a, self.shape)


Rule = Callable[..., Any]


def _broadcast(context: Context, a: Affine, shape: Shape) -> Affine:
    dims = range(len(shape)) if a.shape else ()
    return _broadcast_in_dim(context, {"shape": shape, "broadcast_dimensions": tuple(dims)}, a)


def is_zero(value: Any) -> bool:
    """True if a value is publicly 0 everywhere."""
    return isinstance(value, (np.ndarray, np.generic)) and not np.any(value)


def _every(shape: Sequence[int]) -> dict[int, int]:
    return {axis: axis for axis in range(len(shape))}


def reshape(context: Context, a: Affine) -> Affine:
    """A secret in the shape of the result."""
    shape = context.shape
    moves = Moves(weights.untouched_by_reshape(a.shape, shape), selects=True)
    return pooling.mapped(
        context.builder,
        a,
        lambda a: context.builder.public([a], lambda x: x.reshape(shape), shape, moves),
    )


def _reshape(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    if params["dimensions"] is not None:
        a = _transpose(context, {"permutation": params["dimensions"]}, a)
    return reshape(context, a)


def _squeeze(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    return reshape(context, a)


def _transpose(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    order = tuple(params["permutation"])
    return context.builder.public(
        [a],
        lambda x: lax.transpose(x, order),
        [a.shape[axis] for axis in order],
        Moves(dict(enumerate(order)), selects=True),
    )


def _broadcast_in_dim(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    shape, dims = tuple(params["shape"]), tuple(params["broadcast_dimensions"])
    kept = {to: axis for axis, to in enumerate(dims) if a.shape[axis] == shape[to]}
    return context.builder.public(
        [a], lambda x: lax.broadcast_in_dim(x, shape, dims), shape, Moves(kept, selects=True)
    )


def _slice(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    start, limit = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(start)
    kept = {i: i for i, size in enumerate(a.shape) if context.shape[i] == size}
    return context.builder.public(
        [a],
        lambda x: lax.slice(x, start, limit, strides),
        context.shape,
        Moves(kept, selects=True),
    )


def _dynamic_slice(context: Context, params: Mapping[str, Any], a: Any, *at: Any) -> Affine:
    if not isinstance(a, Affine) or any(isinstance(i, (Affine, Weight)) for i in at):
        raise UnsupportedError("indices that are not public")
    sizes = params["slice_sizes"]
    start = [min(max(int(i), 0), n - size) for i, n, size in zip(at, a.shape, sizes)]
    limit = [i + size for i, size in zip(start, sizes)]
    slice_params = {"start_indices": start, "limit_indices": limit, "strides": None}
    return _slice(context, slice_params, a)


def _gather(context: Context, params: Mapping[str, Any], a: Any, indices: Any) -> Affine:
    if not isinstance(a, Affine) or isinstance(indices, (Affine, Weight)):
        raise UnsupportedError("indices that are not public")
    same = ("dimension_numbers", "slice_sizes", "mode")
    options: dict[str, Any] = {name: params[name] for name in same}
    where = jnp.asarray(indices)
    outside = lax.gather(jnp.zeros(a.shape), where, fill_value=1, **options)
    if params["fill_value"] != 0 and np.asarray(outside).any():
        raise UnsupportedError("indices out of bounds, where JAX puts NaN")

    def apply(x: Any) -> Any:
        return lax.gather(x, where, fill_value=0, **options)

    return context.builder.public([a], apply, context.shape, Moves(selects=True))


def _rev(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    dimensions = params["dimensions"]
    kept = {i: i for i in range(len(a.shape)) if i not in dimensions}
    return context.builder.public(
        [a], lambda x: lax.rev(x, dimensions), a.shape, Moves(kept, selects=True)
    )


def _pad(context: Context, params: Mapping[str, Any], a: Any, value: Any) -> Affine:
    if not isinstance(a, Affine):
        raise UnsupportedError("padding with a secret")
    config = [(int(low), int(high), int(inner)) for low, high, inner in params["padding_config"]]
    kept = {i: i for i, sides in enumerate(config) if sides == (0, 0, 0)}

    def apply(x: Any) -> Any:
        return lax.pad(x, jnp.zeros((), x.dtype), config)

    padded = context.builder.public([a], apply, context.shape, Moves(kept, selects=True))
    if is_zero(value):
        return padded
    outside = np.asarray(lax.pad(jnp.zeros(a.shape), jnp.ones(()), config))
    return context.builder.add_known(padded, weights.product(outside, value))


def _concatenate(context: Context, params: Mapping[str, Any], *parts: Any) -> Affine:
    axis = params["dimension"]
    kept = {i: i for i in range(len(context.shape)) if i != axis}
    secrets, start, total = [], 0, context.shape[axis]
    knowns: list[Any] = []
    for part in parts:
        length = part.shape[axis]
        sides = [(0, 0, 0)] * len(context.shape)
        sides[axis] = (start, total - start - length, 0)
        start += length
        if isinstance(part, Affine):
            secrets.append((part, sides))
        elif not is_zero(part):
            knowns.append((part, sides))
    if len(secrets) == len(parts):
        joined = context.builder.public(
            parts,
            lambda *xs: lax.concatenate(xs, axis),
            context.shape,
            Moves(kept, joined=axis, selects=True),
        )
    else:
        padded = [
            _pad(context, {"padding_config": sides}, part, np.zeros(())) for part, sides in secrets
        ]
        joined = padded[0]
        for part in padded[1:]:
            joined = context.builder.add(joined, part)
    for part, sides in knowns:
        whole = weights.combine_to(context.shape, _padder(sides), part)
        joined = context.builder.add_known(joined, whole)
    return joined


def _stack(context: Context, params: Mapping[str, Any], *parts: Any) -> Affine:
    axis = params["axis"]
    shape = (*context.shape[:axis], 1, *context.shape[axis + 1 :])
    one = dataclasses.replace(context, shapes=[shape])
    expanded = [
        reshape(one, part)
        if isinstance(part, Affine)
        else weights.combine_to(shape, lambda v: v.reshape(shape), part)
        for part in parts
    ]
    return _concatenate(context, {"dimension": axis}, *expanded)


def _unstack(context: Context, params: Mapping[str, Any], a: Affine) -> list[Affine]:
    return [
        reshape(
            dataclasses.replace(context, shapes=[shape]),
            pooling.take(context.builder, a, params["axis"], [i]),
        )
        for i, shape in enumerate(context.shapes)
    ]


def _tile(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    for axis, count in enumerate(params["reps"]):
        if count != 1:
            a = pooling.take(context.builder, a, axis, [*range(a.shape[axis])] * count)
    return a


def _padder(sides: Sequence[tuple[int, int, int]]) -> Callable[[Any], Any]:
    return lambda v: lax.pad(v, jnp.zeros((), v.dtype), sides)


def _split(context: Context, params: Mapping[str, Any], a: Affine) -> list[Affine]:
    axis, parts, start = params["axis"], [], 0
    for shape in context.shapes:
        at = range(start, start + shape[axis])
        parts.append(pooling.take(context.builder, a, axis, at))
        start += shape[axis]
    return parts


# --- sums over axes and windows


def _reduce_sum(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    axes = tuple(params["axes"])
    left = [i for i in range(len(a.shape)) if i not in axes]
    return context.builder.public(
        [a],
        lambda x: jnp.sum(x, axes, dtype=x.dtype),
        context.shape,
        Moves(dict(enumerate(left))),
        math.prod(a.shape[axis] for axis in axes),
    )


def windows(params: Mapping[str, Any]) -> list[Window]:
    """The windows along all axes, from the parameters of a `reduce_window`."""
    return [
        Window(axis, size, stride, (int(pads[0]), int(pads[1])), base, dilation)
        for axis, (size, stride, pads, base, dilation) in enumerate(
            zip(
                params["window_dimensions"],
                params["window_strides"],
                params["padding"],
                params["base_dilation"],
                params["window_dilation"],
            )
        )
    ]


def reduce_window_sum(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    """The sum of each window, along one axis after the other: exact in any ring."""
    over, shape = windows(params), context.shape

    def apply(x: Any) -> Any:
        zero = jnp.zeros((), x.dtype)
        x = lax.pad(x, zero, [(*window.padding, window.base_dilation - 1) for window in over])
        for window in over:
            n_outputs = shape[window.axis]
            slices = [
                lax.slice_in_dim(
                    x, i, i + (n_outputs - 1) * window.stride + 1, window.stride, axis=window.axis
                )
                for i in range(0, window.size * window.dilation, window.dilation)
            ]
            x = slices[0]
            for part in slices[1:]:
                x = x + part
        return x

    kept = {window.axis: window.axis for window in over if window.is_trivial}
    terms = math.prod(window.size for window in over)
    return context.builder.public([a], apply, shape, Moves(kept), terms)


MOVES: dict[str, Rule] = {
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _squeeze,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast_in_dim,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "rev": _rev,
    "pad": _pad,
    "concatenate": _concatenate,
    "split": _split,
    "stack": _stack,
    "tile": _tile,
    "unstack": _unstack,
    "reduce_sum": _reduce_sum,
    "reduce_window_sum": reduce_window_sum,
}
