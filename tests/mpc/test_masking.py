"""Masks of many seeds at once: the same words as one expansion after another."""

import jax.numpy as jnp
import numpy as np
import pytest

from primia_jax.errors import ProtocolError
from primia_jax.mpc import masking, prg, ring

SEEDS = [np.arange(32, dtype=np.uint8) + i for i in range(4)]


@pytest.mark.parametrize("n", [0, 1, 7, masking._PIECE, masking._PIECE + 1, 2 * masking._PIECE + 3])
def test_agrees_with_whole_expansions(n):
    rng = np.random.default_rng(n)
    words = rng.integers(0, 2**64, n, dtype=np.uint64)
    expected = words + prg.expand(SEEDS[0], n) + prg.expand(SEEDS[1], n) - prg.expand(SEEDS[2], n)
    consumed = words.copy()
    found = masking.mask(consumed, SEEDS[:2], SEEDS[2:3])
    np.testing.assert_array_equal(found, expected)
    assert found is consumed or n == 0
    np.testing.assert_array_equal(masking.mask(found, SEEDS[2:3], SEEDS[:2]), words)


def test_read_only_words_and_jax_arrays_are_left_as_they_are():
    words = np.arange(100, dtype=np.uint64)
    words.flags.writeable = False
    expected = np.arange(100, dtype=np.uint64) + prg.expand(SEEDS[0], 100)
    np.testing.assert_array_equal(masking.mask(words, SEEDS[:1]), expected)
    with ring.x64():
        found = masking.mask(jnp.arange(100, dtype=jnp.uint64), SEEDS[:1])
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
