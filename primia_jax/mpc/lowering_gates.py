"""Builds a plan's products and gates.

Where a private product would read another and no factor can be folded, a *rescale* gate frees the
value from its product, which costs a round trip.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from primia_jax.mpc import lowering_weights as weights
from primia_jax.mpc.lowering_folding import folded, terms
from primia_jax.mpc.lowering_nodes import Affine, Moves, Nodes, UnsupportedError, elementwise
from primia_jax.mpc.lowering_products import Contraction
from primia_jax.mpc.lowering_weights import Known
from primia_jax.mpc.plan import Add, Gate, Node, Public, Signed, Source, Weight, reachable

_FEW = 4  # distinct public factors that are written as so many sums of public maps


@dataclasses.dataclass
class _Draft:
    """A gate before it is known whether anything reads it.

    Attributes:
      partner: a gate on whose level this one is to run, or later.
    """

    kind: str
    operand: Node
    out: Source
    line: str
    partner: "_Draft | None" = None


class Builder(Nodes):
    """The plan in the making.

    Attributes:
      line: where in the user's code the operation stands that is being lowered.
      with_zero: what was pooled -> function that gives its maximum with 0.
    """

    def __init__(self, image: Source):
        super().__init__(image)
        self.line = ""
        self._drafts: dict[Source, _Draft] = {}
        self._names: dict[str, int] = {}
        self._rescaled: dict[Affine, Source] = {}
        self._rectified: dict[Affine, Source] = {}
        self._rectified_from: dict[Node, Affine] = {}
        self.with_zero: dict[Affine, Callable[[], Affine]] = {}

    # --- products

    def times(self, a: Affine, known: Known) -> Affine | np.ndarray:
        """known · a, element by element; known broadcasts to the shape of a.

        Zeros, which are known, if known is publicly zero.
        """
        if isinstance(known, Weight):
            return self._times(a, weights.as_weight(known, len(a.shape)))
        if not np.all(np.isfinite(known)):
            raise UnsupportedError("a factor that is not finite")
        if not np.any(known):
            return np.zeros(a.shape, np.float32)
        if np.all(known == known.flat[0]):
            return self.scale(a, float(known.flat[0]))
        if not has_few_sizes(known):
            return self._times(a, weights.as_weight(known, len(a.shape)))
        every = {axis: axis for axis in range(len(a.shape))}

        def masked(signs: np.ndarray) -> Affine:
            def apply(x: Any) -> Any:
                return jnp.where(signs > 0, x, jnp.where(signs < 0, -x, jnp.zeros_like(x)))

            def magnitudes(x: Any) -> Any:
                return jnp.where(signs != 0, x, jnp.zeros_like(x))

            return self.public([a], Signed(apply, magnitudes), a.shape, Moves(every))

        return self.sum_by_size(known, masked)

    def sum_by_size(self, known: np.ndarray, linear: Callable[[np.ndarray], Affine]) -> Affine:
        """linear(known), as Σ size · linear(signs of the entries of that size)."""
        total: Affine | None = None
        for size in np.unique(np.abs(known)):
            if size:
                signs = np.where(np.abs(known) == size, np.sign(known), 0).astype(np.int8)
                part = self.scale(linear(signs), float(size))
                total = part if total is None else self.add(total, part)
        assert total is not None
        return total

    def _times(self, a: Affine, factor: Weight) -> Affine:
        factor = weights.shrunk(factor)
        node = folded(self, self.rescale, a.node, factor)
        if node is None:
            freed = self.rescale(a)
            return Affine(self.private_node(freed.node, factor, elementwise(a.shape)))
        if a.constant is None:
            return Affine(node)
        return Affine(node, weights.product(a.constant, factor))

    def contract(self, a: Affine, known: Known, how: Contraction) -> Affine:
        """The product of a with a weight."""
        w = weights.as_weight(known, len(known.shape))
        pairs = terms(self, a.node, frozenset(how.contracted))
        if pairs is None:
            a = self.rescale(a)
            pairs = [(a.node, None)]
        total: Node | None = None
        for node, factor in pairs:
            own = w
            if factor is not None:
                own = weights.product(w, weights.moved(factor, how.contracted, len(w.shape)))
            part = self.private_node(node, own, how)
            total = part if total is None else self.new(Add((total, part), how.shape))
        assert total is not None
        if a.constant is None:
            return Affine(total)

        def constant(x: Any, w: Any) -> Any:
            return how.product.apply(jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32))

        both = [weights.spread(a.constant, a.shape), w]
        every = range(len(how.shape))
        return Affine(total, weights.derived(constant, both, how.shape, every))

    # --- gates

    def relu(self, a: Affine) -> Affine:
        """max(a, 0)."""
        if a in self.with_zero:
            return self.with_zero[a]()
        if a not in self._rectified:
            draft = self._gate("relu", a)
            self._rectified[a] = draft.out
            self._rectified_from[draft.out] = a
        return Affine(self._rectified[a])

    def rescale(self, a: Affine, partner: Affine | None = None) -> Affine:
        """a itself, free of private products.

        Args:
          a: the value.
          partner: the result of a gate on whose level this one may run.
        """
        if not self.is_private[a.node]:
            return a
        with_whom = None if partner is None else self._drafts[partner.node]  # type: ignore[index]
        if a not in self._rescaled:
            self._rescaled[a] = self._gate("rescale", a, with_whom).out
        elif with_whom is None:
            self._drafts[self._rescaled[a]].partner = None
        return Affine(self._rescaled[a])

    def _gate(self, kind: str, a: Affine, partner: _Draft | None = None) -> _Draft:
        name = self.layer if kind == "relu" else f"{self.layer}/{kind}"
        self._names[name] = count = self._names.get(name, 0) + 1
        out = Source(a.shape, name if count == 1 else f"{name}#{count}")
        node = self._without_rescaled(a.node)
        draft = _Draft(kind, self.whole(Affine(node, a.constant)), out, self.line, partner)
        self._drafts[out] = draft
        self.is_private[out] = False
        level = 1 + self.reads[node]
        self.reads[out] = max(level, self.reads[partner.out]) if partner else level
        return draft

    def _without_rescaled(self, node: Node) -> Node:
        """`node`, reading earlier sums from their rescale gates where there are any."""
        if not isinstance(node, Add):
            return node
        freed = tuple(self._rescaled.get(Affine(part)) or part for part in node.operands)
        later = max(map(self.reads.__getitem__, freed)) > self.reads[node]
        return node if freed == node.operands or later else self.new(Add(freed, node.shape))

    def maximum(self, a: Affine, b: Affine) -> Affine:
        """max(a, b) = b + max(a − b, 0), free of private products."""
        if self.has_private(b) and not self.has_private(a):
            a, b = b, a
        larger = self.relu(self.subtract(a, b))
        return self.add(larger, self.rescale(b, partner=larger))

    def before_relu(self, a: Affine) -> Affine | None:
        """z such that a = max(z, 0), if that is how a was made."""
        if a.constant is not None:
            return None
        if a.node in self._rectified_from:
            return self._rectified_from[a.node]
        if isinstance(a.node, Public) and self.moves[a.node].selects:
            parts = [self.before_relu(Affine(part)) for part in a.node.operands]
            inputs = [part for part in parts if part is not None]
            if len(inputs) == len(parts):
                return self.public(inputs, a.node.apply, a.shape, self.moves[a.node])
        return None

    def gates(self, outputs: Sequence[Node]) -> tuple[Gate, ...]:
        """The gates that `outputs` depend on, by level."""
        alive: set[Source] = set()
        waiting = list(outputs)
        while waiting:
            for node in reachable([waiting.pop()]):
                if node in self._drafts and node not in alive:
                    alive.add(node)
                    waiting.append(self._drafts[node].operand)
        levels: dict[Source, int] = {}
        for out, draft in self._drafts.items():
            if out in alive:
                read = [n for n in reachable([draft.operand]) if n in levels]
                level = 1 + max((levels[n] for n in read), default=-1)
                if draft.partner and draft.partner.out in alive:
                    level = max(level, levels[draft.partner.out])
                levels[out] = level
        gates = [
            Gate(d.kind, d.operand, out, levels[out], out.name, d.line)
            for out, d in self._drafts.items()
            if out in alive
        ]
        return tuple(sorted(gates, key=lambda gate: gate.level))


def has_few_sizes(known: Known) -> bool:
    """True if `known` is public, has few distinct magnitudes, and is not all zero."""
    if isinstance(known, Weight):
        return False
    return 0 < int(np.count_nonzero(np.unique(np.abs(known)))) <= _FEW
