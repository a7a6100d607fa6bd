"""Keys of `fss`: the parties' offline programs, and the values that they expand beforehand.

See `mpc.protocols.fss` for the protocol.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from primia_jax.errors import ProtocolError
from primia_jax.mpc import gates, ring
from primia_jax.mpc.circuit import Circuit, Segment
from primia_jax.mpc.gates import Streams
from primia_jax.mpc.protocols import (
    CRYPTO_PROVIDER,
    DATA_OWNER,
    MODEL_OWNER,
    masks,
    range_checks,
)
from primia_jax.mpc.protocols.fss_session import (
    DataOwner,
    ModelOwner,
    OwnerReady,
    Provider,
    next_number,
    packed_difference,
)
from primia_jax.runtime.party import Receive, Send, Stage, Steps

_READY = 2  # keys that a party holds expanded; one of a ResNet-18 takes the data owner some 120 MB


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


def client_kappas(state: DataOwner, number: int) -> Steps:
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
        kappas = tuple(packed_difference(circuit.n_bits, e, value) for e, value in zip(es, values))
        yield Send(MODEL_OWNER, kappas, "κ_C | masked by e")


def deal(state: Provider, number: int) -> Steps:
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
            kappas.append(packed_difference(circuit.n_bits, *terms))
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


def has_trees(circuit: Circuit, segment: Segment) -> bool:
    """True if a comparison of the segment is a tree, of which both parties are sent corrections."""
    return any(
        circuit.specs[gate].compares and not circuit.specs[gate].has_table for gate in segment.gates
    )


def with_kappa_c(circuit: Circuit, segment: Segment, message: Any, kappas_c: Any) -> Any:
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


def expanded_streams(
    circuit: Circuit, seed: Any, segment: Segment, number: int, party: int = 0
) -> list[Streams]:
    """The streams of a party's gates in a segment."""
    return [masks.party_streams(circuit, seed, party, gate, number) for gate in segment.gates]


def owner_ready(circuit: Circuit, seed: Any, number: int) -> OwnerReady:
    """The values of a key, but for the tables: these follow from the dealer's messages."""
    streams = [expanded_streams(circuit, seed, segment, number, 1) for segment in circuit.segments]
    return OwnerReady(streams, [], masks.check_matrices(circuit, seed, number))


def excess_tables(circuit: Circuit, segment: Segment, keys: Any) -> list[Any]:
    """`gates.excess_table` of each gate of the model owner's; None where nothing is checked."""
    specs = [circuit.specs[gate] for gate in segment.gates]
    return [
        gates.excess_table(spec, 1, jnp.asarray(key["select"])) if spec.excess_bits else None
        for spec, key in zip(specs, keys)
    ]


def still_ready(state: DataOwner | ModelOwner) -> dict[int, Any]:
    """Expanded parts of keys that are not used up, by a run that failed for instance."""
    first = state.store.next()
    return {number: held for number, held in state.ready.items() if number >= first}


@ring.x64_steps
def prepare_data_owner(state: DataOwner, numbers: tuple[int, ...]) -> Steps:
    """Makes keys of these numbers: sends κ_C, takes its trees; expands the next ones beforehand."""
    circuit, seed, ready = state.circuit, state.seed, still_ready(state)
    for number in numbers:
        if number < next_number(state):
            raise ProtocolError(f"key {number} was made before: take {next_number(state)}")
        yield from client_kappas(state, number)
        for level, segment in enumerate(circuit.segments):
            trees = (yield Receive(CRYPTO_PROVIDER)) if has_trees(circuit, segment) else ()
            state.store.put(number, level, trees)
        state.store.close_key(number, state.epoch.id)
        if len(ready) < _READY:
            ready[number] = jax.block_until_ready(
                [expanded_streams(circuit, seed, segment, number) for segment in circuit.segments]
            )
    return dataclasses.replace(state, ready=ready), None


@ring.x64_steps
def prepare_model_owner(state: ModelOwner, numbers: tuple[int, ...]) -> Steps:
    """Takes the keys of these numbers and stores them; expands the next ones beforehand."""
    circuit, ready = state.circuit, still_ready(state)
    for number in numbers:
        expanded = None
        if len(ready) < _READY:
            expanded = owner_ready(circuit, state.epoch.seed(state.root), number)
        kappas_c = yield from receive_kappas(circuit)
        for level, segment in enumerate(circuit.segments):
            yield Stage(segment.name)
            message = yield Receive(CRYPTO_PROVIDER)
            message = with_kappa_c(circuit, segment, message, kappas_c[level])
            state.store.put(number, level, message)
            if expanded is not None:
                expanded.tables.append(excess_tables(circuit, segment, message["keys"]))
        state.store.close_key(number, state.epoch.id)
        if expanded is not None:
            ready[number] = jax.block_until_ready(expanded)
    return dataclasses.replace(state, ready=ready), None


def receive_kappas(circuit: Circuit) -> Steps:
    """κ_C of each segment."""
    kappas = []
    for segment in circuit.segments:
        kappas.append((yield Receive(DATA_OWNER)) if any(segment.weighted) else ())
    return kappas


@ring.x64_steps
def prepare_provider(state: Provider, numbers: tuple[int, ...]) -> Steps:
    """Deals the keys of these numbers."""
    for number in numbers:
        yield from deal(state, number)
    return state, None
