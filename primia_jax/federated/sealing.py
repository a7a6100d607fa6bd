"""Sealed messages between hospitals: X25519 keys, exchanged through the crypto provider.

The provider passes public keys on and learns nothing else. It is trusted to pass on the right ones
(semi-honest, as the paper's): a provider that swaps keys could read what the hospitals seal.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from primia_jax.errors import ProtocolError
from primia_jax.runtime import Receive, Send, Steps

_NONCE_BYTES = 12


@dataclasses.dataclass(frozen=True)
class KeyRing:
    """One hospital's keys: for each other hospital one to seal with and one to open with."""

    me: str
    seal_keys: Mapping[str, bytes]
    open_keys: Mapping[str, bytes]

    def seal(self, to: str, plain: np.ndarray, associated: bytes | None = None) -> np.ndarray:
        """uint8 [n] -> uint8 [n + 28]: readable by `to` alone, and only as coming from `me`.

        It opens only together with the same `associated` bytes, which do not travel.
        """
        nonce = os.urandom(_NONCE_BYTES)  # 96 random bits: no repetition within 2^32 messages
        cipher = ChaCha20Poly1305(self.seal_keys[to])
        return np.frombuffer(nonce + cipher.encrypt(nonce, plain.tobytes(), associated), np.uint8)

    def open(self, sender: str, sealed: np.ndarray, associated: bytes | None = None) -> np.ndarray:
        """The inverse of `seal`; that a message is new, its place or `associated` must show.

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
                f"{self.me}: a sealed message said to be from {sender} is not authentic"
            ) from None
        return np.frombuffer(plain, np.uint8)


def exchange_keys(me: str, peers: Sequence[str], provider: str) -> Steps:
    """A hospital's part of the exchange; returns its `KeyRing`."""
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    yield Send(provider, np.frombuffer(public, np.uint8), "public key")
    directory = yield Receive(provider)
    seal_keys, open_keys = {}, {}
    for peer in peers:
        peer_public = np.asarray(directory[peer]).tobytes()
        shared = agree(private, peer_public, peer)
        seal_keys[peer] = _derive(shared, public, peer_public)
        open_keys[peer] = _derive(shared, peer_public, public)
    return KeyRing(me, seal_keys, open_keys)


def distribute_keys(hospitals: Sequence[str]) -> Steps:
    """The crypto provider's part: passes every hospital's public key on to all of them."""
    directory = {}
    for hospital in hospitals:
        directory[hospital] = yield Receive(hospital)
    yield Send(tuple(hospitals), directory, "public keys")


def agree(private: X25519PrivateKey, peer_public: bytes, peer: str) -> bytes:
    """The secret shared with `peer`.

    Raises:
      ProtocolError: for a key that is one's own, or gives a secret that all know.
    """
    try:
        if peer_public == private.public_key().public_bytes_raw():
            raise ValueError("it is this hospital's own")
        return private.exchange(X25519PublicKey.from_public_bytes(peer_public))
    except ValueError as error:
        raise ProtocolError(f"the public key of {peer} cannot be used: {error}") from None


def _derive(shared: bytes, sender_public: bytes, receiver_public: bytes) -> bytes:
    return derive(shared, b"primia_jax sealed message v1" + sender_public + receiver_public)


def derive(shared: bytes, info: bytes) -> bytes:
    """A key of 32 bytes, by HKDF, from a shared secret; others for other `info`."""
    return HKDF(SHA256(), length=32, salt=None, info=info).derive(shared)
