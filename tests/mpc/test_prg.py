"""The generator behind every mask: the published cipher, under the whole key, on any backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from primia_jax.mpc import prg, ring

RFC_KEY = np.arange(32, dtype=np.uint8)


def test_rfc_8439_block():
    """RFC 8439 section 2.3.2."""
    key = jnp.asarray(RFC_KEY.view("<u4"))
    nonce = np.frombuffer(bytes.fromhex("000000090000004a00000000"), "<u4")
    words = prg.chacha_blocks(key, jnp.asarray([1], jnp.uint32), [int(n) for n in nonce])
    block = np.concatenate([np.asarray(word) for word in words]).astype("<u4").tobytes()
    assert block.hex().startswith("10f1e7e4d13b5915500fdd1fa32071c4")
    assert block.hex().endswith("a2503c4e")


@pytest.mark.parametrize(
    ("rounds", "first"),
    [(8, "3e00ef2f895f40d6"), (12, "9bf49a6a0755f953"), (20, "76b8e0ada0f13d90")],
)
def test_zero_key_vectors(rounds, first):
    zeros = jnp.zeros(8, jnp.uint32)
    words = prg.chacha_blocks(zeros, jnp.zeros(1, jnp.uint32), [0, 0, 0], rounds)
    assert np.concatenate(words[:2]).astype("<u4").tobytes().hex() == first


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("nonce", [0, 1, 2**40 + 5, 2**96 - 1])
def test_openssl_and_jax_agree(n, nonce):
    with ring.x64():
        traced = jax.jit(lambda seed: prg.expand(seed, n, nonce))(RFC_KEY)
    assert traced.dtype == jnp.uint64
    np.testing.assert_array_equal(np.asarray(traced), prg.expand(RFC_KEY, n, nonce))


@pytest.mark.parametrize("bit", [0, 100, 255])
def test_every_bit_of_the_key_counts(bit):
    """A well-known library folds its 256-bit seed to 32 bits; one flipped bit must change all."""
    other = RFC_KEY.copy()
    other[bit // 8] ^= 1 << (bit % 8)
    a, b = prg.expand(RFC_KEY, 2000), prg.expand(other, 2000)
    flipped = np.unpackbits((a ^ b).view(np.uint8)).mean()
    assert abs(flipped - 0.5) < 0.01


def test_nonces_give_streams_of_their_own():
    assert not np.intersect1d(prg.expand(RFC_KEY, 1000, 0), prg.expand(RFC_KEY, 1000, 1)).size


def test_seeds_are_fresh():
    assert len({prg.new_seed().tobytes() for _ in range(100)}) == 100
