"""`fss` as one of the protocols, with their common interface."""

from collections.abc import Sequence
from typing import Any

from primia_jax.config.sections import MpcConfig
from primia_jax.mpc import scaling
from primia_jax.mpc.circuit import Circuit
from primia_jax.mpc.cost import Cost
from primia_jax.mpc.in_the_clear import fixed_point_values
from primia_jax.mpc.plan import Plan
from primia_jax.mpc.protocols import fss
from primia_jax.mpc.protocols.protocol import Protocol
from primia_jax.mpc.scaling import Ranges
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


class FunctionSecretSharing(Protocol):
    """The programs of `fss`, by party."""

    name = "fss"
    keys_on_disk = True

    def circuit(self, plan: Plan, ranges: Ranges, config: MpcConfig) -> Circuit:
        """See `Protocol.circuit`."""
        return Circuit(plan, scaling.choose(plan, ranges, config), config)

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
