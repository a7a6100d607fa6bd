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


@pytest.fixture
def grids(monkeypatch):
    """Points of every loss distribution that is made."""
    sizes, original = [], accounting._pld

    def make(interval):
        accountant = original(interval)
        compose = accountant.compose

        def composed(event):
            compose(event)
            sizes.append(accountant._pld._pmf_remove.size)
            return accountant

        accountant.compose = composed
        return accountant

    monkeypatch.setattr(accounting, "_pld", make)
    return sizes


@pytest.mark.parametrize("target", [0.01, 1.0, 30.0, 1000.0])
def test_any_epsilon_takes_bounded_time_and_memory(grids, target):
    """With a grid of fixed spacing, tens of millions of points were needed at 1000."""
    for rate, steps in ((1e-3, 5000), (0.36, 600), (1.0, 30)):
        grids.clear()
        factor = accounting.find_noise((Release(1.0, rate, steps),), target, DELTA)
        assert len(grids) <= 60 and max(grids) <= 1 << 19
        spent = accounting.by_pld([Release(factor, rate, steps)], DELTA)
        assert 0.99 * target < spent <= target


@pytest.mark.parametrize(
    "release",
    [Release(1e-3, 0.01, 10), Release(0.05, 0.5, 10**6), Release(0.3, 1e-13), Release(500.0, 1e-3)],
)
def test_odd_noise_is_accounted_for_within_the_same_bounds(grids, release):
    assert accounting.by_pld([release], DELTA) >= 0
    assert len(grids) <= 9 and max(grids) <= 1 << 19


def test_a_finer_grid_tells_the_same():
    """The grid that is chosen costs less than a thousandth of ε."""
    for release in (Release(1.0, 0.02, 500), Release(0.3, 0.02, 500), Release(30.0, 0.02, 500)):
        chosen = accounting.by_pld([release], DELTA)
        interval = accounting._rounded(chosen * 1e-5)
        finer = accounting._pld(interval).compose(accounting._event((release,)))
        assert chosen == pytest.approx(finer.get_epsilon(DELTA), rel=1e-3)
