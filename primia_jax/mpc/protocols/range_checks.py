"""The parties' parts of the range checks of one run of `fss`; see `mpc.range_check` for the sums.

Each party forms its sums while it waits for the other: the data owner after its message of a round,
the model owner after its share of a later round's signs. They go with the outputs.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import devices, gates, range_check, ring
from primia_jax.mpc.circuit import Circuit
from primia_jax.mpc.gates import GateSpec
from primia_jax.mpc.plan import Gate
from primia_jax.mpc.protocols import masks

_WORTH_A_CALL = 1 << 17  # elements; the model owner collects smaller layers


class Held(NamedTuple):
    """Values of one gate from which a party forms its share of the excesses.

    Attributes:
      gate: the gate.
      y: y', packed; None for the model owner.
      masked: z + r, words; None for the data owner.
      table: `gates.excess_table` of the party.
      own, other: packed shares of d̂; None where nothing was compared.
    """

    gate: Gate
    y: Any
    masked: Any
    table: Any
    own: Any
    other: Any


class Dealer:
    """The dealer's part of one key."""

    def __init__(self, circuit: Circuit, number: int, seeds: tuple[Any, Any]):
        """Args:
        circuit: of the network.
        number: of the key.
        seeds: data owner's and model owner's.
        """
        self._circuit = circuit
        if circuit.checked_gates:
            self._coefficients = masks.check_coefficients(masks.check_seed(seeds[0], number))
            self._masks = masks.check_masks(circuit, seeds[0], number)
            self._matrices = masks.check_matrices(circuit, seeds[1], number)

    def sigma(self, gate: Gate, r: Any) -> Any:
        """σ of one gate, uint8 [SUMS]; r is the gate's mask, words [N]."""
        i = self._circuit.checked_gates.index(gate)
        of_mask = range_check.compress(
            _scaled_top(self._circuit.specs[gate], r), self._coefficients
        )
        return range_check.correction(
            *(words[i] for words in self._masks), self._matrices[i], of_mask
        )


@functools.partial(jax.jit, static_argnums=0)
def _scaled_top(spec: GateSpec, r: Any) -> Any:
    return gates.top_of_mask(spec, r) << np.uint8(gates.EXCESS_BITS - spec.excess_bits)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums_of(
    specs: tuple[GateSpec, ...], party: int, values: list[tuple[Any, ...]], coefficients: Any
) -> Any:
    """A · shares of the excesses of some gates, uint8 [gates SUMS]."""
    sums = []
    for spec, (packed, masked, *others) in zip(specs, values):
        if party == 0:
            y, top = ring.unpack(packed, spec.width), None
        else:
            y, top = gates.masked_operand(spec, masked), gates.top_of_operand(spec, masked)
        shares = gates.excess_share(spec, party, y, top, *others)
        sums.append(range_check.compress(shares, coefficients))
    return jnp.stack(sums)


class _Sums:
    """A party's sums, in the order of the circuit's gates."""

    def __init__(self, circuit: Circuit, party: int, check_seed: Any):
        self._circuit, self._party, self._check_seed = circuit, party, check_seed
        self._coefficients: Any = None
        self._sums: list[Any] = []

    def form(self, held: Sequence[Held]) -> None:
        """Adds up the excesses of some gates; done when it returns, so that no message waits."""
        checked = [one for one in held if self._circuit.specs[one.gate].excess_bits]
        if not checked:
            return
        if self._coefficients is None:
            self._coefficients = masks.check_coefficients(self._check_seed)
        specs = tuple(self._circuit.specs[one.gate] for one in checked)
        values = [
            tuple(words if words is None else devices.gather(words) for words in one[1:])
            for one in checked
        ]
        sums = _sums_of(specs, self._party, values, self._coefficients)
        self._sums.append(jax.block_until_ready(sums))


class DataOwnerChecks(_Sums):
    """The data owner's part of one run.

    Attributes:
      check_seed: of the coefficients A, which the model owner is sent.
    """

    def __init__(self, circuit: Circuit, seed: Any, number: int):
        """Args:
        circuit: of the network.
        seed: the data owner's.
        number: of the key.
        """
        self.check_seed = masks.check_seed(seed, number) if circuit.checked_gates else None
        self._seed, self._number = seed, number
        self._masks: Any = None
        super().__init__(circuit, 0, self.check_seed)

    def form(self, held: Sequence[Held]) -> None:
        """Adds up the excesses of some gates."""
        if self._masks is None and self._circuit.checked_gates:
            self._masks = masks.check_masks(self._circuit, self._seed, self._number)
        super().form(held)

    def request(self) -> Any:
        """A x_0 + μ of all gates, uint8 [gates · SUMS]; the message to the model owner."""
        return _request(self._sums, self._masks[0])

    def out_of_range(self, answers: Any) -> list[str]:
        """Names of the layers whose check fails, from the answers to `request`."""
        checked = self._circuit.checked_gates
        differ = _rows(answers, len(checked)) != np.asarray(self._masks[1])
        return [gate.name for gate, failed in zip(checked, differ.any(1)) if failed]


class ModelOwnerChecks(_Sums):
    """The model owner's part of one run."""

    def __init__(self, circuit: Circuit, matrices: Any, check_seed: Any):
        """Args:
        circuit: of the network.
        matrices: K of each gate, `masks.check_matrices`.
        check_seed: of A, from the data owner; None where nothing is checked.
        """
        super().__init__(circuit, 1, check_seed)
        self._matrices = matrices
        self._waiting: list[Held] = []
        self._sigmas: list[Any] = []

    def hold(self, held: Sequence[Held], keys: Sequence[Any]) -> None:
        """Takes the values of one round, with the dealer's keys."""
        for one, key in zip(held, keys):
            if "check" in key:
                self._waiting.append(one)
                self._sigmas.append(key["check"])

    def form_held(self) -> None:
        """Adds up the excesses of what was held, if it is worth a call."""
        if sum(self._circuit.specs[one.gate].n_elements for one in self._waiting) >= _WORTH_A_CALL:
            self._form_all()

    def finish(self) -> None:
        """Adds up what is left."""
        self._form_all()

    def _form_all(self) -> None:
        self.form(self._waiting)
        self._waiting = []

    def answers(self, requests: Any) -> Any:
        """The answers to the data owner's requests, uint8 [gates · SUMS]."""
        requests = _rows(requests, len(self._sigmas))
        return _answers(self._sums, requests, self._matrices, self._sigmas)


@jax.jit
def _request(sums: list[Any], out_masks: Any) -> Any:
    return (jnp.concatenate(sums) + out_masks).reshape(-1)


@jax.jit
def _answers(sums: list[Any], requests: Any, matrices: Any, sigmas: list[Any]) -> Any:
    own = jnp.concatenate(sums)
    return jax.vmap(range_check.answer)(own, requests, matrices, jnp.stack(sigmas)).reshape(-1)


def _rows(words: Any, count: int) -> np.ndarray:
    """The words of `count` checks, uint8 [count, SUMS]."""
    words = np.asarray(words)
    if words.shape != (count * range_check.SUMS,) or words.dtype != np.uint8:
        raise ProtocolError(
            f"{count} range checks take {count * range_check.SUMS} bytes, not {words.dtype} "
            f"{list(words.shape)}"
        )
    return words.reshape(count, range_check.SUMS)
