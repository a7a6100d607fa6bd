"""Folds factors into the products that they stand beside.

No private product may read another. A factor per channel after a product is therefore folded into
its weight, and one before a product into that one's.
"""

import itertools
from collections.abc import Callable

from primia_jax.mpc import lowering_weights as weights
from primia_jax.mpc.lowering_nodes import Affine, Nodes, elementwise
from primia_jax.mpc.lowering_products import ELEMENTWISE
from primia_jax.mpc.plan import Add, Node, Private, Public, Scale, Weight

Rescale = Callable[[Affine], Affine]
Terms = list[tuple[Node, Weight | None]]


def folded(nodes: Nodes, rescale: Rescale, node: Node, factor: Weight) -> Node | None:
    """factor · node without a product of a product, or None.

    Args:
      nodes: makes nodes.
      rescale: frees a value from its product.
      node: any.
      factor: has as many axes as the node, and size 1 along those along which it does not vary.
    """
    if not nodes.is_private[node]:
        return nodes.private_node(node, factor, elementwise(node.shape))
    if isinstance(node, Scale):
        operand = folded(nodes, rescale, node.operand, factor)
        return None if operand is None else nodes.scaled_node(operand, node.factor)
    if isinstance(node, Add):
        return _folded_sum(nodes, rescale, node, factor)
    if isinstance(node, Private):
        along = nodes.along[node]
        if not factor.axes <= along.keys():
            return None
        if node.product is ELEMENTWISE:
            w = weights.product(node.weight, factor)
        else:
            n_axes = len(node.weight.shape)
            w = weights.product(node.weight, weights.moved(factor, along, n_axes))
        nodes.scaled.add(node)
        return nodes.product_node(node.operand, w, node.product, node.shape, along, node.name)
    assert isinstance(node, Public)
    return _folded_public(nodes, rescale, node, factor)


def _folded_sum(nodes: Nodes, rescale: Rescale, node: Add, factor: Weight) -> Node | None:
    newest = max(nodes.reads[part] for part in node.operands)
    parts: list[Node] = []
    for part in node.operands:
        if nodes.is_private[part] and part in nodes.scaled and nodes.reads[part] < newest:
            # To fold yet another factor into the products of earlier layers would compute them
            # all once more; a gate on their level costs no round trip.
            part = rescale(Affine(part)).node
        folded_part = folded(nodes, rescale, part, factor)
        if folded_part is None:
            return None
        parts.append(folded_part)
    nodes.scaled.add(node)
    return nodes.new(Add(tuple(parts), node.shape))


def _folded_public(nodes: Nodes, rescale: Rescale, node: Public, factor: Weight) -> Node | None:
    moves, parts = nodes.moves[node], []
    start = 0
    for operand in node.operands:
        target = dict(moves.axes)
        own = factor
        if moves.joined is not None:
            length = operand.shape[moves.joined]
            if moves.joined in factor.axes:
                own = _cut(factor, moves.joined, start, start + length)
            start += length
            target[moves.joined] = moves.joined
        if not own.axes <= target.keys():
            return None
        own = weights.moved(own, target, len(operand.shape))
        folded_part = folded(nodes, rescale, operand, own)
        if folded_part is None:
            return None
        parts.append(folded_part)
    return nodes.public_node(parts, node.apply, node.shape, moves, node.terms)


def terms(nodes: Nodes, node: Node, allowed: frozenset[int]) -> Terms | None:
    """(term, factor) such that node = Σ factor · term, or None.

    The terms are free of products; a factor, None for 1, varies along `allowed` axes only.
    """
    if not nodes.is_private[node]:
        return [(node, None)]
    if isinstance(node, Scale):
        pairs = terms(nodes, node.operand, allowed)
        return pairs and [(nodes.scaled_node(term, node.factor), f) for term, f in pairs]
    if isinstance(node, Add):
        parts = [terms(nodes, part, allowed) for part in node.operands]
        known = [part for part in parts if part is not None]
        return list(itertools.chain(*known)) if len(known) == len(parts) else None
    if isinstance(node, Private):
        if node.product is ELEMENTWISE and node.weight.axes <= allowed:
            return [(node.operand, node.weight)]
        return None
    if not isinstance(node, Public) or len(node.operands) != 1:
        return None
    moves = nodes.moves[node]
    back = {axis: to for to, axis in moves.axes.items()}
    inner = frozenset(axis for axis, to in back.items() if to in allowed)
    pairs = terms(nodes, node.operands[0], inner)
    return pairs and [
        (
            nodes.public_node([term], node.apply, node.shape, moves, node.terms),
            f and weights.moved(f, back, len(node.shape)),
        )
        for term, f in pairs
    ]


def _cut(factor: Weight, axis: int, start: int, stop: int) -> Weight:
    """Part of a factor, along one axis."""
    index = (slice(None),) * axis + (slice(start, stop),)
    shape = (*factor.shape[:axis], stop - start, *factor.shape[axis + 1 :])
    return weights.derived(lambda v: v[index], [factor], shape, factor.axes)
