"""Worst case of every layer: how far its values can go while all values before it are in range.

The model owner computes it from its weights, by intervals: each source may take any value of its
gate's range, independent of all others. From that follow the bits of headroom with which a value
out of range cannot wrap around in the ring and so escape the range checks (`mpc.range_check`).

By induction over the rounds: if no check before a layer fails, the layer's operand lies in this
interval, so that its own check is right. Hence the first layer that is out of range is flagged.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.mpc.circuit import Circuit
from primia_jax.mpc.plan import Constant, Plan, Private, Public, Scale, Signed, Source, reachable
from primia_jax.mpc.units import natural_unit

_ROUNDING = 1.001  # of float32 sums, and of the words' last bits


def missing_headroom(circuit: Circuit, params: Any) -> tuple[int, ...]:
    """Bits by which worst cases exceed what is detected, of each gate, then of each output.

    Negative where there is more headroom than needed. Exact but for rounding up to whole bits.

    Args:
      circuit: one image at a time is enough.
      params: the model owner's.
    """
    plan, scales, n_bits = circuit.plan, circuit.scaling, circuit.n_bits
    highest, lowest = [scales.image_limit], [-scales.image_limit]
    limits = []
    for gate, scale in zip(plan.gates, scales.gates):
        spec = circuit.specs[gate]
        if gate.kind == "relu":
            half_window = (1 << spec.slack_bits) >> 1
            highest.append((2.0 ** (spec.width - 1) + half_window) / scale.out_unit)
            lowest.append(0.0)
        else:  # of which the masks decide what lies beyond the nominal range
            highest.append(0.75 * 2.0**spec.width / scale.out_unit)
            lowest.append(-highest[-1])
        top = spec.truncated_bits + spec.width + spec.excess_bits - 1
        offset = 0.0 if spec.compares else 2.0 ** (spec.width - 2 + spec.truncated_bits)
        # Without a check, every value has to lie within the range itself.
        limits.append((2.0**top - offset) / scale.unit if spec.excess_bits else scale.limit)
    limits += [2.0 ** (n_bits - 1) / unit for unit in scales.outputs]
    reached = _worst(plan)(
        params, np.asarray(highest), np.asarray(lowest), _steps(circuit, plan.products())
    )
    return tuple(
        math.ceil(math.log2(max(float(worst) * _ROUNDING / limit, 2.0**-64)))
        for worst, limit in zip(reached, limits)
    )


def _steps(circuit: Circuit, nodes: Sequence[Private]) -> list[tuple[float, float]]:
    """Step of each product's quantised weights: over their largest, and at least."""
    steps = dict.fromkeys(nodes, (0.0, 0.0))
    for product in circuit.products:
        node, unit = product
        limit = 2.0 ** (circuit.weight_bits(product) - 1) - 1
        one = natural_unit(node.operand, circuit.units) / unit
        relative, least = steps[node]
        steps[node] = (max(relative, 2 / limit), max(least, one))
    return [steps[node] for node in nodes]


@functools.lru_cache(maxsize=8)
def _worst(plan: Plan) -> Callable[..., list[Any]]:
    """Jitted (params, highest, lowest, steps) -> largest magnitude of each gate and output."""
    sources = [plan.image, *(gate.out for gate in plan.gates)]
    roots = [*(gate.operand for gate in plan.gates), *plan.outputs]

    @jax.jit
    def worst(params: Any, highest: Any, lowest: Any, steps: Any) -> list[Any]:
        step_of = dict(zip(plan.products(), steps))
        # The middle of the interval, and half its width.
        values: dict[Any, tuple[Any, Any]] = {
            source: (
                jnp.full(source.shape, (high + low) / 2, jnp.float32),
                jnp.full(source.shape, (high - low) / 2, jnp.float32),
            )
            for source, high, low in zip(sources, highest, lowest)
        }
        for node in reachable(roots):
            if isinstance(node, Source):
                continue
            if isinstance(node, Constant):
                value = jnp.asarray(node.weight.value(params), jnp.float32)
                values[node] = (jnp.broadcast_to(value, node.shape), jnp.zeros(node.shape))
            elif isinstance(node, Private):
                values[node] = _product(node, params, *values[node.operand], step_of[node])
            elif isinstance(node, Scale):
                middle, radius = values[node.operand]
                values[node] = (middle * node.factor, radius * abs(node.factor))
            elif isinstance(node, Public):
                middles, radii = zip(*(values[part] for part in node.operands))
                of_radii = node.apply.magnitudes if isinstance(node.apply, Signed) else node.apply
                values[node] = (node.apply(*middles), of_radii(*radii))
            else:
                middles, radii = zip(*(values[part] for part in node.operands))
                values[node] = (sum(middles), sum(radii))
        return [jnp.max(jnp.abs(values[root][0]) + values[root][1]) for root in roots]

    return worst


def _product(node: Private, params: Any, middle: Any, radius: Any, step: Any) -> tuple[Any, Any]:
    """The interval of a product, its weights being wrong by up to half a step of quantisation."""
    weight = jnp.asarray(node.weight.value(params), jnp.float32)
    sizes = jnp.abs(weight)
    others = tuple(i for i in range(weight.ndim) if i != node.product.channel_axis)
    half = jnp.maximum(sizes.max(others, keepdims=True, initial=0.0) * step[0], step[1]) / 2
    errors = jnp.broadcast_to(half, weight.shape)
    apply = node.product.apply
    return apply(middle, weight, None), (
        apply(radius, sizes, None) + apply(jnp.abs(middle) + radius, errors, None)
    )
