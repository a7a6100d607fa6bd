"""Reals in the ring: the rounding bound, the sign, and the proof that sums do not overflow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primia_jax.errors import ConfigError, ProtocolError
from primia_jax.mpc import fixed_point, ring

values = st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=30)


@given(values, st.integers(0, 1 << 20), st.integers(1, 24))
def test_rounding_stays_within_half_a_unit(numbers, weight, frac_bits):
    array = np.asarray(numbers, np.float32)
    with ring.x64():
        words = fixed_point.encode(array, weight, frac_bits)
        back = np.asarray(fixed_point.decode(words, frac_bits))
    assert words.dtype == np.uint64
    assert np.abs(back - array.astype(np.float64) * weight).max() <= 2.0 ** -(frac_bits + 1)


@given(values, values)
def test_sums_in_the_ring_are_sums(left, right):
    n = min(len(left), len(right))
    arrays = [np.asarray(x[:n], np.float32) for x in (left, right)]
    with ring.x64():
        words = [np.asarray(fixed_point.encode(a, 3, 20)) for a in arrays]
        total = np.asarray(fixed_point.decode(words[0] + words[1], 20))
    exact = 3 * (arrays[0].astype(np.float64) + arrays[1])
    assert np.abs(total - exact).max() <= fixed_point.sum_error(2, 20)


def test_overflow_is_refused_with_the_numbers():
    fixed_point.prove_no_overflow(24, 1024, 3, 1 << 20)  # 2^55.6
    with pytest.raises(ConfigError, match=r"3 hospitals × 1048576 samples × clip 1024 × 2\^40"):
        fixed_point.prove_no_overflow(40, 1024, 3, 1 << 20)


@pytest.mark.parametrize("n_bits", [32, 64])
def test_the_bound_is_the_ring_s(n_bits):
    """2 parties × 2^(n - 26) samples × 2^24 = 2^(n - 1) just does not fit."""
    most = 1 << (n_bits - 26)
    with pytest.raises(ConfigError, match=rf"2\^{n_bits - 1} is the limit.*\(to 23\)"):
        fixed_point.prove_no_overflow(24, 1.0, 2, most, n_bits)
    fixed_point.prove_no_overflow(24, 1.0, 2, most - 1, n_bits)


def test_the_samples_themselves_must_fit():
    """However small the clip is."""
    with pytest.raises(ConfigError, match="max_samples, or raise word_bits to 64"):
        fixed_point.prove_no_overflow(1, 1e-6, 4, 1 << 29, 32)


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(-8, 8, width=32)), min_size=1, max_size=9))
def test_what_is_proven_to_fit_32_bits_is_summed_right(weighted):
    """Any values within the clip, under any weights within the bound."""
    fixed_point.prove_no_overflow(15, 8.0, 9, 500, 32)
    with pytest.raises(ConfigError):
        fixed_point.prove_no_overflow(16, 8.0, 9, 500, 32)
    for dither in (0, 1 << 15, (1 << 16) - 1):
        drawn = np.asarray([dither], np.uint16)
        words = [
            fixed_point.encode(np.asarray([v], np.float32), n, 15, 32, drawn) for n, v in weighted
        ]
        assert {word.dtype for word in words} == {np.dtype(np.uint32)}
        total = fixed_point.decode(sum(words[1:], words[0]), 15)
        exact = sum(n * np.float64(np.float32(v)) for n, v in weighted)
        assert abs(total[0] - exact) <= fixed_point.sum_error(len(weighted), 15, 32)


@pytest.mark.parametrize("value", [0.0, 0.25, -0.25, 1.0, -3.0, 0.001, -7.9])
def test_rounding_by_chance_has_the_value_as_its_mean(value):
    """Over every dither there is: to 2^-17 of a step; whole numbers stay as they are."""
    every = np.arange(1 << 16, dtype=np.uint16)
    values = np.full(1 << 16, value, np.float32)
    back = fixed_point.decode(fixed_point.encode(values, 1, 4, 32, every), 4)
    assert abs(back.mean() - np.float32(value)) <= 2.0**-17 * 2.0**-4
    assert len(set(back)) == (1 if float(value * 16).is_integer() else 2)


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.float64])
def test_other_types_are_no_ring_elements(dtype):
    with pytest.raises(ProtocolError, match="uint64"):
        ring.checked(np.zeros(1, dtype))


@given(st.integers(-(2**63), 2**63 - 1))
def test_signed_round_trip(value):
    words = ring.from_signed(np.asarray([value], np.int64))
    assert int(ring.to_signed(words)[0]) == value
