"""A plan with its units: what all parties know of an encrypted network, ready to run.

The linear maps between two rounds make a *segment*. A segment is compiled once for each role: the
model owner evaluates it on masked words with its weights, the crypto provider on masks with the
matrices that hide the weights, the data owner on its masks with what it got to know of the weights.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.config import to_plain
from primia_jax.config.sections import MpcConfig
from primia_jax.errors import ProtocolError
from primia_jax.mpc import bilinear, gates, range_check, ring, winograd
from primia_jax.mpc.cost import Cost
from primia_jax.mpc.gates import GateSpec
from primia_jax.mpc.linear import Evaluator, quantised, whole_factor
from primia_jax.mpc.plan import Constant, Gate, Node, Plan, Private, Source, has_private, operands
from primia_jax.mpc.plan import Scale as ScaleNode
from primia_jax.mpc.scaling import Overflow, Ranges, Scaling, weight_room
from primia_jax.mpc.units import exact_weight_bits, natural_unit

VERSION = 2  # of keys and messages
_FEWEST_BITS = 7  # of weights, below which results are coarse
Product = tuple[Private, float]  # a private product in a unit of its result


@dataclasses.dataclass(frozen=True)
class Segment:
    """The linear maps that one round evaluates.

    Attributes:
      name: for traces.
      gates: of the round; none in the last segment, which gives the outputs.
      values: the operands (or outputs), with their units.
      sources: that are read.
      products: private products evaluated here.
      known: products of earlier segments that are read.
      keep: products that later segments read.
      constants: the model owner's addends, with units.
    """

    name: str
    gates: tuple[Gate, ...]
    values: tuple[tuple[Node, float], ...]
    sources: tuple[Source, ...]
    products: tuple[Product, ...]
    known: tuple[Product, ...]
    keep: tuple[Product, ...]
    constants: tuple[tuple[Constant, float], ...]

    @property
    def weighted(self) -> tuple[bool, ...]:
        """For each value, True if weights have a part in it."""
        return tuple(has_private(node) for node, _ in self.values)


class Circuit:
    """An encrypted network's public description."""

    def __init__(self, plan: Plan, scales: Scaling, config: MpcConfig):
        self.plan, self.scaling, self.config = plan, scales, config
        self.n_bits = config.ring_bits
        self.units = scales.units(plan)
        self.specs = {
            gate: GateSpec(
                kind=gate.kind,
                n_elements=math.prod(gate.out.shape),
                ring_bits=config.ring_bits,
                truncated_bits=scale.truncated_bits,
                width=scale.width,
                compared_bits=scale.compared_bits,
                leaf_bits=config.leaf_bits,
                arity=config.arity,
                prg_rounds=config.prg_rounds,
            )
            for gate, scale in zip(plan.gates, scales.gates)
        }
        self.index = {gate: i for i, gate in enumerate(plan.gates)}
        self.source_index = {plan.image: 0} | {g.out: i + 1 for g, i in self.index.items()}
        self.segments = _segments(plan, scales, self.units)
        self.products = tuple(p for segment in self.segments for p in segment.products)
        # Every value of every segment has a number of its own, which enters the nonce of its masks.
        counts = [len(segment.values) for segment in self.segments]
        self.first_value = tuple(sum(counts[:level]) for level in range(len(counts)))
        self._compiled: dict[Any, Any] = {}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells this circuit's keys from all others'."""
        identity = {
            "version": VERSION,
            "config": to_plain(self.config),
            "scaling": dataclasses.asdict(self.scaling),
            "shapes": [gate.out.shape for gate in self.plan.gates],
            "names": [gate.name for gate in self.plan.gates],
            "weights": [node.weight.shape for node, _ in self.products],
            "image": self.plan.image.shape,
            "outputs": [node.shape for node in self.plan.outputs],
        }
        text = json.dumps(identity, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def image_limit(self) -> float:
        """Largest magnitude of the image."""
        return self.scaling.image_limit

    def overflows(self, ranges: Ranges) -> list[Overflow]:
        """The layers in which values of these ranges would not fit."""
        scales = self.scaling
        overflows = [
            Overflow(gate.name, reached, scale.limit)
            for gate, scale, reached in zip(self.plan.gates, scales.gates, ranges.gates)
            if reached >= scale.limit
        ]
        half = 2.0 ** (self.n_bits - 1)
        for unit, reached in zip(scales.outputs, ranges.outputs):
            if reached * unit >= half:
                overflows.append(Overflow("outputs", reached, half / unit))
        return overflows

    def coarse_products(self, ranges: Ranges, params: Any) -> list[str]:
        """Private products whose weights the ring leaves few bits."""
        rooms = weight_room(self.plan, self.scaling, ranges, self.config)
        return [
            f"the ring leaves the weights of {node.name} {bits:.1f} bits beside their operands: "
            "results will be coarse; raise config.mpc.ring_bits or lower config.mpc.effective_bits"
            for node, bits in zip(self.plan.products(), rooms)
            if bits < _FEWEST_BITS
        ]

    @property
    def checked_gates(self) -> tuple[Gate, ...]:
        """Gates in which values out of range are detected, round by round."""
        return tuple(
            gate
            for segment in self.segments
            for gate in segment.gates
            if self.specs[gate].excess_bits
        )

    @property
    def granted_headroom(self) -> tuple[int, ...]:
        """Bits of the ring above the range of each gate, then of each output."""
        at_gates = (s.ring_bits - s.truncated_bits - s.width for s in self.specs.values())
        return (*at_gates, *self.scaling.headroom[len(self.plan.gates) :])

    @property
    def unproven(self) -> tuple[str, ...]:
        """Layers in which an extreme value might wrap around in the ring and so not be detected."""
        names = [*(gate.name for gate in self.plan.gates), *("outputs" for _ in self.plan.outputs)]
        return tuple(dict.fromkeys(names[i] for i in self.scaling.unproven))

    @property
    def detects(self) -> bool:
        """True if every value out of range is detected, however far out it is.

        Gates that are not checked are proven to stay in their range (`mpc.worst_case`).
        """
        return not self.unproven

    @property
    def output_limit(self) -> float:
        """Magnitude of an output's word from which it counts as out of range: half the ring's."""
        return 2.0 ** (self.n_bits - 2)

    def sizes(self, segment: Segment) -> list[int]:
        """Elements of each value of a segment."""
        return [math.prod(node.shape) for node, _ in segment.values]

    def cost(self) -> Cost:
        """Cost of one run, by shapes alone."""
        word = ring.packed_bytes(self.n_bits)
        bits = sum(-(-spec.n_elements // 8) for spec in self.specs.values() if spec.compares)
        down = sum(spec.n_elements * ring.packed_bytes(spec.width) for spec in self.specs.values())
        up = word * sum(spec.n_elements for spec in self.specs.values())
        checks = range_check.SUMS * len(self.checked_gates)
        ends = math.prod(self.plan.image.shape) + sum(math.prod(o.shape) for o in self.plan.outputs)
        sizes = [
            (size, weighted)
            for segment in self.segments
            for size, weighted in zip(self.sizes(segment), segment.weighted)
        ]
        dealt = sum(spec.key_bytes() for spec in self.specs.values())
        trees = sum(spec.tree_bytes() for spec in self.specs.values())
        return Cost(
            round_trips=len(self.segments),
            # Beside the words and bits: the number of the key, 8 bytes, and the range checks.
            online_bytes=down + up + 2 * bits + word * ends + 8 + 2 * checks + 32 * (checks > 0),
            key_bytes={
                "model_owner": dealt + checks + word * sum(size for size, _ in sizes),
                "data_owner": trees,
            },
            client_bytes=word * sum(size for size, weighted in sizes if weighted),
        )

    # --- how products are evaluated

    def weight_bits(self, product: Product) -> int:
        """Signed bits of the quantised weights: as many as one exact float64 product takes."""
        return exact_weight_bits(self.n_bits, product[0].product.depth)

    def owner_plan(self, product: Product) -> bilinear.LimbPlan:
        """Masked words times quantised weights."""
        return bilinear.limb_plan(
            self.n_bits, self.n_bits, self.weight_bits(product), product[0].product
        )

    def mask_plan(self, product: Product) -> bilinear.LimbPlan:
        """Words times words."""
        return bilinear.limb_plan(self.n_bits, self.n_bits, self.n_bits, product[0].product)

    def quantised_weights(self, params: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """The model owner's weights as (w, shift) for each product, see `linear.quantised`."""
        parts = []
        for product in self.products:
            node, unit = product
            factor = unit / natural_unit(node.operand, self.units)
            parts.append(
                quantised(
                    np.asarray(node.weight.value(params)),
                    factor,
                    self.weight_bits(product),
                    node.product.channel_axis,
                )
            )
        return parts

    def weight_words(self, weights: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """The same weights as ring words."""
        words = []
        for (node, _), (w, shift) in zip(self.products, weights):
            axis = node.product.channel_axis
            spread = shift if axis is None else _along(shift, axis, w.ndim)
            words.append((w << spread).astype(np.uint64).astype(ring.word_type(self.n_bits)))
        return words

    def constant_words(self, params: Any) -> list[list[np.ndarray]]:
        """The model owner's addends, of each segment, as words."""
        constants = []
        for segment in self.segments:
            words = []
            for node, unit in segment.constants:
                value = np.asarray(node.weight.value(params), np.float64)
                at = (slice(None if i in node.weight.axes else 1) for i in range(value.ndim))
                value = np.round(value[tuple(at)] * unit)  # once, where it does not vary
                words.append(
                    value.astype(np.int64).astype(np.uint64).astype(ring.word_type(self.n_bits))
                )
            constants.append(words)
        return constants

    # --- the compiled segments

    def owner_values(self, level: int) -> Any:
        """Jitted (sources, digits, shifts, constants, known, packed κ) -> (messages, operands,
        kept).

        A source is a pair of shares, packed words [N] and words [N]; of a single share the second
        is None. Digits are a list, or a `winograd.Kernel`. The messages are the bits of z + r that
        a gate needs, or an output masked, both packed; the operands are z + r itself of the gates
        that are checked, which nobody is sent.
        """
        return self._once(("owner", level), lambda: self._make_owner_values(level))

    def _make_owner_values(self, level: int) -> Any:
        segment = self.segments[level]
        plans = {product: self.owner_plan(product) for product in segment.products}

        def values(
            sources: Any, digits: Any, shifts: Any, constants: Any, known: Any, kappas: Any
        ) -> Any:
            at = {product: i for i, product in enumerate(segment.products)}
            sources = [
                self.joined(*shares).reshape(source.shape)
                for source, shares in zip(segment.sources, sources)
            ]
            sources = jax.lax.optimization_barrier(sources)  # several maps may read them

            def multiply(node: Private, unit: float, x: Any) -> Any:
                i = at[node, unit]
                if isinstance(digits[i], winograd.Kernel):
                    words = winograd.multiply(node.product, x, digits[i], self.n_bits)
                else:
                    words = bilinear.multiply(node.product, x, digits[i], plans[node, unit])
                axis = node.product.out_channel_axis
                shift = shifts[i]
                return words << (shift if axis is None else _along(shift, axis, words.ndim))

            added = dict(zip(segment.constants, constants))
            evaluator = self._evaluator(
                segment,
                sources,
                multiply,
                known,
                lambda node, unit: jnp.broadcast_to(added[node, unit], node.shape),
            )
            messages, operands = [], []
            for i, ((node, unit), kappa) in enumerate(zip(segment.values, kappas)):
                p, q = evaluator.value(node, unit)
                masked = self.sum_of((p, q), node).reshape(-1) + ring.unpack(kappa, self.n_bits)
                if segment.gates:
                    # Two outputs would each be a loop over the float64 product.
                    masked = jax.lax.optimization_barrier(masked)
                    spec = self.specs[segment.gates[i]]
                    messages.append(ring.pack(gates.masked_operand(spec, masked), spec.width))
                    operands.append(masked if spec.excess_bits else None)
                else:
                    messages.append(ring.pack(masked, self.n_bits))
            return messages, operands, [evaluator.products[product] for product in segment.keep]

        return jax.jit(values)

    def mask_values(self, level: int, with_public: bool) -> Any:
        """Jitted (masks of the sources, matrices, known) -> (values [N], kept).

        Args:
          level: the segment.
          with_public: whether what goes past the weights is included (the crypto provider's part)
            or not (the data owner's; values without weights are then left out).
        """
        return self._once(
            ("mask", level, with_public), lambda: self._make_mask_values(level, with_public)
        )

    def _make_mask_values(self, level: int, with_public: bool) -> Any:
        segment = self.segments[level]
        plans = {product: self.mask_plan(product) for product in segment.products}

        def values(masks: Any, matrices: Any, known: Any) -> Any:
            at = {product: i for i, product in enumerate(segment.products)}

            def multiply(node: Private, unit: float, x: Any) -> Any:
                matrix = matrices[at[node, unit]]
                return bilinear.multiply(node.product, x, matrix, plans[node, unit])

            evaluator = self._evaluator(segment, masks, multiply, known, None)
            sums = []
            for (node, unit), weighted in zip(segment.values, segment.weighted):
                if not (with_public or weighted):
                    continue
                p, q = evaluator.value(node, unit)
                sums.append(self.sum_of((p, q) if with_public else (q,), node).reshape(-1))
            return sums, [evaluator.products[product] for product in segment.keep]

        return jax.jit(values)

    def joined(self, packed: Any, words: Any = None) -> Any:
        """Words [N] from a packed share and one of words, if there is one."""
        share = ring.unpack(packed, self.n_bits)
        return share if words is None else share + words

    def sum_of(self, parts: Sequence[Any], node: Node) -> Any:
        """The parts of a value that are there, added; zeros if none is."""
        zeros = jnp.zeros(node.shape, ring.word_type(self.n_bits))
        return sum((part for part in parts if part is not None), zeros)

    def _evaluator(
        self, segment: Segment, sources: Any, multiply: Any, known: Any, constant: Any
    ) -> Evaluator:
        return Evaluator(
            self.n_bits,
            self.units,
            dict(zip(segment.sources, sources)),
            multiply,
            constant,
            dict(zip(segment.known, known)),
        )

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]


