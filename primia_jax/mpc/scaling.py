"""Real values as ring words: the unit, the truncation and the effective width of every gate.

A word w of a value in unit u stands for w / u. A gate's operand has unit u; the gate drops t bits,
so that what it puts out has unit u / 2^t, and must then fit k signed bits, the layer's *effective
width*. Units are chosen from the ranges that the model owner observes on its own images, rounded up
to powers of two, times a margin; where a skip connection bypasses the weights, so that the words'
factor is whole. Units of sources that are added without weights differ by powers of two, once
multiplied by the factors with which they are added (such as the 1/9 of an average pool).

A product of words x and weights w shares the ring between the two. `mpc.precision` narrows the
words where their bits serve the weights better: k is at most `config.mpc.effective_bits`.

*Headroom* is what the ring holds beyond a gate's range: bits of a word above the effective width,
by which a value out of range is detected (`mpc.range_check`) as long as it does not wrap in the
ring itself. The model owner computes from its weights how many bits exclude that
(`mpc.worst_case`). Outputs have at least `OUTPUT_HEADROOM` bits.

Units, truncations, widths and headroom are public. A value outside its range makes a wrong result,
which is flagged, and never a leak.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from primia_jax.config.sections import MpcConfig
from primia_jax.errors import ConfigError
from primia_jax.mpc import precision
from primia_jax.mpc.plan import Gate, Node, Plan, Private, Source, has_private
from primia_jax.mpc.units import ROUNDING, Path, bypasses, natural_unit, private_parts

OUTPUT_HEADROOM = 4
_DETECTED_BITS = 24  # of the ring, for operand and weights, before a gate gets headroom
_FEWEST_WEIGHT_BITS = 8  # of the ring, beside the effective width
_FACTORS_TRIED = 1000
_MOST_ROUNDING = 5e-3  # beyond which a gate rather has less headroom
_ROUNDING_BITS = 1e-9  # of float64, in logarithms of units


class Overflow(NamedTuple):
    """A layer whose values leave the range that it was calibrated for."""

    layer: str
    reached: float
    limit: float

    def __str__(self) -> str:
        return f"{self.layer}: reaches {self.reached:.4g}, provided for {self.limit:.4g}"


class Ranges(NamedTuple):
    """Magnitudes observed in the clear: the largest ones, and root mean squares.

    Attributes:
      image: of the image.
      gates: of each gate's operand.
      spreads: RMS of each gate's operand.
      products: of each private product's operand.
      outputs: of each output.
      headroom: of each gate, then of each output, bits beyond its range that its operand may take
        while all values before it are in theirs; empty where that was not computed.
    """

    image: float
    gates: tuple[float, ...]
    spreads: tuple[float, ...]
    products: tuple[float, ...]
    outputs: tuple[float, ...]
    headroom: tuple[int, ...] = ()

    def rounded(self) -> "Ranges":
        """These ranges as they are published: powers of two, which tell no image's exact maximum.

        Largest magnitudes are rounded up, root mean squares to the nearest.
        """

        def up(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(2.0 ** math.ceil(math.log2(v)) if v else 0.0 for v in values)

        (image,) = up((self.image,))
        spreads = tuple(2.0 ** round(math.log2(v)) if v else 0.0 for v in self.spreads)
        return Ranges(
            image, up(self.gates), spreads, up(self.products), up(self.outputs), self.headroom
        )


@dataclasses.dataclass(frozen=True)
class GateScale:
    """Scaling of one gate.

    Attributes:
      unit: of its operand.
      truncated_bits: t, dropped from the operand.
      width: k, signed bits that the truncated operand must fit.
      compared_bits: m, the bits of its comparison; 0 for a gate without one.
    """

    unit: float
    truncated_bits: int
    width: int
    compared_bits: int

    @property
    def out_unit(self) -> float:
        """Unit of what the gate puts out."""
        return self.unit / 2.0**self.truncated_bits

    @property
    def limit(self) -> float:
        """Largest magnitude of the operand that the gate takes, as a real number."""
        if not self.compared_bits:
            return 2.0 ** (self.width - 2) / self.out_unit
        return (2.0 ** (self.width - 1) - 2.0**self.slack_bits) / self.out_unit

    @property
    def slack_bits(self) -> int:
        """s: low bits of the truncated operand that the comparison does not see."""
        return self.width - 1 - self.compared_bits if self.compared_bits else 0


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Units of a whole plan.

    Attributes:
      image: unit of the image.
      image_width: signed bits that its words fit.
      gates: of the plan's gates, in their order.
      outputs: units of the outputs.
      noise_bits: τ of each output: its low bits, which the data owner gets as noise.
      headroom: bits that the ring holds beyond the range of each gate with weights, then of each
        output.
      unproven: gates, then outputs, by position, whose worst case is not known to fit the headroom.
    """

    image: float
    image_width: int
    gates: tuple[GateScale, ...]
    outputs: tuple[float, ...]
    noise_bits: tuple[int, ...]
    headroom: tuple[int, ...]
    unproven: tuple[int, ...]

    @property
    def image_limit(self) -> float:
        """Largest magnitude of the image."""
        return 2.0 ** (self.image_width - 1) / self.image

    def units(self, plan: Plan) -> dict[Source, float]:
        """The unit of every source."""
        units = {plan.image: self.image}
        units.update({g.out: s.out_unit for g, s in zip(plan.gates, self.gates)})
        return units


