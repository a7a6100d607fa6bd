"""Units of linear maps: which sources reach a value, by which factors, and the unit that follows.

A word w of a value in unit u stands for w / u.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

from primia_jax.mpc import bilinear
from primia_jax.mpc.plan import Add, Node, Private, Public, Scale, Source, operands

ROUNDING = 1e-3  # relative error of a factor that was rounded to a whole number
_FINER_BITS = 10


class Path(NamedTuple):
    """A way from a source to a value.

    Attributes:
      source: where it starts.
      factor: product of the factors along it.
      terms: elements of the source that one element of the value adds up, at most.
    """

    source: Source
    factor: float
    terms: int


def bypasses(node: Node) -> tuple[Path, ...]:
    """The paths to `node` that have no weights."""
    return _bypasses(node, 1.0, 1)


@functools.lru_cache(maxsize=1 << 12)
def _bypasses(node: Node, factor: float, terms: int) -> tuple[Path, ...]:
    if isinstance(node, Source):
        return (Path(node, factor, terms),)
    if isinstance(node, Scale):
        return _bypasses(node.operand, factor * node.factor, terms)
    if isinstance(node, Public):
        terms *= node.terms
    if isinstance(node, (Public, Add)):
        return tuple(path for part in node.operands for path in _bypasses(part, factor, terms))
    return ()


class Part(NamedTuple):
    """A private product as one of the terms of a value.

    Attributes:
      product: the node.
      factor: of the term.
      terms: elements of the product that one element of the value adds up, at most.
    """

    product: Private
    factor: float
    terms: int


def private_parts(node: Node) -> tuple[Part, ...]:
    """The private products that `node` is a sum of."""
    return _private_parts(node, 1.0, 1)


@functools.lru_cache(maxsize=1 << 12)
def _private_parts(node: Node, factor: float, terms: int) -> tuple[Part, ...]:
    if isinstance(node, Private):
        return (Part(node, factor, terms),)
    if isinstance(node, Scale):
        return _private_parts(node.operand, factor * node.factor, terms)
    if isinstance(node, Public):
        terms *= node.terms
    return tuple(part for below in operands(node) for part in _private_parts(below, factor, terms))


def natural_unit(node: Node, units: Mapping[Source, float]) -> float:
    """The unit that a value free of weights has by itself: that of its finest source.

    Where the units of several sources have ratios that are not whole, a finer one, in which
    rounding the factors changes nothing by more than a thousandth.
    """
    terms = {units[path.source] / abs(path.factor) for path in bypasses(node)}
    finest = max(terms, default=1.0)
    for extra in range(_FINER_BITS):
        ratios = [finest * 2.0**extra / term for term in terms]
        if all(abs(round(ratio) - ratio) <= ROUNDING * ratio for ratio in ratios):
            return finest * 2.0**extra
    return finest * 2.0**_FINER_BITS


def exact_weight_bits(ring_bits: int, depth: int) -> int:
    """Signed bits of quantised weights: as many as one exact float64 product takes.

    Args:
      ring_bits: n; in rings beyond 32 bits, a product takes several limbs anyway.
      depth: products that are summed.
    """
    if ring_bits > 32:
        return 16
    room = bilinear.FLOAT64.accumulator_bits + 2 - ring_bits
    return max(6, min(16, room - math.ceil(math.log2(depth))))
