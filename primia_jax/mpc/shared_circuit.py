"""A plan for values that two servers share additively: fixed point with one unit everywhere.

Words of Z_2^64 stand for values times 2^f. A product is truncated by f bits right after it, each
server shifting its own share: the result is wrong by one unit at most, and by 2^(64-f) with
probability |z| / 2^64 (SecureML; P. Mohassel, Y. Zhang, 2017), z being the word before. Weights
and values are shared, so a product needs messages; what lies between products and gates does not.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.config.sections import MpcConfig
from primia_jax.errors import ProtocolError
from primia_jax.mpc import bilinear, ring
from primia_jax.mpc.plan import (
    Add,
    Constant,
    Gate,
    Node,
    Plan,
    Private,
    Public,
    Scale,
    Source,
    reachable,
)
from primia_jax.mpc.scaling import Overflow, Ranges

_FRAC_BITS = 13  # where the configuration leaves it open; SecureNN's
_FACTOR_BITS = 15  # of a public factor
_LARGEST_FACTOR = 2.0**31
_FEWEST_BITS = 7  # of the largest word of a product's factors, below which results are coarse


@dataclasses.dataclass(frozen=True)
class Step:
    """Operations between two gates: products, linear maps, then gates or outputs.

    Attributes:
      name: for traces.
      products: that no earlier step computed.
      known: products of earlier steps that are read.
      sources: that are read.
      values: the gates' operands, or the outputs.
      gates: none in the last step.
    """

    name: str
    products: tuple[Private, ...]
    known: tuple[Private, ...]
    sources: tuple[Source, ...]
    values: tuple[Node, ...]
    gates: tuple[Gate, ...]

    @property
    def relus(self) -> tuple[int, ...]:
        """Positions of the gates that need the parties; the others pass their operand on."""
        return tuple(i for i, gate in enumerate(self.gates) if gate.kind == "relu")

    @property
    def n_relus(self) -> int:
        """Elements of these gates together."""
        return sum(math.prod(self.gates[i].out.shape) for i in self.relus)


class SharedCircuit:
    """A network's public description for two servers.

    Attributes:
      plan: the network.
      config: its settings.
      ranges: what calibration saw.
      compared_bits: low bits of a word in which its sign is looked for.
      frac_bits: f.
      steps: in their order.
      products: all private products, in the order of their steps.
    """

    def __init__(self, plan: Plan, ranges: Ranges, config: MpcConfig, compared_bits: int):
        self.plan, self.ranges, self.config = plan, ranges, config
        self.compared_bits = compared_bits
        self.frac_bits = config.frac_bits or _FRAC_BITS
        self.steps = _steps(plan)
        self.products = tuple(node for step in self.steps for node in step.products)
        self._compiled: dict[Any, Any] = {}
        factors = [node.factor for node in reachable(plan.roots()) if isinstance(node, Scale)]
        largest = max(map(abs, factors), default=0.0)
        if not largest <= _LARGEST_FACTOR:
            raise ProtocolError(
                f"the network multiplies values by {largest:g}, beyond what words of "
                f"{ring.N_BITS} bits with {self.frac_bits} fractional ones hold "
                f"({_LARGEST_FACTOR:g}); scale its weights instead"
            )

    # --- ranges

    @property
    def limit(self) -> float:
        """Largest magnitude of a value, before it is truncated and when it is compared.

        There truncation fails once in 2^14 values, and a comparison once in 2^10.
        """
        truncated = ring.N_BITS - 14 - 2 * self.frac_bits
        return 2.0 ** min(truncated, self.compared_bits - 10 - self.frac_bits)

    @property
    def image_limit(self) -> float:
        """Largest magnitude of the image."""
        return self.config.margin * (self.ranges.image or 1.0)

    def overflows(self, ranges: Ranges) -> list[Overflow]:
        """The layers in which values of these ranges would not fit."""
        names = [*(gate.name for gate in self.plan.gates), *("outputs" for _ in ranges.outputs)]
        reached = [*ranges.gates, *ranges.outputs]
        return [Overflow(n, r, self.limit) for n, r in zip(names, reached) if r >= self.limit]

    def coarse_products(self, ranges: Ranges, params: Any) -> list[str]:
        """Private products whose operand or weights have few bits at f fractional ones."""
        warnings = []
        for node, operand in zip(self.plan.products(), ranges.products):
            weight = float(np.abs(node.weight.value(params)).max(initial=0.0))
            for what, reached in (("operand", operand), ("weights", weight)):
                bits = math.log2(reached) + self.frac_bits if reached else math.inf
                if bits < _FEWEST_BITS:
                    warnings.append(
                        f"the {what} of {node.name} have {max(bits, 0):.1f} bits with "
                        f"{self.frac_bits} fractional ones: results will be coarse; raise "
                        "config.mpc.frac_bits or scale the layer"
                    )
        return warnings

    # --- words

    def encoded(self, values: Any) -> np.ndarray:
        """Reals as words."""
        scaled = np.round(np.asarray(values, np.float64) * 2.0**self.frac_bits)
        return scaled.astype(np.int64).astype(np.uint64)

    def decoded(self, words: Any) -> np.ndarray:
        """Words as reals."""
        with ring.x64():
            signed = np.asarray(ring.to_signed(jnp.asarray(words)), np.float64)
        return signed / 2.0**self.frac_bits

    def weight_words(self, params: Any) -> list[np.ndarray]:
        """The model owner's weights, of each product."""
        return [self.encoded(node.weight.value(params)) for node in self.products]

    def constants(self) -> tuple[Constant, ...]:
        """The model owner's addends."""
        roots = [value for step in self.steps for value in step.values]
        return tuple(node for node in reachable(roots) if isinstance(node, Constant))

    def constant_words(self, params: Any) -> list[np.ndarray]:
        """The model owner's addends, of the shapes at which they vary."""
        encoded = []
        for node in self.constants():
            value = np.asarray(node.weight.value(params), np.float64)
            at = tuple(slice(size) for size in varying_shape(node))
            encoded.append(self.encoded(value[at]))
        return encoded

    # --- what is compiled

    def limb_plan(self, node: Private) -> bilinear.LimbPlan:
        """Words times words."""
        return bilinear.limb_plan(ring.N_BITS, ring.N_BITS, ring.N_BITS, node.product)

    def multiply(self, node: Private) -> Any:
        """Jitted (x, digits of w, addend) -> product + addend, words."""

        def make() -> Any:
            plan = self.limb_plan(node)

            def product(x: Any, digits: Any, addend: Any) -> Any:
                return bilinear.multiply(node.product, x, digits, plan) + addend

            return jax.jit(product)

        return self._once(("multiply", node), make)

    def digits(self, node: Private) -> Any:
        """Jitted words of a weight -> its digits for `multiply`."""
        plan = self.limb_plan(node)
        return self._once(
            ("digits", node), lambda: jax.jit(lambda w: bilinear.weight_digits(w, plan))
        )

    def operands(self, level: int, party: int | None) -> Any:
        """Jitted sources -> operands of the step's products; party None: in the clear."""
        step = self.steps[level]
        roots = tuple(node.operand for node in step.products)

        def make() -> Any:
            return jax.jit(
                lambda sources: self._evaluate(roots, dict(zip(step.sources, sources)), party)
            )

        return self._once(("operands", level, party), make)

    def values(self, level: int, party: int | None) -> Any:
        """Jitted (sources, untruncated new products, known products, constants) -> (values, kept).

        `kept` are the new products, truncated.
        """
        step = self.steps[level]

        def values(sources: Any, products: Any, known: Any, constants: Any) -> Any:
            kept = [truncated(z, self.frac_bits, party) for z in products]
            at: dict[Node, Any] = dict(zip(step.sources, sources))
            at.update(zip(step.products, kept))
            at.update(zip(step.known, known))
            for node, words in zip(self.constants(), constants):
                at[node] = jnp.broadcast_to(words, node.shape)
            return self._evaluate(step.values, at, party), kept

        return self._once(("values", level, party), lambda: jax.jit(values))

    def _evaluate(self, roots: Sequence[Node], at: Mapping[Node, Any], party: int | None) -> Any:
        """The words of `roots`, from those of nodes in `at`, without messages."""
        words = dict(at)
        for node in _until(roots, at):
            if isinstance(node, Public):
                words[node] = node.apply(*(words[part] for part in node.operands))
            elif isinstance(node, Scale):
                words[node] = self._scaled(words[node.operand], node.factor, party)
            elif isinstance(node, Add):
                words[node] = functools.reduce(jnp.add, (words[part] for part in node.operands))
            else:
                raise ProtocolError(f"{node} is read before it is computed")
        return [words[root] for root in roots]

    def _scaled(self, words: Any, factor: float, party: int | None) -> Any:
        """Words times a public real.

        The words, with the factor's 15 bits, must stay below 2^63: sums of values near `limit` do.
        """
        if abs(factor) == 1:
            return words if factor > 0 else -words
        if abs(factor) < 2.0 ** (_FACTOR_BITS - ring.N_BITS + 1):  # any word becomes less than one
            return jnp.zeros_like(words)
        shift = max(0, _FACTOR_BITS - math.ceil(math.log2(abs(factor))))
        whole = round(abs(factor) * 2.0**shift)
        scaled = truncated(words * words.dtype.type(whole), shift, party)
        return scaled if factor > 0 else -scaled

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]