def choose(plan: Plan, ranges: Ranges, config: MpcConfig) -> Scaling:
    """Units for which values of `margin` times the ranges still fit.

    Raises:
      ConfigError: where the ring is too narrow for the effective width.
    """
    width, n_bits = config.effective_bits, config.ring_bits
    if width > n_bits - _FEWEST_WEIGHT_BITS:
        raise ConfigError(
            f"config.mpc.effective_bits = {width} leaves the weights {n_bits - width} of {n_bits} "
            f"bits; lower it to {n_bits - _FEWEST_WEIGHT_BITS} or raise config.mpc.ring_bits"
        )
    if config.sign_slack_bits > width - 2:
        raise ConfigError(
            f"config.mpc.sign_slack_bits = {config.sign_slack_bits} leaves nothing to compare of "
            f"effective_bits = {width}"
        )

    roots = [root for root in plan.roots() if not has_private(root)]
    sums = [bypasses(node) for node in [*(p.operand for p in plan.products()), *roots]]

    def scaling_of(narrower: Mapping[Source, int]) -> Scaling:
        scaling = _choose(plan, ranges, config, narrower, even=False)
        if _adds_evenly(sums, scaling.units(plan)):
            return scaling
        return _choose(plan, ranges, config, narrower, even=True)

    if config.frac_bits:
        return scaling_of({})
    model = precision.Model(plan, ranges, n_bits)
    most = max(0, width - max(precision.NARROWEST, config.sign_slack_bits + 2))
    return scaling_of(precision.best_narrowing(model, plan, scaling_of, most))


def most_headroom(config: MpcConfig) -> int:
    """Bits of headroom that a gate gets at most: a narrow ring spares few or none."""
    return min(config.headroom_bits, max(config.ring_bits - _DETECTED_BITS, 0))


def headroom(plan: Plan, ranges: Ranges, config: MpcConfig) -> tuple[int, ...]:
    """Bits of the ring beyond the range of each gate, then of each output.

    As many as the ranges ask for, up to `most_headroom`; without that, as many as there are.
    """
    most = most_headroom(config)
    needed = ranges.headroom or (most,) * (len(plan.gates) + len(plan.outputs))
    at_gates = [min(bits, most) for bits in needed[: len(plan.gates)]]
    at_outputs = [max(min(bits, most), OUTPUT_HEADROOM) for bits in needed[len(plan.gates) :]]
    return (*at_gates, *at_outputs)


def weight_room(plan: Plan, scaling: Scaling, ranges: Ranges, config: MpcConfig) -> list[float]:
    """Bits that the ring leaves the weights of each private product beside operand and headroom."""
    units = scaling.units(plan)
    lost_bits = dict.fromkeys(plan.products(), 0.0)  # to headroom, and by coarser units
    roots = [*(gate.operand for gate in plan.gates), *plan.outputs]
    for root, spare in zip(roots, scaling.headroom):
        for part in private_parts(root):
            lost = spare - math.log2(abs(part.factor))
            lost_bits[part.product] = max(lost_bits[part.product], lost)
    room = []
    for reached, (node, lost) in zip(ranges.products, lost_bits.items()):
        unit = natural_unit(node.operand, units)
        taken = math.log2(config.margin * (reached or 1.0) * unit)
        room.append(config.ring_bits - 1 - max(taken, 0.0) - lost)
    return room


