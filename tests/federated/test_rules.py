"""Aggregation rules against their papers' formulas."""

import numpy as np
import pytest

from primia_jax.config import FederatedConfig
from primia_jax.federated import rules

W0 = np.asarray([1.0, -2.0, 0.5], np.float32)
AVERAGE = np.asarray([1.5, -2.0, 0.25])


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_average_becomes_the_model(name):
    rule = rules.make(FederatedConfig(rule=name, proximal_mu=0.3))
    new, _ = rule.apply(rule.init(W0), W0, AVERAGE)
    np.testing.assert_array_equal(new, AVERAGE.astype(np.float32))
    assert rule.proximal_mu == (0.3 if name == "fedprox" else 0.0)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_adaptive_rules(name):
    """Reddi et al. 2021, algorithm 2, two rounds in float64."""
    config = FederatedConfig(rule=name, server_learning_rate=0.1, server_tau=0.01)
    rule = rules.make(config)
    state, w = rule.init(W0), W0
    m, v, x = np.zeros(3), np.full(3, 1e-4), W0.astype(np.float64)
    for _ in range(2):
        w, state = rule.apply(state, w, AVERAGE)
        delta = AVERAGE - x
        m = 0.9 * m + 0.1 * delta
        if name == "fedadam":
            v = 0.99 * v + 0.01 * delta**2
        else:
            v = v - 0.01 * delta**2 * np.sign(v - delta**2)
        x = x + 0.1 * m / (np.sqrt(v) + 0.01)
        np.testing.assert_allclose(w, x, rtol=1e-5)
    assert w.dtype == np.float32


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_where_all_agree_nothing_moves(name):
    rule = rules.make(FederatedConfig(rule=name))
    new, _ = rule.apply(rule.init(W0), W0, W0.astype(np.float64))
    np.testing.assert_array_equal(new, W0)
