"""Widths that divide the ring's bits between the words of a product and its weights.

A product of words x and weights w has to fit the ring beside its headroom: a bit more for one is a
bit less for the other. Activations of `effective_bits` often leave the weights of deep layers few.
`best_narrowing` lets sources drop more bits where that lowers the predicted error.

The error is predicted from what is published (ranges, root mean squares, shapes), so that widths
tell nothing of the weights beyond it. Roundings count as independent: a sum of K products with
steps δ of the weights errs by δ²/12 · K · E[x²], and by K · E[w²] · δ_x²/6 for the steps of x.
Errors are relative to the root mean square of the layer, and their squares are added up over the
network.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from primia_jax.mpc.plan import Node, Plan, Private, Source, has_private
from primia_jax.mpc.units import (
    Part,
    Path,
    bypasses,
    exact_weight_bits,
    natural_unit,
    private_parts,
)

NARROWEST = 6  # effective width of a source
_NEAREST = 1 / 12  # variance of rounding to the nearest, in squared units
_BY_CHANCE = 1 / 6  # of rounding up or down by a coin, on average
_CREST = 4  # largest weight of a channel over its RMS, where only the latter is known
_PEAK = 2.0**-10  # smallest RMS that is believed, over the largest magnitude
_MOST_AVERAGED = 1 << 10  # even areas of an image round alike
_SWEEPS = 3
_FARTHEST_LEAP = 4  # bits
_GAIN = 1e-3  # relative; smaller ones are not worth a bit

Narrowing = dict[Source, int]  # bits by which sources are narrower than the effective width


class _Read(NamedTuple):
    """A private product as gates and outputs read it.

    Attributes:
      product: the node.
      readers: positions of gates and outputs, and how it is a part of them.
      rms: of the result.
      square: mean square of the operand.
      paths: to the operand.
    """

    product: Private
    readers: tuple[tuple[int, Part], ...]
    rms: float
    square: float
    paths: tuple[Path, ...]


class _Weight(NamedTuple):
    """Share of a squared relative error that arrives at the outputs.

    Attributes:
      joint: of an error that all elements share, as one of a weight.
      single: of independent errors of the elements: sums average them out.
    """

    joint: float
    single: float


class Model:
    """Predicts the error of a plan under any scaling."""

    def __init__(self, plan: Plan, ranges: Any, ring_bits: int):
        """Args:
        plan: the network.
        ranges: `scaling.Ranges`.
        ring_bits: n.
        """
        self._plan, self._ring_bits = plan, ring_bits
        self._gate_of = {gate.out: gate for gate in plan.gates}
        self._roots = plan.roots()
        largest = [*ranges.gates, *ranges.outputs]
        spreads = [*ranges.spreads, *(value / 3 for value in ranges.outputs)]
        self._rms = [max(s, v * _PEAK) or 1.0 for s, v in zip(spreads, largest)]
        self._source_rms = {plan.image: (ranges.image or 1.0) / 2}
        for gate, value in zip(plan.gates, self._rms):
            self._source_rms[gate.out] = value / math.sqrt(2) if gate.kind == "relu" else value
        readers: dict[Private, list[tuple[int, Part]]] = {node: [] for node in plan.products()}
        for i, root in enumerate(self._roots):
            for part in private_parts(root):
                readers[part.product].append((i, part))
        self.reads = [self._read(node, tuple(by)) for node, by in readers.items()]
        self._weights = self._weigh()
        self._of_products = [self._weight_of(read) for read in self.reads]

    def _read(self, node: Private, readers: tuple[tuple[int, Part], ...]) -> _Read:
        paths = bypasses(node.operand)
        square = sum(self._joint(path, node.operand) for path in paths)
        rms = max(self._rms[i] / (abs(part.factor) * part.terms) for i, part in readers)
        return _Read(node, readers, rms, square, paths)

    def _joint(self, path: Path, node: Node) -> float:
        """Mean square of what a source adds to a value."""
        reach = path.factor * path.terms * self._source_rms[path.source]
        return reach**2 * _share(path.source, node)

    def _weigh(self) -> list[_Weight]:
        """The weights of errors of gates and outputs, from the last ones back."""
        n_gates = len(self._plan.gates)
        of_read = {read.product: read for read in self.reads}
        weights = [_Weight(0.0, 0.0)] * n_gates + [_Weight(1.0, 1.0)] * len(self._plan.outputs)
        position = {gate.out: i for i, gate in enumerate(self._plan.gates)}

        def spread_over(paths: tuple[Path, ...], node: Node, square: float, of: _Weight) -> None:
            for path in paths:
                at = position.get(path.source)
                if at is None or not square:
                    continue
                part = min(1.0, self._joint(path, node) / square)
                joint, single = weights[at]
                weights[at] = _Weight(
                    joint + part * of.joint, single + part / _averaged_on(path) * of.single
                )

        for i in reversed(range(len(self._roots))):  # gates read those before them only
            root, square = self._roots[i], self._rms[i] ** 2
            spread_over(bypasses(root), root, square, weights[i])
            for part in private_parts(root):
                read = of_read[part.product]
                passed = self._passed(part, read.rms, self._rms[i], weights[i])
                spread_over(read.paths, part.product.operand, read.square, passed)
        return weights

    def _weight_of(self, read: _Read) -> _Weight:
        passed = [
            self._passed(part, read.rms, self._rms[i], self._weights[i]) for i, part in read.readers
        ]
        return _Weight(sum(w.joint for w in passed), sum(w.single for w in passed))

    @staticmethod
    def _passed(part: Part, rms: float, reader_rms: float, of: _Weight) -> _Weight:
        """The weight of a product's error for one of its readers."""
        share = min(1.0, (part.factor * part.terms * rms / reader_rms) ** 2)
        size = math.prod(part.product.shape)
        return _Weight(share * of.joint, share * of.single / _averaged(part.terms, size))

    def error(self, scaling: Any) -> float:
        """Sum of squared relative errors of the outputs."""
        units = scaling.units(self._plan)
        noise = self._noise(scaling, units)
        root_units = [*(scale.unit for scale in scaling.gates), *scaling.outputs]
        total = 0.0
        for read, weight in zip(self.reads, self._of_products):
            if read.square:
                total += weight.joint * self._error_of_weights(read, units, root_units)
                through = _through(read.paths, noise, read.product.operand)
                total += weight.single * through / read.square
        for root, rms, weight in zip(self._roots, self._rms, self._weights):
            total += weight.single * _through(bypasses(root), noise, root) / rms**2
        return total

    def _noise(self, scaling: Any, units: Mapping[Source, float]) -> dict[Source, float]:
        """Variance of each source's own rounding."""
        noise = {self._plan.image: _NEAREST / units[self._plan.image] ** 2}
        for gate, scale in zip(self._plan.gates, scaling.gates):
            noise[gate.out] = _BY_CHANCE / scale.out_unit**2 if scale.truncated_bits else 0.0
        return noise

    def _error_of_weights(
        self, read: _Read, units: Mapping[Source, float], root_units: list[float]
    ) -> float:
        """Squared relative error of a product by the steps of its weights."""
        node, depth = read.product, read.product.product.depth
        weight_rms = read.rms / math.sqrt(read.square * depth)
        unit = min(root_units[i] * abs(part.factor) for i, part in read.readers)
        step = natural_unit(node.operand, units) / unit
        bits = exact_weight_bits(self._ring_bits, depth)
        fewest = 2.0 ** (1 - bits) * _CREST * weight_rms
        return _NEAREST * (max(step, fewest) / weight_rms) ** 2

    def moves(
        self, read: _Read, units: Mapping[Source, float]
    ) -> list[tuple[frozenset[Source], int]]:
        """Ways to make a product's operand coarser: sources, and bits that these drop.

        They are its finest sources, or all of them. Units whose ratio is not a power of two may
        need several bits before the operand gains.
        """
        terms = [(units[path.source] / abs(path.factor), path.source) for path in read.paths]
        finest = max((term for term, _ in terms), default=0.0)
        sets = [
            self._truncated([source for term, source in terms if 2 * term > finest]),
            self._truncated([source for _, source in terms]),
        ]
        even = all(math.log2(finest / term).is_integer() for term, _ in terms)
        leaps = (1,) if even else range(1, _FARTHEST_LEAP + 1)
        return [(sources, bits) for sources in dict.fromkeys(sets) for bits in leaps]

    def _truncated(self, pending: list[Source]) -> frozenset[Source]:
        """The sources, and those whose units they inherit."""
        chosen: set[Source] = set()
        while pending:
            source = pending.pop()
            gate = self._gate_of.get(source)
            if source in chosen:
                continue
            chosen.add(source)
            if gate is not None and not has_private(gate.operand):
                pending += [path.source for path in bypasses(gate.operand)]
        return frozenset(chosen)


