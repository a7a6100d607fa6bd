"""Sealed and signed messages between hospitals, under keys exchanged through the crypto provider.

The exchange is the signed key agreement of `core.identity`: fresh X25519 keys, the whole of which
every hospital signs with its long-lived Ed25519 key. The provider carries it and is not trusted: a
key that it swaps, or replays from an earlier session, is refused by the hospitals.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from primia_jax.core import identity
from primia_jax.core.identity import Credentials, Identity
from primia_jax.errors import ProtocolError
from primia_jax.runtime import Receive, Send, Steps

SEAL_BYTES = 28  # that a seal adds: nonce and tag
SIGNATURE_BYTES = identity.SIGNATURE_BYTES
_NONCE_BYTES = 12
_PURPOSE = "sealed message between hospitals"


@dataclasses.dataclass(frozen=True)
class KeyRing:
    """One hospital's keys in one session.

    Attributes:
      me: name of the hospital.
      seal_keys: for each peer the key of messages to it.
      open_keys: for each peer the key of messages from it.
      identity: the hospital's own signature key.
      public_keys: Ed25519 keys of all hospitals of the session.
      session: transcript of the key agreement, the same for all hospitals.
    """

    me: str
    seal_keys: Mapping[str, bytes] = dataclasses.field(repr=False)
    open_keys: Mapping[str, bytes] = dataclasses.field(repr=False)
    identity: Identity
    public_keys: Mapping[str, bytes]
    session: bytes

    def seal(self, to: str, plain: np.ndarray, associated: bytes | None = None) -> np.ndarray:
        """uint8 [n] -> uint8 [n + 28]: readable by `to` alone, and only as coming from `me`.

        It opens only together with the same `associated` bytes, which do not travel.
        """
        nonce = os.urandom(_NONCE_BYTES)  # 96 random bits: no repetition within 2^32 messages
        cipher = ChaCha20Poly1305(self.seal_keys[to])
        return np.frombuffer(nonce + cipher.encrypt(nonce, plain.tobytes(), associated), np.uint8)

    def open(self, sender: str, sealed: np.ndarray, associated: bytes | None = None) -> np.ndarray:
        """The inverse of `seal`; its place in a protocol or `associated` must show that it is new.

        Raises:
          ProtocolError: if the message was altered, or was not sealed by `sender` for `me`, or with
            other `associated` bytes.
        """
        data = np.asarray(sealed).tobytes()
        cipher = ChaCha20Poly1305(self.open_keys[sender])
        try:
            plain = cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], associated)
        except (InvalidTag, ValueError):
            raise ProtocolError(
                f"{self.me}: a sealed message said to be from {sender} is not authentic, or is of "
                "another sum than the model owner announced here"
            ) from None
        return np.frombuffer(plain, np.uint8)

    def sign(self, purpose: str, fields: Mapping[str, Any]) -> np.ndarray:
        """uint8 [64]: signature of `fields`, bound to this session and this signer."""
        signature = self.identity.sign(purpose, self._bound(self.me, fields))
        return np.frombuffer(signature, np.uint8)

    def signed_by(
        self, signer: str, purpose: str, fields: Mapping[str, Any], signature: np.ndarray
    ) -> bool:
        """True if `signature` is the one that `signer` makes of `fields` in this session."""
        public = self.public_keys.get(signer, b"")
        data = np.asarray(signature).tobytes()
        return identity.verify(public, purpose, self._bound(signer, fields), data)

    def _bound(self, signer: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {"session": self.session, "signer": signer, "signed": fields}


def exchange_keys(
    me: str, peers: Sequence[str], provider: str, credentials: Credentials | None = None
) -> Steps:
    """A hospital's part of the exchange; returns its `KeyRing`.

    Sends 96 and 64 bytes; four one-way messages deep.

    Args:
      me: name of the hospital.
      peers: with whom it will exchange messages; the signatures of these are checked.
      provider: name of the carrier.
      credentials: of the hospital; without them it has a fresh identity and trusts the first keys
        that it is shown, as in tests and measurements.

    Raises:
      ProtocolError: if a hospital is not the one that is pinned, has another plan, or its keys were
        changed on their way.
    """
    own = credentials or identity.ephemeral(me)
    handshake = identity.Handshake(own)
    yield Send(provider, np.frombuffer(handshake.hello, np.uint8), "public keys of a hospital")
    hellos = _directory((yield Receive(provider)), provider)
    signature = np.frombuffer(handshake.sign(hellos), np.uint8)
    yield Send(provider, signature, "signature over all public keys")
    session = handshake.finish(_directory((yield Receive(provider)), provider), peers)
    return KeyRing(
        me,
        {peer: session.key(_PURPOSE, me, peer) for peer in session.secrets},
        {peer: session.key(_PURPOSE, peer, me) for peer in session.secrets},
        own.identity,
        session.public_keys,
        session.transcript,
    )


def distribute_keys(hospitals: Sequence[str]) -> Steps:
    """The crypto provider's part: passes public keys, then signatures, on to all hospitals."""
    for label in ("public keys of all hospitals", "signatures of all hospitals"):
        directory = {}
        for hospital in hospitals:
            directory[hospital] = yield Receive(hospital)
        yield Send(tuple(hospitals), directory, label)


def _directory(message: Any, provider: str) -> dict[str, bytes]:
    if not isinstance(message, Mapping):
        raise ProtocolError(f"{provider} sent no directory of the hospitals' keys")
    return {str(name): np.asarray(data).tobytes() for name, data in message.items()}
