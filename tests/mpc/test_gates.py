"""The gates are right for every operand and every mask, and each share alone is uniform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from primia_jax.mpc import gates, ring
from primia_jax.mpc.gates import GateSpec, Streams

DOMAIN = (3, 12345)


def make_spec(kind="relu", n=1, ring_bits=32, t=12, k=16, m=8, leaf_bits=8, arity=2) -> GateSpec:
    m = m if kind == "relu" else 0
    return GateSpec(kind, n, ring_bits, t, k, m, leaf_bits, arity, 8)


def draw_streams(spec: GateSpec, party: int, rng: np.random.Generator) -> Streams:
    """What a party would expand from its seed."""
    n, kind = spec.n_elements, ring.word_type(spec.ring_bits)

    def words(*shape, kind=np.uint32):
        return jnp.asarray(rng.integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True))

    sign = compare = select = None
    if party == 0:
        select = words(spec.select_words, n, kind=kind)
    if spec.compares:
        sign = words(-(-n // 8), kind=np.uint8)
        if not spec.has_table:
            compare = words(4, n)
        elif party == 0:
            compare = words(spec.table_words, n)
    return Streams(select, sign, compare)


def run_gate(spec, z, r, rho, rng):
    """All three parties; returns the opened result y, signed, and what the parties held."""
    word = ring.word_type(spec.ring_bits)
    own = [draw_streams(spec, party, rng) for party in (0, 1)]
    tree, key = gates.deal(spec, r, rho, own[0], own[1], DOMAIN)
    y = gates.masked_operand(spec, z.astype(word) + r)
    sent = ring.pack(y, spec.width)
    bits = [None, None]
    if spec.compares:
        compare = [tree.get("compare"), key["compare"]]
        bits = [gates.sign_share(spec, b, sent, own[b], compare[b], DOMAIN) for b in (0, 1)]
    select = [own[0].select, key["select"]]
    shares = [gates.out_share(spec, b, sent, select[b], bits[b], bits[1 - b]) for b in (0, 1)]
    opened = ring.signed(shares[0] + shares[1] - rho, spec.ring_bits)
    return np.asarray(opened), {"y": y, "bits": bits, "shares": shares, "key": key}


def truncated(z, r, bits, width):
    """((z + r) >> bits) − (r >> bits), signed, of `width` bits: z / 2^bits rounded by r's coin."""
    difference = ((z + r) >> bits) - (r >> bits)
    half = 1 << (width - 1)
    return (difference + half) % (2 * half) - half


def every_operand_and_mask(n, limit):
    z, r = np.meshgrid(np.arange(-limit, limit), np.arange(1 << n))
    return z.ravel(), r.ravel()


@pytest.mark.parametrize("slack", (0, 1, 2))
@pytest.mark.parametrize("n,k,t", ((8, 5, 2), (8, 5, 3), (8, 6, 0), (7, 5, 1)))
def test_relu_is_right_for_every_operand_and_mask(n, k, t, slack):
    with ring.x64():
        z, r = every_operand_and_mask(n, (1 << (k - 1 + t)) - (1 << t))
        inside = np.abs(z) <= (1 << (k - 1 + t)) - (1 << (t + slack))
        z, r = z[inside], r[inside]
        spec = make_spec("relu", z.size, n, t, k, k - 1 - slack)
        rng = np.random.default_rng(0)
        rho = jnp.asarray(rng.integers(0, 1 << n, z.size).astype(np.uint32))
        y, _ = run_gate(spec, jnp.asarray(z), jnp.asarray(r.astype(np.uint32)), rho, rng)
        value = truncated(z, r, t, k)
        half = (1 << slack) >> 1
        positive = truncated(z - (half << t), r, t + slack, k - slack) >= 0
        np.testing.assert_array_equal(y, np.where(positive, value, 0))
        # What the slack may do: take the wrong sign within 2^(s-1) of zero, nothing else.
        assert np.abs(y - np.maximum(value, 0)).max() <= half
        assert np.abs(value - z / 2**t).max() < 1


@pytest.mark.parametrize("n,k,t", ((8, 5, 2), (8, 5, 3), (8, 6, 0), (7, 5, 1)))
def test_rescale_is_right_for_every_operand_and_mask(n, k, t):
    with ring.x64():
        z, r = every_operand_and_mask(n, (1 << (k - 2 + t)) - (1 << t))
        spec = make_spec("rescale", z.size, n, t, k)
        rng = np.random.default_rng(0)
        rho = jnp.asarray(rng.integers(0, 1 << n, z.size).astype(np.uint32))
        y, _ = run_gate(spec, jnp.asarray(z), jnp.asarray(r.astype(np.uint32)), rho, rng)
        np.testing.assert_array_equal(y, truncated(z, r, t, k))


def test_rounding_is_unbiased():
    """The dropped fraction is the probability of rounding up: exactly, over all masks."""
    with ring.x64():
        n, k, t = 8, 5, 3
        r = np.arange(1 << n)
        for z in range(0, 64):
            value = truncated(np.full_like(r, z), r, t, k)
            assert value.mean() == z / 2**t