def _choose(
    plan: Plan, ranges: Ranges, config: MpcConfig, narrower: Mapping[Source, int], even: bool
) -> Scaling:
    """See `choose`; with `even`, units of what is added up differ by powers of two.

    `narrower` tells by how many bits sources shall be narrower than the effective width.
    """
    n_bits = config.ring_bits

    def room(reached: float) -> float:
        return config.margin * (reached or 1.0)  # a layer that was always 0 may have any unit

    def width_of(source: Source) -> int:
        return config.effective_bits - narrower.get(source, 0)

    image_width = width_of(plan.image)
    image_unit = 2.0 ** (image_width - 1) / room(ranges.image)
    even_factors = _even_factors(plan) if even else {}
    units = {plan.image: _evened(image_unit, even_factors.get(plan.image))}
    scales: dict[Gate, GateScale] = {}
    spread = dict(zip(plan.gates, ranges.spreads))
    shared = _shared_products(plan)
    reached = dict(zip(plan.gates, ranges.gates))
    spares = headroom(plan, ranges, config)
    beyond = dict(zip(plan.gates, spares))
    for gates in plan.levels():
        for gate in gates:
            if gate in scales:
                continue
            together = [g for g in shared.get(gate, [gate]) if g not in scales]
            limit = room(max(reached[g] for g in together))
            if has_private(gate.operand):
                roots = [g.operand for g in together]
                spare = 1 if all(g.kind == "relu" for g in together) else 2
                for granted in range(max(beyond[g] for g in together), -1, -1):
                    wanted = 2.0 ** (n_bits - spare - granted) / limit
                    if config.frac_bits:
                        most = config.frac_bits + n_bits - config.effective_bits - granted
                        wanted = min(wanted, 2.0**most)
                    unit = _whole_factors(roots, units, wanted, even_factors.get(gate.out))
                    if _worst_rounding(roots, units, unit) <= _MOST_ROUNDING:
                        break
                beyond |= {g: min(beyond[g], granted) for g in together}
            else:
                unit = natural_unit(gate.operand, units)
            for member in together:
                width = width_of(member.out)
                spare = 1 if member.kind == "relu" else 2
                bits = math.log2(room(reached[member]) * unit) - _ROUNDING_BITS
                if not has_private(member.operand):  # its words have the bits that they have
                    width = min(width, max(math.ceil(bits) + spare, precision.NARROWEST))
                dropped = math.ceil(bits) - (width - spare)
                if config.frac_bits and unit > 2.0**config.frac_bits:
                    dropped = round(math.log2(unit)) - config.frac_bits
                dropped = min(max(dropped, 0), n_bits - width)
                scale = GateScale(unit, dropped, width, 0)
                if member.kind == "relu":
                    compared = width - 1 - _slack_bits(scale, spread[member], config)
                    scale = dataclasses.replace(scale, compared_bits=compared)
                scales[member] = scale
        units.update({gate.out: scales[gate].out_unit for gate in gates})
    outputs = []
    for node, value, bits in zip(plan.outputs, ranges.outputs, spares[len(plan.gates) :]):
        largest = 2.0 ** (n_bits - 1 - bits) / room(value)
        if not has_private(node) and bypasses(node):
            largest = min(largest, natural_unit(node, units))
        if _worst_rounding([node], units, largest) > ROUNDING:
            largest = _whole_factors([node], units, largest)
        outputs.append(largest)
    gate_scales = tuple(scales[gate] for gate in plan.gates)
    reach = zip(ranges.outputs, outputs)
    widths = [math.ceil(math.log2(room(v) * unit) - _ROUNDING_BITS) + 1 for v, unit in reach]
    noise = tuple(max(0, width - config.output_bits) for width in widths)
    spares = (*beyond.values(), *spares[len(plan.gates) :])
    needed = ranges.headroom or (n_bits,) * len(spares)
    unproven = tuple(i for i, bits in enumerate(needed) if bits > spares[i])
    return Scaling(
        units[plan.image], image_width, gate_scales, tuple(outputs), noise, spares, unproven
    )


