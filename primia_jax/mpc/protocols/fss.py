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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import devices, gates, observation, ring
from primia_jax.mpc.circuit import Circuit, Segment, check_image
from primia_jax.mpc.gates import Streams
from primia_jax.mpc.plan import Source
from primia_jax.mpc.protocols import (
    CRYPTO_PROVIDER,
    DATA_OWNER,
    MODEL_OWNER,
    epochs,
    masks,
    range_checks,
)
from primia_jax.mpc.protocols.fss_keys import (
    client_kappas,
    deal,
    excess_tables,
    expanded_streams,
    has_trees,
    owner_ready,
    prepare_data_owner,
    prepare_model_owner,
    prepare_provider,
    receive_kappas,
    still_ready,
    with_kappa_c,
)
from primia_jax.mpc.protocols.fss_session import (
    NO_EPOCH,
    DataOwner,
    ModelOwner,
    Provider,
    begin_epoch,
    data_owner,
    model_owner,
    next_number,
    provider,
    set_up_data_owner,
    set_up_model_owner,
    set_up_provider,
    with_seeds,
)
from primia_jax.mpc.protocols.protocol import Diagnosis
from primia_jax.mpc.protocols.range_checks import Held
from primia_jax.runtime.party import Receive, Send, Stage, Steps

__all__ = [
    "NO_EPOCH",
    "DataOwner",
    "Diagnosis",
    "ModelOwner",
    "Provider",
    "begin_epoch",
    "data_owner",
    "infer_data_owner",
    "infer_model_owner",
    "infer_provider",
    "model_owner",
    "next_number",
    "prepare_data_owner",
    "prepare_model_owner",
    "prepare_provider",
    "provider",
    "set_up_data_owner",
    "set_up_model_owner",
    "set_up_provider",
    "with_seeds",
]


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
        yield from client_kappas(state, number)
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
        if has_trees(circuit, segment):
            trees = (yield Receive(CRYPTO_PROVIDER)) if streamed else key[level]
        own = prepared[level] if prepared else expanded_streams(circuit, seed, segment, number)
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
    return dataclasses.replace(state, ready=still_ready(state)), Diagnosis(tuple(outputs), known)


def _gates_data_owner(
    circuit: Circuit, segment: Segment, number: int, own: list[Streams], trees: Any
) -> Steps:
    """The data owner's part of one round; gives the values that its range checks need."""
    packed = yield Receive(MODEL_OWNER)
    specs = [circuit.specs[gate] for gate in segment.gates]
    ys = [devices.spread(jnp.asarray(y)) for y in packed]
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
        kappas_c = yield from receive_kappas(circuit)
    opening = yield Receive(DATA_OWNER)
    if streamed and int(opening["number"]) != number:
        raise ProtocolError(f"the image came under key {opening['number']}, not {number}")
    number = int(opening["number"])
    key: Any = None if streamed else state.store.take(number)
    seed = epochs.seed_in(state.root, state.epoch.id if streamed else key.epoch)
    ready = state.ready.get(number) or owner_ready(circuit, seed, number)
    sources: dict[Source, tuple[Any, Any]] = {circuit.plan.image: (opening["image"], None)}
    known: dict[Any, Any] = {}
    checks = range_checks.ModelOwnerChecks(circuit, ready.matrices, opening.get("check"))
    weights = dict(zip(circuit.products, state.weights))
    for level, segment in enumerate(circuit.segments):
        yield Stage(segment.name)
        if streamed:
            dealt = yield Receive(CRYPTO_PROVIDER)
            dealt = with_kappa_c(circuit, segment, dealt, kappas_c[level])
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
                ready.tables.append(excess_tables(circuit, segment, keys))
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
    return dataclasses.replace(state, ready=still_ready(state)), None


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
    ys = [devices.spread(jnp.asarray(y)) for y in packed]
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
        yield from deal(state, number)
    return state, None


@functools.partial(jax.jit, static_argnums=0)
def _masked_image(n_bits: int, image: Any, unit: Any, rho: Any) -> Any:
    scaled = jnp.round(image.astype(jnp.float64) * unit).astype(jnp.int64)
    return ring.pack((scaled.astype(rho.dtype) + rho).reshape(-1), n_bits)


@functools.partial(jax.jit, static_argnums=0)
def _opened(n_bits: int, packed: Any, r: Any) -> Any:
    return ring.signed(ring.unpack(packed, n_bits) - r, n_bits).astype(jnp.float64)
