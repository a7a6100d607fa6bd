"""Encrypting a network as a JAX transformation: from its jaxpr to a plan.

The network's function is traced to a jaxpr, a list of primitive operations. Each value in it is
public (it follows from the architecture), private (from the parameters too: the model owner alone
can evaluate it) or secret (from the image). What is computed from known values alone is evaluated
in the clear; operations on secrets become nodes and gates of a `Plan`.

Only the shapes of the parameters are used, so that parties that do not hold them get the same plan.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import Literal

from primia_jax.errors import ProtocolError
from primia_jax.mpc import lowering_weights as weights
from primia_jax.mpc.lowering_gates import Builder
from primia_jax.mpc.lowering_nodes import Affine, UnsupportedError
from primia_jax.mpc.lowering_rules import (
    RULES,
    SUPPORTED,
    Comparison,
    Context,
)
from primia_jax.mpc.plan import Constant, Node, Plan, Source, Weight

# Primitives that call another jaxpr, which takes their place.
_CALLS = {
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat",
    "remat2",
}
# fmt: off
_ELEMENTWISE = {
    "abs", "add", "add_any", "and", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos",
    "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite",
    "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow",
    "reduce_precision", "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square",
    "stop_gradient", "sub", "tanh",
}
# fmt: on
_NAMES = {"max": "relu", "reduce_max": "max", "reduce_window_max": "max_pool"}
_LIBRARIES = ("/flax/", "/haiku/", "/equinox/")
_N_FRAMES = 40


def lower(
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    example: Any,
    *,
    separable_pooling: bool = True,
) -> Plan:
    """The plan of a network.

    Of what `apply_fn` holds itself, scalars, truth values and int32 arrays (indices) count as
    public, all other arrays as private.

    Args:
      apply_fn: `apply_fn(params, images)` gives a pytree of arrays.
      params: pytree of arrays or ShapeDtypeStructs, of which only shapes and types are used.
      example: images or their shape, [n ...] with the batch axis first.
      separable_pooling: whether a maximum over a window is taken along one axis after the other.

    Raises:
      ProtocolError: for an operation that cannot run encrypted; names it, its layer and its line.
    """
    with jax.enable_x64(False):
        abstract = jax.tree.map(_abstract, params)
        image = jax.ShapeDtypeStruct(np.shape(example), jnp.float32)
        jaxpr, out_shape = jax.make_jaxpr(apply_fn, return_shape=True)(abstract, image)
        leaves = jax.tree.leaves(abstract)
        source = Source(tuple(image.shape), "image")
        lowering = _Lowering(Builder(source), separable_pooling, _top(jaxpr.jaxpr))
        inputs = [weights.parameter(i, x.shape, x.dtype) for i, x in enumerate(leaves)]
        values = lowering.inline(jaxpr.jaxpr, jaxpr.consts, [*inputs, Affine(source)], _Place())
    leaves, tree = jax.tree.flatten(out_shape)
    outputs = tuple(lowering.output(value, leaf.shape) for value, leaf in zip(values, leaves))
    gates = lowering.builder.gates(outputs)
    return Plan(source, gates, outputs, tree, tuple(leaf.dtype for leaf in leaves))


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(dtype))


def _top(jaxpr: Any) -> str:
    """The name of the whole network, which every name stack begins with."""
    while len(jaxpr.eqns) == 1 and jaxpr.eqns[0].primitive.name in _CALLS:
        jaxpr = _called(jaxpr.eqns[0])[0]
    names = {str(eqn.source_info.name_stack).split("/")[0] for eqn in jaxpr.eqns} - {""}
    return names.pop() if len(names) == 1 else ""


def _called(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """The jaxpr that an equation calls, and its constants."""
    called = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return getattr(called, "jaxpr", called), getattr(called, "consts", ())


@dataclasses.dataclass(frozen=True)
class _Place:
    """Place of an operation in the network.

    Attributes:
      layer: names of modules, joined by '/'.
      line: file, line and function; "" if not known yet.
    """

    layer: str = ""
    line: str = ""

    def inside(self, eqn: Any) -> "_Place":
        """The place of an operation called from here."""
        stack = str(eqn.source_info.name_stack)
        layer = "/".join(part for part in (self.layer, stack) if part)
        return _Place(layer, self.line or _source_line(eqn.source_info))


def _source_line(source_info: Any) -> str:
    """The innermost line of the user's own code."""
    frames = source_info_util.summarize(source_info, _N_FRAMES).split("\n")[::-1]
    own = [frame for frame in frames if not any(name in frame for name in _LIBRARIES)]
    return (own or frames)[0]


