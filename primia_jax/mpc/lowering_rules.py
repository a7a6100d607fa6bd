"""Rules by which each primitive acts on secrets: linear maps, products and maxima.

A rule is a function of the primitive's parameters and its operands, each an `Affine` or something
known, at least one of them a secret. It gives one result, or a list of several.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from primia_jax.mpc import lowering_pooling as pooling
from primia_jax.mpc import lowering_weights as weights
from primia_jax.mpc.lowering_gates import has_few_sizes
from primia_jax.mpc.lowering_moves import (
    MOVES,
    Context,
    Rule,
    is_zero,
    reduce_window_sum,
    reshape,
    windows,
)
from primia_jax.mpc.lowering_nodes import Affine, UnsupportedError
from primia_jax.mpc.lowering_pooling import Window
from primia_jax.mpc.lowering_products import convolution, dot_product
from primia_jax.mpc.plan import Signed, Weight

SUPPORTED = (
    "supported are convolutions, dense layers, batch norm in inference mode, relu, relu6, "
    "leaky_relu, max and average pooling, sums of layers, concatenation and reshapes"
)


class Comparison(NamedTuple):
    """The predicate sign · secret > 0, where only a choice is made by it."""

    secret: Affine
    sign: float


# --- sums and multiples


def _identity(context: Context, params: Mapping[str, Any], *operands: Any) -> Any:
    return list(operands)


def _convert(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    if not jnp.issubdtype(params["new_dtype"], jnp.floating):
        raise UnsupportedError(f"a conversion to {np.dtype(params['new_dtype'])}")
    return a


def _add(context: Context, params: Mapping[str, Any], a: Any, b: Any) -> Affine:
    if not isinstance(a, Affine):
        a, b = b, a
    a = context.fitted(a)
    if isinstance(b, Affine):
        return context.builder.add(a, context.fitted(b))
    return context.builder.add_known(a, b)


def _neg(context: Context, params: Mapping[str, Any], a: Any) -> Any:
    if isinstance(a, Affine):
        return context.builder.scale(a, -1.0)
    return weights.combine(lambda v: -v, a)


def _sub(context: Context, params: Mapping[str, Any], a: Any, b: Any) -> Affine:
    return _add(context, params, a, _neg(context, params, b))


def _mul(context: Context, params: Mapping[str, Any], a: Any, b: Any) -> Any:
    if not isinstance(a, Affine):
        a, b = b, a
    if isinstance(b, Affine):
        raise UnsupportedError("a product of two secrets")
    return context.builder.times(context.fitted(a), b)


def _div(context: Context, params: Mapping[str, Any], a: Any, b: Any) -> Any:
    if isinstance(b, Affine):
        raise UnsupportedError("a division by a secret")
    if not isinstance(b, Weight):
        b = np.asarray(b, np.float64)
    return context.builder.times(context.fitted(a), weights.combine(lambda v: 1 / v, b))


# --- products


def _convolution(context: Context, params: Mapping[str, Any], x: Any, w: Any) -> Affine:
    if not isinstance(x, Affine) or isinstance(w, Affine):
        raise UnsupportedError("a convolution with a secret kernel")
    if params["batch_group_count"] != 1:
        raise UnsupportedError("batch_group_count other than 1")
    return context.builder.contract(x, w, convolution(params, w.shape, context.shape))


def _dot_general(context: Context, params: Mapping[str, Any], a: Any, b: Any) -> Any:
    numbers = params["dimension_numbers"]
    if isinstance(a, Affine) and isinstance(b, Affine):
        raise UnsupportedError("a product of two secrets")
    x, w, secret_first = (a, b, True) if isinstance(a, Affine) else (b, a, False)
    how = dot_product(numbers, x.shape, w.shape, secret_first)
    if not has_few_sizes(w):
        return context.builder.contract(x, w, how)

    def with_signs(signs: np.ndarray) -> Affine:
        def by(signs: np.ndarray, x: Any) -> Any:
            # Through a signed type, so that −1 is one in every ring.
            return how.product.apply(x, jnp.asarray(signs).astype(jnp.int32).astype(x.dtype))

        apply = Signed(functools.partial(by, signs), functools.partial(by, np.abs(signs)))
        return context.builder.public([x], apply, context.shape, terms=how.product.depth)

    return context.builder.sum_by_size(w, with_signs)


# --- maxima


def _relu_above(context: Context, a: Affine, bound: Any) -> Affine:
    """max(a, bound) for a known bound."""
    if is_zero(bound):
        return context.builder.relu(a)
    if not isinstance(bound, Weight) and np.all(bound <= np.finfo(np.float32).min):
        return a
    if not isinstance(bound, Weight) and not np.all(np.isfinite(bound)):
        raise UnsupportedError("bounds of which some are not finite")
    above = context.builder.add_known(a, _neg(context, {}, bound))
    return context.builder.add_known(context.builder.relu(above), bound)


def _max(context: Context, params: Mapping[str, Any], a: Any, b: Any) -> Affine:
    if not isinstance(a, Affine):
        a, b = b, a
    if isinstance(b, Affine):
        return context.builder.maximum(context.fitted(a), context.fitted(b))
    return _relu_above(context, context.fitted(a), b)


def _min(context: Context, params: Mapping[str, Any], a: Any, b: Any) -> Affine:
    least = _max(context, params, _neg(context, params, a), _neg(context, params, b))
    return _neg(context, params, least)


def _clamp(context: Context, params: Mapping[str, Any], low: Any, a: Any, high: Any) -> Affine:
    return _min(context, params, _max(context, params, a, low), high)


def _abs(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    positive = context.builder.relu(a)
    return context.builder.subtract(context.builder.scale(positive, 2.0), a)


def _reduce_max(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    over = [Window(axis, a.shape[axis]) for axis in params["axes"]]
    pooled = pooling.maximum(context.builder, a, over, context.separable)
    return reshape(context, pooled)


def _reduce_min(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    return _neg(context, {}, _reduce_max(context, params, _neg(context, {}, a)))


def _reduce_window_max(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    return pooling.maximum(context.builder, a, windows(params), context.separable)


def _reduce_window_min(context: Context, params: Mapping[str, Any], a: Affine) -> Affine:
    return _neg(context, {}, _reduce_window_max(context, params, _neg(context, {}, a)))


def _reduce_window(context: Context, params: Mapping[str, Any], *operands: Any) -> Affine:
    names = [eqn.primitive.name for eqn in params["jaxpr"].eqns]
    if len(operands) != 2 or not isinstance(operands[0], Affine) or names not in (["add"], ["max"]):
        raise UnsupportedError(f"a window of {', '.join(names)}")
    a, start = operands
    if names == ["add"]:
        return _add(context, params, reduce_window_sum(context, params, a), start)
    if is_zero(start):
        return pooling.maximum(
            context.builder, a, windows(params), context.separable, with_zero=True
        )
    return _max(context, params, _reduce_window_max(context, params, a), start)


# --- choices


def _greater(context: Context, params: Mapping[str, Any], a: Any, b: Any) -> Comparison:
    if isinstance(a, Affine) and is_zero(b):
        return Comparison(context.fitted(a), 1.0)
    if isinstance(b, Affine) and is_zero(a):
        return Comparison(context.fitted(b), -1.0)
    raise UnsupportedError("a comparison other than that of a secret with 0")


def _less(context: Context, params: Mapping[str, Any], a: Any, b: Any) -> Comparison:
    return _greater(context, params, b, a)


def _select_n(context: Context, params: Mapping[str, Any], which: Any, *cases: Any) -> Any:
    if isinstance(which, Comparison):
        return _rectified(context, which, *cases)
    if isinstance(which, (Affine, Weight)):
        raise UnsupportedError("a choice that is not public")
    total: Any = None
    for i, case in enumerate(cases):
        part = (
            _mul(context, params, case, np.asarray(which == i, np.float32))
            if isinstance(case, Affine)
            else weights.product(np.asarray(which == i, np.float32), case)
        )
        if is_zero(part):
            continue
        if total is None:
            total = part
        elif isinstance(total, Affine) or isinstance(part, Affine):
            total = _add(context, params, total, part)
        else:
            total = weights.combine(lambda x, y: x + y, total, part)
    return np.zeros(context.shape, np.float32) if total is None else total


def _rectified(context: Context, which: Comparison, otherwise: Any, chosen: Any) -> Affine:
    """where(x > 0, c·x, d·x) = d·x + (c − d)·max(x, 0)."""
    builder = context.builder
    times, base = builder.multiple(which.secret)
    if times * which.sign < 0:
        base = builder.scale(base, -1.0)
    sign, root = builder.multiple(base)

    def factor(case: Any) -> float:
        if is_zero(case):
            return 0.0
        if isinstance(case, Affine):
            times, of = builder.multiple(case)
            if of == root:
                return times * sign
        raise UnsupportedError("a choice between values other than multiples of what is compared")

    below, above = factor(otherwise), factor(chosen)
    if above == below:
        return builder.scale(base, below)
    rectified = builder.scale(builder.relu(base), above - below)
    return builder.add(rectified, builder.scale(base, below)) if below else rectified


RULES: dict[str, Rule] = MOVES | {
    "copy": _identity,
    "copy_p": _identity,
    "name": _identity,
    "optimization_barrier": _identity,
    "reduce_precision": _identity,
    "sharding_constraint": _identity,
    "stop_gradient": _identity,
    "convert_element_type": _convert,
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "neg": _neg,
    "mul": _mul,
    "div": _div,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "reduce_window_max": _reduce_window_max,
    "reduce_window_min": _reduce_window_min,
    "reduce_window": _reduce_window,
    "reduce_max": _reduce_max,
    "reduce_min": _reduce_min,
    "max": _max,
    "min": _min,
    "clamp": _clamp,
    "abs": _abs,
    "gt": _greater,
    "ge": _greater,
    "lt": _less,
    "le": _less,
    "select_n": _select_n,
}
