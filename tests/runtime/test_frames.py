"""Sealed frames: what goes in comes out, and nothing that was tampered with does."""

import contextlib
import json
import struct
from typing import NamedTuple

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from primia_jax.core import identity
from primia_jax.errors import ProtocolError
from primia_jax.runtime import frames


class Pair(NamedTuple):
    first: object
    second: object


def _leaves():
    kinds = st.sampled_from([np.uint8, np.uint32, np.uint64, np.float32, np.bool_, np.complex128])
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return kinds.flatmap(lambda kind: arrays.arrays(kind, shapes))


MESSAGES = st.recursive(
    _leaves(),
    lambda inner: st.one_of(
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 9)), inner, max_size=3),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=8,
)


def _assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = list(a.values()), list(b.values())
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            _assert_same(x, y)
    else:
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@hypothesis.given(MESSAGES)
def test_any_message_comes_out_as_it_went_in(message):
    _assert_same(frames.unpack(frames.pack(message)), message)


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", ">f4", "int64", "float16"])
def test_types_are_kept(kind):
    array = np.arange(12, dtype=np.dtype(kind)).reshape(3, 4)[:, ::2]  # not contiguous
    _assert_same(frames.unpack(frames.pack(array)), np.asarray(array, order="C"))


def test_jax_arrays_and_scalars_arrive_as_numpy():
    message = frames.unpack(frames.pack({"x": jnp.arange(3.0), "n": np.uint64(2**63)}))
    assert type(message["x"]) is np.ndarray and message["x"].tolist() == [0, 1, 2]
    assert message["n"].shape == () and message["n"] == 2**63


def test_arrays_lie_on_a_cache_lines_multiple():
    message = frames.unpack(frames.pack([np.zeros(3, np.uint8), np.zeros(5, np.uint64)]))
    assert [array.ctypes.data % 64 for array in message] == [0, 0]
    assert not any(array.flags.writeable for array in message)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"x": np.array([object()])}, "type object"),
        (np.zeros(2, [("a", "f4")]), "type"),
        ({"x": None}, "NoneType"),
        ({(1, 2): np.zeros(1)}, "keys must be text"),
        (jax.tree_util.Partial(len), "Partial"),
        ("text", "str"),
    ],
)
def test_what_cannot_travel_is_named(message, words):
    with pytest.raises(ProtocolError, match=words):
        frames.pack(message)


def _with_head(head, body=b""):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    data = struct.pack("<I", len(text)) + text
    return data + bytes(-len(data) % 64) + body


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xff\xff\xff",
        _with_head(b"not json"),
        _with_head(b"\xff\xfe"),
        _with_head([None, [["<f4", [3]]]], b"short"),
        _with_head([None, [["<f4", [-1]]]], bytes(64)),
        _with_head([None, [["<f4", [10**30]]]], bytes(64)),
        _with_head([None, [["O", [1]]]], bytes(64)),
        _with_head([None, [["f4,O", [1]]]], bytes(64)),
        _with_head([None, [["nonsense", [1]]]], bytes(64)),
        _with_head([None, [["|u1", [1]]]], bytes(3)),
        _with_head([None, [["|u1", [1]], ["|u1", [0]]]], bytes(1)),
        _with_head([None, []]),
        _with_head([5, []]),
        _with_head(["text", []]),
        _with_head([{"other": []}, []]),
        _with_head([{"named": ["os", "system", []], "of": []}, []]),
        _with_head([{"named": ["no.such.module", "Pair", []], "of": []}, []]),
        _with_head([{"named": [__name__, "Pair", ["first"]], "of": []}, []]),
        _with_head([{"named": [__name__, 5, []], "of": []}, []]),
        _with_head(b"[" * 100_000),
    ],
)
def test_a_malformed_payload_is_refused_in_one_line(payload):
    """Authentic does not mean honest: whatever a peer packs must end in an error or a message."""
    with pytest.raises(ProtocolError, match="cannot be unpacked") as caught:
        frames.unpack(np.frombuffer(payload, np.uint8))
    assert "\n" not in str(caught.value)