def _through(paths: tuple[Path, ...], noise: Mapping[Source, float], node: Node) -> float:
    """Variance of a value by the roundings of its sources."""
    return sum(
        (path.factor * path.terms) ** 2
        / _averaged_on(path)
        * noise[path.source]
        * _share(path.source, node)
        for path in paths
    )


def _averaged_on(path: Path) -> int:
    return _averaged(path.terms, math.prod(path.source.shape))


def _averaged(terms: int, size: int) -> int:
    """Independent errors that a sum of elements averages, given the size of the whole."""
    return max(1, min(terms, size, _MOST_AVERAGED))


def _share(source: Source, node: Node) -> float:
    """Part of a value's elements that a source reaches, estimated from the sizes."""
    return min(1.0, math.prod(source.shape) / max(math.prod(node.shape), 1))


def best_narrowing(
    model: Model, plan: Plan, scaling_of: Callable[[Narrowing], Any], most: int
) -> Narrowing:
    """The narrowing of sources with the least predicted error, by coordinate descent.

    Args:
      model: predicts the error.
      plan: the network.
      scaling_of: gives the scaling of a narrowing.
      most: bits by which a source may be narrower.
    """
    narrowing: Narrowing = {}
    scaling = scaling_of(narrowing)
    least = model.error(scaling)

    def try_moving(sources: frozenset[Source], bits: int) -> bool:
        nonlocal narrowing, scaling, least
        moved = {s: narrowing.get(s, 0) + bits for s in sources}
        moved = {s: bits for s, bits in moved.items() if 0 <= bits <= most}
        if not moved:
            return False
        candidate = narrowing | moved
        changed = scaling_of(candidate)
        error = model.error(changed)
        if error >= least * (1 - _GAIN):
            return False
        narrowing, scaling, least = candidate, changed, error
        return True

    for _ in range(_SWEEPS):
        improved = False
        for read in model.reads:
            while any(
                try_moving(sources, bits)
                for sources, bits in model.moves(read, scaling.units(plan))
            ):
                improved = True
        for source in [s for s, bits in narrowing.items() if bits]:
            while try_moving(frozenset([source]), -1):
                improved = True
        if not improved:
            break
    return narrowing
