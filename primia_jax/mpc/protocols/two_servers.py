"""Common base of AriaNN and SecureNN: image and model are secret-shared by two servers.

| party | is | learns |
| --- | --- | --- |
| data owner | server 0; shares the image | the outputs |
| model owner | server 1; shares the weights | that an image comes, and its shape |
| crypto provider | the dealer, or the assistant | nothing but shapes and the layers' ranges |

Semi-honest, without collusion. A protocol is made by two sub-protocols, the products of a step and
the ReLUs of a step, and by what is dealt beforehand; everything else is here. Shares of what one
server knows are compressed: the other's share comes from a seed that both hold.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import prg, ring
from primia_jax.mpc.circuit import check_image
from primia_jax.mpc.cost import Cost
from primia_jax.mpc.ledger import Ledger
from primia_jax.mpc.plan import Plan
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER, PARTIES, epochs
from primia_jax.mpc.protocols.epochs import Epoch
from primia_jax.mpc.protocols.parties import ASSISTANT, Party, SharedStream
from primia_jax.mpc.protocols.protocol import Diagnosis, Protocol
from primia_jax.mpc.scaling import Ranges
from primia_jax.mpc.shared_circuit import SharedCircuit, Step, varying_shape
from primia_jax.runtime.party import Receive, Send, Stage, Steps

_SET_UP = 0  # the number of the set-up's streams; runs count from 1
_NUMBER_BYTES = 8
WORD_BYTES = 8
_OWN = 3  # place of the provider's own seed


@dataclasses.dataclass(frozen=True)
class State:
    """A party.

    Attributes:
      circuit: the network's public description.
      index: 0, 1 or 2.
      seeds: uint8 [32], by the other party's index; at `_OWN` the provider's own. Streams are
        expanded from what each epoch derives from them.
      ledger: the numbers of runs that began; changes in place, so that a failed run burns its own.
      words: weights and constants, of the model owner until set-up.
      weights: what the party holds of each weight, after set-up; of the protocol's own making.
      constants: shares.
      keys: what was dealt, by number; changes in place.
      epoch: of this start of the session.
    """

    circuit: SharedCircuit
    index: int
    seeds: dict[int, Any]
    ledger: Ledger
    words: tuple[Any, Any] | None = None
    weights: tuple[Any, ...] | None = None
    constants: tuple[Any, ...] = ()
    keys: dict[int, Any] = dataclasses.field(default_factory=dict)
    epoch: Epoch = Epoch(b"")

    def party(self, number: int) -> Party:
        """The party as one run sees it, with streams of this epoch."""
        seeds = {i: self.epoch.seed(root) for i, root in self.seeds.items()}
        streams = {i: SharedStream(s, number) for i, s in seeds.items() if i != _OWN}
        own = SharedStream(seeds[_OWN], number) if _OWN in seeds else None
        return Party(self.index, PARTIES, streams, own)


Hop = tuple[tuple[int, ...], tuple[int, ...]]  # who sends to whom at one time
EXCHANGE: Hop = ((0, 1), (0, 1))
TO_ASSISTANT: Hop = ((0, 1), (ASSISTANT,))
FROM_ASSISTANT: Hop = ((ASSISTANT,), (0, 1))
_OPENING: Hop = ((0,), (1, ASSISTANT))
_OUTPUTS: Hop = ((1,), (0,))


def _after(depths: tuple[int, ...], hop: Hop) -> tuple[int, ...]:
    """The messages behind each party on its longest chain, after a hop."""
    senders, readers = hop
    return tuple(
        max([own, *(depths[s] + 1 for s in senders if s != party and party in readers)])
        for party, own in enumerate(depths)
    )


class StepCost(NamedTuple):
    """Cost of one step of a run.

    Attributes:
      hops: its messages, in their order.
      online_bytes: of all of them.
      key_bytes: that were dealt to each server.
    """

    hops: tuple[Hop, ...]
    online_bytes: int
    key_bytes: tuple[int, int] = (0, 0)


class TwoServers(Protocol):
    """A protocol in which two servers hold shares of all values."""

    keys_on_disk = False

    # --- what a protocol defines

    @abc.abstractmethod
    def compared_bits(self, config: Any) -> int:
        """The low bits of a word in which the protocol looks for its sign."""

    @abc.abstractmethod
    def share_weights(self, state: State, me: Party, shares: Sequence[Any]) -> Steps:
        """Keeps a party's state of the weights, from a server's shares (None for the third)."""

    @abc.abstractmethod
    def multiply(
        self, state: State, me: Party, level: int, operands: Sequence[Any], key: Any
    ) -> Steps:
        """A server's shares of a step's products, not truncated."""

    @abc.abstractmethod
    def relu(self, state: State, me: Party, level: int, x: Any, key: Any) -> Steps:
        """A server's share of max(x, 0), of all elements of a step together."""

    @abc.abstractmethod
    def step_cost(self, circuit: SharedCircuit, step: Step) -> StepCost:
        """Cost of one step."""

    def assist(self, state: State, me: Party) -> Steps:
        """The third party's part of a run."""
        return
        yield

    def deal(self, state: State, number: int) -> Steps:
        """Prepares a party for the run of this number; returns the state it keeps for it."""
        return None
        yield

    # --- the interface

    def in_the_clear(self, circuit: SharedCircuit, params: Any, images: Any) -> list[Any]:
        """See `Protocol.in_the_clear`."""
        images = check_image(circuit, images)
        with ring.x64():
            sources = {circuit.plan.image: jnp.asarray(circuit.encoded(images))}
            weights = dict(zip(circuit.products, circuit.weight_words(params)))
            constants = [jnp.asarray(words) for words in circuit.constant_words(params)]
            known: dict[Any, Any] = {}
            values: Any = ()
            for level, step in enumerate(circuit.steps):
                inputs = [sources[source] for source in step.sources]
                operands = circuit.operands(level, None)(inputs)
                products = [
                    circuit.multiply(node)(x, circuit.digits(node)(weights[node]), np.uint64(0))
                    for node, x in zip(step.products, operands)
                ]
                values, kept = circuit.values(level, None)(
                    inputs, products, [known[node] for node in step.known], constants
                )
                known.update(zip(step.products, kept))
                for gate, z in zip(step.gates, values):
                    negative = ring.to_signed(z) < 0
                    sources[gate.out] = jnp.where(negative, 0, z) if gate.kind == "relu" else z
        return [circuit.decoded(words) for words in values]

    def circuit(self, plan: Plan, ranges: Ranges, config: Any) -> SharedCircuit:
        """See `Protocol.circuit`."""
        return SharedCircuit(plan, ranges, config, self.compared_bits(config))

    def cost(self, circuit: SharedCircuit) -> Cost:
        """See `Protocol.cost`."""
        parts = [self.step_cost(circuit, step) for step in circuit.steps]
        depths: tuple[int, ...] = (0, 0, 0)
        for hop in (_OPENING, *(hop for part in parts for hop in part.hops), _OUTPUTS):
            depths = _after(depths, hop)
        ends = 2 * _NUMBER_BYTES + WORD_BYTES * sum(
            math.prod(o.shape) for o in circuit.plan.outputs
        )
        return Cost(
            round_trips=max(depths) / 2,
            online_bytes=ends + sum(part.online_bytes for part in parts),
            key_bytes={
                DATA_OWNER: sum(part.key_bytes[0] for part in parts),
                MODEL_OWNER: sum(part.key_bytes[1] for part in parts),
            },
            client_bytes=0,
        )

    def data_owner(self, circuit: SharedCircuit) -> State:
        """See `Protocol.data_owner`."""
        seeds = {i: prg.new_seed() for i in (1, ASSISTANT)}
        return State(circuit, 0, seeds, Ledger(None))

    def model_owner(self, circuit: SharedCircuit, params: Any) -> State:
        """See `Protocol.model_owner`."""
        words = (circuit.weight_words(params), circuit.constant_words(params))
        return State(circuit, 1, {ASSISTANT: prg.new_seed()}, Ledger(None), words)

    def provider(self, circuit: SharedCircuit) -> State:
        """See `Protocol.provider`."""
        return State(circuit, ASSISTANT, {_OWN: prg.new_seed()}, Ledger(None))

    @ring.x64_steps
    def set_up(self, state: State) -> Steps:
        """See `Protocol.set_up`."""
        if state.weights is not None:
            raise ProtocolError(f"the {_title(state)} is set up already")
        yield Stage("set-up")
        state = yield from _exchange_seeds(state)
        state = yield from _agreed(state)
        me, circuit = state.party(_SET_UP), state.circuit
        shares: list[Any] = [None] * len(circuit.products)
        constants: list[Any] = []
        if not me.is_assistant:
            stream = me.shared_with(1 - me.index)
            weights, added = state.words or ([None] * len(circuit.products), None)
            shapes = [node.weight.shape for node in circuit.products]
            shares = [_share(stream, s, w) for s, w in zip(shapes, weights)]
            shapes = [varying_shape(node) for node in circuit.constants()]
            constants = [
                _share(stream, s, w) for s, w in zip(shapes, added or [None] * len(shapes))
            ]
        weights = yield from self.share_weights(state, me, shares)
        return dataclasses.replace(
            state,
            words=None,
            weights=tuple(weights),
            constants=tuple(jnp.asarray(c) for c in constants),
        ), None

    def begin_epoch(self, state: State) -> Steps:
        """See `Protocol.begin_epoch`."""
        yield Stage("session")
        return (yield from _agreed(state, resumed=True)), None

    def next_number(self, state: State) -> int:
        """See `Protocol.next_number`."""
        made = max(state.ledger.next(), 1, *(number + 1 for number in state.keys))
        return max(made, state.epoch.next_number)

    def available(self, state: State) -> int:
        """See `Protocol.available`."""
        return len(state.keys)

    @ring.x64_steps
    def prepare(self, state: State, numbers: Sequence[int]) -> Steps:
        """See `Protocol.prepare`."""
        _check_session(state)
        for number in numbers:
            if number in state.keys or number < max(state.ledger.next(), 1):
                raise ProtocolError(f"key {number} was made before")
            state.keys[number] = yield from self.deal(state, number)
        return state, None

    @ring.x64_steps
    def infer_data_owner(self, state: State, image: Any, streamed: bool = False) -> Steps:
        """See `Protocol.infer_data_owner`."""
        circuit = state.circuit
        image = check_image(circuit, image)
        yield Stage("image")
        _check_session(state)
        if not streamed and not state.keys:
            raise ProtocolError("no key is left: prepare some")
        number = self.next_number(state) if streamed else min(state.keys)
        key = _taken(state, number, streamed)
        opening = {"number": np.uint64(number)}
        yield Send((MODEL_OWNER, CRYPTO_PROVIDER), opening, "key number | public")
        if streamed:
            key = yield from self.deal(state, number)
        me = state.party(number)
        share = _share(me.shared_with(1), image.shape, circuit.encoded(image))
        outputs = yield from self._serve(state, me, share, key)
        theirs = yield Receive(MODEL_OWNER)
        decoded = tuple(circuit.decoded(own + other) for own, other in zip(outputs, theirs))
        return state, Diagnosis(decoded, None)

    @ring.x64_steps
    def infer_model_owner(self, state: State, streamed: bool = False) -> Steps:
        """See `Protocol.infer_model_owner`."""
        yield Stage("image")
        _check_session(state)
        number = int((yield Receive(DATA_OWNER))["number"])
        key = _taken(state, number, streamed)
        if streamed:
            key = yield from self.deal(state, number)
        me = state.party(number)
        share = _share(me.shared_with(0), state.circuit.plan.image.shape, None)
        outputs = yield from self._serve(state, me, share, key)
        yield Send(DATA_OWNER, tuple(outputs), "outputs | opened by its reader")
        return state, None

    @ring.x64_steps
    def infer_provider(self, state: State, streamed: bool = False) -> Steps:
        """See `Protocol.infer_provider`."""
        yield Stage("image")
        _check_session(state)
        number = int((yield Receive(DATA_OWNER))["number"])
        _taken(state, number, streamed)
        if streamed:
            yield from self.deal(state, number)
        yield from self.assist(state, state.party(number))
        return state, None

    def _serve(self, state: State, me: Party, image: Any, key: Any) -> Steps:
        """A server's part of a run: its shares of the outputs."""
        circuit, party = state.circuit, me.index
        sources = {circuit.plan.image: jnp.asarray(image)}
        known: dict[Any, Any] = {}
        values: Any = ()
        for level, step in enumerate(circuit.steps):
            yield Stage(step.name)
            inputs = [sources[source] for source in step.sources]
            dealt = key[level] if key is not None else None
            products = []
            if step.products:
                operands = circuit.operands(level, party)(inputs)
                products = yield from self.multiply(state, me, level, operands, dealt)
            values, kept = circuit.values(level, party)(
                inputs, products, [known[node] for node in step.known], list(state.constants)
            )
            known.update(zip(step.products, kept))
            sources.update(zip((gate.out for gate in step.gates), values))
            if step.relus:
                x = jnp.concatenate([values[i].reshape(-1) for i in step.relus])
                y = jnp.asarray((yield from self.relu(state, me, level, x, dealt)))
                sources.update(_split(step, y))
        return values