def _along(vector: Any, axis: int, n_axes: int) -> Any:
    """[c] -> [1 … c … 1]."""
    shape = [1] * n_axes
    shape[axis] = -1
    return vector.reshape(shape)


class _Reads:
    """Operands of the values of one round; dicts keep the order of discovery."""

    def __init__(self, units: dict[Source, float], computed: frozenset[Product]):
        self._units, self._computed = units, computed
        self._seen: set[tuple[Node, float]] = set()
        self.sources: dict[Source, None] = {}
        self.products: dict[Product, None] = {}
        self.known: dict[Product, None] = {}
        self.constants: dict[tuple[Constant, float], None] = {}

    def visit(self, node: Node, unit: float) -> None:
        """Finds what `node` in `unit` is computed from."""
        if (node, unit) in self._seen:
            return
        self._seen.add((node, unit))
        if isinstance(node, Source):
            whole_factor(unit, self._units[node], node.name)  # raises where units do not fit
            self.sources[node] = None
        elif isinstance(node, Constant):
            self.constants[node, unit] = None
        elif isinstance(node, ScaleNode):
            self.visit(node.operand, unit * abs(node.factor))
        elif not isinstance(node, Private):
            for part in operands(node):
                self.visit(part, unit)
        elif (node, unit) in self._computed:
            self.known[node, unit] = None
        else:
            self.products[node, unit] = None
            self.visit(node.operand, natural_unit(node.operand, self._units))


