"""Secrets, and the linear nodes that they are made of.

A secret is *affine*: a node without addends of the model owner's, and such an addend beside it. So
whatever is linear is applied to each by itself, and the two meet where a gate reads them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from primia_jax.mpc import lowering_weights as weights
from primia_jax.mpc.lowering_products import ELEMENTWISE, Contraction
from primia_jax.mpc.lowering_weights import Known
from primia_jax.mpc.plan import (
    Add,
    Constant,
    Node,
    Private,
    Public,
    Scale,
    Shape,
    Source,
    Weight,
    operands,
)


class UnsupportedError(Exception):
    """Operation that cannot run encrypted, in a few words; the caller adds its place."""


class Affine(NamedTuple):
    """A secret: node + constant; the constant broadcasts to the node's shape."""

    node: Node
    constant: Weight | None = None

    @property
    def shape(self) -> Shape:
        """Shape of the value."""
        return self.node.shape


@dataclasses.dataclass(frozen=True)
class Moves:
    """Effect of a public map on the axes of its operands.

    Attributes:
      axes: axis of the result -> axis of each operand, where all slices along it are mapped alike.
      joined: the axis along which it concatenates its operands, if it does.
      selects: whether every element of the result is one of the operands' or zero.
    """

    axes: Mapping[int, int] = dataclasses.field(default_factory=dict)
    joined: int | None = None
    selects: bool = False


class Nodes:
    """Makes linear nodes, and keeps what is known of each.

    Attributes:
      layer: where in the network the operation stands that is being lowered.
      is_private: whether a private product lies on a path to a node's value.
      reads: the latest level whose gates a node reads; −1 if it reads the image only.
      moves: of public nodes.
      along: of private nodes, see `Contraction`.
      scaled: nodes into whose products another factor was folded.
    """

    def __init__(self, image: Source):
        self.layer = ""
        self.is_private: dict[Node, bool] = {image: False}
        self.reads: dict[Node, int] = {image: -1}
        self.moves: dict[Node, Moves] = {}
        self.along: dict[Node, Mapping[int, int]] = {}
        self.scaled: set[Node] = set()
        self._multiples: dict[Affine, tuple[float, Affine]] = {}

    def new(self, node: Any) -> Any:
        """Files a node that was just made."""
        parts = operands(node)
        self.is_private[node] = isinstance(node, Private) or any(self.is_private[p] for p in parts)
        self.reads[node] = max((self.reads[part] for part in parts), default=-1)
        return node

    def has_private(self, a: Affine) -> bool:
        """True if a private product lies on a path to the value."""
        return self.is_private[a.node]

    def public(
        self,
        parts: Sequence[Affine],
        apply: Callable[..., Any],
        shape: Sequence[int],
        moves: Moves = Moves(),
        terms: int = 1,
    ) -> Affine:
        """A linear map with coefficients 0, 1 and −1; see `Public` for `terms`."""
        node = self.public_node([part.node for part in parts], apply, tuple(shape), moves, terms)
        if all(part.constant is None for part in parts):
            return Affine(node)
        constants = [
            np.zeros(part.shape, np.float32)
            if part.constant is None
            else weights.spread(part.constant, part.shape)
            for part in parts
        ]

        def constant(*values: Any) -> Any:
            return apply(*(jnp.asarray(value, jnp.float32) for value in values))

        return Affine(node, weights.derived(constant, constants, shape, range(len(shape))))

    def public_node(
        self,
        parts: Sequence[Node],
        apply: Callable[..., Any],
        shape: Shape,
        moves: Moves,
        terms: int = 1,
    ) -> Node:
        """A public map of nodes."""
        node = self.new(Public(tuple(parts), apply, shape, terms))
        self.moves[node] = moves
        return node

    def add(self, a: Affine, b: Affine) -> Affine:
        """a + b, of one shape."""
        node = self.new(Add((a.node, b.node), a.shape))
        if a.constant is None or b.constant is None:
            return Affine(node, a.constant or b.constant)
        return Affine(node, weights.combine(lambda x, y: x + y, a.constant, b.constant))

    def add_known(self, a: Affine, known: Known) -> Affine:
        """a + known, which broadcasts to the shape of a."""
        if not isinstance(known, Weight) and not np.any(known):
            return a
        addend = weights.shrunk(weights.as_weight(known, len(a.shape)))
        if a.constant is not None:
            addend = weights.combine(lambda x, y: x + y, a.constant, addend)
        return Affine(a.node, addend)

    def scale(self, a: Affine, factor: float) -> Affine:
        """factor · a, the factor not being 0."""
        times, base = self.multiple(a)
        if (total := factor * times) == 1:
            return base
        constant = base.constant
        if constant is not None:
            constant = weights.product(constant, np.asarray(total, np.float32))
        scaled = Affine(self.scaled_node(base.node, total), constant)
        self._multiples[scaled] = (total, base)
        return scaled

    def scaled_node(self, node: Node, factor: float) -> Node:
        """factor · node."""
        if isinstance(node, Scale):
            return self.scaled_node(node.operand, node.factor * factor)
        return node if factor == 1 else self.new(Scale(node, factor, node.shape))

    def multiple(self, a: Affine) -> tuple[float, Affine]:
        """(c, b) such that a = c · b, by the way it was made."""
        return self._multiples.get(a, (1.0, a))

    def subtract(self, a: Affine, b: Affine) -> Affine:
        """a − b, of one shape."""
        return self.add(a, self.scale(b, -1.0))

    def private_node(self, node: Node, w: Weight, how: Contraction) -> Node:
        """A product of a node and a weight, in the present layer."""
        return self.product_node(node, w, how.product, how.shape, how.along, self.layer)

    def product_node(
        self, x: Node, w: Weight, product: Any, shape: Shape, along: Mapping[int, int], name: str
    ) -> Node:
        """A product of a node and a weight."""
        node = self.new(Private(x, w, product, shape, name))
        self.along[node] = along
        return node

    def whole(self, a: Affine) -> Node:
        """The node for a with its constant."""
        if a.constant is None:
            return a.node
        constant = self.new(Constant(a.constant, a.shape))
        return self.new(Add((a.node, constant), a.shape))


def elementwise(shape: Shape) -> Contraction:
    """The product, element by element, of a secret of `shape` and a weight."""
    every = {axis: axis for axis in range(len(shape))}
    return Contraction(ELEMENTWISE, shape, every, every)
