"""Evaluates the linear maps of a plan, on reals or on ring words, in each party's own way.

On words, a value is a pair: what reached it without weights, and what went through a private
product. A party is defined by how it multiplies: the model owner with its quantised weights, the
crypto provider with the matrix that masks them, the data owner with their difference.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import ring, rounding
from primia_jax.mpc.plan import (
    Add,
    Constant,
    Node,
    Plan,
    Private,
    Public,
    Scale,
    Source,
    reachable,
)
from primia_jax.mpc.units import natural_unit

Pair = tuple[Any, Any]  # words without and with weights; None where nothing came


class RealValues(NamedTuple):
    """A plan's values on floats: operands of the gates and of the private products, outputs."""

    gates: list[Any]
    products: list[Any]
    outputs: list[Any]


def real_values(
    plan: Plan, params: Any, image: Any, steps: rounding.Rounding | None = None
) -> RealValues:
    """Runs the plan in the clear on floats.

    Args:
      plan: the network.
      params: its parameters.
      image: float [n ...].
      steps: to which values are rounded; by default not at all.
    """
    steps = steps or rounding.Rounding.none(plan)
    of_weights = dict(zip(plan.products(), steps.weights))
    values: dict[Node, Any] = {plan.image: rounding.to_steps(image, jnp.asarray(steps.image))}

    def value(root: Node) -> Any:
        for node in reachable([root]):
            if node in values:
                continue
            if isinstance(node, Source):
                raise ProtocolError(f"{node.name} is read before it is computed")
            if isinstance(node, Public):
                values[node] = node.apply(*(values[part] for part in node.operands))
            elif isinstance(node, Scale):
                values[node] = values[node.operand] * jnp.asarray(node.factor, image.dtype)
            elif isinstance(node, Add):
                values[node] = sum(values[part] for part in node.operands)
            elif isinstance(node, Private):
                weight = jnp.asarray(node.weight.value(params), image.dtype)
                weight = rounding.weights(weight, of_weights[node], node.product.channel_axis)
                values[node] = node.product.apply(values[node.operand], weight, None)
            else:
                constant = jnp.asarray(node.weight.value(params), image.dtype)
                values[node] = jnp.broadcast_to(constant, node.shape)
        return values[root]

    operands = []
    for gate, of_gate in zip(plan.gates, steps.gates):
        operands.append(value(gate.operand))
        values[gate.out] = rounding.gate(operands[-1], gate.kind == "relu", of_gate)
    outputs = [value(node) for node in plan.outputs]
    return RealValues(operands, [values[node.operand] for node in plan.products()], outputs)


class Evaluator:
    """One evaluation of linear maps on words, to be used inside `ring.x64()`.

    Args:
      units: of the sources.
      sources: words of the sources.
      multiply: function of (private node, unit of the result, words x) -> words; x has its
        natural unit.
      constant: function of (constant node, unit) -> words; None leaves constants out.
      known: private products that were computed before, words by (node, unit).
    """

    def __init__(
        self,
        n_bits: int,
        units: Mapping[Source, float],
        sources: Mapping[Source, Any],
        multiply: Callable[[Private, float, Any], Any],
        constant: Callable[[Constant, float], Any] | None = None,
        known: Mapping[tuple[Private, float], Any] | None = None,
    ):
        self._word = ring.word_type(n_bits)
        self._units, self._sources = units, sources
        self._multiply, self._constant = multiply, constant
        self.products: dict[tuple[Private, float], Any] = dict(known or {})
        self._values: dict[tuple[Node, float], Pair] = {}

    def value(self, node: Node, unit: float) -> Pair:
        """The words of `node` in `unit`: without and with weights."""
        key = (node, unit)
        if key not in self._values:
            self._values[key] = self._compute(node, unit)
        return self._values[key]

    def _compute(self, node: Node, unit: float) -> Pair:
        if isinstance(node, Source):
            factor = self._word(whole_factor(unit, self._units[node], node.name) % 2**64)
            words = self._sources[node]
            return (words if factor == 1 else words * factor), None
        if isinstance(node, Scale):
            public, private = self.value(node.operand, unit * abs(node.factor))
            return (public, private) if node.factor > 0 else (_negate(public), _negate(private))
        if isinstance(node, Add):
            pairs = [self.value(part, unit) for part in node.operands]
            return _total([p for p, _ in pairs]), _total([q for _, q in pairs])
        if isinstance(node, Public):
            pairs = [self.value(part, unit) for part in node.operands]
            return self._apply(node, [p for p, _ in pairs]), self._apply(
                node, [q for _, q in pairs]
            )
        if isinstance(node, Private):
            if (node, unit) not in self.products:
                x_unit = natural_unit(node.operand, self._units)
                x, _ = self.value(node.operand, x_unit)
                self.products[node, unit] = self._multiply(node, unit, x)
            return None, self.products[node, unit]
        if self._constant is None:
            return None, None
        return None, self._constant(node, unit)

    def _apply(self, node: Public, parts: Sequence[Any]) -> Any:
        if all(part is None for part in parts):
            return None
        filled = [
            jnp.zeros(operand.shape, self._word) if part is None else part
            for operand, part in zip(node.operands, parts)
        ]
        return node.apply(*filled)


def whole_factor(unit: float, source_unit: float, name: str) -> int:
    """The whole number that takes words in `source_unit` to words in `unit`.

    Raises:
      ProtocolError: if rounding it would change the value by more than 1 %.
    """
    factor = unit / source_unit
    whole = round(factor)
    if abs(whole - factor) > 0.01 * factor:
        raise ProtocolError(
            f"{name}: a factor of {factor:.3f} between two units cannot be rounded; widen "
            "config.mpc.ring_bits or lower config.mpc.effective_bits"
        )
    return whole


def quantised(weight: np.ndarray, factor: float, bits: int, axis: int | None) -> Pair:
    """weight · factor ≈ w · 2^shift with w of `bits` signed bits, and a shift a channel.

    Args:
      weight: float [...].
      factor: units of the result per unit of the operand.
      bits: signed bits of w.
      axis: along which the shift may vary; None for one shift for all.

    Returns:
      (w, shift): int64 [...] and int64 [channels] or scalar.
    """
    scaled = np.asarray(weight, np.float64) * factor
    others = tuple(i for i in range(scaled.ndim) if i != axis)
    largest = np.abs(scaled).max(axis=others, initial=0.0)
    limit = 2.0 ** (bits - 1) - 1
    with np.errstate(divide="ignore"):
        shift = np.maximum(np.ceil(np.log2(largest / limit)), 0).astype(np.int64)
    expanded = shift if axis is None else np.expand_dims(shift, others)
    return np.round(scaled / 2.0**expanded).astype(np.int64), shift


def _negate(words: Any) -> Any:
    return None if words is None else -words


def _total(parts: Sequence[Any]) -> Any:
    terms = [part for part in parts if part is not None]
    if not terms:
        return None
    total = terms[0]
    for part in terms[1:]:
        total = total + part
    return total