def _split(step: Step, words: Any) -> dict[Any, Any]:
    """The results of a step's ReLUs, from all of them in one."""
    results, at = {}, 0
    for i in step.relus:
        out = step.gates[i].out
        size = math.prod(out.shape)
        results[out] = words[at : at + size].reshape(out.shape)
        at += size
    return results


def _share(stream: SharedStream, shape: Sequence[int], secret: Any) -> Any:
    """The share of who knows `secret`, or (None) of the other, which the stream gives."""
    drawn = stream.words(math.prod(shape)).reshape(shape)
    return drawn if secret is None else secret - drawn


def _exchange_seeds(state: State) -> Steps:
    """Every pair of parties gets a seed that the third does not know."""
    seeds = dict(state.seeds)
    for other in range(3):
        if other > state.index:
            label = "seed | for its reader"
            yield Send(PARTIES[other], {"seed": seeds[other]}, label)
    for other in range(3):
        if other < state.index:
            seeds[other] = (yield Receive(PARTIES[other]))["seed"]
    return dataclasses.replace(state, seeds=seeds)


def _agreed(state: State, resumed: bool = False) -> Steps:
    """The party with its new epoch. What was dealt in an earlier one is dropped."""
    made = max(state.ledger.next(), 1, *(number + 1 for number in state.keys))
    epoch, _ = yield from epochs.agree(PARTIES[state.index], state.ledger, made, resumed)
    return dataclasses.replace(state, epoch=epoch, keys={})


def _check_session(state: State) -> None:
    if state.weights is None:
        raise ProtocolError(f"the {_title(state)} has no session yet: run the set-up first")


def _taken(state: State, number: int, streamed: bool) -> Any:
    """Burns a number before anything is sent under it; gives what was dealt for it beforehand.

    Keys of lower numbers can serve no run any more and are dropped.

    Raises:
      ProtocolError: if the number was burned before, or its key is not there.
    """
    state.ledger.burn(number)
    there = number in state.keys
    key = state.keys.pop(number, None)
    for passed in [other for other in state.keys if other < number]:
        del state.keys[passed]
    if not (streamed or there):
        raise ProtocolError(
            f"the {_title(state)} has no key {number}: a preparation was broken off"
        )
    return key


def _title(state: State) -> str:
    return PARTIES[state.index].replace("_", " ")