def varying_shape(node: Constant) -> tuple[int, ...]:
    """The shape of an addend, with 1 where it is known to be constant."""
    sizes = enumerate(node.weight.shape)
    return tuple(size if i in node.weight.axes else 1 for i, size in sizes)


def truncated(words: Any, bits: int, party: int | None) -> Any:
    """Words without their lowest `bits`: a server's share, or (None) all of it, to the nearest."""
    if not bits:
        return words
    if party is None:
        return ring.from_signed((ring.to_signed(words) + (1 << (bits - 1))) >> bits)
    shift = words.dtype.type(bits)
    return words >> shift if party == 0 else -((-words) >> shift)


def _until(roots: Sequence[Node], known: Mapping[Node, Any]) -> list[Node]:
    """The nodes between `known` ones and `roots`, operands first."""
    nodes: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node in known or node in nodes:
            return
        if isinstance(node, (Public, Add)):
            for part in node.operands:
                visit(part)
        elif isinstance(node, Scale):
            visit(node.operand)
        nodes[node] = None

    for root in roots:
        visit(root)
    return list(nodes)


def _steps(plan: Plan) -> tuple[Step, ...]:
    computed: dict[Private, None] = {}
    steps = []
    rounds = [(gates, tuple(gate.operand for gate in gates)) for gates in plan.levels()]
    for gates, values in [*rounds, ((), plan.outputs)]:
        nodes = reachable(values)
        products = tuple(node for node in nodes if isinstance(node, Private))
        new = tuple(node for node in products if node not in computed)
        computed.update(dict.fromkeys(new))
        steps.append(
            Step(
                " + ".join(dict.fromkeys(gate.name for gate in gates)) or "outputs",
                new,
                tuple(node for node in products if node not in new),
                tuple(node for node in nodes if isinstance(node, Source)),
                tuple(values),
                gates,
            )
        )
    return tuple(steps)
