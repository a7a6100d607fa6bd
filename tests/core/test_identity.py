"""Identities and the key agreements that they sign: nobody between the parties can take part."""

import itertools
import json
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia_jax.core import identity
from primia_jax.errors import CheckpointError, ConfigError, ProtocolError

NAMES = ("alice", "bob", "carol")
PLAN = identity.plan_digest({"rounds": 3})


def credentials(plan=PLAN, **more):
    return {name: identity.Credentials(identity.make(name), plan, **more) for name in NAMES}


def agreed(members, hello=lambda shown, to: shown, sign=lambda signed, to: signed):
    """Sessions of all members; `hello` and `sign` change what a carrier shows to a receiver."""
    shakes = {name: identity.Handshake(own) for name, own in members.items()}
    hellos = {name: shake.hello for name, shake in shakes.items()}
    signed = {n: shake.sign(hello(dict(hellos), n)) for n, shake in shakes.items()}
    return {n: shake.finish(sign(dict(signed), n)) for n, shake in shakes.items()}


def flipped(data, place=0):
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


class TestAgreement:
    def test_every_two_share_a_key_for_each_direction_and_purpose(self):
        sessions = agreed(credentials())
        keys = set()
        for a, b in itertools.permutations(NAMES, 2):
            for purpose in ("x", "y"):
                key = sessions[a].key(purpose, a, b)
                assert key == sessions[b].key(purpose, a, b)
                keys.add(key)
        assert len(keys) == 12
        assert len({session.transcript for session in sessions.values()}) == 1

    def test_sessions_of_the_same_parties_share_nothing(self):
        members = credentials()
        first, second = agreed(members), agreed(members)
        assert first["alice"].transcript != second["alice"].transcript
        assert first["alice"].key("x", "alice", "bob") != second["alice"].key("x", "alice", "bob")

    @pytest.mark.parametrize("place", [0, 32, 64])
    def test_any_part_of_a_hello_that_is_changed_on_its_way_is_noticed(self, place):
        """Identity key, fresh key, plan: for one receiver alone, or for all the others."""
        for receivers in (("alice",), ("alice", "carol")):

            def swap(hellos, to, receivers=receivers):
                if to in receivers:
                    hellos["bob"] = flipped(hellos["bob"], place)
                return hellos

            with pytest.raises(ProtocolError, match="alice refuses"):
                agreed(credentials(), swap)

    def test_a_carrier_with_keys_of_its_own_is_refused_by_those_who_know_bob(self):
        members, middle = credentials(), identity.Handshake(identity.ephemeral("bob", PLAN))
        agreed(members)  # they meet
        with pytest.raises(ProtocolError, match="alice refuses bob: its identity key has"):
            agreed(members, lambda hellos, to: {**hellos, "bob": middle.hello})

    def test_keys_of_an_earlier_session_are_refused(self):
        """The carrier recorded bob's hello and signature, and may know his old fresh key."""
        members, kept = credentials(), {}

        def record(signed, to):
            kept.setdefault("signature", signed["bob"])
            return signed

        def note(hellos, to):
            kept.setdefault("hello", hellos["bob"])
            return hellos

        agreed(members, note, record)

        def replay(hellos, to):
            return hellos if to == "bob" else {**hellos, "bob": kept["hello"]}

        for signature in (kept["signature"], b"", None):

            def replay_too(signed, to, signature=signature):
                return {**signed, "bob": signature or signed["bob"]}

            with pytest.raises(ProtocolError, match=r"signature of bob does not fit.*replayed"):
                agreed(members, replay, replay_too)

    def test_signatures_of_another_party_or_none_are_refused(self):
        for change in (
            lambda signed: {**signed, "bob": signed["carol"]},
            lambda signed: {**signed, "bob": flipped(signed["bob"], 40)},
            lambda signed: {name: own for name, own in signed.items() if name != "bob"},
        ):
            with pytest.raises(ProtocolError, match="signature of bob"):
                agreed(credentials(), sign=lambda signed, to, change=change: change(signed))

    def test_parties_with_different_plans_do_not_agree(self):
        members = credentials()
        members["bob"].plan = identity.plan_digest({"rounds": 4})
        with pytest.raises(ProtocolError, match="alice refuses bob: it has another plan"):
            agreed(members)

    @pytest.mark.parametrize("part", [slice(0, 32), slice(32, 64)])
    def test_two_parties_with_one_key_are_refused(self, part):
        def copy(hellos, to):
            both = bytearray(hellos["carol"])
            both[part] = hellos["bob"][part]
            return {**hellos, "carol": bytes(both)}

        with pytest.raises(ProtocolError, match="same public key"):
            agreed(credentials(), copy)

    def test_ones_own_keys_must_come_back(self):
        for change in ({}, {"alice": bytes(96)}):
            with pytest.raises(ProtocolError, match="alice refuses: its own keys came back"):
                identity.Handshake(credentials()["alice"]).sign(change)

    def test_a_session_is_signed_once(self):
        shake = identity.Handshake(credentials()["alice"])
        with pytest.raises(ProtocolError, match="has not signed"):
            shake.finish({})
        shake.sign({"alice": shake.hello})
        with pytest.raises(ProtocolError, match="has signed"):
            shake.sign({"alice": shake.hello})


