"""The crypto provider: in training it introduces the hospitals' keys to one another.

It sees public keys only.
"""

import dataclasses

from primia_jax.federated import sealing
from primia_jax.runtime import Steps


@dataclasses.dataclass(frozen=True)
class CryptoProvider:
    """What the provider holds: nothing but the names of those it serves."""

    hospitals: tuple[str, ...]


def set_up(state: CryptoProvider) -> Steps:
    """Passes the public keys on."""
    yield from sealing.distribute_keys(state.hospitals)
    return state, {}
