"""`fss` as one of the protocols, with their common interface."""

from collections.abc import Sequence
from typing import Any

from primia_jax.config.sections import MpcConfig
from primia_jax.mpc import scaling
from primia_jax.mpc.circuit import Circuit
from primia_jax.mpc.cost import Cost
from primia_jax.mpc.in_the_clear import fixed_point_values
from primia_jax.mpc.plan import Plan, has_private
from primia_jax.mpc.protocols import fss
from primia_jax.mpc.protocols.protocol import Protocol
from primia_jax.mpc.scaling import Ranges
from primia_jax.mpc.worst_case import missing_headroom
from primia_jax.runtime.party import Steps

_SET_UP: dict[type, Any] = {
    fss.DataOwner: fss.set_up_data_owner,
    fss.ModelOwner: fss.set_up_model_owner,
    fss.Provider: fss.set_up_provider,
}
_PREPARE: dict[type, Any] = {
    fss.DataOwner: fss.prepare_data_owner,
    fss.ModelOwner: fss.prepare_model_owner,
    fss.Provider: fss.prepare_provider,
}


_PASSES = 4  # headroom changes units, and these the worst case, by a little


def _needed(circuit: Circuit, params: Any) -> tuple[int, ...]:
    """Headroom of each gate, then of each output, in which its worst case fits."""
    roots = [*(gate.operand for gate in circuit.plan.gates), *circuit.plan.outputs]
    each = zip(roots, circuit.granted_headroom, missing_headroom(circuit, params))
    # Values free of weights have headroom by themselves; it is not to be chosen.
    return tuple(
        max(0, bits + more) if has_private(node) or more > 0 else 0 for node, bits, more in each
    )


class FunctionSecretSharing(Protocol):
    """The programs of `fss`, by party."""

    name = "fss"
    keys_on_disk = True

    def circuit(self, plan: Plan, ranges: Ranges, config: MpcConfig) -> Circuit:
        """See `Protocol.circuit`."""
        return Circuit(plan, scaling.choose(plan, ranges, config), config)

    def published(self, plan: Plan, params: Any, ranges: Ranges, config: MpcConfig) -> Ranges:
        """See `Protocol.published`; with the headroom that the worst case needs."""
        known, most = ranges.rounded(), scaling.most_headroom(config)
        if not most:
            return known
        circuit = self.circuit(plan, known, config)
        needed = _needed(circuit, params)
        for _ in range(_PASSES):
            circuit = self.circuit(plan, known._replace(headroom=needed), config)
            again = _needed(circuit, params)
            short = [a > n and n <= most for a, n in zip(again, needed)]
            if not any(short):
                break
            needed = tuple(max(a, n) for a, n in zip(again, needed))
        else:  # units that do not settle: nothing is claimed of these layers
            needed = tuple(most + 1 if s else n for s, n in zip(short, needed))
        return known._replace(headroom=needed)

    def cost(self, circuit: Circuit) -> Cost:
        """See `Protocol.cost`."""
        return circuit.cost()

    def data_owner(self, circuit: Circuit) -> fss.DataOwner:
        """See `Protocol.data_owner`."""
        return fss.data_owner(circuit)

    def model_owner(self, circuit: Circuit, params: Any) -> fss.ModelOwner:
        """See `Protocol.model_owner`."""
        return fss.model_owner(circuit, params)

    def provider(self, circuit: Circuit) -> fss.Provider:
        """See `Protocol.provider`."""
        return fss.provider(circuit)

    def set_up(self, state: Any) -> Steps:
        """See `Protocol.set_up`."""
        return _SET_UP[type(state)](state)

    def begin_epoch(self, state: Any) -> Steps:
        """See `Protocol.begin_epoch`."""
        return fss.begin_epoch(state)

    def next_number(self, state: Any) -> int:
        """See `Protocol.next_number`."""
        return fss.next_number(state)

    def available(self, state: Any) -> int:
        """See `Protocol.available`."""
        return int(state.store.available())

    def prepare(self, state: Any, numbers: Sequence[int]) -> Steps:
        """See `Protocol.prepare`."""
        return _PREPARE[type(state)](state, tuple(numbers))

    def infer_data_owner(self, state: Any, image: Any, streamed: bool = False) -> Steps:
        """See `Protocol.infer_data_owner`."""
        return fss.infer_data_owner(state, image, streamed)

    def infer_model_owner(self, state: Any, streamed: bool = False) -> Steps:
        """See `Protocol.infer_model_owner`."""
        return fss.infer_model_owner(state, streamed)

    def infer_provider(self, state: Any, streamed: bool = False) -> Steps:
        """See `Protocol.infer_provider`."""
        return fss.infer_provider(state, streamed)

    def in_the_clear(self, circuit: Circuit, params: Any, images: Any) -> list[Any]:
        """See `Protocol.in_the_clear`."""
        return list(fixed_point_values(circuit, params, images)[1])
