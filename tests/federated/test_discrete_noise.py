"""Noise and samples: their distributions against exact ones, under fixed ChaCha20 keys."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from primia_jax.errors import ProtocolError
from primia_jax.federated import discrete_noise
from primia_jax.mpc import prg

KEY = np.arange(32, dtype=np.uint8)


def p_of_counts(drawn, support, probabilities):
    """The p-value of a chi-square test; rare values are put together."""
    expected = probabilities * len(drawn)
    common = expected >= 10
    observed = np.asarray([np.sum(drawn == value) for value in support[common]])
    observed = np.append(observed, len(drawn) - observed.sum())
    expected = np.append(expected[common], len(drawn) - expected[common].sum())
    keep = expected > 1e-9
    return stats.chisquare(observed[keep], expected[keep]).pvalue


class TestDiscreteGaussian:
    @pytest.mark.parametrize("variance", [0.05, 0.3, 1.0, 6.25, 40.0])
    def test_probabilities_are_the_exact_ones(self, variance):
        drawn = discrete_noise.discrete_gaussian(KEY, 200_000, variance)
        support = np.arange(-60, 61)
        weights = np.exp(-(support**2) / (2 * variance))
        assert p_of_counts(drawn, support, weights / weights.sum()) > 1e-4

    def test_wide_noise_is_normal(self):
        drawn = discrete_noise.discrete_gaussian(KEY, 100_000, 1e14)
        assert stats.kstest(drawn / 1e7, "norm").pvalue > 1e-4
        assert len(np.unique(drawn % 2)) == 2  # the last bit is noise too
        assert stats.binomtest(int(np.sum(drawn % 2)), len(drawn)).pvalue > 1e-4

    def test_a_key_gives_known_numbers(self):
        """A change of the stream or of its use shows here."""
        drawn = discrete_noise.discrete_gaussian(KEY, 10, 6.25)
        assert drawn.tolist() == [-4, -3, 3, -2, 2, 0, -5, -2, 2, 0]
        other = discrete_noise.discrete_gaussian(KEY[::-1].copy(), 10, 6.25)
        assert drawn.tolist() != other.tolist()

    def test_deciding_by_digits_gives_what_deciding_by_floats_gives(self, monkeypatch):
        """With a wide margin nearly all is decided by long arithmetic."""
        quick = discrete_noise.discrete_gaussian(KEY, 300, 6.25)
        monkeypatch.setattr(discrete_noise, "_MARGIN", 0.9)
        np.testing.assert_array_equal(discrete_noise.discrete_gaussian(KEY, 300, 6.25), quick)

    def test_too_close_to_tell_takes_more_bits(self):
        """At the very 64 bits of exp(−1/2), what follows decides."""
        first = int(Fraction(math.exp(-0.5)) * 2**64)

        class Words:
            def __init__(self, word):
                self.word = word

            def take(self, count):
                return np.full(count, self.word, np.uint64)

        # exp(−1/2) · 2^64 lies between these integers, to 30 digits:
        exact = Fraction("0.60653065971263342360379953499118") * 2**64
        first, rest = math.floor(exact), exact - math.floor(exact)
        after = int(rest * 2**64)
        args = (first, 1, 0, Fraction(1))
        assert discrete_noise._below(*args, Words(after - 2**20))
        assert not discrete_noise._below(*args, Words(after + 2**20))

    def test_the_proposal_covers_the_target(self):
        """2^v · exp(−(u + t·v)² / 2σ²) is at most 1, and would not be much below."""
        for variance in (0.01, 0.7, 3.0, 1e4, 3e13):
            t = discrete_noise._proposal_width(variance)
            assert t * t >= 2 * variance * math.log(2)
            assert t == 1 or (t - 1) ** 2 < 2 * variance * math.log(2) * (1 + 1e-9)

    def test_no_noise_is_none(self):
        np.testing.assert_array_equal(discrete_noise.discrete_gaussian(KEY, 3, 0.0), np.zeros(3))

    @pytest.mark.parametrize("variance", [-1.0, math.nan, math.inf, 2.0**92])
    def test_what_cannot_be_drawn_is_refused(self, variance):
        with pytest.raises(ProtocolError, match="beyond what 64 bits hold"):
            discrete_noise.discrete_gaussian(KEY, 1, variance)

    def test_a_sum_of_shares_has_the_whole_variance(self):
        shares = [
            discrete_noise.discrete_gaussian(prg.new_seed(), 50_000, 1e8 / 5) for _ in range(5)
        ]
        ratio = np.var(np.sum(shares, 0)) / 1e8
        assert abs(ratio - 1) < 6 * math.sqrt(2 / 50_000)


class TestRoundedGaussian:
    def test_it_is_a_rounded_normal(self):
        drawn = discrete_noise.rounded_gaussian(KEY, 300_000, 3.0)
        support = np.arange(-20, 21)
        edges = stats.norm.cdf((support[:, None] + np.asarray([-0.5, 0.5])) / 3.0)
        assert p_of_counts(drawn, support, edges[:, 1] - edges[:, 0]) > 1e-4

    def test_fine_grids_too(self):
        drawn = discrete_noise.rounded_gaussian(KEY, 200_000, 2.0**17)
        assert stats.kstest(drawn / 2.0**17, "norm").pvalue > 1e-4
        halves = np.array_split(drawn.astype(np.float64), 2)
        assert abs(np.corrcoef(*halves)[0, 1]) < 5 / math.sqrt(len(halves[0]))

    def test_a_key_gives_known_numbers(self):
        drawn = discrete_noise.rounded_gaussian(KEY, 6, 1000.0)
        assert drawn.tolist() == [378, -156, 957, 1192, 108, -1916]

    @pytest.mark.parametrize("n", [0, 1, 7, 70_001])
    def test_any_number_can_be_had(self, n):
        assert discrete_noise.rounded_gaussian(KEY, n, 10.0).shape == (n,)

    def test_overflow_is_refused(self):
        with pytest.raises(ProtocolError, match="does not fit 32 bits"):
            discrete_noise.rounded_gaussian(KEY, 1, 2.0**30)


class TestPoissonSample:
    @pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
    def test_every_record_has_the_same_chance(self, rate):
        draws = [
            discrete_noise.poisson_sample(prg.expand(KEY, 4, i).view(np.uint8), 50, rate)
            for i in range(2000)
        ]
        counts = np.bincount(np.concatenate(draws), minlength=50)
        sizes = np.asarray([len(draw) for draw in draws])
        spread = (counts - 2000 * rate) ** 2 / (2000 * rate * (1 - rate))
        assert stats.chi2.sf(spread.sum(), 50) > 1e-4  # independent records, equal chances
        assert abs(sizes.var() / (50 * rate * (1 - rate)) - 1) < 6 * math.sqrt(2 / 2000)

    def test_all_or_some(self):
        np.testing.assert_array_equal(discrete_noise.poisson_sample(KEY, 5, 1.0), [0, 1, 2, 3, 4])
        assert len(discrete_noise.poisson_sample(KEY, 100, 1e-19)) == 0
