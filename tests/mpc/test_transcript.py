"""The audit's eye: it lets chance pass at any length, and sees what nothing hides."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from primia_jax.mpc import transcript
from primia_jax.mpc.transcript import looks_uniform

LENGTHS = (64, 65, 100, 319, 320, 1000, 5119, 5120, 20000)


@given(st.sampled_from(LENGTHS), st.sampled_from(["u1", "<u4", "<u8"]), st.integers(0, 2**32))
def test_what_is_uniform_passes(n, kind, seed):
    most = np.iinfo(kind).max
    words = np.random.default_rng(seed).integers(0, most, n, dtype=kind, endpoint=True)
    assert looks_uniform(words)


@given(st.sampled_from((600, 1339, 1340, 9000)), st.integers(0, 2**32))
def test_residues_pass(n, seed):
    assert looks_uniform(np.random.default_rng(seed).integers(0, 67, n).astype(np.uint8), 67)


def test_a_few_coincidences_among_few_bytes_are_chance():
    """A byte seven times and twelve twice: by chi-square one in 10^12, and it is some 10^4 times as
    likely."""
    drawn = np.random.default_rng(1).permutation(256)[:46]
    column = np.repeat(drawn, [7, *[2] * 12, *[1] * 33]).astype(np.uint8)
    assert stats.chisquare(np.bincount(column, minlength=256)).pvalue < 1e-12
    assert looks_uniform(np.repeat(column[:, None], 8, 1).reshape(-1).view(np.uint64))


@given(st.integers(1, 7), st.integers(2, 5))
def test_the_chance_that_few_differ_is_exact(n_values, n_bins):
    """Against all ways to draw them."""
    ways = [len(set(drawn)) for drawn in itertools.product(range(n_bins), repeat=n_values)]
    expected = [np.mean(np.asarray(ways) <= k) for k in range(n_bins + 1)]
    np.testing.assert_allclose(transcript._so_few_differ(n_values, n_bins), expected, atol=1e-12)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(
    "made",
    [
        lambda rng, n: np.zeros(n, np.uint64),
        lambda rng, n: rng.integers(0, 1000, n).astype(np.uint64),
        lambda rng, n: rng.normal(0, 2.0**20, n).astype(np.int64).view(np.uint64),
        lambda rng, n: rng.integers(0, 2**64, n, dtype=np.uint64) << np.uint64(4),
    ],
    ids=["zeros", "small ones", "signed small ones", "low bits missing"],
)
def test_what_nothing_hides_is_seen(n, made):
    assert not looks_uniform(made(np.random.default_rng(0), n))


@pytest.mark.parametrize("n", [319, 1000, 5119, 9000])
@pytest.mark.parametrize("pattern", ["half of the values", "a quarter of them", "even parity"])
def test_what_leaves_values_out_is_seen(pattern, n):
    rng = np.random.default_rng(n)
    values = rng.permutation(256)[: 64 if "quarter" in pattern else 128]
    if pattern == "even parity":
        values = np.asarray([v for v in range(256) if v.bit_count() % 2 == 0])
    columns = rng.choice(values, (n, 8)).astype(np.uint8)
    assert not looks_uniform(columns.reshape(-1).view(np.uint64))


@pytest.mark.parametrize("n", [512, 1340, 9000])
def test_bits_are_no_residues(n):
    assert not looks_uniform(np.random.default_rng(0).integers(0, 2, n).astype(np.uint8), 67)
    assert not looks_uniform(np.full(n, 67, np.uint8), 67)
