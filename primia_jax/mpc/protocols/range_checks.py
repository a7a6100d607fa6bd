"""The parties' parts of the range checks of one run of `fss`; see `mpc.range_check` for the sums.

Each party forms its sums while the other computes: the data owner after its message of a round, the
model owner one round later, before it waits for the data owner's bits. They go with the outputs.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import devices, gates, range_check
from primia_jax.mpc.circuit import Circuit
from primia_jax.mpc.gates import GateSpec
from primia_jax.mpc.plan import Gate
from primia_jax.mpc.protocols import masks


class Held(NamedTuple):
    """Values of one gate from which a party forms its share of the excesses.

    Attributes:
      gate: the gate.
      y: y'.
      top: `gates.top_of_operand`; None for the data owner.
      select: the party's shares of u and w.
      own, other: packed shares of d̂; None where nothing was compared.
    """

    gate: Gate
    y: Any
    top: Any
    select: Any
    own: Any
    other: Any


def sigma(
    circuit: Circuit, gate: Gate, r: Any, coefficients: Any, number: int, seeds: tuple[Any, Any]
) -> Any:
    """σ of one gate's check, uint8 [SUMS], the dealer's.

    Args:
      circuit, gate: of the network.
      r: words [N], the gate's mask.
      coefficients: A.
      number: of the key.
      seeds: data owner's and model owner's.
    """
    mask, out_mask = masks.check_masks(circuit, seeds[0], gate, number)
    matrix = masks.check_matrix(circuit, seeds[1], gate, number)
    of_mask = range_check.compress(_scaled_top(circuit.specs[gate], r), coefficients)
    return range_check.correction(mask, out_mask, matrix, of_mask)


@functools.partial(jax.jit, static_argnums=0)
def _scaled_top(spec: GateSpec, r: Any) -> Any:
    return gates.top_of_mask(spec, r) << np.uint8(gates.EXCESS_BITS - spec.excess_bits)


class _Sums:
    """A party's sums, by gate."""

    def __init__(self, circuit: Circuit, party: int, number: int, seed: Any, coefficients: Any):
        self._circuit, self._party = circuit, party
        self._number, self._seed, self._coefficients = number, seed, coefficients
        self._sums: dict[Gate, Any] = {}

    def form(self, held: Sequence[Held]) -> None:
        """Adds up the excesses of some gates; done when it returns, so that no message waits."""
        new = {}
        for gate, *values in held:
            spec = self._circuit.specs[gate]
            if spec.excess_bits:
                shares = devices.gather(gates.excess_share(spec, self._party, *values))
                new[gate] = range_check.compress(shares, self._coefficients)
        jax.block_until_ready(list(new.values()))
        self._sums |= new


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
        self.check_seed = masks.check_seed(seed, number)
        self._out_masks: dict[Gate, Any] = {}
        super().__init__(circuit, 0, number, seed, masks.check_coefficients(self.check_seed))

    def request(self) -> Any:
        """A x_0 + μ of all gates, uint8 [gates · SUMS]; the message to the model owner."""
        hidden = []
        for gate, own in self._sums.items():
            mask, self._out_masks[gate] = masks.check_masks(
                self._circuit, self._seed, gate, self._number
            )
            hidden.append(own + mask)
        return jnp.concatenate(hidden)

    def out_of_range(self, answers: Any) -> list[str]:
        """Names of the layers whose check fails, from the answers to `request`."""
        rows = _rows(answers, len(self._sums))
        return [
            gate.name
            for gate, answer in zip(self._sums, rows)
            if np.any(answer != np.asarray(self._out_masks[gate]))
        ]


class ModelOwnerChecks(_Sums):
    """The model owner's part of one run."""

    def __init__(self, circuit: Circuit, seed: Any, number: int, check_seed: Any):
        """Args:
        circuit: of the network.
        seed: the model owner's.
        number: of the key.
        check_seed: of A, from the data owner; None where nothing is checked.
        """
        coefficients = None if check_seed is None else masks.check_coefficients(check_seed)
        super().__init__(circuit, 1, number, seed, coefficients)
        self._waiting: list[Held] = []
        self._sigmas: dict[Gate, Any] = {}

    def hold(self, held: Sequence[Held], tops: Sequence[Any], keys: Sequence[Any]) -> None:
        """Takes the values of one round, with `gates.top_of_operand` and the dealer's keys."""
        for one, top, key in zip(held, tops, keys):
            if "check" in key:
                self._waiting.append(one._replace(top=top))
                self._sigmas[one.gate] = key["check"]

    def form_held(self) -> None:
        """Adds up the excesses of what was held."""
        self.form(self._waiting)
        self._waiting = []

    def answers(self, requests: Any) -> Any:
        """The answers to the data owner's requests, uint8 [gates · SUMS]."""
        self.form_held()
        answers = []
        for (gate, own), other in zip(self._sums.items(), _rows(requests, len(self._sums))):
            matrix = masks.check_matrix(self._circuit, self._seed, gate, self._number)
            answers.append(range_check.answer(own, other, matrix, self._sigmas[gate]))
        return jnp.concatenate(answers)


def _rows(words: Any, count: int) -> np.ndarray:
    """The words of `count` checks, uint8 [count, SUMS]."""
    words = np.asarray(words)
    if words.shape != (count * range_check.SUMS,) or words.dtype != np.uint8:
        raise ProtocolError(
            f"{count} range checks take {count * range_check.SUMS} bytes, not {words.dtype} "
            f"{list(words.shape)}"
        )
    return words.reshape(count, range_check.SUMS)
