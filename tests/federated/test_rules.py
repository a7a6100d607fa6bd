"""Aggregation rules against their papers' formulas."""

import pathlib

import numpy as np
import pytest

from primia_jax.config import FederatedConfig
from primia_jax.errors import ConfigError
from primia_jax.federated import rules

W0 = (np.asarray([1.0, -2.0, 0.5], np.float32), np.asarray([3.0], np.float32))
AVERAGE = (np.asarray([1.5, -2.0, 0.25]), np.asarray([4.0]))


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_average_becomes_the_model(name):
    rule = rules.make(FederatedConfig(rule=name, proximal_mu=0.3))
    new, _ = rule.apply(rule.init(W0), W0, AVERAGE)
    for leaf, average in zip(new, AVERAGE, strict=True):
        np.testing.assert_array_equal(leaf, average.astype(np.float32))
    assert rule.proximal_mu == (0.3 if name == "fedprox" else 0.0)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_adaptive_rules(name):
    """Reddi et al. 2021, algorithm 2, two rounds in float64."""
    config = FederatedConfig(rule=name, server_learning_rate=0.1, server_tau=0.01)
    rule = rules.make(config)
    state, w = rule.init(W0), W0
    m, v, x = np.zeros(4), np.full(4, 1e-4), np.concatenate(W0).astype(np.float64)
    for _ in range(2):
        w, state = rule.apply(state, w, AVERAGE)
        delta = np.concatenate(AVERAGE) - x
        m = 0.9 * m + 0.1 * delta
        if name == "fedadam":
            v = 0.99 * v + 0.01 * delta**2
        else:
            v = v - 0.01 * delta**2 * np.sign(v - delta**2)
        x = x + 0.1 * m / (np.sqrt(v) + 0.01)
        np.testing.assert_allclose(np.concatenate(w), x, rtol=1e-5)
    assert {leaf.dtype for leaf in w} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_where_all_agree_nothing_moves(name):
    rule = rules.make(FederatedConfig(rule=name))
    new, _ = rule.apply(rule.init(W0), W0, tuple(w.astype(np.float64) for w in W0))
    for leaf, start in zip(new, W0, strict=True):
        np.testing.assert_array_equal(leaf, start)


def test_a_rule_of_ones_own_keeps_its_state(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
    rule = rules.make(FederatedConfig(rule="own_rules:momentum"))
    params, average = (np.zeros(2, np.float32),), (np.ones(2, np.float32),)
    state = rule.init(params)
    params, state = rule.apply(state, params, average)
    np.testing.assert_array_equal(params[0], 1)
    params, state = rule.apply(state, params, average)
    np.testing.assert_allclose(params[0], 1.9)
    assert params[0].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "message"),
    (("shorter", "vectors of other lengths"), ("failing", "ValueError: two "), ("no", "has no")),
)
def test_a_broken_rule_is_one_line(name, message, monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
    rule = rules.make(FederatedConfig(rule=f"own_rules:{name}"))  # hospitals import nothing
    params = (np.zeros(2, np.float32), np.zeros(3, np.float32))
    with pytest.raises(ConfigError, match=f"own_rules:{name}.*{message}") as caught:
        rule.apply(rule.init(params), params, params)
    assert "\n" not in str(caught.value)
