"""What releases cost: known values, bounds between accountants, and noise found from a budget."""

import math

import pytest

from primia_jax.federated import accounting
from primia_jax.federated.accounting import Release

DELTA = 1e-5


def test_known_values():
    """q = 64/5000, σ = 1.1, 1,000 steps, δ = 1e-5, published with the accountants' versions."""
    cost = accounting.epsilon([Release(1.1, 64 / 5000, 1000)], DELTA)
    assert cost.pld == pytest.approx(1.986, abs=5e-4)
    assert cost.rdp == pytest.approx(2.213, abs=5e-4)


def test_the_plain_gaussian_is_the_analytic_one():
    """Balle and Wang 2018, theorem 8: δ(ε) = Φ(1/2σ − εσ) − e^ε Φ(−1/2σ − εσ)."""

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    sigma = 2.0
    found = accounting.by_pld([Release(sigma)], DELTA)
    exact = phi(0.5 / sigma - found * sigma) - math.exp(found) * phi(-0.5 / sigma - found * sigma)
    assert exact == pytest.approx(DELTA, rel=0.01)


def test_steps_add_up_however_they_are_grouped():
    whole = accounting.epsilon([Release(1.0, 1.0, 10)], DELTA)
    parts = accounting.epsilon([Release(1.0, 1.0, 4), Release(1.0, 1.0, 6)], DELTA)
    assert whole == parts


def test_nothing_costs_nothing():
    assert accounting.epsilon([], DELTA) == (0.0, 0.0)


@pytest.mark.parametrize("release", [Release(0.8, 0.1, 30), Release(2.0, 1.0, 5)])
def test_the_accountants_agree_roughly(release):
    """Rényi's is an upper bound, and not far above in the range that protects."""
    cost = accounting.epsilon([release], DELTA)
    assert cost.pld <= cost.rdp <= 1.3 * cost.pld


@pytest.mark.parametrize(("target", "others"), [(1.0, ()), (8.0, (Release(4.0),))])
def test_found_noise_meets_its_target(target, others):
    planned = Release(2.0, 0.2, 20)
    factor = accounting.find_noise((planned,), target, DELTA, others)
    noised = planned._replace(noise_multiplier=factor * 2.0)
    assert 0.99 * target < accounting.by_pld([noised, *others], DELTA) <= target


def test_what_is_spent_already_leaves_no_noise_to_find():
    assert accounting.find_noise((Release(1.0),), 1.0, DELTA, (Release(0.5),)) == math.inf
