"""AriaNN: image and model shared between two servers, comparisons by function secret sharing.

T. Ryffel, P. Tholoniat, D. Pointcheval, F. Bach, "AriaNN: Low-Interaction Privacy-Preserving Deep
Learning via Function Secret Sharing" (PoPETs 2022): the protocol of the paper whose system this
project re-implements.

- A product takes a Beaver triple (A, B, A∗B). B masks the weights for a whole session, so that
  W − B is opened once, in the set-up; a run opens x − A only: one message on the critical path.
- A comparison x < 0 opens x + α modulo 2^b and takes a distributed comparison function over all b
  bits: x is negative where x + α < α, unless x + α wraps, which happens with probability |x| / 2^b.
  b is 32, as published, or 64.
- ReLU multiplies x by the shares of 1[x >= 0], by a Beaver triple: two messages in all.

Everything is dealt beforehand. Of the two shares of what is dealt, one (or both, where uniform) is
expanded from a seed; the keys of comparisons go to both servers.

Axis letters: N elements of a step's ReLUs.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.mpc import dcf, observation, ring
from primia_jax.mpc.protocols.parties import ASSISTANT, Party, SharedStream
from primia_jax.mpc.protocols.two_servers import EXCHANGE, WORD_BYTES, State, StepCost, TwoServers
from primia_jax.mpc.shared_circuit import SharedCircuit, Step
from primia_jax.runtime.party import Receive, Send, Stage, Steps


class StepKey(NamedTuple):
    """Key of a server for one step of one run.

    Attributes:
      masks: its shares of A, of each product.
      addends: C_j + A_j∗(W − B), of each product.
      alpha: share of the mask of the compared value, uint32 or uint64 [N].
      root: uint32 [4, N], of its tree.
      compare: the corrections of the trees.
      triple: shares of a, c and a·c, words [3, N].
      number: of the run.
    """

    masks: list[Any]
    addends: list[Any]
    alpha: Any
    root: Any
    compare: Any
    triple: Any
    number: int


def comparison_key_bytes(n_bits: int) -> int:
    """Bytes of the key of one n-bit comparison, to either server."""
    return dcf.cost(dcf.Params(n_bits)).key_bytes


class _Drawn(NamedTuple):
    """Values that a server and the dealer expand from their common seed for one step.

    Attributes:
      masks, alpha, root: as in `StepKey`.
      pair: shares of a and c, words [2, N].
      products, last: server 0's shares of A∗B and of a·c; server 1 is sent its own.
    """

    masks: list[Any]
    alpha: Any
    root: Any
    pair: Any
    products: list[Any]
    last: Any


def _draw(circuit: SharedCircuit, level: int, stream: SharedStream, server: int) -> _Drawn:
    step, count = circuit.steps[level], circuit.steps[level].n_relus

    def words(*shape: int, kind: Any = np.uint64) -> Any:
        return jnp.asarray(stream.words(math.prod(shape), kind).reshape(shape))

    masks = [words(*node.operand.shape) for node in step.products]
    alpha = words(count, kind=ring.word_type(circuit.compared_bits))
    root, pair = words(4, count, kind=np.uint32), words(2, count)
    if server == 1:
        return _Drawn(masks, alpha, root, pair, [], None)
    return _Drawn(
        masks, alpha, root, pair, [words(*node.shape) for node in step.products], words(count)
    )


class Ariann(TwoServers):
    """See the module."""

    name = "ariann"

    def compared_bits(self, config: Any) -> int:
        """As configured."""
        return int(config.ariann_compare_bits)

    def step_cost(self, circuit: SharedCircuit, step: Step) -> StepCost:
        """A product opens its operand, a comparison its own, ReLU's product two more words."""
        compared = circuit.compared_bits // 8
        operands = sum(math.prod(node.operand.shape) for node in step.products)
        results = sum(math.prod(node.shape) for node in step.products)
        trees = step.n_relus * comparison_key_bytes(circuit.compared_bits)
        return StepCost(
            (EXCHANGE,) * (bool(step.products) + 2 * bool(step.relus)),
            2 * (WORD_BYTES * (operands + 2 * step.n_relus) + compared * step.n_relus),
            (trees, trees + WORD_BYTES * (results + step.n_relus)),
        )

    def share_weights(self, state: State, me: Party, shares: Sequence[Any]) -> Steps:
        """Digits of B for the dealer; of W − B, and of what the opened operand meets."""
        circuit = state.circuit

        def matrices(other: int) -> list[Any]:
            stream = me.shared_with(other)
            shapes = [node.weight.shape for node in circuit.products]
            return [stream.words(math.prod(s)).reshape(s) for s in shapes]

        if me.is_assistant:
            whole = [b0 + b1 for b0, b1 in zip(matrices(0), matrices(1))]
            return [circuit.digits(n)(b) for n, b in zip(circuit.products, whole)]
        own = matrices(ASSISTANT)
        differences = [w - b for w, b in zip(shares, own)]
        yield Send(me.peer, tuple(differences), "weights | masked by B, shared")
        theirs = yield Receive(me.peer)
        kept = []
        for node, b, mine, other in zip(circuit.products, own, differences, theirs):
            opened = np.asarray(mine + other)
            factor = b + opened if me.index else b  # E∗B_j, and E∗(W − B) once
            kept.append((circuit.digits(node)(opened), circuit.digits(node)(factor)))
        return kept

    def deal(self, state: State, number: int) -> Steps:
        """Keys of all steps."""
        circuit, me = state.circuit, state.party(number)
        assert state.weights is not None
        weights, keys = dict(zip(circuit.products, state.weights)), []
        for level, step in enumerate(circuit.steps):
            yield Stage(step.name)
            if me.is_assistant:
                yield from _deal_step(circuit, weights, me, level, number)
                continue
            drawn = _draw(circuit, level, me.shared_with(ASSISTANT), me.index)
            message: dict[str, Any] = {"compare": (), "products": drawn.products}
            if me.index == 1 or step.relus:
                message |= yield Receive(me.assistant)
            addends = [
                circuit.multiply(node)(mask, weights[node][0], c)
                for node, mask, c in zip(step.products, drawn.masks, message["products"])
            ]
            last = drawn.last if me.index == 0 else jnp.asarray(message["last"])
            keys.append(
                StepKey(
                    drawn.masks,
                    addends,
                    drawn.alpha,
                    drawn.root,
                    message["compare"],
                    jnp.concatenate([drawn.pair, last[None]]),
                    number,
                )
            )
        return keys

    def multiply(
        self, state: State, me: Party, level: int, operands: Sequence[Any], key: StepKey
    ) -> Steps:
        """E∗B_j + A_j∗(W − B) + C_j, and E∗(W − B) at server 1, E = x − A being opened."""
        circuit = state.circuit
        assert state.weights is not None
        own = [x - mask for x, mask in zip(operands, key.masks)]
        yield Send(me.peer, tuple(own), "operands | masked by A, shared")
        theirs = yield Receive(me.peer)
        observation.opened("masked operands", lambda: [a + b for a, b in zip(own, theirs)])
        weights = dict(zip(circuit.products, state.weights))
        return [
            circuit.multiply(node)(mine + other, weights[node][1], addend)
            for node, mine, other, addend in zip(
                circuit.steps[level].products, own, theirs, key.addends
            )
        ]

    def relu(self, state: State, me: Party, level: int, x: Any, key: StepKey) -> Steps:
        """x · 1[x >= 0] in two messages."""
        circuit = state.circuit
        masked = x.astype(key.alpha.dtype) + key.alpha
        yield Send(me.peer, masked, "operand | masked by α, shared")
        opened = masked + jnp.asarray((yield Receive(me.peer)))
        observation.opened("masked operand of a comparison", lambda: opened)
        domain = (level, key.number)
        negative = dcf.evaluate(me.index, key.root, key.compare, opened, _params(circuit), domain)
        own = _differences(me.index, negative, x, key.triple)
        yield Send(me.peer, own, "factors | masked by the triple, shared")
        theirs = jnp.asarray((yield Receive(me.peer)))
        observation.opened("masked factors", lambda: own + theirs)
        return _product(me.index, own, theirs, key.triple)


