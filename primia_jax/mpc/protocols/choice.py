"""The protocols by their names in the configuration (`config.mpc.protocol`)."""

from primia_jax.mpc.protocols.ariann import Ariann
from primia_jax.mpc.protocols.fss_protocol import FunctionSecretSharing
from primia_jax.mpc.protocols.protocol import Protocol
from primia_jax.mpc.protocols.securenn import SecureNN

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (FunctionSecretSharing(), Ariann(), SecureNN())
}
