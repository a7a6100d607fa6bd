"""Identity of a party: its long-lived signature key, the peers it accepts, signed key agreements.

Every party has an Ed25519 key pair, made on its own machine and kept in its own folder (mode 0600).
Others know it by its fingerprint. A party accepts a peer whose fingerprint is pinned:

- given by its organisation in a file (`config.federated.pins`), compared beforehand by telephone;
  then a peer that is not in the file is refused;
- else recorded when the peer is first met, in this party's own folder. From then on another key
  under the same name is refused. Whoever carries the very first exchange is trusted with it
  ("trust on first use"): compare the fingerprints of identities.json in the workdir.

A key agreement takes two rounds, whoever carries them (a crypto provider, a driver, a network):

1. *hello*: each party shows its Ed25519 key, a fresh X25519 key and the digest of its plan.
2. *signature*: each signs the transcript, that is everybody's name and hello as it received them.

The fresh key of every party is in what every other one signs, so a signature of an earlier
agreement fits no later one. Two parties that finish agree on the transcript, which is part of the
derivation of all keys. What is not promised: a party whose folder is stolen can be impersonated
from then on (earlier sessions stay secret); names and sizes are visible to the carrier.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from primia_jax.core import storage
from primia_jax.errors import CheckpointError, ConfigError, ProtocolError

KEY_FILE = "identity.key"  # the private key, 32 bytes
PINS_FILE = "peers.json"  # name -> fingerprint of the peers met so far
KEY_BYTES = 32
HELLO_BYTES = 3 * KEY_BYTES
SIGNATURE_BYTES = 64
_DOMAIN = "primia_jax identity v1"
_AGREEMENT = "key agreement"
_FINGERPRINT_BYTES = 20
_MAX_PINS_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Identity:
    """Ed25519 key pair of one party.

    Attributes:
      name: of the party.
      private: the private key, 32 bytes. It never leaves the party.
    """

    name: str
    private: bytes = dataclasses.field(repr=False)

    @property
    def public_key(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key().public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> str:
        """Short form of the public key, for people to compare."""
        return fingerprint(self.public_key)

    def sign(self, purpose: str, fields: Mapping[str, Any]) -> bytes:
        """Signature, 64 bytes, over `fields` for this purpose alone; see `encoded`."""
        return self._key().sign(encoded(purpose, fields))

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.private)


def make(name: str) -> Identity:
    """A fresh identity, from the randomness of the operating system."""
    return Identity(name, Ed25519PrivateKey.generate().private_bytes_raw())


def load_or_make(folder: pathlib.Path, name: str) -> Identity:
    """The identity kept in `folder`, which is made there if there is none.

    Raises:
      StorageError: if it cannot be written.
      CheckpointError: if the file is damaged; it is never replaced silently.
    """
    path = storage.private_folder(folder) / KEY_FILE
    if not path.exists():
        storage.write_bytes(path, make(name).private)
    storage.check_regular(path, KEY_BYTES, CheckpointError)
    private = path.read_bytes()
    if len(private) != KEY_BYTES:
        raise CheckpointError(
            f"{path} is no identity key ({len(private)} bytes, {KEY_BYTES} are due); restore it, "
            "or remove it and tell the others the new fingerprint"
        )
    return Identity(name, private)


def fingerprint(public_key: bytes) -> str:
    """160 bits of the key's SHA-256, in ten groups of four hexadecimal digits."""
    digits = hashlib.sha256(b"primia_jax fingerprint v1" + public_key).hexdigest()
    digits = digits[: 2 * _FINGERPRINT_BYTES]
    return "-".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def read_pins(path: pathlib.Path) -> dict[str, str]:
    """Fingerprints by name from a JSON file {NAME: FINGERPRINT}.

    Raises:
      ConfigError: if the file cannot be read or holds something else.
    """
    stored = storage.read_json(path, max_bytes=_MAX_PINS_BYTES, error=ConfigError)
    if not stored:
        raise ConfigError(f'pins {path}: expected {{"NAME": "FINGERPRINT", …}}')
    pins = {}
    for name, text in stored.items():
        digits = re.sub(r"[-:\s]", "", str(text)).lower()
        if not re.fullmatch(rf"[0-9a-f]{{{2 * _FINGERPRINT_BYTES}}}", digits):
            raise ConfigError(
                f"pins {path}: {name} has no fingerprint of {2 * _FINGERPRINT_BYTES} hexadecimal "
                "digits; take it from identities.json of that party's run"
            )
        pins[name] = "-".join(digits[i : i + 4] for i in range(0, len(digits), 4))
    return pins


