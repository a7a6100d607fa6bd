"""Parties of `fss`, and how they begin a session: seeds, the masked weights, and epochs.

See `mpc.protocols.fss` for the protocol.
"""

import dataclasses
import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import bilinear, prg, ring, winograd
from primia_jax.mpc.circuit import Circuit
from primia_jax.mpc.gates import Streams
from primia_jax.mpc.key_store import KeyStore
from primia_jax.mpc.ledger import Ledger
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER, epochs, masks
from primia_jax.mpc.protocols.epochs import Epoch
from primia_jax.runtime.party import Receive, Send, Stage, Steps

NO_EPOCH = Epoch(b"")


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
      weights: (digits or `winograd.Kernel`, shift) of each product.
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
    ready: dict[int, "OwnerReady"] = dataclasses.field(default_factory=dict)
    epoch: Epoch = NO_EPOCH


class OwnerReady(NamedTuple):
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
            plan, word = circuit.owner_plan(product), ring.word_type(circuit.n_bits)
            kernel = winograd.kernel(product[0].product, w, plan)
            held = kernel or bilinear.weight_digits(jnp.asarray(w), plan)
            prepared.append((held, jnp.asarray(shift.astype(word))))
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
            packed_difference(state.circuit.n_bits, jnp.asarray(w.reshape(-1)), b.reshape(-1))
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


@functools.partial(jax.jit, static_argnums=0)
def packed_difference(n_bits: int, a: Any, *others: Any) -> Any:
    """a − Σ others, packed."""
    return ring.pack(functools.reduce(jnp.subtract, others, a), n_bits)
