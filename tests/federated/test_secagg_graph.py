"""The graph of neighbours: regular, connected, the same for all, and dense enough but not more."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from primia_jax.config import SecureAggregationConfig
from primia_jax.errors import ConfigError
from primia_jax.federated import secagg_graph

SETTINGS = SecureAggregationConfig()


def reached(neighbours, start, without=frozenset()):
    """The hospitals that `start` is joined to by others that are there."""
    found, edge = {start}, [start]
    while edge:
        for j in neighbours[edge.pop()]:
            if j not in found and j not in without:
                found.add(j)
                edge.append(j)
    return found


@settings(max_examples=60)
@given(n=st.integers(8, 300), seed=st.integers(0, 2**31 - 1))
def test_regular_symmetric_connected_and_the_same_for_the_same_seed(n, seed):
    graph = secagg_graph.choose(n, SETTINGS)
    neighbours = graph.neighbours(seed)
    assert neighbours == graph.neighbours(seed)
    for i, near in enumerate(neighbours):
        assert len(set(near)) == graph.k and i not in near and list(near) == sorted(near)
        assert all(i in neighbours[j] for j in near)
    assert reached(neighbours, 0) == set(range(n))
    assert 2 <= graph.safe_threshold <= graph.threshold <= graph.k + 1


def test_another_seed_gives_another_graph():
    graph = secagg_graph.choose(100, SETTINGS)
    assert graph.neighbours(0) != graph.neighbours(1)


def test_what_is_chosen_by_default():
    """Hospitals, neighbours, threshold: to be changed knowingly (docs/secure_aggregation.md)."""
    chosen = [secagg_graph.choose(n, SETTINGS) for n in (3, 6, 8, 10, 50, 100, 1000)]
    assert [(g.n, g.k, g.threshold) for g in chosen] == [
        *((3, 2, 3), (6, 5, 4), (8, 7, 5), (10, 9, 6), (50, 38, 23), (100, 72, 42)),
        (1000, 468, 277),
    ]
    assert [n for n in range(2, 40) if not secagg_graph.exists(n, SETTINGS)] == [2, 4, 5, 7]


def test_neighbours_grow_no_faster_than_the_logarithm():
    """Each doubling of the hospitals adds a few neighbours, and ever fewer."""
    k = [secagg_graph.choose(1000 << i, SETTINGS).k for i in range(6)]
    steps = [after - before for before, after in itertools.pairwise(k)]
    assert k[0] == 468 and steps == sorted(steps, reverse=True) and steps[0] <= 172


@pytest.mark.parametrize("n", [10, 50, 100, 1000])
def test_the_chances_are_as_declared(n):
    graph = secagg_graph.choose(n, SETTINGS)
    colluders, dropouts = max(1, math.floor(0.1 * n)), math.floor(0.3 * n)
    helped = stats.hypergeom(n - 1, min(colluders, n - 1), graph.k)
    assert n * helped.sf(graph.colluding) <= 2.0**-40 * (1 + 1e-6)
    stays = stats.hypergeom(n - 1, n - 1 - dropouts, graph.k)
    assert n * stays.cdf(graph.threshold - 1) <= 2.0**-30 * (1 + 1e-6)
    assert graph.insecure <= 2.0**-40 and graph.incorrect <= 2.0**-30
    assert 2 * graph.threshold > graph.k + 1 + graph.colluding
    assert graph.threshold >= graph.colluding + 2


def test_survivors_stay_connected_at_the_assumed_dropouts():
    graph, rng = secagg_graph.choose(100, SETTINGS), np.random.default_rng(0)
    for seed in range(20):
        neighbours = graph.neighbours(seed)
        gone = frozenset(rng.choice(100, 40, replace=False).tolist())  # dropped out, or colluding
        start = next(i for i in range(100) if i not in gone)
        assert reached(neighbours, start, gone) == set(range(100)) - gone


def test_impossible_settings_are_refused_with_their_names():
    for own in (
        SecureAggregationConfig(dropouts=0.9, colluders=0.5),
        SecureAggregationConfig(dropouts=0.6),
    ):
        with pytest.raises(ConfigError, match=r"config\.secure_aggregation\.colluders or dropouts"):
            secagg_graph.choose(50, own)
