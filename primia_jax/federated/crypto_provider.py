"""The crypto provider: in training it carries the hospitals' public keys and signatures.

It sees nothing else, and hospitals refuse keys that it changes (`sealing`).
"""

import dataclasses

from primia_jax.federated import sealing
from primia_jax.runtime import Steps


@dataclasses.dataclass(frozen=True)
class CryptoProvider:
    """State of the provider: the names of those it serves."""

    hospitals: tuple[str, ...]


def set_up(state: CryptoProvider) -> Steps:
    """Passes the public keys on."""
    yield from sealing.distribute_keys(state.hospitals)
    return state, None
