"""Plan of a network, as linear maps between gates: the form in which it runs encrypted.

A `Plan` is made from the network's architecture alone (`mpc.secure_jaxpr`): shapes, which operation
follows which, nothing of the weights. All parties hold the same plan; only the model owner can
evaluate a `Weight`.

The values of a plan are *affine* in its sources (the image and what gates put out), and every path
from a source to a value goes through at most one private product: so with a public mask ρ on the
sources, the mask of a value is a sum of public maps of ρ and of bilinear maps of (weights, ρ).

Nodes are compared by identity; the graph has no cycles. Shapes include the batch axis.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A tensor that the model owner alone can compute.

    Attributes:
      shape: of the value.
      value: function of the parameters (the pytree given to `encrypt`), gives float [shape].
      axes: the axes along which the value may vary; along others it is known to be constant.
    """

    shape: Shape
    value: Callable[[Any], Any]
    axes: frozenset[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A bilinear operation of a secret and a weight, free of both.

    Attributes:
      apply: function of (x, w, out_dtype) that works for floats and for integers alike; out_dtype
        is the type to accumulate in (`preferred_element_type`), None for that of x.
      depth: the largest number of products that are summed into one output.
      channel_axis: of w, the axis along which each slice makes one slice of the output (the output
        channels); None if there is none.
      out_channel_axis: of the output, the axis that belongs to `channel_axis`.
      split: function of (x, w, n_parts) that gives pairs (x_i, w_i) with Σ_i apply(x_i, w_i) =
        apply(x, w), each of depth at most ceil(depth / n_parts) rounded up to whole input channels;
        None if the operation sums nothing (depth 1).
      pads_3x3: padding (before, after) down and across, if the operation is a plain convolution
        with a 3×3 kernel, stride 1 and channels last (NHWC, HWIO); None otherwise.
    """

    apply: Callable[..., jax.Array]
    depth: int
    channel_axis: int | None
    out_channel_axis: int | None
    split: Callable[[Any, Any, int], Sequence[tuple[Any, Any]]] | None = None
    pads_3x3: tuple[tuple[int, int], tuple[int, int]] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The image, or what a gate puts out."""

    shape: Shape
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Signed:
    """A linear map some of whose coefficients are −1.

    Attributes:
      apply: the map.
      magnitudes: the same map with 1 for each −1.
    """

    apply: Callable[..., jax.Array]
    magnitudes: Callable[..., jax.Array]

    def __call__(self, *operands: Any) -> jax.Array:
        """The map's value."""
        return self.apply(*operands)


@dataclasses.dataclass(frozen=True, eq=False)
class Public:
    """A linear map with coefficients 0 and 1 (or −1), jointly of all its operands.

    Attributes:
      operands: its arguments.
      apply: function of the operands' arrays; works in floats and in any ring. `Signed` where
        coefficients may be −1.
      shape: of the result.
      terms: elements of one operand that one element of the result adds up, at most.
    """

    operands: tuple["Node", ...]
    apply: Callable[..., jax.Array]
    shape: Shape
    terms: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Scale:
    """factor · operand, the factor being a public real number other than 0."""

    operand: "Node"
    factor: float
    shape: Shape


@dataclasses.dataclass(frozen=True, eq=False)
class Add:
    """The sum of operands of one shape."""

    operands: tuple["Node", ...]
    shape: Shape


@dataclasses.dataclass(frozen=True, eq=False)
class Private:
    """product(operand, weight); no path from a source to the operand is private already."""

    operand: "Node"
    weight: Weight
    product: Product
    shape: Shape
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """An addend of the model owner's, such as a bias."""

    weight: Weight
    shape: Shape


Node = Source | Public | Scale | Add | Private | Constant


@dataclasses.dataclass(frozen=True, eq=False)
class Gate:
    """A step that is not linear: from the value of a node to a new source.

    Attributes:
      kind: 'relu' is max(z, 0); 'rescale' is z itself, freed from its private product.
      operand: z.
      out: the source that holds the result.
      level: gates of one level run together, in one round trip; levels count from 0.
      name: of the layer, for traces and warnings.
      source_line: where in the user's code it stands.
    """

    kind: str
    operand: Node
    out: Source
    level: int
    name: str
    source_line: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A network as gates and linear maps.

    Attributes:
      image: the source that the data owner provides, [n ...].
      gates: in the order of their levels.
      outputs: values that the data owner gets to know, affine in the sources.
      out_tree: how `outputs` make up what the network returns.
      out_dtypes: of the outputs, as the network in the clear gives them.
    """

    image: Source
    gates: tuple[Gate, ...]
    outputs: tuple[Node, ...]
    out_tree: Any
    out_dtypes: tuple[Any, ...] = ()

    @property
    def n_levels(self) -> int:
        """Round trips between the image's coming in and the outputs' going out."""
        return max((gate.level for gate in self.gates), default=-1) + 1

    def levels(self) -> Iterator[tuple[Gate, ...]]:
        """The gates of each level."""
        for level in range(self.n_levels):
            yield tuple(gate for gate in self.gates if gate.level == level)

    def products(self) -> list[Private]:
        """The private products, in the order in which gates and outputs read them."""
        return [node for node in reachable(self.roots()) if isinstance(node, Private)]

    def roots(self) -> list[Node]:
        """Nodes that the gates and the outputs are made of."""
        return [*(gate.operand for gate in self.gates), *self.outputs]


def operands(node: Node) -> tuple[Node, ...]:
    """The nodes that `node` is computed from."""
    if isinstance(node, (Public, Add)):
        return node.operands
    if isinstance(node, (Scale, Private)):
        return (node.operand,)
    return ()


def reachable(roots: Sequence[Node]) -> list[Node]:
    """All nodes that `roots` are computed from, operands first, each once."""
    nodes: dict[int, Node] = {}
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, expanded = stack.pop()
        if id(node) in nodes:
            continue
        if expanded:
            nodes[id(node)] = node
        else:
            stack.append((node, True))
            stack.extend((operand, False) for operand in reversed(operands(node)))
    return list(nodes.values())


@functools.cache
def has_private(node: Node) -> bool:
    """True if a private product lies on a path from a source to the value of `node`."""
    return isinstance(node, Private) or any(has_private(part) for part in operands(node))
