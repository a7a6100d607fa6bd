"""Streams that two parties share: in step, never repeated, and residues without any bias."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from primia_jax.errors import ProtocolError
from primia_jax.mpc import prg
from primia_jax.mpc.protocols import parties
from primia_jax.mpc.protocols.parties import Party, SharedStream

SEED = np.arange(32, dtype=np.uint8)
SURE = 1e-9


def test_words_are_the_ciphers_under_the_run_and_the_call():
    stream = SharedStream(SEED, 7)
    for call, n in enumerate((5, 1, 1000)):
        nonce = call | 7 << 32
        np.testing.assert_array_equal(stream.words(n), prg.expand(SEED, n, nonce))


def test_narrow_words():
    words = SharedStream(SEED, 0).words(13, np.uint8)
    np.testing.assert_array_equal(words, prg.expand(SEED, 2, 0).view(np.uint8)[:13])


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from((1, 2, 5, 64, 66, 67, 200, 216, 256))),
        max_size=8,
    )
)
def test_two_holders_stay_in_step(draws):
    """Rejections differ from draw to draw; 216 rejects every second word."""
    one, other = SharedStream(SEED, 3), SharedStream(SEED, 3)
    for n, modulus in draws:
        found = one.residues((n, 3), modulus)
        np.testing.assert_array_equal(found, other.residues((n, 3), modulus))
        assert found.shape == (n, 3) and found.dtype == np.uint8
        assert not found.size or found.max() < modulus
    np.testing.assert_array_equal(one.words(4), other.words(4))


def test_no_word_comes_twice():
    """Neither in another call, nor in another run, nor where rejected words are drawn anew."""
    first, second = SharedStream(SEED, 0), SharedStream(SEED, 1)
    drawn = [first.words(500), first.words(500), second.words(500)]
    before = first._calls
    first.residues((10_000,), 67)
    assert first._calls >= before + 2  # the draw, and at least one of what was rejected
    drawn.append(first.words(500))
    assert len(np.unique(np.concatenate(drawn))) == 2000


@pytest.mark.parametrize("modulus", (3, 66, 67, 200, 255))
def test_residues_are_digits_without_bias(modulus):
    """Each four digits come from equally many words: floor(2^32 / m^4), by exact arithmetic."""
    values = modulus**4
    rng = np.random.default_rng(0)
    for value in [0, 1, values - 1, *map(int, rng.integers(0, values, 20))]:
        lowest, end = -(-(value << 32) // values), -(-((value + 1) << 32) // values)
        words = np.concatenate(
            [np.arange(lowest, min(lowest + 60, end)), np.arange(max(end - 60, lowest), end)]
        )
        found = parties._residues_of(words.astype(np.uint32), modulus)
        excess = (1 << 32) % values
        kept = np.asarray([int(word) * values % (1 << 32) >= excess for word in words])
        digits = [value // modulus**k % modulus for k in (3, 2, 1, 0)]
        wanted = int(np.frombuffer(bytes(digits), "<u4")[0])
        np.testing.assert_array_equal(found, np.where(kept, wanted, 0xFFFFFFFF))
        # The rests of one value's words go up in steps of m^4: the first may be rejected only.
        accepted = end - lowest - int((lowest * values) % (1 << 32) < excess)
        assert accepted == (1 << 32) // values


@pytest.mark.parametrize("n", (parties._FEW, 70_000, 2 * parties._PIECE))
def test_the_kernel_does_what_small_draws_do(n):
    for modulus in (66, 67):
        stream = SharedStream(SEED, 0)
        words = prg.expand(SEED, n // 2, 0).view(np.uint32)
        parts = [words[start : start + 1000] for start in range(0, n, 1000)]
        wanted = np.concatenate([parties._residues_of(part, modulus) for part in parts])
        kept = np.repeat(wanted != parties._REJECTED, 4)
        found = stream.residues((4 * n,), modulus)
        np.testing.assert_array_equal(found[kept], wanted.view(np.uint8)[kept])
        assert not kept.all()


@pytest.mark.parametrize("modulus", (2, 5, 64, 66, 67, 216, 256))
def test_residues_are_uniform_and_do_not_depend_on_their_neighbours(modulus):
    found = SharedStream(SEED, 0).residues((400_000,), modulus).astype(np.int64)
    assert stats.chisquare(np.bincount(found, minlength=modulus)).pvalue > SURE
    pairs = found[::2] * modulus + found[1::2]
    if modulus <= 67:
        assert stats.chisquare(np.bincount(pairs, minlength=modulus**2)).pvalue > SURE


@pytest.mark.parametrize("modulus", (-1, 0, 257))
def test_moduli_that_bytes_cannot_hold(modulus):
    with pytest.raises(ProtocolError, match="modulus from 1 to 256"):
        SharedStream(SEED, 0).residues((3,), modulus)


@pytest.mark.parametrize("number", (-1, 1 << 64))
def test_run_numbers_have_64_bits(number):
    with pytest.raises(ProtocolError, match="64-bit"):
        SharedStream(SEED, number)


def test_a_stream_ends_before_its_nonces_repeat():
    stream = SharedStream(SEED, 0)
    stream._calls = (1 << 32) - 1
    stream.words(1)
    with pytest.raises(ProtocolError, match="no nonce is left"):
        stream.words(1)
    with pytest.raises(ProtocolError, match="no nonce is left"):
        stream.residues((1,), 67)


def test_party():
    names = ("alice", "bob", "carol")
    stream = SharedStream(SEED, 0)
    alice, bob = (Party(i, names, {2: stream}) for i in (0, 1))
    assert (alice.peer, bob.peer, alice.assistant) == ("bob", "alice", "carol")
    assert alice.shared_with(2) is stream
    assert not bob.is_assistant and Party(2, names, {}).is_assistant
    with pytest.raises(ProtocolError, match="alice shares no seed with party 1"):
        alice.shared_with(1)
    with pytest.raises(ProtocolError, match="bob has no stream of its own"):
        bob.private()
    for index, others in ((3, names), (0, ("alice", "bob", "bob"))):
        with pytest.raises(ProtocolError, match="three parties"):
            Party(index, others, {})