class Credentials:
    """Proof of a party's identity, and the peers that it accepts.

    Attributes:
      identity: the party's own.
      plan: digest, 32 bytes, of what all parties must agree on before they exchange keys.
    """

    def __init__(
        self,
        identity: Identity,
        plan: bytes = bytes(KEY_BYTES),
        pins: Mapping[str, str] | None = None,
        folder: pathlib.Path | None = None,
    ):
        """Reads whom the party has met before.

        Args:
          identity: the party's own.
          plan: see the class.
          pins: fingerprints by name; peers without one are refused. None: trust on first use.
          folder: the party's own, where it records peers that it meets; None: in memory alone.
        """
        self.identity, self.plan = identity, plan
        self._pins, self._folder = pins, folder
        self._known = self._stored()

    def check(self, name: str, public_key: bytes) -> None:
        """Accepts `public_key` as that of the party `name`.

        Raises:
          ProtocolError: if it is another one than pinned, or none is pinned where all must be.
        """
        me, shown = self.identity.name, fingerprint(public_key)
        if self._pins is not None and name not in self._pins and name != me:
            raise ProtocolError(
                f"{me} refuses {name}: no fingerprint of it is pinned (config.federated.pins); "
                f"it shows {shown}"
            )
        for pinned in ((self._pins or {}).get(name), self._known.get(name)):
            if pinned is not None and pinned != shown:
                raise ProtocolError(
                    f"{me} refuses {name}: its identity key has the fingerprint {shown}, pinned is "
                    f"{pinned}; ask {name} whether it has a new key"
                )

    def remember(self, public_keys: Mapping[str, bytes]) -> None:
        """Records peers that proved who they are; another key under these names is refused.

        Raises:
          ProtocolError: if another key was recorded meanwhile.
          StorageError: if the record cannot be written.
        """
        self._known |= self._stored()
        for name, key in public_keys.items():
            self.check(name, key)
        new = {name: fingerprint(key) for name, key in public_keys.items()}
        if new.items() <= self._known.items():
            return
        self._known |= new
        if self._folder is not None:
            storage.write_json(storage.private_folder(self._folder) / PINS_FILE, self._known)

    def _stored(self) -> dict[str, str]:
        """Fingerprints of the peers recorded in the folder."""
        path = self._folder / PINS_FILE if self._folder else None
        if path is None or not path.exists():
            return {}
        return {name: str(text) for name, text in storage.read_json(path).items()}


def ephemeral(name: str, plan: bytes = bytes(KEY_BYTES)) -> Credentials:
    """Credentials that last as long as this object, of a party that has met nobody."""
    return Credentials(make(name), plan)


def open_credentials(
    folder: pathlib.Path, name: str, plan: bytes, pins: pathlib.Path | None = None
) -> Credentials:
    """Credentials of the party whose own folder is `folder`; its key is made there if missing.

    Raises:
      ConfigError: if the file of pins cannot be read, or pins another key for this party itself.
      CheckpointError: if the stored key or the record of peers is damaged.
      StorageError: if they cannot be written.
    """
    identity = load_or_make(folder, name)
    pinned = None if pins is None else read_pins(pins)
    own = (pinned or {}).get(name, identity.fingerprint)
    if own != identity.fingerprint:
        raise ConfigError(
            f"pins {pins}: {name} is pinned to {own}, its own key in {folder} is "
            f"{identity.fingerprint}; mend the file or restore the key"
        )
    return Credentials(identity, plan, pinned, folder)


@dataclasses.dataclass(frozen=True)
class Session:
    """The result of a key agreement.

    Attributes:
      me: name of the party that holds this.
      transcript: digest of everybody's names and keys; the same for all, another in each session.
      public_keys: Ed25519 keys of all parties, checked against the pins.
      secrets: shared with each peer; see `key`.
    """

    me: str
    transcript: bytes
    public_keys: Mapping[str, bytes]
    secrets: Mapping[str, bytes] = dataclasses.field(repr=False)

    def key(self, purpose: str, sender: str, receiver: str) -> bytes:
        """Key of 32 bytes for messages from `sender` to `receiver`, one of which is this party."""
        secret = self.secrets[receiver if sender == self.me else sender]
        fields = {"session": self.transcript, "sender": sender, "receiver": receiver}
        return derive(secret, encoded(purpose, fields))