@hypothesis.given(st.binary(max_size=60), st.integers(0, 200))
def test_random_damage_never_escapes_as_another_error(noise, place):
    payload = bytearray(frames.pack({"x": np.arange(9), "y": (np.zeros(2, np.float32),)}).data)
    payload[place : place + len(noise)] = noise
    with contextlib.suppress(ProtocolError):
        frames.unpack(np.frombuffer(payload, np.uint8))


@pytest.fixture
def links():
    return _links()


def _words(text):
    return np.frombuffer(text, np.uint8)


def _seal(seals, sender, receiver, text, associated=b""):
    return seals[sender].seal(receiver, _words(text), associated)


def _open(seals, receiver, sender, frame, associated=b""):
    return seals[receiver].open(sender, *frame, associated).tobytes()


def test_a_message_for_several_opens_with_what_each_was_sent():
    payload = np.arange(1000, dtype=np.uint8)
    opener, content = frames.seal_for_several(payload)
    assert payload.tobytes() not in content.tobytes() and opener.shape == (64,)
    np.testing.assert_array_equal(frames.open_for_several(opener, content), payload)
    other, _ = frames.seal_for_several(payload)
    assert other.tobytes() != opener.tobytes()


def test_a_receiver_cannot_change_a_message_for_several():
    """It knows the key, so it can seal other bytes under it; the digest gives that away."""
    opener, content = frames.seal_for_several(np.zeros(100, np.uint8))
    forged = AESGCM(opener[:32].tobytes()).encrypt(bytes(12), bytes(range(100)), b"")
    for wrong in (
        np.frombuffer(forged, np.uint8),
        content[:-1],
        np.zeros(5, np.uint8),
        np.zeros(3),
    ):
        with pytest.raises(ProtocolError, match="a message for several parties is not authentic"):
            frames.open_for_several(opener, wrong)


def _links(names=("alice", "bob", "carol"), credentials=None, carry=dict):
    """Seals of parties that agreed on keys; `carry` may change what everybody is shown."""
    seals = {name: frames.Seals(name, (credentials or {}).get(name)) for name in names}
    hellos = carry({name: seal.hello for name, seal in seals.items()})
    signatures = {name: seal.sign(hellos) for name, seal in seals.items()}
    for seal in seals.values():
        seal.agree(signatures)
    return seals


def test_a_frame_opens_for_its_receiver_alone_and_hides_its_payload(links):
    frame = _seal(links, "alice", "bob", b"secret" * 10, b"place")
    assert b"secret" not in frame[1].tobytes() and frame[1].size == 60 + 16
    for receiver, sender in (("carol", "alice"), ("bob", "carol"), ("alice", "bob")):
        with pytest.raises(ProtocolError, match=f"{sender} to {receiver}: a frame is not authent"):
            _open(links, receiver, sender, frame, b"place")
    assert _open(links, "bob", "alice", frame, b"place") == b"secret" * 10


def test_directions_and_links_have_keys_of_their_own(links):
    """Number 1 of every direction, the same words: no two ciphertexts agree."""
    sealed = [_seal(links, a, b, bytes(32))[1].tobytes() for a in links for b in links if a != b]
    assert len(set(sealed)) == 6


def test_a_nonce_never_comes_again(links):
    sealed = [_seal(links, "alice", "bob", bytes(16)) for _ in range(50)]
    assert [number for number, _ in sealed] == list(range(1, 51))
    assert len({frame.tobytes() for _, frame in sealed}) == 50


@pytest.mark.parametrize("place", [0, 20, -17, -16, -1])
def test_an_altered_frame_is_refused(links, place):
    number, frame = _seal(links, "alice", "bob", bytes(40))
    altered = frame.copy()
    altered[place] ^= 1
    with pytest.raises(ProtocolError, match="alice to bob"):
        _open(links, "bob", "alice", (number, altered))
    with pytest.raises(ProtocolError, match="alice to bob"):
        _open(links, "bob", "alice", (number, frame), b"elsewhere")
    assert _open(links, "bob", "alice", (number, frame)) == bytes(40)  # the true one still may