def _params(circuit: SharedCircuit) -> dcf.Params:
    return dcf.Params(circuit.compared_bits, ring.N_BITS, circuit.config.prg_rounds)


def _deal_step(
    circuit: SharedCircuit, weights: dict[Any, Any], me: Party, level: int, number: int
) -> Steps:
    """The dealer's messages of one step."""
    step = circuit.steps[level]
    first, second = (_draw(circuit, level, me.shared_with(i), i) for i in (0, 1))
    label = "keys | masked by the dealer"
    compare: Any = ()
    if step.relus:
        alpha, ones = first.alpha + second.alpha, jnp.ones(step.n_relus, np.uint64)
        corrections = dcf.keygen(
            alpha, ones, first.root, second.root, _params(circuit), (level, number)
        )
        compare = tuple(tuple(piece) for piece in corrections)
        yield Send(me.names[0], {"compare": compare}, label)
    products = [
        circuit.multiply(node)(a0 + a1, weights[node], -c0)
        for node, a0, a1, c0 in zip(step.products, first.masks, second.masks, first.products)
    ]
    a, c = first.pair + second.pair
    message = {"products": products, "compare": compare, "last": a * c - first.last}
    yield Send(me.names[1], message, label)


@functools.partial(jax.jit, static_argnums=0)
def _differences(server: int, negative: Any, x: Any, triple: Any) -> Any:
    """Shares of 1[x >= 0] − a and of x − c, words [2, N]."""
    positive = -negative if server else negative.dtype.type(1) - negative
    return jnp.stack([positive - triple[0], x - triple[1]])


@functools.partial(jax.jit, static_argnums=0)
def _product(server: int, own: Any, other: Any, triple: Any) -> Any:
    """A share of the product of what was masked by a and c."""
    first, second = own + other
    share = first * triple[1] + second * triple[0] + triple[2]
    return share + first * second if server else share