class Handshake:
    """One party's side of a key agreement; `hello`, then `sign`, then `finish`, once each."""

    def __init__(self, credentials: Credentials):
        """Draws the fresh X25519 key."""
        self._credentials, self._me = credentials, credentials.identity.name
        self._private = X25519PrivateKey.generate()
        self._hellos: dict[str, bytes] = {}
        self._transcript = b""

    @property
    def hello(self) -> bytes:
        """First message, 96 bytes: identity key, fresh key, digest of the plan."""
        fresh = self._private.public_key().public_bytes_raw()
        return self._credentials.identity.public_key + fresh + self._credentials.plan

    def sign(self, hellos: Mapping[str, bytes]) -> bytes:
        """Second message, 64 bytes: the signature over everybody's hello.

        Raises:
          ProtocolError: if a peer is not the one that is pinned or has another plan, two parties
            show the same key, or this party's own hello was changed.
        """
        if self._hellos:
            raise ProtocolError(f"{self._me} has signed the keys of this session already")
        if hellos.get(self._me) != self.hello:
            raise ProtocolError(f"{self._me} refuses: its own keys came back changed or not at all")
        for name, hello in hellos.items():
            if len(hello) != HELLO_BYTES:
                raise ProtocolError(f"{self._me} refuses: {name} shows keys of a wrong length")
            self._credentials.check(name, _identity_key(hello))
            if hello[2 * KEY_BYTES :] != self._credentials.plan:
                raise ProtocolError(
                    f"{self._me} refuses {name}: it has another plan (configuration) of the run"
                )
        for part in (_identity_key, _fresh_key):
            if len({part(hello) for hello in hellos.values()}) != len(hellos):
                raise ProtocolError(f"{self._me} refuses: two parties show the same public key")
        self._hellos = dict(hellos)
        everybody = encoded("transcript", {"hellos": sorted(self._hellos.items())})
        self._transcript = hashlib.sha256(everybody).digest()
        return self._credentials.identity.sign(_AGREEMENT, self._statement(self._me))

    def finish(
        self, signatures: Mapping[str, bytes], peers: Iterable[str] | None = None
    ) -> Session:
        """Checks the signatures of `peers` (all, by default) and derives what is shared with each.

        Raises:
          ProtocolError: if one is missing or does not fit the keys that this party received, or a
            fresh key cannot be used.
        """
        if not self._hellos:
            raise ProtocolError(f"{self._me} has not signed the keys of this session")
        chosen = self._hellos if peers is None else peers
        secrets = {}
        for name in chosen:
            if name == self._me:
                continue
            if name not in self._hellos:
                raise ProtocolError(f"{self._me} refuses: no keys of {name} came")
            hello, statement = self._hellos[name], self._statement(name)
            signature = signatures.get(name, b"")
            if not verify(_identity_key(hello), _AGREEMENT, statement, signature):
                raise ProtocolError(
                    f"{self._me} refuses: the signature of {name} does not fit the keys of this "
                    "session; they were swapped or replayed on their way"
                )
            secrets[name] = agree(self._private, _fresh_key(hello), name)
        identities = {name: _identity_key(hello) for name, hello in self._hellos.items()}
        self._credentials.remember({name: identities[name] for name in secrets})
        return Session(self._me, self._transcript, identities, secrets)

    def _statement(self, signer: str) -> dict[str, Any]:
        return {"signer": signer, "session": self._transcript}


def _identity_key(hello: bytes) -> bytes:
    return hello[:KEY_BYTES]


def _fresh_key(hello: bytes) -> bytes:
    return hello[KEY_BYTES : 2 * KEY_BYTES]


def verify(public_key: bytes, purpose: str, fields: Mapping[str, Any], signature: bytes) -> bool:
    """True if `signature` is that of the key's holder over `fields` for this purpose."""
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(bytes(signature), encoded(purpose, fields))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def encoded(purpose: str, fields: Mapping[str, Any]) -> bytes:
    """`fields` as bytes, different for different fields and different purposes.

    Values are text, whole numbers, bytes, and lists of them.
    """
    form = [_DOMAIN, purpose, _plain(fields)]
    return json.dumps(form, sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {"fields": {str(key): _plain(part) for key, part in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return value


def digest(purpose: str, fields: Mapping[str, Any]) -> bytes:
    """SHA-256 of `fields` for this purpose, 32 bytes."""
    return hashlib.sha256(encoded(purpose, fields)).digest()


def plan_digest(plan: Mapping[str, Any]) -> bytes:
    """SHA-256 of what all parties must agree on, given as plain values."""
    return digest("plan", plan)


def agree(private: X25519PrivateKey, peer_public: bytes, peer: str) -> bytes:
    """The secret shared with `peer`.

    Raises:
      ProtocolError: for a key that is one's own, or gives a secret that everybody knows.
    """
    try:
        if peer_public == private.public_key().public_bytes_raw():
            raise ValueError("it is this party's own")
        return private.exchange(X25519PublicKey.from_public_bytes(peer_public))
    except ValueError as error:
        raise ProtocolError(f"the public key of {peer} cannot be used: {error}") from None


def derive(secret: bytes, info: bytes) -> bytes:
    """A key of 32 bytes, by HKDF, from a shared secret; others for other `info`."""
    return HKDF(SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)
