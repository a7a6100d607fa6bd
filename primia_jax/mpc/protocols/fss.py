"""Encrypted inference by function secret sharing: weights at their owner, one round trip a layer.

Three parties, semi-honest, of which the crypto provider colludes with neither of the others:

| party | holds | learns |
| --- | --- | --- |
| data owner (0) | the image | its logits, public shapes and ranges, flags of layers out of range |
| model owner (1) | the weights | shapes and ranges, which are its own |
| crypto provider | all masks | shapes and ranges |

Ranges: the units, widths and bits of headroom of the layers, which follow from calibration images
and the weights. A flag comes with a power of two that divides the excesses.

Set-up, once: the provider knows a matrix B as large as the weights W, which the model owner
expands from a seed; the data owner gets δ = W − B. All other words are expanded from seeds of an
epoch, which the three agree on at every start (`mpc.protocols.epochs`).

Offline, for each key number and linear map, with masks ρ on what goes in (the data owner's) and r
on what comes out (the provider's): provider → model owner: κ_D = r − B∗ρ − e, data owner → model
owner: κ_C = e − δ∗ρ; together κ = r − W∗ρ. With it come the keys of the gates (`mpc.gates`).

Online: the model owner holds ŷ = y + ρ, computes ẑ = W∗ŷ + κ = z + r, and sends its part y' that
the gate needs. Both find their shares of the masked sign, exchange them, and the data owner answers
with its share of the next ŷ: two messages on the critical path for each layer. For the outputs the
data owner itself holds r, so that nobody else can open them; the provider adds noise of its own
below their precision (`masks.output_noise`): an exact word would tell the exponent of an output
channel's weights and low bits of its bias after a dozen runs. Range checks go with the outputs
(`range_checks`): the data owner, and nobody else, learns which layers left their range.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import bilinear, devices, gates, observation, prg, ring
from primia_jax.mpc.circuit import Circuit, Segment, check_image
from primia_jax.mpc.gates import Streams
from primia_jax.mpc.key_store import KeyStore
from primia_jax.mpc.ledger import Ledger
from primia_jax.mpc.plan import Source
from primia_jax.mpc.protocols import (
    CRYPTO_PROVIDER,
    DATA_OWNER,
    MODEL_OWNER,
    epochs,
    masks,
    range_checks,
)
from primia_jax.mpc.protocols.epochs import Epoch
from primia_jax.mpc.protocols.protocol import Diagnosis
from primia_jax.mpc.protocols.range_checks import Held
from primia_jax.runtime.party import Receive, Send, Stage, Steps

NO_EPOCH = Epoch(b"")
_READY = 2  # keys that the data owner holds expanded; one of a ResNet-18 takes some 120 MB


@dataclasses.dataclass(frozen=True)
class DataOwner:
    """Party 0.

    Attributes:
      circuit: the network's public description.
      root: uint8 [32], from which its masks and its half of the keys are derived, epoch by epoch.
      store: its keys, single-use; changes in place, so that a failed run burns its key too.
      deltas: W − B of each product, as digits; None before set-up.
      ready: of the next keys, by number, what it expanded before the image came.
      epoch: of this start of the session.
    """

    circuit: Circuit
    root: Any
    store: KeyStore
    deltas: tuple[Any, ...] | None = None
    ready: dict[int, Any] = dataclasses.field(default_factory=dict)
    epoch: Epoch = NO_EPOCH

    @property
    def seed(self) -> np.ndarray:
        """uint8 [32], of the keys of this epoch."""
        return self.epoch.seed(self.root)


@dataclasses.dataclass(frozen=True)
class ModelOwner:
    """Party 1.

    Attributes:
      circuit: the network's public description.
      weights: (digits, shift) of each product.
      words: the weights as ring words, until set-up; None afterwards.
      constants: words, of each segment.
      root: uint8 [32], from which B and its half of the keys are derived.
      store: its keys, single-use.
      ready: of the next keys, by number, what it expanded before the image came.
      epoch: of this start of the session.
    """

    circuit: Circuit
    weights: tuple[tuple[Any, Any], ...]
    words: tuple[Any, ...] | None
    constants: tuple[tuple[Any, ...], ...]
    root: Any
    store: KeyStore
    ready: dict[int, "_OwnerReady"] = dataclasses.field(default_factory=dict)
    epoch: Epoch = NO_EPOCH


class _OwnerReady(NamedTuple):
    """Values of one key that the model owner needs no image for.

    Attributes:
      streams: of each segment and gate, expanded from the seed.
      tables: of each segment, each gate's `gates.excess_table`; None where nothing is checked.
      matrices: K of the range checks.
    """

    streams: list[list[Streams]]
    tables: list[list[Any]]
    matrices: Any


@dataclasses.dataclass(frozen=True)
class Provider:
    """The crypto provider.

    Attributes:
      circuit: the network's public description.
      root: uint8 [32], from which the masks that neither party may know are derived.
      ledger: key numbers that it dealt.
      roots: the parties'; None before set-up.
      matrices: B of each product, as digits.
      epoch: of this start of the session.
    """

    circuit: Circuit
    root: Any
    ledger: Ledger
    roots: tuple[Any, Any] | None = None
    matrices: tuple[Any, ...] = ()
    epoch: Epoch = NO_EPOCH

    @property
    def seed(self) -> np.ndarray:
        """uint8 [32], of its masks in this epoch."""
        return self.epoch.seed(self.root)


def data_owner(circuit: Circuit, store: KeyStore | None = None) -> DataOwner:
    """A data owner with a fresh seed."""
    return DataOwner(circuit, prg.new_seed(), store or _new_store(circuit))


def model_owner(circuit: Circuit, params: Any, store: KeyStore | None = None) -> ModelOwner:
    """A model owner with the weights `params`, quantised for the circuit, and a fresh seed."""
    weights = circuit.quantised_weights(params)
    if _shows_exponents(circuit, weights):
        warnings.warn(
            "weights of an output nearly cancel: its words tell the data owner one of their "
            "exponents; lower config.mpc.output_bits or raise config.mpc.ring_bits",
            stacklevel=2,
        )
    with ring.x64():
        prepared = []
        for product, (w, shift) in zip(circuit.products, weights):
            digits = bilinear.weight_digits(jnp.asarray(w), circuit.owner_plan(product))
            word = ring.word_type(circuit.n_bits)
            prepared.append((digits, jnp.asarray(shift.astype(word))))
        constants = tuple(
            tuple(jnp.asarray(words) for words in segment)
            for segment in circuit.constant_words(params)
        )
    words = tuple(circuit.weight_words(weights))
    return ModelOwner(
        circuit, tuple(prepared), words, constants, prg.new_seed(), store or _new_store(circuit)
    )


def _shows_exponents(circuit: Circuit, weights: Any) -> bool:
    """True if a factor of two of an output channel is larger than its noise hides."""
    outputs = set(circuit.segments[-1].products)
    shifts = [
        int(np.max(shift, initial=0))
        for product, (_, shift) in zip(circuit.products, weights)
        if product in outputs
    ]
    hidden = min(masks.hidden_bits(bits) for bits in circuit.scaling.noise_bits)
    return max(shifts, default=0) > hidden


def provider(circuit: Circuit, ledger: Ledger | None = None) -> Provider:
    """A crypto provider with a fresh seed."""
    return Provider(circuit, prg.new_seed(), ledger or Ledger(None))


def next_number(state: DataOwner | ModelOwner | Provider) -> int:
    """The lowest key number of which nothing was dealt to this party."""
    own = state.ledger.next() if isinstance(state, Provider) else state.store.made
    return max(own, state.epoch.next_number)


def _new_store(circuit: Circuit) -> KeyStore:
    return KeyStore(None, circuit.fingerprint, prg.new_seed()[:8].tobytes().hex())


# --- set-up


def set_up_data_owner(state: DataOwner) -> Steps:
    """Gives its seed to the provider, gets δ from the model owner.

    A seed serves one session: under a second B the model owner could tell ρ from what two keys of
    one number differ by.
    """
    if state.deltas is not None:
        raise ProtocolError("the data owner is set up already: a new session needs a new one")
    yield Stage("set-up")
    yield Send(CRYPTO_PROVIDER, {"seed": state.root}, "seed of the data owner | for its reader")
    state = yield from _agreed(state)
    packed = yield Receive(MODEL_OWNER)
    circuit = state.circuit
    with ring.x64():
        deltas = tuple(
            _mask_digits(circuit.mask_plan(product), product[0].weight.shape, jnp.asarray(words))
            for words, product in zip(packed, circuit.products)
        )
    return dataclasses.replace(state, deltas=deltas), None


def set_up_model_owner(state: ModelOwner) -> Steps:
    """Gives its seed to the provider, and W − B to the data owner."""
    yield Stage("set-up")
    yield Send(CRYPTO_PROVIDER, {"seed": state.root}, "seed of the model owner | for its reader")
    words = state.words
    if words is None:
        raise ProtocolError("the model owner is set up already")
    state = yield from _agreed(state)
    with ring.x64():
        deltas = tuple(
            _packed_difference(state.circuit.n_bits, jnp.asarray(w.reshape(-1)), b.reshape(-1))
            for w, b in zip(words, masks.matrices(state.circuit, state.root))
        )
    yield Send(DATA_OWNER, deltas, "weights | masked by B")
    return dataclasses.replace(state, words=None), None


def set_up_provider(state: Provider) -> Steps:
    """Gets both seeds."""
    yield Stage("set-up")
    seed0 = (yield Receive(DATA_OWNER))["seed"]
    seed1 = (yield Receive(MODEL_OWNER))["seed"]
    state = yield from _agreed(state)
    return with_seeds(state, seed0, seed1), None


def with_seeds(state: Provider, seed0: Any, seed1: Any) -> Provider:
    """The provider once it knows the seeds of data owner and model owner."""
    with ring.x64():
        matrices = tuple(
            _mask_digits(state.circuit.mask_plan(product), words.shape, words)
            for product, words in zip(state.circuit.products, masks.matrices(state.circuit, seed1))
        )
    return dataclasses.replace(state, roots=(seed0, seed1), matrices=matrices)


def begin_epoch(state: Any) -> Steps:
    """Agrees on a new epoch of a session that was begun before; any party's program."""
    yield Stage("session")
    return (yield from _agreed(state, resumed=True)), None


