"""Pooling and normalisation agree with Flax's, in training and in inference."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from primia_jax.models import layers


def normal(seed, *shape):
    return jnp.asarray(np.random.Generator(np.random.Philox(seed)).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("pooling", ["max", "avg"])
@pytest.mark.parametrize("kind", ["auto", "im2col"])
@pytest.mark.parametrize(
    "window, stride, padding", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 0), (3, 2, 0), (5, 2, 2)]
)
@pytest.mark.parametrize("side", [5, 8])
def test_pooling_and_its_gradient_equal_xla(pooling, kind, window, stride, padding, side):
    """Windows that overlap, leave gaps, or leave a rest at the border."""
    x = normal(window, 2, side, side + 1, 3)

    def loss(kind, x):
        out = layers.pool(x, window, stride, padding, pooling, kind)
        return jnp.sum(jnp.sin(out) * 3), out

    (_, out), gradient = jax.value_and_grad(lambda x: loss(kind, x), has_aux=True)(x)
    (_, wanted), wanted_gradient = jax.value_and_grad(lambda x: loss("xla", x), has_aux=True)(x)
    np.testing.assert_allclose(out, wanted, atol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-5)


def test_ties_of_a_maximum_do_not_pass_a_relu():
    """Dead pixels tie at zero; the gradient before the ReLU must not depend on the pooling."""
    x = normal(0, 1, 6, 6, 2).at[:, :4].set(-1.0)

    def gradient(kind):
        return jax.grad(lambda x: jnp.sum(layers.pool(nn.relu(x), 3, 2, 1, "max", kind) ** 2))(x)

    np.testing.assert_allclose(gradient("auto"), gradient("xla"), atol=1e-6)


def test_pooling_gradient_differentiates_again():
    """Gradient inversion needs derivatives of the gradient."""
    x = normal(1, 1, 6, 6, 2)

    def twice(kind):
        def energy(x):
            out = jax.grad(lambda x: jnp.sum(layers.pool(x, 3, 2, 1, "max", kind) ** 3))(x)
            return jnp.sum(out**2)

        return jax.grad(energy)(x)

    np.testing.assert_allclose(twice("auto"), twice("im2col"), rtol=1e-5, atol=1e-4)


def test_batch_norm_equals_flax():
    """Same variables, same output and same moments after a step."""
    x = 3 + 2 * normal(2, 4, 5, 5, 6)
    ours = layers.BatchNorm()
    flax = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    variables = ours.init(jax.random.key(0), x, True)
    assert jax.tree.structure(variables) == jax.tree.structure(flax.init(jax.random.key(0), x))
    variables["params"] = {"scale": normal(3, 6), "bias": normal(4, 6)}
    out, new = ours.apply(variables, x, True, mutable=["batch_stats"])
    wanted, wanted_new = flax.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(out, wanted, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, wanted_new)
    frozen = layers.BatchNorm(frozen=True)
    variables["batch_stats"] = new["batch_stats"]
    out, unchanged = frozen.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(out, ours.apply(variables, x, False))
    jax.tree.map(np.testing.assert_array_equal, unchanged["batch_stats"], new["batch_stats"])


@pytest.mark.parametrize(
    "channels, groups", [(64, 4), (512, 32), (16, 1), (4, 1), (40, 2), (17, 1)]
)
def test_groups_divide_the_channels(channels, groups):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            module = layers.norm("group", channels, "norm")
            return module(x, True)

    x = normal(5, 2, 3, 3, channels)
    out, variables = Net().init_with_output(jax.random.key(0), x)
    assert set(variables) == {"params"}
    per_group = np.asarray(out).reshape(2, 9, groups, -1).mean((1, 3))
    np.testing.assert_allclose(per_group, 0, atol=1e-5)
