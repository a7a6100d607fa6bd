"""A few bad updates cannot pull these averages away, however large they are."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from primia_jax.config import EarlyStoppingConfig, FederatedConfig
from primia_jax.errors import ConfigError
from primia_jax.federated import robust

KINDS = ("trimmed_mean", "median", "krum")


def of(kind, hospitals=7, bad=2, quorum=1.0, **more):
    config = FederatedConfig(
        mode="federated", hospitals=hospitals, robust=kind, bad_hospitals=bad, quorum=quorum, **more
    )
    return robust.make(config)


def honest(n, p=11, seed=0):
    return list(np.random.Generator(np.random.Philox(seed)).normal(1.0, 0.1, (n, p)))


@pytest.mark.parametrize("kind", KINDS)
@given(size=st.floats(-1e12, 1e12), places=st.permutations(range(7)), apart=st.booleans())
def test_two_of_seven_cannot_pull_it_beyond_the_others(kind, size, places, apart):
    good = honest(5)
    bad = [np.full(11, size), np.full(11, -size if apart else size)]
    vectors = [(good + bad)[i] for i in places]
    found = of(kind)(vectors)
    assert np.all(found >= np.min(good, axis=0)) and np.all(found <= np.max(good, axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_hospitals_does_not_matter(kind):
    vectors = honest(7)
    np.testing.assert_array_equal(of(kind)(vectors), of(kind)(vectors[::-1]))


@pytest.mark.parametrize("p", (1, robust._CHUNK - 1, robust._CHUNK + 1))
def test_coordinates_as_scipy_has_them(p):
    vectors = honest(5, p)
    wanted = stats.trim_mean(np.stack(vectors), 0.2, axis=0)
    np.testing.assert_allclose(of("trimmed_mean", 5, 1)(vectors), wanted, rtol=1e-12)
    np.testing.assert_array_equal(of("median", 5, 1)(vectors), np.median(vectors, axis=0))


def test_krum_takes_one_of_the_closest_and_never_what_is_no_number():
    near, far = honest(5), [np.full(11, np.nan), np.full(11, np.inf)]
    found = of("krum")([*far, *near])
    assert any(np.array_equal(found, vector) for vector in near)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fewest", "changes"),
    [
        (4, {"hospitals": 4}),
        (4, {"hospitals": 8, "quorum": 0.5}),  # others may be left out
        (4, {"hospitals": 10, "quorum": 0.9, "participation": 0.4}),  # of nine
        (1, {"hospitals": 50, "participation": 0.9, "sampling": "poisson"}),
        (1, {"hospitals": 50, "early_stopping": EarlyStoppingConfig(enabled=True)}),
    ],
)
def test_a_run_that_may_come_to_too_few_updates_is_refused(kind, fewest, changes):
    """Before it begins, not in the round in which a hospital is left out, not drawn or stopped."""
    with pytest.raises(ConfigError, match=rf"needs \d updates in every round.* have {fewest}:"):
        of(kind, **changes)


@pytest.mark.parametrize(("kind", "needed"), [("trimmed_mean", 5), ("median", 5), ("krum", 7)])
def test_as_many_updates_as_are_needed_and_no_fewer(kind, needed):
    """Krum's too, which would choose among fewer without telling good ones from bad."""
    of(kind, 14, quorum=0.5)(honest(needed))
    with pytest.raises(ConfigError, match=rf"needs {needed} updates; {needed - 1} came"):
        of(kind, 14, quorum=0.5)(honest(needed - 1))


def test_it_excludes_secure_aggregation():
    config = FederatedConfig(mode="federated_secure", hospitals=7, robust="median")
    with pytest.raises(ConfigError, match="secure aggregation hides"):
        robust.make(config)
    assert robust.make(dataclasses.replace(config, robust="none")) is None
