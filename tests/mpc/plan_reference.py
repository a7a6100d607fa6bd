"""Evaluates a plan on reals, and checks what every plan promises."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.mpc import plan as ir

# What runs once need not run fast.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def evaluate(plan: ir.Plan, params: Any, image: Any) -> Any:
    """What the network returns on `image` [n ...], computed from its plan in float64."""
    roots = [gate.operand for gate in plan.gates] + list(plan.outputs)
    nodes = [n for n in ir.reachable(roots) if isinstance(n, (ir.Private, ir.Constant))]
    found = jax.jit(
        lambda params: [node.weight.value(params) for node in nodes], compiler_options=QUICK
    )(params)
    weights = [np.asarray(value, np.float64) for value in found]
    for node, value in zip(nodes, weights):
        assert value.shape == node.weight.shape
        for axis in set(range(value.ndim)) - node.weight.axes:
            assert np.ptp(value, axis=axis).max(initial=0) == 0, f"varies along {axis}"

    def outputs(weights: Any, image: Any) -> Any:
        values: dict[ir.Node, Any] = {plan.image: image}
        known: dict[ir.Node, Any] = dict(zip(nodes, weights))
        for gate in plan.gates:
            z = _value(gate.operand, known, values)
            values[gate.out] = jnp.maximum(z, 0) if gate.kind == "relu" else z
        return [_value(node, known, values) for node in plan.outputs]

    with jax.enable_x64(True):
        reals = jax.jit(outputs, compiler_options=QUICK)(weights, np.asarray(image, np.float64))
        return jax.tree.unflatten(plan.out_tree, [np.asarray(value) for value in reals])


def _value(root: ir.Node, weights: dict[ir.Node, Any], values: dict[ir.Node, Any]) -> Any:
    for node in ir.reachable([root]):
        if node not in values:
            values[node] = _from_operands(node, weights, values)
            assert values[node].shape == node.shape, node
    return values[root]


def _from_operands(node: ir.Node, weights: dict[ir.Node, Any], values: dict[ir.Node, Any]) -> Any:
    if isinstance(node, ir.Public):
        return node.apply(*(values[part] for part in node.operands))
    if isinstance(node, ir.Scale):
        return values[node.operand] * node.factor
    if isinstance(node, ir.Add):
        return sum(values[part] for part in node.operands)
    if isinstance(node, ir.Private):
        return node.product.apply(values[node.operand], weights[node], None)
    assert isinstance(node, ir.Constant), f"{node} is read before it is computed"
    return jnp.broadcast_to(weights[node], node.shape)


def structure(plan: ir.Plan) -> list[Any]:
    """All that parties without the weights must agree on."""
    roots = [gate.operand for gate in plan.gates] + list(plan.outputs)
    nodes = {node: i for i, node in enumerate(ir.reachable(roots))}
    found: list[Any] = [
        (g.kind, g.name, g.level, g.out.shape, nodes[g.operand]) for g in plan.gates
    ]
    for node in nodes:
        parts = tuple(nodes[part] for part in ir.operands(node))
        weight = node.weight.shape if isinstance(node, (ir.Private, ir.Constant)) else None
        factor = node.factor if isinstance(node, ir.Scale) else None
        found.append((type(node).__name__, node.shape, parts, weight, factor))
    return found


def check(plan: ir.Plan, products: bool = True) -> None:
    """Asserts what every plan promises; of its products too, which takes longer."""
    level = {plan.image: -1} | {gate.out: gate.level for gate in plan.gates}
    assert len({gate.name for gate in plan.gates}) == len(plan.gates)
    assert [gate.level for gate in plan.gates] == sorted(gate.level for gate in plan.gates)
    assert {gate.level for gate in plan.gates} == set(range(plan.n_levels))
    used: set[ir.Node] = set()
    for gate in plan.gates:
        read = ir.reachable([gate.operand])
        used.update(read)
        assert gate.kind == "relu" or ir.has_private(gate.operand)
        assert gate.operand.shape == gate.out.shape
        earlier = [level[node] for node in read if isinstance(node, ir.Source)]
        assert gate.level > max(earlier, default=-1), gate.name
        if gate.kind == "relu":
            assert gate.level == 1 + max(earlier, default=-1), gate.name
    used.update(ir.reachable(plan.outputs))
    assert {gate.out for gate in plan.gates} <= used, "a gate that nothing reads"
    for node in used:
        if isinstance(node, ir.Private):
            assert not ir.has_private(node.operand), f"{node.name}: a product of a product"
        elif isinstance(node, ir.Scale):
            assert node.factor not in (0, 1) and not isinstance(node.operand, ir.Scale)
    if products:
        _check_products([node for node in used if isinstance(node, ir.Private)])


def _check_products(nodes: Sequence[ir.Private]) -> None:
    """The channel axes, the split and the depth of products."""
    kinds = {(node.operand.shape, node.weight.shape, node.shape): node for node in nodes}
    rng = np.random.default_rng(0)
    operands = []
    for node in kinds.values():
        x = rng.integers(-9, 9, node.operand.shape).astype(np.float64)
        w = rng.integers(-9, 9, node.weight.shape).astype(np.float64)
        operands.append((x, w, _along(w, node.product.channel_axis)))

    def outcomes(operands: Any) -> Any:
        found = []
        for node, (x, w, scales) in zip(kinds.values(), operands):
            apply, split = node.product.apply, node.product.split
            parts = [(x, w)] if split is None else split(x, w, 3)
            found.append(
                (
                    apply(x, w, None),
                    apply(jnp.ones_like(x), jnp.ones_like(w), None),
                    apply(x, w * scales, None),
                    sum(apply(*part, None) for part in parts),
                )
            )
        return found

    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, jax.jit(outcomes, compiler_options=QUICK)(operands))
    for node, (expected, counts, scaled, total) in zip(kinds.values(), found):
        assert expected.shape == node.shape
        assert counts.max(initial=0) <= node.product.depth
        factors = _along(expected, node.product.out_channel_axis)
        np.testing.assert_array_equal(scaled, expected * factors)
        np.testing.assert_array_equal(total, expected)


def _along(array: Any, axis: int | None) -> np.ndarray:
    """Factors that tell the slices along an axis apart."""
    if axis is None:
        return np.ones([1] * array.ndim)
    others = [i for i in range(array.ndim) if i != axis]
    return np.expand_dims(1.0 + np.arange(array.shape[axis]), others)
