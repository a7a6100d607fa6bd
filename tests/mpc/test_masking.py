"""Masks of many seeds at once: the same words as one expansion after another."""

import jax.numpy as jnp
import numpy as np
import pytest

from primia_jax.errors import ProtocolError
from primia_jax.mpc import masking, prg, ring

SEEDS = [np.arange(32, dtype=np.uint8) + i for i in range(4)]


WORDS = pytest.mark.parametrize("kind", [np.uint32, np.uint64])


@WORDS
@pytest.mark.parametrize("n", [0, 1, 7, 17, "a piece", "one more", "two pieces and three"])
def test_agrees_with_whole_expansions(n, kind):
    piece = masking._PIECE // np.dtype(kind).itemsize
    n = {"a piece": piece, "one more": piece + 1, "two pieces and three": 2 * piece + 3}.get(n, n)
    rng = np.random.default_rng(n)
    words = rng.integers(0, np.iinfo(kind).max, n, dtype=kind, endpoint=True)
    first, second, third = (prg.expand(seed, n, words=kind) for seed in SEEDS[:3])
    assert first.dtype == kind
    expected = words + first + second - third
    consumed = words.copy()
    found = masking.mask(consumed, SEEDS[:2], SEEDS[2:3])
    np.testing.assert_array_equal(found, expected)
    assert found is consumed or n == 0
    np.testing.assert_array_equal(masking.mask(found, SEEDS[2:3], SEEDS[:2]), words)


@WORDS
def test_read_only_words_and_jax_arrays_are_left_as_they_are(kind):
    words = np.arange(100, dtype=kind)
    words.flags.writeable = False
    plus, minus = (prg.expand(seed, 100, words=kind) for seed in SEEDS[:2])
    expected = np.arange(100, dtype=kind) + plus - minus
    np.testing.assert_array_equal(masking.mask(words, SEEDS[:1], SEEDS[1:2]), expected)
    with ring.x64():
        found = masking.mask(jnp.arange(100, dtype=kind), SEEDS[:1], SEEDS[1:2])
    assert found.dtype == kind
    np.testing.assert_array_equal(np.asarray(found), expected)
    np.testing.assert_array_equal(words, np.arange(100))


def test_the_whole_key_counts():
    """A mask changes with any bit of its seed: nothing is folded."""
    zeros = np.zeros(8, np.uint64)
    masks = set()
    for bit in range(256):
        seed = np.zeros(32, np.uint8)
        seed[bit // 8] = 1 << bit % 8
        masks.add(masking.mask(zeros.copy(), [seed]).tobytes())
    assert len(masks) == 256


def test_words_of_another_type_are_refused():
    with pytest.raises(ProtocolError, match="uint64"):
        masking.mask(np.zeros(4, np.int64), SEEDS[:1])