class TestPins:
    def _pins(self, members, *names):
        return {name: members[name].identity.fingerprint for name in names}

    def test_who_is_not_pinned_is_refused_where_all_must_be(self):
        members = credentials()
        members["alice"]._pins = self._pins(members, "bob")
        with pytest.raises(ProtocolError, match="alice refuses carol: no fingerprint of it is pin"):
            agreed(members)
        members["alice"]._pins = self._pins(members, "bob", "carol")
        agreed(members)

    def test_a_failed_agreement_pins_nobody(self):
        members = credentials()
        middle = identity.Handshake(identity.ephemeral("bob", PLAN))
        with pytest.raises(ProtocolError):
            agreed(members, lambda hellos, to: {**hellos, "bob": middle.hello})
        agreed(members)

    def test_keys_and_pins_outlive_the_process(self, tmp_path):
        def opened():
            return {n: identity.open_credentials(tmp_path / n, n, PLAN) for n in NAMES}

        first = opened()
        agreed(first)
        again = opened()
        agreed(again)
        assert all(first[n].identity == again[n].identity for n in NAMES)
        for name in (identity.KEY_FILE, identity.PINS_FILE):
            assert stat.S_IMODE((tmp_path / "alice" / name).stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "alice").stat().st_mode) == 0o700
        (tmp_path / "bob" / identity.KEY_FILE).unlink()  # bob comes back as somebody else
        with pytest.raises(ProtocolError, match=r"(alice|carol) refuses bob: its identity key"):
            agreed(opened())

    def test_pins_from_a_file(self, tmp_path):
        members = credentials()
        path = tmp_path / "pins.json"
        shown = self._pins(members, *NAMES)
        path.write_text(json.dumps({**shown, "bob": shown["bob"].upper().replace("-", " ")}))
        assert identity.read_pins(path) == shown

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"bob": "12ab"}', '{"bob": 3}'])
    def test_files_that_hold_no_pins(self, text, tmp_path):
        (tmp_path / "pins.json").write_text(text)
        with pytest.raises(ConfigError, match=r"pins\.json"):
            identity.read_pins(tmp_path / "pins.json")

    def test_a_party_that_is_pinned_to_another_key_than_its_own(self, tmp_path):
        path = tmp_path / "pins.json"
        path.write_text(json.dumps({"alice": identity.make("alice").fingerprint}))
        with pytest.raises(ConfigError, match="alice is pinned to"):
            identity.open_credentials(tmp_path / "alice", "alice", PLAN, path)

    def test_a_damaged_key_is_never_replaced(self, tmp_path):
        (tmp_path / identity.KEY_FILE).write_bytes(b"short")
        with pytest.raises(CheckpointError, match="is no identity key"):
            identity.load_or_make(tmp_path, "alice")


class TestSignatures:
    def test_a_signature_holds_for_its_purpose_and_fields_alone(self):
        own = identity.make("alice")
        signature = own.sign("list", {"round": 1, "names": ["a", "b"]})
        assert identity.verify(own.public_key, "list", {"names": ["a", "b"], "round": 1}, signature)
        for purpose, fields in (
            ("lists", {"round": 1, "names": ["a", "b"]}),
            ("list", {"round": 2, "names": ["a", "b"]}),
            ("list", {"round": "1", "names": ["a", "b"]}),
            ("list", {"round": 1, "names": ["ab"]}),
        ):
            assert not identity.verify(own.public_key, purpose, fields, signature)
        assert not identity.verify(identity.make("alice").public_key, "list", {}, signature)

    def test_the_private_key_is_not_shown(self):
        own = identity.make("alice")
        assert repr(own.private) not in repr(own) and own.private.hex() not in repr(own)

    _values = st.recursive(
        st.text(max_size=3) | st.integers(-9, 9) | st.binary(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=6,
    )

    @settings(max_examples=200)
    @given(a=_values, b=_values)
    def test_different_fields_have_different_encodings(self, a, b):
        same = identity.encoded("p", {"x": a}) == identity.encoded("p", {"x": b})
        assert same == (a == b)