@pytest.mark.parametrize(
    "ring_bits,t,k,m",
    (
        (24, 8, 14, 7),
        (28, 12, 14, 8),
        (32, 16, 16, 9),
        (32, 12, 18, 12),
        (64, 20, 20, 9),
        (64, 16, 34, 33),
    ),
)
@pytest.mark.parametrize("kind", ("relu", "rescale"))
def test_in_every_ring(kind, ring_bits, t, k, m):
    with ring.x64():
        rng = np.random.default_rng(ring_bits + k)
        n = 3000
        spec = make_spec(kind, n, ring_bits, t, k, m)
        limit = (1 << (k - 2 + t)) - (1 << t)
        z = rng.integers(-limit, limit, n)
        z[:100] = rng.integers(-3 << t, 3 << t, 100)
        word = ring.word_type(ring_bits)
        r = rng.integers(0, 1 << ring_bits, n, dtype=np.uint64)
        rho = rng.integers(0, 1 << ring_bits, n, dtype=np.uint64)
        y, _ = run_gate(
            spec, jnp.asarray(z), jnp.asarray(r.astype(word)), jnp.asarray(rho.astype(word)), rng
        )
        wanted = np.maximum(z >> t, 0) if kind == "relu" else z >> t
        error = np.abs(y - wanted)
        assert error.max() <= max(1, (1 << spec.slack_bits) >> 1 if kind == "relu" else 1)
        assert (error <= 1).mean() > 0.9


@pytest.mark.parametrize("m", (8, 12))
def test_what_a_party_sees_is_uniform(m):
    """One operand, many masks: no message and no share tells it."""
    with ring.x64():
        rng = np.random.default_rng(m)
        n, k = 40_000, 16
        spec = make_spec("relu", n, 32, 12, k, m)
        for z in (5 << 12, -(5 << 12), 0):
            r = jnp.asarray(rng.integers(0, 2**32, n, dtype=np.uint32))
            rho = jnp.asarray(rng.integers(0, 2**32, n, dtype=np.uint32))
            _, held = run_gate(spec, jnp.full(n, z), r, rho, rng)
            packed = held["key"]["select"].reshape(spec.select_words, n)
            for words in (*packed, *held["shares"], held["shares"][0] + held["shares"][1]):
                assert looks_uniform(np.asarray(words) >> 24, 256)
            assert looks_uniform(np.asarray(held["y"]) >> 8, 256)
            opened = np.asarray(ring.unpack_bits(held["bits"][0] ^ held["bits"][1], n))
            assert looks_uniform(2 * opened + top_bits(held["y"], k), 4)
            for bits in (opened, *(np.asarray(ring.unpack_bits(b, n)) for b in held["bits"])):
                assert looks_uniform(bits, 2)


def top_bits(y, k):
    return np.asarray(y) >> (k - 1)


def test_a_sign_without_its_own_mask_would_be_seen(monkeypatch):
    """With no bits from the parties the opened sign is masked by r alone, as y' is: together they
    tell the sign, although each by itself is uniform."""
    with ring.x64():
        rng = np.random.default_rng(3)
        n, k = 40_000, 16
        spec = make_spec("relu", n, 32, 12, k, 8)
        original = draw_streams
        monkeypatch.setitem(
            globals(),
            "draw_streams",
            lambda *args: original(*args)._replace(sign=jnp.zeros(n // 8, jnp.uint8)),
        )
        r = jnp.asarray(rng.integers(0, 2**32, n, dtype=np.uint32))
        _, held = run_gate(spec, jnp.full(n, 5 << 12), r, r, rng)
        opened = np.asarray(ring.unpack_bits(held["bits"][0] ^ held["bits"][1], n))
        assert looks_uniform(opened, 2)
        assert not looks_uniform(2 * opened + top_bits(held["y"], k), 4)


def test_an_unmasked_sign_would_be_seen():
    """The test above has the power to see a bit that nothing hides."""
    assert not looks_uniform(np.ones(40_000, int), 2)
    assert not looks_uniform(np.random.default_rng(0).integers(0, 250, 40_000), 256)


def looks_uniform(values: np.ndarray, n_values: int) -> bool:
    """A chi-square test that errs once in a million."""
    counts = np.bincount(values.astype(np.int64), minlength=n_values)
    return stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("m", (6, 9, 12))
def test_declared_bytes_are_sent(m):
    with ring.x64():
        rng = np.random.default_rng(0)
        for kind in ("relu", "rescale"):
            spec = make_spec(kind, 64, 32, 12, 16, m)
            r = jnp.asarray(rng.integers(0, 2**32, 64, dtype=np.uint32))
            own = [draw_streams(spec, party, rng) for party in (0, 1)]
            _, key = gates.deal(spec, r, r, own[0], own[1], DOMAIN)
            leaves = jax.tree.leaves(key)
            assert sum(leaf.nbytes for leaf in leaves) == spec.key_bytes()