def _segments(plan: Plan, scales: Scaling, units: dict[Source, float]) -> tuple[Segment, ...]:
    """The rounds of a plan, and the outputs."""
    unit_of = {gate: scale.unit for gate, scale in zip(plan.gates, scales.gates)}
    rounds = [
        (gates_, tuple((gate.operand, unit_of[gate]) for gate in gates_))
        for gates_ in plan.levels()
    ]
    rounds.append(((), tuple(zip(plan.outputs, scales.outputs))))
    computed: set[Product] = set()
    drafts = []
    for gates_, values in rounds:
        reads = _Reads(units, frozenset(computed))
        for node, unit in values:
            reads.visit(node, unit)
        computed.update(reads.products)
        drafts.append((gates_, values, reads))
    read_later: set[Product] = set()
    segments: list[Segment] = []
    for gates_, values, reads in reversed(drafts):
        keep = tuple(product for product in reads.products if product in read_later)
        read_later.update(reads.known)
        name = " + ".join(dict.fromkeys(gate.name for gate in gates_)) or "outputs"
        segments.append(
            Segment(
                name,
                gates_,
                values,
                tuple(reads.sources),
                tuple(reads.products),
                tuple(reads.known),
                keep,
                tuple(reads.constants),
            )
        )
    return tuple(reversed(segments))


def check_image(circuit: Any, image: Any) -> np.ndarray:
    """`image` as float32, if the circuit takes it.

    Raises:
      ProtocolError: for another shape, for values that are no numbers, or outside the range.
    """
    image = np.asarray(image)
    wanted = circuit.plan.image.shape
    if image.shape != wanted:
        raise ProtocolError(f"the network takes images of shape {wanted}, not {image.shape}")
    image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise ProtocolError("the image has values that are not finite")
    limit = circuit.image_limit
    if np.abs(image).max(initial=0.0) > limit:
        raise ProtocolError(  # which the other parties may hear: nothing of the image in it
            f"the image leaves the range of ±{limit:g} that the network was calibrated for: "
            "calibrate with such images"
        )
    return image
