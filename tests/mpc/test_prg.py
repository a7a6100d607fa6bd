"""The generator behind every mask: the published cipher, under the whole key, on any backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tree_reference

from primia_jax.errors import ProtocolError
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


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("nonce", [0, 1, 2**40 + 5, 2**96 - 1])
def test_openssl_and_jax_agree(n, nonce, kind):
    with ring.x64():
        traced = jax.jit(lambda seed: prg.expand(seed, n, nonce, kind))(RFC_KEY)
    assert traced.dtype == kind
    np.testing.assert_array_equal(np.asarray(traced), prg.expand(RFC_KEY, n, nonce, kind))


@pytest.mark.parametrize("n", [1, 8, 999])
def test_words_of_both_widths_are_the_same_stream(n):
    narrow = prg.expand(RFC_KEY, 2 * n, 3, np.uint32)
    np.testing.assert_array_equal(narrow.view("<u8"), prg.expand(RFC_KEY, n, 3))


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


# --- blocks under 128-bit keys, of which trees grow


def tree_words(seed, domain, rounds):
    """One block of one seed, as ints."""
    words = [jnp.asarray([word], jnp.uint32) for word in seed]
    return [int(w[0]) for w in prg.tree_block(words, [jnp.uint32(d) for d in domain], rounds)]


@pytest.mark.parametrize(
    ("rounds", "first"),
    [(8, "e28a5fa4a67f8c5d"), (12, "e1047ba9476bf8ff"), (20, "89670952608364fd")],
)
def test_zero_key_vectors_of_the_128_bit_form(rounds, first):
    words = tree_words([0] * 4, [0] * 4, rounds)
    assert np.asarray(words[:2], "<u4").tobytes().hex() == first


@pytest.mark.parametrize("rounds", [8, 12, 20])
def test_tree_blocks_agree_with_the_definition(rounds):
    rng = np.random.default_rng(rounds)
    for _ in range(3):
        seed, domain = rng.integers(0, 2**32, (2, 4), dtype=np.uint32).tolist()
        assert tree_words(seed, domain, rounds) == tree_reference.block(seed, domain, rounds)


def test_domains_differ_in_every_part():
    """Role, level, gate and both halves of the session all reach the block."""
    base = (3, 7, (5, 2**40 + 9))
    others = [
        (4, 7, base[2]), (3, 8, base[2]), (3, 7, (6, base[2][1])), (3, 7, (5, 2**40 + 8)),
        (3, 7, (5, 2**41 + 9)),
    ]  # fmt: skip
    words = [
        tuple(int(w) for w in prg.tree_domain(role, jnp.uint32(level), prg.domain_words(domain)))
        for role, level, domain in (base, *others)
    ]
    assert words[0] == (3 << 8 | 7, 5, 9, 2**8)
    assert len(set(words)) == 6
    assert len({tuple(tree_words([1, 2, 3, 4], domain, 8)) for domain in words}) == 6


@pytest.mark.parametrize("domain", [(-1, 0), (2**32, 0), (0, -1), (0, 2**64)])
def test_a_domain_that_would_be_cut_is_refused(domain):
    with pytest.raises(ProtocolError, match="domain"):
        prg.domain_words(domain)


def test_packed_words_keep_every_bit():
    """Words that make signalling NaNs, infinities and denormals among them."""
    special = [0, 1, 0x7FF00000, 0x7FF00001, 0xFFF00000, 0x7FF7FFFF, 0xFFFFFFFF, 0x80000000]
    words = np.stack([a.ravel() for a in np.meshgrid(*[special] * 4)]).astype(np.uint32)
    with ring.x64():
        state = jax.jit(lambda w: prg.pack_words(list(w), True))(words)
        assert state.dtype == jnp.complex128
        back = jax.jit(lambda z: jnp.stack(prg.unpack_words(z)))(state)
        np.testing.assert_array_equal(back, words)
        same = prg.unpack_words(prg.pack_words(list(words), False))
    np.testing.assert_array_equal(same, words)


@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 802816, 2**18 + 2**15 + 5])
def test_chunks_cover_all_elements_with_few_shapes(n):
    sizes = prg.chunk_sizes(n)
    assert sum(sizes) == n
    assert all(size in prg.CHUNKS for size in sizes[:-1])
    assert all(size <= prg.CHUNKS[-1] or size in prg.CHUNKS for size in sizes)
    for size in sizes[-1:]:
        piece = prg.chunk(jnp.arange(n, dtype=jnp.uint32), n - size, size)
        assert piece.shape[0] in prg.CHUNKS
        np.testing.assert_array_equal(piece[:size], np.arange(n - size, n))
        assert not np.asarray(piece[size:]).any()
