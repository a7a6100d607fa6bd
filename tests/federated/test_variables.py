"""Networks as vectors: nothing is lost, and batch-norm moments pool exactly."""

import jax
import numpy as np
import pytest

from primia_jax import models
from primia_jax.config import ModelConfig
from primia_jax.federated import variables
from primia_jax.federated.variables import Vectors


def network(norm="batch", seed=0):
    config = ModelConfig(name="simple", width=4, norm=norm)
    module = models.build(config, 3)
    return models.init(module, jax.random.key(seed), 16, 1)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_round_trip(norm):
    original = network(norm)
    back = variables.from_vectors(network(norm, 1), variables.to_vectors(original))
    assert jax.tree.structure(back) == jax.tree.structure(original)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), original, back)
    for a, b in zip(variables.to_vectors(back).params, variables.to_vectors(original).params):
        np.testing.assert_array_equal(a, b)


def with_moments(data):
    """A network whose every batch norm has the moments of `data`."""
    tree = network()
    stats = jax.tree.map(np.array, tree["batch_stats"])
    for norm in stats.values():
        norm["mean"][:], norm["var"][:] = data.mean(), data.var()
    return {**tree, "batch_stats": stats}


def test_moments_pool_exactly():
    """Sites with different means: the average of variances would be far too small."""
    rng = np.random.default_rng(0)
    sites = [rng.normal(centre, 1.0, n) for centre, n in ((-5.0, 300), (0.0, 50), (9.0, 700))]
    vectors = [variables.to_vectors(with_moments(data)) for data in sites]
    weights = np.asarray([len(data) for data in sites], np.float64)
    moments = np.average([v.moments for v in vectors], axis=0, weights=weights)
    pooled = variables.from_vectors(network(), Vectors(vectors[0].params, moments))
    everything = np.concatenate(sites)
    for norm in pooled["batch_stats"].values():
        np.testing.assert_allclose(norm["mean"], everything.mean(), rtol=1e-5)
        np.testing.assert_allclose(norm["var"], everything.var(), rtol=1e-5)


def test_rounding_cannot_make_a_variance_negative():
    vectors = variables.to_vectors(network())
    tiny = Vectors(vectors.params, np.where(vectors.moments == 1, -1e-12, vectors.moments))
    for norm in variables.from_vectors(network(), tiny)["batch_stats"].values():
        assert np.all(np.asarray(norm["var"]) >= 0)


def test_fedbn_keeps_batch_norms_and_takes_the_rest():
    new, own = network(seed=1), with_moments(np.arange(10.0))
    own = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, own)
    merged = variables.keep_batch_norm(new, own)
    assert merged["batch_stats"] is own["batch_stats"]
    norms = set(own["batch_stats"])
    for name, layer in merged["params"].items():
        expected = own if name in norms else new
        jax.tree.map(np.testing.assert_array_equal, layer, expected["params"][name])
    assert norms & set(merged["params"])
