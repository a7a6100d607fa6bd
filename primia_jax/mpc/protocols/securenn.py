"""SecureNN: image and model shared between two servers over Z_2^64, the third party assists.

S. Wagh, D. Gupta, N. Chandran (PoPETs 2019): products by triples that are fresh in every run, x and
W opened under them; signs by share conversion and private comparison over Z_67. The sub-protocols
stand in `securenn_steps`. Nothing is dealt beforehand. It differs from the paper in that

- a maximum is a tournament of ReLUs, as in the plan, instead of a chain of comparisons: fewer
  rounds;
- the values compared get random shares of zero, without which the assistant reads r from quotients
  (`securenn_compare`): no message more, a seventh of a ReLU's computing;
- they are rotated at random instead of permuted, and r = 0 converts rightly.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from primia_jax.mpc.protocols import securenn_steps
from primia_jax.mpc.protocols.parties import ASSISTANT, Party
from primia_jax.mpc.protocols.two_servers import (
    EXCHANGE,
    FROM_ASSISTANT,
    TO_ASSISTANT,
    Hop,
    State,
    StepCost,
    TwoServers,
)
from primia_jax.mpc.shared_circuit import SharedCircuit, Step
from primia_jax.runtime.party import Stage, Steps

_PRODUCT_HOPS: tuple[Hop, ...] = (EXCHANGE, ((ASSISTANT,), (1,)))  # the triple comes meanwhile
_CONVERT_HOPS: tuple[Hop, ...] = (TO_ASSISTANT, FROM_ASSISTANT) * 2
_MSB_HOPS: tuple[Hop, ...] = (EXCHANGE, TO_ASSISTANT, FROM_ASSISTANT, *_PRODUCT_HOPS)
_RELU_HOPS = _CONVERT_HOPS + _MSB_HOPS + _PRODUCT_HOPS


class SecureNN(TwoServers):
    """See the module."""

    name = "securenn"

    def compared_bits(self, config: Any) -> int:
        """All."""
        return 64

    def step_cost(self, circuit: SharedCircuit, step: Step) -> StepCost:
        """By the sub-protocols' declared costs."""
        product = securenn_steps.product_cost(_shapes(step)).n_bytes if step.products else 0
        return StepCost(
            _PRODUCT_HOPS * bool(step.products) + _RELU_HOPS * bool(step.relus),
            product + securenn_steps.RELU_COST.n_bytes * step.n_relus,
        )

    def share_weights(self, state: State, me: Party, shares: Sequence[Any]) -> Steps:
        """A server's shares; nothing for the assistant."""
        return list(shares)
        yield

    def multiply(
        self, state: State, me: Party, level: int, operands: Sequence[Any], key: Any
    ) -> Steps:
        """Products of a step."""
        assert state.weights is not None
        weights = dict(zip(state.circuit.products, state.weights))
        step = state.circuit.steps[level]
        shared = [weights[node] for node in step.products]
        return (yield from _multiply(state.circuit, me, step, operands, shared))

    def relu(self, state: State, me: Party, level: int, x: Any, key: Any) -> Steps:
        """ReLUs of a step."""
        return (yield from securenn_steps.relu(me, x, state.circuit.steps[level].n_relus))

    def assist(self, state: State, me: Party) -> Steps:
        """Triples and the assistant's part of the comparisons, step by step."""
        for step in state.circuit.steps:
            yield Stage(step.name)
            if step.products:
                yield from _multiply(state.circuit, me, step)
            if step.relus:
                yield from securenn_steps.relu(me, None, step.n_relus)


def _multiply(
    circuit: SharedCircuit, me: Party, step: Step, xs: Sequence[Any] = (), ws: Sequence[Any] = ()
) -> Steps:
    """All products of a step by one triple: together they are bilinear too."""
    nodes, zero = step.products, np.uint64(0)
    x_shapes = [node.operand.shape for node in nodes]
    w_shapes = [node.weight.shape for node in nodes]

    def apply(x: Any, w: Any) -> Any:
        parts = zip(nodes, _parts(x, x_shapes), _parts(w, w_shapes))
        products = [
            circuit.multiply(n)(a, circuit.digits(n)(b), zero).reshape(-1) for n, a, b in parts
        ]
        return jnp.concatenate(products)

    x, w = (_flat(each) if len(each) else None for each in (xs, ws))
    words = yield from securenn_steps.multiply(me, apply, _shapes(step), x, w)
    return None if words is None else _parts(words, [node.shape for node in nodes])


def _shapes(step: Step) -> tuple[tuple[int], tuple[int], tuple[int]]:
    """Flat shapes of all operands, weights and results of a step."""
    nodes = step.products
    return (
        (sum(math.prod(node.operand.shape) for node in nodes),),
        (sum(math.prod(node.weight.shape) for node in nodes),),
        (sum(math.prod(node.shape) for node in nodes),),
    )


def _flat(arrays: Sequence[Any]) -> Any:
    return jnp.concatenate([jnp.asarray(array).reshape(-1) for array in arrays])


def _parts(words: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    ends = np.cumsum([0, *map(math.prod, shapes)])
    return [
        jnp.asarray(words[start:end]).reshape(shape)
        for start, end, shape in zip(ends, ends[1:], shapes)
    ]