class _Lowering:
    """Walks jaxprs."""

    def __init__(self, builder: Builder, separable: bool, top: str):
        self.builder, self._separable, self._top = builder, separable, top

    def inline(self, jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any], at: _Place) -> Any:
        """The values of a jaxpr's outputs."""
        env: dict[Any, Any] = {}

        def read(var: Any) -> Any:
            return _constant(var.val) if isinstance(var, Literal) else env[var]

        env.update(zip(jaxpr.constvars, map(_constant, consts)))
        env.update(zip(jaxpr.invars, operands))
        for eqn in jaxpr.eqns:
            place = at.inside(eqn)
            results = self._equation(
                eqn, [read(var) for var in eqn.invars], place, len(jaxpr.eqns) == 1 and not at.line
            )
            env.update(zip(eqn.outvars, results))
        return [read(var) for var in jaxpr.outvars]

    def output(self, value: Any, shape: Sequence[int]) -> Node:
        """The node of one of the network's outputs."""
        if isinstance(value, Comparison):
            raise ProtocolError(f"an output that says whether a secret is positive; {SUPPORTED}")
        if isinstance(value, Affine):
            return self.builder.whole(value)
        return Constant(weights.as_weight(value, len(shape)), tuple(shape))

    def _equation(self, eqn: Any, operands: list[Any], place: _Place, alone: bool) -> Any:
        name = eqn.primitive.name
        # A function that is one call of another, such as a jitted network: the lines are inside.
        inner = dataclasses.replace(place, line="") if alone else place
        if name in _CALLS:
            return self.inline(*_called(eqn), operands, inner)
        if name == "cond" and _is_public(operands[0]):
            branches = eqn.params["branches"]
            branch = branches[min(max(int(operands[0]), 0), len(branches) - 1)]
            return self.inline(branch.jaxpr, branch.consts, operands[1:], inner)
        if not any(isinstance(operand, (Affine, Comparison)) for operand in operands):
            return _known(eqn, operands)
        return self._secret(eqn, operands, place)

    def _secret(self, eqn: Any, operands: list[Any], place: _Place) -> list[Any]:
        name = eqn.primitive.name
        shapes = [tuple(var.aval.shape) for var in eqn.outvars]
        self.builder.layer = self._layer(place) or _NAMES.get(name, name)
        self.builder.line = place.line
        context = Context(self.builder, self._separable, shapes)
        try:
            if name not in RULES:
                raise UnsupportedError("")
            if name != "select_n" and any(isinstance(x, Comparison) for x in operands):
                raise UnsupportedError("the sign of a secret")
            returned = RULES[name](context, eqn.params, *operands)
        except UnsupportedError as error:
            what = f"{name} ({error})" if str(error) else name
            layer = self._layer(place)
            where = f"layer {layer}, {place.line}" if layer else place.line
            raise ProtocolError(f"{where}: {what} cannot run encrypted; {SUPPORTED}") from None
        results = returned if isinstance(returned, list) else [returned]
        for i, (result, shape) in enumerate(zip(results, shapes)):
            if isinstance(result, Affine):
                assert result.shape == shape, (name, result.shape, shape)
            elif isinstance(result, Weight):
                results[i] = weights.spread(weights.as_weight(result, len(shape)), shape)
        return results

    def _layer(self, place: _Place) -> str:
        parts = [part for part in place.layer.split("/") if part and "(" not in part]
        return "/".join(parts[1:] if parts[:1] == [self._top] else parts)


def _is_public(value: Any) -> bool:
    return not isinstance(value, (Affine, Comparison, Weight))


def _constant(value: Any) -> Any:
    """A value that stands in a jaxpr."""
    if np.ndim(value) and not (value.dtype == bool or value.dtype == np.int32):
        return weights.captured(value)
    return _as_numpy(value) if hasattr(value, "dtype") else np.asarray(value)


def _known(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Evaluates an equation on known values; private ones when they are asked for."""
    if all(map(_is_public, operands)):
        with jax.ensure_compile_time_eval():
            return [_as_numpy(value) for value in _evaluate(eqn, operands)]
    results = weights.derived(lambda *values: _evaluate(eqn, values), operands, (), ())
    axes = _axes(eqn, operands)
    return [
        weights.derived(
            operator.itemgetter(i),
            [results],
            var.aval.shape,
            range(len(var.aval.shape)) if axes is None else axes,
        )
        for i, var in enumerate(eqn.outvars)
    ]


def _as_numpy(value: Any) -> Any:
    return value if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def _evaluate(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Runs a primitive."""
    typed = []
    for var, value in zip(eqn.invars, values):
        extended = jax.dtypes.issubdtype(var.aval.dtype, jax.dtypes.extended)
        typed.append(value if extended else jnp.asarray(value, var.aval.dtype))
    result = eqn.primitive.bind(*typed, **eqn.primitive.get_bind_params(eqn.params))
    return list(result) if eqn.primitive.multiple_results else [result]


def _axes(eqn: Any, operands: Sequence[Any]) -> set[int] | None:
    """The axes along which the result may vary; None for all."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    as_weights = [weights.as_weight(x, len(np.shape(x))) if _is_public(x) else x for x in operands]
    if name in _ELEMENTWISE:
        return {axis for x in as_weights for axis in x.axes}
    axes = as_weights[0].axes
    if name == "broadcast_in_dim":
        dims = eqn.params["broadcast_dimensions"]
        return {dims[axis] for axis in axes}
    if name == "transpose":
        return {to for to, axis in enumerate(eqn.params["permutation"]) if axis in axes}
    if name in ("reshape", "squeeze", "expand_dims") and eqn.params.get("dimensions") is None:
        return _axes_of_reshape(as_weights[0], shape)
    if name == "squeeze":
        return _axes_of_reshape(as_weights[0], shape)
    return None


def _axes_of_reshape(x: Weight, shape: Sequence[int]) -> set[int] | None:
    kept = weights.untouched_by_reshape(x.shape, shape)
    if x.axes <= set(kept.values()):
        return {to for to, axis in kept.items() if axis in x.axes}
    return None