def _slack_bits(scale: GateScale, spread: float, config: MpcConfig) -> int:
    """s, such that a sign is sure further from 0 than half a `sign_tolerance` of the RMS."""
    if config.sign_slack_bits >= 0:  # of a value of full width: the window stays the same
        return max(0, config.sign_slack_bits - (config.effective_bits - scale.width))
    window = config.sign_tolerance * spread * scale.out_unit
    return min(max(0, math.floor(math.log2(max(window, 1.0)))), scale.width - 2)


def _shared_products(plan: Plan) -> dict[Gate, list[Gate]]:
    """Gates that read one private product by one factor agree on the unit: gate -> all such."""
    groups: dict[Gate, list[Gate]] = {}
    readers: dict[tuple[Private, float], list[Gate]] = {}
    for gate in plan.gates:
        group = [gate]
        for node, factor, _ in private_parts(gate.operand):
            for other in readers.get((node, factor), []):
                group += [g for g in groups[other] if g not in group]
            readers.setdefault((node, factor), []).append(gate)
        for member in group:
            groups[member] = group
    return groups


def _even_factors(plan: Plan) -> dict[Source, float]:
    """The factor by which each source is added to others: its unit is that, times a power of two.

    So sources of other factors, as the 1/9 of an average pool, still agree on a unit.
    """
    factors = dict.fromkeys([plan.image, *(gate.out for gate in plan.gates)], 1.0)
    for node in reversed(plan.products()):  # the first sum decides
        paths = bypasses(node.operand)
        if len(paths) > 1:
            factors |= {path.source: abs(path.factor) for path in paths}
    return factors


def _evened(value: float, factor: float | None) -> float:
    """The largest power of two times `factor` up to `value`; `value` without a factor."""
    return factor * 2.0 ** math.floor(math.log2(value / factor)) if factor else value


def _worst_rounding(roots: Sequence[Node], units: Mapping[Source, float], unit: float) -> float:
    """Largest relative error of the whole factors of bypasses, in a unit of the result."""
    factors = [unit * rate for rate in _rates(roots, units)]
    return max((abs(round(f) - f) / f for f in factors), default=0.0)


def _rates(roots: Sequence[Node], units: Mapping[Source, float]) -> list[float]:
    """Factors of the bypasses in unit 1 of the result, ascending."""
    return sorted(
        abs(factor) / units[source]
        for root in roots
        for source, factor, _ in bypasses(root)
        if source in units  # gates of later levels may share the product
    )


def _whole_factors(
    roots: Sequence[Node],
    units: Mapping[Source, float],
    wanted: float,
    even_factor: float | None = None,
) -> float:
    """The largest unit up to `wanted` in which bypasses of the weights have whole factors.

    A little less than the largest where that suits several bypasses better. With `even_factor`,
    factors are powers of two, and without a bypass the unit over it.
    """
    rates = _rates(roots, units)
    if not rates or rates[0] * wanted < 1:  # without a factor, or for lack of bits in the ring
        return _evened(wanted, even_factor)
    largest = rates[0] * wanted
    if even_factor:
        return _evened(largest, 1.0) / rates[0]

    def worst(whole: int) -> float:
        factors = [whole * rate / rates[0] for rate in rates]
        return max(abs(round(factor) - factor) / factor for factor in factors)

    fewest = max(math.ceil(largest / 4), 1)
    tried = range(math.floor(largest), fewest - 1, -1)[:_FACTORS_TRIED]
    best = next((whole for whole in tried if worst(whole) <= ROUNDING), None)
    return (best or min(tried, key=worst)) / rates[0]


def _adds_evenly(sums: Sequence[Sequence[Path]], units: Mapping[Source, float]) -> bool:
    """True if sources that are added without weights have units whose ratios are powers of two."""
    for paths in sums:
        logs = [math.log2(units[path.source] / abs(path.factor)) for path in paths]
        if any(abs(log - logs[0] - round(log - logs[0])) > _ROUNDING_BITS for log in logs):
            return False
    return True