@pytest.mark.parametrize("length", [0, 5, 16, 55])
def test_a_truncated_frame_is_refused(links, length):
    number, frame = _seal(links, "alice", "bob", bytes(40))
    with pytest.raises(ProtocolError, match="alice to bob"):
        _open(links, "bob", "alice", (number, frame[:length]))


def test_a_replayed_or_swapped_frame_is_refused(links):
    first = _seal(links, "alice", "bob", b"first", b"0")
    second = _seal(links, "alice", "bob", b"second", b"1")
    with pytest.raises(ProtocolError, match="not authentic"):
        _open(links, "bob", "alice", second, b"0")  # in the first one's place
    assert _open(links, "bob", "alice", first, b"0") == b"first"
    with pytest.raises(ProtocolError, match="twice"):
        _open(links, "bob", "alice", first, b"0")
    with pytest.raises(ProtocolError, match="not authentic"):
        _open(links, "bob", "alice", (2, first[1]), b"0")  # renumbered
    assert _open(links, "bob", "alice", second, b"1") == b"second"


def test_frames_of_a_failed_run_may_be_skipped(links):
    _seal(links, "alice", "bob", b"lost")
    assert _open(links, "bob", "alice", _seal(links, "alice", "bob", b"next")) == b"next"


def test_another_life_has_other_keys():
    one, other = _links(), _links()
    with pytest.raises(ProtocolError, match="not authentic"):
        _open(other, "bob", "alice", _seal(one, "alice", "bob", b"old"))


def test_empty_payloads_are_sealed_too(links):
    assert _open(links, "bob", "alice", _seal(links, "alice", "bob", b"")) == b""


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31)])
def test_a_public_key_of_low_order_is_refused(key):
    """It would make the link's key known to all; its owner may sign it all the same."""
    alice, mallory = frames.Seals("alice"), identity.make("bob")
    handshake = identity.Handshake(identity.Credentials(mallory))
    hellos = {"alice": alice.hello, "bob": mallory.public_key + key + bytes(32)}
    alice.sign(hellos)
    handshake._hellos, handshake._transcript = hellos, alice._handshake._transcript
    signature = mallory.sign(identity._AGREEMENT, handshake._statement("bob"))
    with pytest.raises(ProtocolError, match="public key of bob cannot be used"):
        alice.agree({"bob": signature})


def test_keys_are_agreed_once_and_are_all_different(links):
    with pytest.raises(ProtocolError, match="already"):
        links["alice"].agree({})
    fresh = frames.Seals("dave")
    with pytest.raises(ProtocolError, match="same public key"):
        fresh.sign({"dave": fresh.hello, "bob": fresh.hello})


def test_a_driver_that_hands_out_its_own_keys_is_refused():
    """A man in the middle: it shows alice a key of its own as bob's, signed or not."""
    known = {name: identity.make(name) for name in ("alice", "bob")}
    pins = {name: own.fingerprint for name, own in known.items()}

    def pinned():
        return {name: identity.Credentials(own, pins=pins) for name, own in known.items()}

    assert set(_links(tuple(known), pinned())) == set(known)
    middle = frames.Seals("bob")
    with pytest.raises(ProtocolError, match="alice refuses bob: its identity key has the finger"):
        _links(tuple(known), pinned(), lambda hellos: {**hellos, "bob": middle.hello})
    swapped = middle.hello[32:64]  # under bob's own identity
    alice, bob = (frames.Seals(name, own) for name, own in pinned().items())
    hellos = {"alice": alice.hello, "bob": bob.hello[:32] + swapped + bob.hello[64:]}
    alice.sign(hellos)
    signature = bob.sign({"alice": alice.hello, "bob": bob.hello})
    with pytest.raises(ProtocolError, match="signature of bob does not fit the keys"):
        alice.agree({"bob": signature})
