"""The audit's eye: it lets chance pass at any length, and sees what nothing hides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

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
    """29 equal pairs in 64 bytes: chi-square in 256 bins gives it 10^-9, it comes once in 10^6."""
    drawn = np.random.default_rng(1).permutation(256)[:35]
    column = np.concatenate([drawn, drawn[:29]]).astype(np.uint8)
    assert stats.chisquare(np.bincount(column, minlength=256)).pvalue < 1e-9
    assert looks_uniform(np.repeat(column[:, None], 8, 1).reshape(-1).view(np.uint64))


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


@pytest.mark.parametrize("n", [512, 1340, 9000])
def test_bits_are_no_residues(n):
    assert not looks_uniform(np.random.default_rng(0).integers(0, 2, n).astype(np.uint8), 67)
    assert not looks_uniform(np.full(n, 67, np.uint8), 67)