def _agreed(state: Any, resumed: bool = False) -> Steps:
    """The party with its new epoch; burns the keys that the others have used."""
    if isinstance(state, Provider):
        epoch, _ = yield from epochs.agree(
            CRYPTO_PROVIDER, state.ledger, state.ledger.next(), resumed
        )
        return dataclasses.replace(state, epoch=epoch)
    party = DATA_OWNER if isinstance(state, DataOwner) else MODEL_OWNER
    store = state.store
    epoch, used = yield from epochs.agree(party, store.ledger, store.made, resumed)
    if used > store.ledger.next():
        store.burn(used - 1)
    return dataclasses.replace(state, epoch=epoch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mask_digits(plan: bilinear.LimbPlan, shape: tuple[int, ...], words: Any) -> list[Any]:
    """A matrix, of words or packed, as the digits in which it meets masks."""
    if words.shape != shape:
        words = ring.unpack(words, plan.ring_bits).reshape(shape)
    return bilinear.weight_digits(words, plan)


# --- offline


@functools.partial(jax.jit, static_argnums=0)
def _packed_difference(n_bits: int, a: Any, *others: Any) -> Any:
    return ring.pack(functools.reduce(jnp.subtract, others, a), n_bits)


def _mask_part(
    circuit: Circuit,
    level: int,
    seed: Any,
    number: int,
    matrices: tuple[Any, ...],
    kept: dict[Any, Any],
    with_public: bool,
) -> list[Any]:
    """The image of the masks ρ under a segment, in a party's own way."""
    segment = circuit.segments[level]
    by_product = dict(zip(circuit.products, matrices))
    values, keep = circuit.mask_values(level, with_public)(
        [masks.source_mask(circuit, seed, number, s, f"map {level}") for s in segment.sources],
        [by_product[product] for product in segment.products],
        [kept[product] for product in segment.known],
    )
    kept.update(zip(segment.keep, keep))
    return values


def _client_kappas(state: DataOwner, number: int) -> Steps:
    """Sends κ_C, layer by layer."""
    if state.deltas is None:
        raise ProtocolError("the data owner has no session yet: run the set-up first")
    circuit, seed = state.circuit, state.seed
    kept: dict[Any, Any] = {}
    for level, segment in enumerate(circuit.segments):
        if not any(segment.weighted):
            continue
        yield Stage(segment.name)
        values = _mask_part(circuit, level, seed, number, state.deltas, kept, False)
        positions = [i for i, weighted in enumerate(segment.weighted) if weighted]
        es = [masks.value_mask(circuit, seed, masks.E, number, level, i) for i in positions]
        kappas = tuple(_packed_difference(circuit.n_bits, e, value) for e, value in zip(es, values))
        yield Send(MODEL_OWNER, kappas, "κ_C | masked by e")


def _deal(state: Provider, number: int) -> Steps:
    """Deals the keys of one number, layer by layer."""
    if state.roots is None:
        raise ProtocolError("the crypto provider has no session yet: run the set-up first")
    state.ledger.burn(number)
    circuit, seed2 = state.circuit, state.seed
    seed0, seed1 = map(state.epoch.seed, state.roots)
    last = len(circuit.segments) - 1
    kept: dict[Any, Any] = {}
    checks = range_checks.Dealer(circuit, number, (seed0, seed1))
    for level, segment in enumerate(circuit.segments):
        yield Stage(segment.name)
        values = _mask_part(circuit, level, seed0, number, state.matrices, kept, True)
        kappas, keys, trees = [], [], []
        for position, value in enumerate(values):
            # The mask of an output is the data owner's: only it can open the output.
            r_seed = seed0 if level == last else seed2
            r = masks.value_mask(circuit, r_seed, masks.R, number, level, position)
            terms = [r, value]
            if level == last:
                terms[0] = r + masks.output_noise(circuit, seed2, number, position)
            if segment.weighted[position]:
                terms.append(masks.value_mask(circuit, seed0, masks.E, number, level, position))
            kappas.append(_packed_difference(circuit.n_bits, *terms))
            if level == last:
                continue
            gate = segment.gates[position]
            tree, key = gates.deal(
                circuit.specs[gate],
                r,
                masks.source_mask(circuit, seed0, number, gate.out, "the gate").reshape(-1),
                masks.party_streams(circuit, seed0, 0, gate, number),
                masks.party_streams(circuit, seed1, 1, gate, number),
                masks.domain(circuit, gate, number),
            )
            if circuit.specs[gate].excess_bits:
                key["check"] = checks.sigma(gate, r)
            keys.append(key)
            trees.append(tree)
        message = {"kappa": tuple(kappas), "keys": tuple(keys)}
        yield Send(MODEL_OWNER, message, "keys | masked by the dealer")
        if any(trees):
            yield Send(DATA_OWNER, tuple(trees), "keys | masked by the dealer")


def _has_trees(circuit: Circuit, segment: Segment) -> bool:
    return any(
        circuit.specs[gate].compares and not circuit.specs[gate].has_table for gate in segment.gates
    )


def _with_kappa_c(circuit: Circuit, segment: Segment, message: Any, kappas_c: Any) -> Any:
    """The dealer's message with κ = κ_D + κ_C."""
    kappas, others = [], iter(kappas_c)
    for kappa, weighted in zip(message["kappa"], segment.weighted):
        kappas.append(
            _packed_sum(circuit.n_bits, kappa, next(others)) if weighted else jnp.asarray(kappa)
        )
    return {"kappa": tuple(kappas), "keys": message["keys"]}


@functools.partial(jax.jit, static_argnums=0)
def _packed_sum(n_bits: int, a: Any, b: Any) -> Any:
    return ring.pack(ring.unpack(a, n_bits) + ring.unpack(b, n_bits), n_bits)


def _expanded(
    circuit: Circuit, seed: Any, segment: Segment, number: int, party: int = 0
) -> list[Streams]:
    return [masks.party_streams(circuit, seed, party, gate, number) for gate in segment.gates]


def _owner_ready(circuit: Circuit, seed: Any, number: int) -> _OwnerReady:
    """The values of a key, but for the tables: these follow from the dealer's messages."""
    streams = [_expanded(circuit, seed, segment, number, 1) for segment in circuit.segments]
    return _OwnerReady(streams, [], masks.check_matrices(circuit, seed, number))


def _excess_tables(circuit: Circuit, segment: Segment, keys: Any) -> list[Any]:
    """`gates.excess_table` of each gate of the model owner's; None where nothing is checked."""
    specs = [circuit.specs[gate] for gate in segment.gates]
    return [
        gates.excess_table(spec, 1, jnp.asarray(key["select"])) if spec.excess_bits else None
        for spec, key in zip(specs, keys)
    ]


def _still_ready(state: DataOwner | ModelOwner) -> dict[int, Any]:
    """What was expanded of keys that are not used up, by a run that failed for instance."""
    first = state.store.next()
    return {number: held for number, held in state.ready.items() if number >= first}


@ring.x64_steps
def prepare_data_owner(state: DataOwner, numbers: tuple[int, ...]) -> Steps:
    """Makes keys of these numbers: sends κ_C, takes its trees; expands the next ones beforehand."""
    circuit, seed, ready = state.circuit, state.seed, _still_ready(state)
    for number in numbers:
        if number < next_number(state):
            raise ProtocolError(f"key {number} was made before: take {next_number(state)}")
        yield from _client_kappas(state, number)
        for level, segment in enumerate(circuit.segments):
            trees = (yield Receive(CRYPTO_PROVIDER)) if _has_trees(circuit, segment) else ()
            state.store.put(number, level, trees)
        state.store.close_key(number, state.epoch.id)
        if len(ready) < _READY:
            ready[number] = jax.block_until_ready(
                [_expanded(circuit, seed, segment, number) for segment in circuit.segments]
            )
    return dataclasses.replace(state, ready=ready), None


@ring.x64_steps
def prepare_model_owner(state: ModelOwner, numbers: tuple[int, ...]) -> Steps:
    """Takes the keys of these numbers and stores them; expands the next ones beforehand."""
    circuit, ready = state.circuit, _still_ready(state)
    for number in numbers:
        expanded = None
        if len(ready) < _READY:
            expanded = _owner_ready(circuit, state.epoch.seed(state.root), number)
        kappas_c = yield from _receive_kappas(circuit)
        for level, segment in enumerate(circuit.segments):
            yield Stage(segment.name)
            message = yield Receive(CRYPTO_PROVIDER)
            message = _with_kappa_c(circuit, segment, message, kappas_c[level])
            state.store.put(number, level, message)
            if expanded is not None:
                expanded.tables.append(_excess_tables(circuit, segment, message["keys"]))
        state.store.close_key(number, state.epoch.id)
        if expanded is not None:
            ready[number] = jax.block_until_ready(expanded)
    return dataclasses.replace(state, ready=ready), None


def _receive_kappas(circuit: Circuit) -> Steps:
    """κ_C of each segment."""
    found = []
    for segment in circuit.segments:
        found.append((yield Receive(DATA_OWNER)) if any(segment.weighted) else ())
    return found


@ring.x64_steps
def prepare_provider(state: Provider, numbers: tuple[int, ...]) -> Steps:
    """Deals the keys of these numbers."""
    for number in numbers:
        yield from _deal(state, number)
    return state, None


# --- online


@ring.x64_steps
def infer_data_owner(state: DataOwner, image: Any, streamed: bool = False) -> Steps:
    """Has `image` diagnosed; reports a `Diagnosis`.

    Args:
      state: after set-up.
      image: float32, of the circuit's shape.
      streamed: whether the key is dealt now, layer by layer, rather than taken from the store.
    """
    circuit = state.circuit
    image = check_image(circuit, image)
    yield Stage("image")
    key: Any = None
    if streamed:
        number = next_number(state)
        state.store.burn(number)
        yield Send(CRYPTO_PROVIDER, {"number": np.uint64(number)}, "key number | public")
        yield Send(MODEL_OWNER, {"number": np.uint64(number)}, "key number | public")
        yield from _client_kappas(state, number)
    else:
        number = state.store.next()
        key = state.store.take(number)
    seed = state.seed if streamed else epochs.seed_in(state.root, key.epoch)
    rho = masks.source_mask(circuit, seed, number, circuit.plan.image, "the image")
    masked = _masked_image(circuit.n_bits, image, circuit.scaling.image, rho)
    opening = {"number": np.uint64(number), "image": masked}
    checks = range_checks.DataOwnerChecks(circuit, seed, number)
    if circuit.checked_gates:
        opening["check"] = checks.check_seed
    yield Send(MODEL_OWNER, opening, "image | masked by ρ")
    prepared = state.ready.get(number)
    for level, segment in enumerate(circuit.segments[:-1]):
        yield Stage(segment.name)
        trees: Any = ()
        if _has_trees(circuit, segment):
            trees = (yield Receive(CRYPTO_PROVIDER)) if streamed else key[level]
        own = prepared[level] if prepared else _expanded(circuit, seed, segment, number)
        checks.form((yield from _gates_data_owner(circuit, segment, number, own, trees)))
    yield Stage("outputs")
    if circuit.checked_gates:
        yield Send(MODEL_OWNER, checks.request(), "range checks | masked by μ")
    packed = yield Receive(MODEL_OWNER)
    last = len(circuit.segments) - 1
    outputs, beyond = [], []
    for position, (node, unit) in enumerate(circuit.segments[last].values):
        r = masks.value_mask(circuit, seed, masks.R, number, last, position)
        opened = np.asarray(_opened(circuit.n_bits, packed[position], r))
        if np.abs(opened).max(initial=0.0) >= circuit.output_limit:
            beyond.append("outputs")
        outputs.append(opened.reshape(node.shape) / unit)
    failed = checks.out_of_range((yield Receive(MODEL_OWNER))) if circuit.checked_gates else []
    failed += beyond
    known = tuple(dict.fromkeys(failed)) if failed or circuit.detects else None
    return dataclasses.replace(state, ready=_still_ready(state)), Diagnosis(tuple(outputs), known)


def _gates_data_owner(
    circuit: Circuit, segment: Segment, number: int, own: list[Streams], trees: Any
) -> Steps:
    """The data owner's part of one round; gives the values that its range checks need."""
    packed = yield Receive(MODEL_OWNER)
    specs = [circuit.specs[gate] for gate in segment.gates]
    ys = [devices.spread(_unpacked(s.width, circuit.n_bits, y)) for s, y in zip(specs, packed)]
    bits = {}
    for i, (gate, spec) in enumerate(zip(segment.gates, specs)):
        if spec.compares:
            tree = trees[i].get("compare") if trees else None
            domain = masks.domain(circuit, gate, number)
            bits[i] = gates.sign_share(spec, 0, ys[i], own[i], tree, domain)
    theirs: dict[int, Any] = {}
    if bits:
        yield Send(MODEL_OWNER, tuple(bits.values()), "sign | masked by u, shared")
        theirs = dict(zip(bits, (yield Receive(MODEL_OWNER))))
        observation.opened("masked signs", lambda: [bits[i] ^ theirs[i] for i in bits])
    shares = tuple(
        gates.packed_out_share(spec, 0, ys[i], own[i].select, bits.get(i), theirs.get(i))
        for i, spec in enumerate(specs)
    )
    yield Send(MODEL_OWNER, shares, "share of the result | masked by ρ, shared")
    return [
        Held(
            gate,
            packed[i],
            None,
            gates.excess_table(spec, 0, own[i].select),
            bits.get(i),
            theirs.get(i),
        )
        for i, (gate, spec) in enumerate(zip(segment.gates, specs))
        if spec.excess_bits
    ]


@ring.x64_steps
def infer_model_owner(state: ModelOwner, streamed: bool = False) -> Steps:
    """Diagnoses one masked image (or batch); sees nothing."""
    circuit = state.circuit
    yield Stage("image")
    kappas_c: Any = None
    if streamed:
        number = int((yield Receive(DATA_OWNER))["number"])
        state.store.burn(number)
        kappas_c = yield from _receive_kappas(circuit)
    opening = yield Receive(DATA_OWNER)
    if streamed and int(opening["number"]) != number:
        raise ProtocolError(f"the image came under key {opening['number']}, not {number}")
    number = int(opening["number"])
    key: Any = None if streamed else state.store.take(number)
    seed = epochs.seed_in(state.root, state.epoch.id if streamed else key.epoch)
    ready = state.ready.get(number) or _owner_ready(circuit, seed, number)
    sources: dict[Source, tuple[Any, Any]] = {circuit.plan.image: (opening["image"], None)}
    known: dict[Any, Any] = {}
    checks = range_checks.ModelOwnerChecks(circuit, ready.matrices, opening.get("check"))
    weights = dict(zip(circuit.products, state.weights))
    for level, segment in enumerate(circuit.segments):
        yield Stage(segment.name)
        if streamed:
            dealt = yield Receive(CRYPTO_PROVIDER)
            dealt = _with_kappa_c(circuit, segment, dealt, kappas_c[level])
        else:
            dealt = key[level]
        messages, operands, keep = circuit.owner_values(level)(
            [sources[source] for source in segment.sources],
            [weights[product][0] for product in segment.products],
            [weights[product][1] for product in segment.products],
            list(state.constants[level]),
            [known[product] for product in segment.known],
            list(dealt["kappa"]),
        )
        known.update(zip(segment.keep, keep))
        if segment.gates:
            keys, streams = dealt["keys"], ready.streams[level]
            bits = yield from _gates_model_owner(
                circuit, segment, number, messages, keys, streams, sources, checks.form_held
            )
            if level == len(ready.tables):
                ready.tables.append(_excess_tables(circuit, segment, keys))
            checks.hold(
                [
                    Held(gate, None, operands[i], ready.tables[level][i], *bits[i])
                    for i, gate in enumerate(segment.gates)
                ],
                keys,
            )
    yield Send(DATA_OWNER, tuple(messages), "outputs | masked by r of the data owner")
    if circuit.checked_gates:
        checks.finish()
        answers = checks.answers((yield Receive(DATA_OWNER)))
        yield Send(DATA_OWNER, answers, "range checks | masked by ω")
    return dataclasses.replace(state, ready=_still_ready(state)), None


def _gates_model_owner(
    circuit: Circuit,
    segment: Segment,
    number: int,
    packed: Any,
    keys: Any,
    streams: list[Streams],
    sources: dict[Source, tuple[Any, Any]],
    meanwhile: Callable[[], None],
) -> Steps:
    """The model owner's part of one round; puts the shares of the new ŷ into `sources`.

    Calls `meanwhile` once the data owner has all that it waits for; gives, of each gate, the packed
    shares of d̂.
    """
    specs = [circuit.specs[gate] for gate in segment.gates]
    observation.opened("masked operand", lambda: packed)
    yield Send(DATA_OWNER, tuple(packed), "operand | masked by r")
    ys = [devices.spread(_unpacked(s.width, circuit.n_bits, y)) for s, y in zip(specs, packed)]
    bits = {}
    for i, (gate, spec) in enumerate(zip(segment.gates, specs)):
        if spec.compares:
            domain = masks.domain(circuit, gate, number)
            bits[i] = gates.sign_share(spec, 1, ys[i], streams[i], keys[i]["compare"], domain)
    theirs: dict[int, Any] = {}
    if bits:
        yield Send(DATA_OWNER, tuple(bits.values()), "sign | masked by u, shared")
        meanwhile()
        theirs = dict(zip(bits, (yield Receive(DATA_OWNER))))
        observation.opened("masked signs", lambda: [bits[i] ^ theirs[i] for i in bits])
    selects = [jnp.asarray(key["select"]) for key in keys]
    own_shares = jax.block_until_ready(
        [
            gates.out_share(spec, 1, ys[i], selects[i], bits.get(i), theirs.get(i))
            for i, spec in enumerate(specs)
        ]
    )
    shares = yield Receive(DATA_OWNER)
    for gate, own, share in zip(segment.gates, own_shares, shares):
        sources[gate.out] = (devices.gather(share), devices.gather(own))
    observation.opened(
        "masked results of gates",
        lambda: [circuit.joined(*sources[gate.out]) for gate in segment.gates],
    )
    return [(bits.get(i), theirs.get(i)) for i in range(len(specs))]


@ring.x64_steps
def infer_provider(state: Provider, streamed: bool = False) -> Steps:
    """Deals the key now, if it is streamed; otherwise the provider has no part in an inference."""
    if streamed:
        number = int((yield Receive(DATA_OWNER))["number"])
        yield from _deal(state, number)
    return state, None


@functools.partial(jax.jit, static_argnums=0)
def _masked_image(n_bits: int, image: Any, unit: Any, rho: Any) -> Any:
    scaled = jnp.round(image.astype(jnp.float64) * unit).astype(jnp.int64)
    return ring.pack((scaled.astype(rho.dtype) + rho).reshape(-1), n_bits)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _unpacked(bits: int, n_bits: int, packed: Any) -> Any:
    return ring.unpack(packed, bits).astype(ring.word_type(n_bits))


@functools.partial(jax.jit, static_argnums=0)
def _opened(n_bits: int, packed: Any, r: Any) -> Any:
    return ring.signed(ring.unpack(packed, n_bits) - r, n_bits).astype(jnp.float64)
