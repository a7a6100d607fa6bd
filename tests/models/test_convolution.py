"""Every kind of convolution is the same function as XLA's, and so are its derivatives."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from jax import lax

from primia_jax.models import convolution as conv

NHWC = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


def normal(seed, *shape):
    return jnp.asarray(np.random.Generator(np.random.Philox(seed)).normal(size=shape), jnp.float32)


def apply(kind, x, kernel, stride=1, padding=1, **options):
    pads = padding if isinstance(padding, str) else [(padding, padding)] * 2
    return conv.convolution(kind)(
        x, kernel, (stride, stride), pads, dimension_numbers=NHWC, **options
    )


def assert_close(actual, expected):
    scale = max(1.0, float(jnp.abs(expected).max()))
    np.testing.assert_allclose(np.asarray(actual) / scale, np.asarray(expected) / scale, atol=2e-5)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def derivatives(kind, x, kernel, stride, padding):
    """The output and both gradients of a loss that is not linear in it."""

    def loss(x, kernel):
        out = apply(kind, x, kernel, stride, padding)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
    return out, *gradients


@settings(max_examples=8)
@given(
    kind=st.sampled_from(["auto", "im2col"]),
    h=st.integers(1, 11),
    w=st.integers(1, 11),
    channels=st.sampled_from([(1, 2), (3, 4)]),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 5)]),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 2, "SAME", "VALID"]),
)
def test_equals_xla_with_both_gradients(kind, h, w, channels, kernel, stride, padding):
    """Odd sides, images smaller than the kernel, any stride and padding."""
    margin = padding if isinstance(padding, int) else 2 if padding == "SAME" else 0
    assume(h + 2 * margin >= kernel[0] and w + 2 * margin >= kernel[1])
    x, weights = normal(0, 2, h, w, channels[0]), normal(1, *kernel, *channels)
    expected = derivatives("xla", x, weights, stride, padding)
    for actual, wanted in zip(derivatives(kind, x, weights, stride, padding), expected):
        assert_close(actual, wanted)


@pytest.mark.parametrize(
    "side, stride, padding, outputs",
    [(24, 1, 1, 64), (22, 1, 2, 128), (23, 1, 1, 64), (41, 2, 1, 64)],
)
def test_kernel_gradient_of_large_images(side, stride, padding, outputs):
    """Even outputs go through Winograd's tiles, odd and strided ones round them."""
    x = normal(2, 2, side, side + 2, conv.MANY_CHANNELS)
    weights = normal(3, 3, 3, conv.MANY_CHANNELS, outputs)
    g = apply("xla", x, weights, stride, padding)
    assert min(g.shape[1:3]) >= conv.LARGE_SIDE

    def gradient(kind):
        out = lambda k: jnp.vdot(apply(kind, x, k, stride, padding), g)  # noqa: E731
        return jax.jit(jax.grad(out))(weights)

    actual, expected = gradient("auto"), gradient("xla")
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-5)
    traced = str(jax.make_jaxpr(lambda: gradient("auto"))())
    assert (traced.count("dot_general") >= 16) == (side % 2 == 0)


@pytest.mark.parametrize("kind", ["auto", "im2col"])
def test_second_derivatives(kind):
    """Gradient inversion differentiates the squared distance of two gradients."""
    x, weights = normal(4, 1, 5, 5, 2), normal(5, 3, 3, 2, 3)

    def distance(kind, x):
        gradient = jax.grad(lambda k: jnp.sum(jnp.sin(apply(kind, x, k))))(weights)
        return jnp.sum(gradient**2)

    actual = jax.grad(lambda x: distance(kind, x))(x)
    assert_close(actual, jax.grad(lambda x: distance("xla", x))(x))


@pytest.mark.parametrize("kind", ["auto", "im2col"])
def test_vmap_over_images_and_kernels(kind):
    """Per-example gradients and many hospitals at once map over both arguments."""
    x, weights = normal(6, 3, 2, 6, 6, 2), normal(7, 3, 3, 3, 2, 3)

    def gradient(kind):
        def one(x, k):
            return jax.grad(lambda k: jnp.sum(jnp.sin(apply(kind, x, k))))(k)

        return jax.vmap(one)(x, weights)

    assert_close(gradient(kind), gradient("xla"))


@pytest.mark.parametrize("kind", ["auto", "im2col"])
@pytest.mark.parametrize(
    "options",
    [{"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 2)}, {"feature_group_count": 2}],
    ids=str,
)
def test_unusual_convolutions_are_passed_on(kind, options):
    inputs = 4 // options.get("feature_group_count", 1)
    x, weights = normal(8, 2, 7, 7, 4), normal(9, 3, 3, inputs, 6)
    assert_close(apply(kind, x, weights, **options), apply("xla", x, weights, **options))


def test_other_layouts_and_dtypes_are_passed_on():
    x, weights = normal(10, 2, 3, 6, 6), normal(11, 4, 3, 3, 3)  # NCHW, OIHW: lax's default
    expected = lax.conv_general_dilated(x, weights, (1, 1), "SAME")
    assert_close(conv.convolution("auto")(x, weights, (1, 1), "SAME"), expected)
    half = [a.astype(jnp.bfloat16) for a in (normal(1, 1, 5, 5, 3), normal(2, 3, 3, 3, 4))]
    assert apply("auto", *half).dtype == jnp.bfloat16
