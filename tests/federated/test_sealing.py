"""Keys exchanged through the provider: it carries public keys, and can put none of its own in."""

import numpy as np
import pytest

from primia_jax.core import identity
from primia_jax.errors import ProtocolError
from primia_jax.federated import sealing
from primia_jax.federated.aggregation import PROVIDER
from primia_jax.runtime import Receive, Send, run_local

HOSPITALS = ("h0", "h1", "h2")


def exchanged(credentials=None, provider=None):
    """Key rings of all hospitals; `provider` replaces the provider's program."""
    parties = {
        me: sealing.exchange_keys(
            me, [h for h in HOSPITALS if h != me], PROVIDER, (credentials or {}).get(me)
        )
        for me in HOSPITALS
    }
    parties[PROVIDER] = provider or sealing.distribute_keys(HOSPITALS)
    results, trace = run_local(parties)
    return {name: results[name] for name in HOSPITALS}, trace


def members():
    return {name: identity.Credentials(identity.make(name)) for name in HOSPITALS}


def lying(change):
    """A provider that shows each receiver `change(phase, receiver, directory)`."""
    for phase in ("keys", "signatures"):
        directory = {}
        for hospital in HOSPITALS:
            directory[hospital] = yield Receive(hospital)
        for hospital in HOSPITALS:
            yield Send(hospital, change(phase, hospital, dict(directory)))


def test_every_hospital_can_write_to_every_other():
    rings, trace = exchanged()
    letter = rings["h0"].seal("h1", np.arange(32, dtype=np.uint8), b"place")
    np.testing.assert_array_equal(rings["h1"].open("h0", letter, b"place"), np.arange(32))
    for receiver, sender, place in (("h2", "h0", b"place"), ("h1", "h0", b""), ("h0", "h1", b"")):
        with pytest.raises(ProtocolError, match=f"from {sender} is not authentic"):
            rings[receiver].open(sender, letter, place)
    for name in HOSPITALS:
        assert trace.parties[name].bytes_sent == 96 + 64
    assert trace.round_trips == 2.0


def test_an_altered_seal_is_refused():
    rings, _ = exchanged()
    sealed = rings["h0"].seal("h1", np.arange(32, dtype=np.uint8)).copy()
    sealed[20] ^= 1
    for bad in (sealed, sealed[:20], sealed[:0]):
        with pytest.raises(ProtocolError, match="h0 is not authentic"):
            rings["h1"].open("h0", bad)


def test_the_provider_sees_public_keys_and_signatures_only():
    heard = []

    def listen(phase, receiver, directory):
        heard.extend(directory.values())
        return directory

    rings, _ = exchanged(provider=lying(listen))
    assert {message.shape for message in heard} == {(96,), (64,)}
    secrets = {bytes(key) for ring in rings.values() for key in ring.seal_keys.values()}
    secrets |= {ring.identity.private for ring in rings.values()}
    assert not any(secret in message.tobytes() for secret in secrets for message in heard)


class TestAProviderThatLies:
    def test_its_own_identity_under_a_hospitals_name(self):
        """To hospitals that have met before; the same holds for pinned ones."""
        known, middle = members(), identity.Handshake(identity.ephemeral("h1"))
        exchanged(known)
        hello = np.frombuffer(middle.hello, np.uint8)

        def swap(phase, receiver, directory):
            if phase == "keys" and receiver == "h0":
                directory["h1"] = hello
            return directory

        with pytest.raises(ProtocolError, match="h0 refuses h1: its identity key has the finger"):
            exchanged(known, lying(swap))

    @pytest.mark.parametrize("own", [True, False])
    def test_its_own_fresh_key_under_a_hospitals_identity(self, own):
        """Of a pair that it made, or another hospital's."""

        def swap(phase, receiver, directory):
            if phase == "keys" and receiver == "h0":
                other = identity.Handshake(identity.ephemeral("x")).hello[32:64]
                fresh = np.frombuffer(other, np.uint8) if own else directory["h2"][32:64]
                directory["h1"] = np.concatenate([directory["h1"][:32], fresh, bytes_of(32)])
            return directory

        match = "signature of h1 does not fit" if own else "same public key"
        with pytest.raises(ProtocolError, match=match):
            exchanged(provider=lying(swap))

    def test_keys_and_signatures_of_an_earlier_session(self):
        known, first = members(), {}

        def record(phase, receiver, directory):
            first[phase] = directory["h1"]
            return directory

        def replay(phase, receiver, directory):
            return {**directory, "h1": first[phase]} if receiver == "h0" else directory

        exchanged(known, lying(record))
        with pytest.raises(ProtocolError, match="h0 refuses: the signature of h1 does not fit"):
            exchanged(known, lying(replay))

    def test_directories_that_are_none(self):
        for message in (np.zeros(3), {"h0": np.zeros(96, np.uint8)}, {}):
            with pytest.raises(ProtocolError, match="h0"):
                exchanged(provider=lying(lambda phase, to, directory, m=message: m))


def bytes_of(n):
    return np.zeros(n, np.uint8)


def test_a_signature_holds_in_its_session_for_its_signer_and_fields():
    (first, _), (second, _) = exchanged(known := members()), exchanged(known)
    signature = first["h0"].sign("list", {"round": 1})
    assert first["h1"].signed_by("h0", "list", {"round": 1}, signature)
    assert not second["h1"].signed_by("h0", "list", {"round": 1}, signature)
    assert not first["h1"].signed_by("h2", "list", {"round": 1}, signature)
    assert not first["h1"].signed_by("h0", "list", {"round": 2}, signature)
    assert not first["h1"].signed_by("h9", "list", {"round": 1}, signature)
