"""Minimal filtering gives the very words that direct integer convolution gives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from primia_jax.config.sections import MpcConfig
from primia_jax.mpc import bilinear, inference, lowering_products, ring, winograd
from primia_jax.mpc.protocols import MODEL_OWNER

ONES = ((1, 1), (1, 1))
AT_BOUND = 1820  # 9 · 64 · 1820 · 2^33 is the last multiple of 9 · 64 · 2^33 up to 2^53


@pytest.fixture(autouse=True)
def wide():
    with ring.x64():
        yield


def convolution(x_shape, w_shape, pads=ONES, strides=(1, 1), groups=1, layout="NHWC"):
    """The product of a plan, as `secure_jaxpr` makes it."""

    def apply(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            strides,
            pads,
            dimension_numbers=(layout, "HWIO", layout),
            feature_group_count=groups,
        )

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, w_shape)]
    (equation,) = jax.make_jaxpr(apply)(*shapes).eqns
    shape = equation.outvars[0].aval.shape
    return lowering_products.convolution(equation.params, w_shape, shape).product


def direct(x, w, pads):
    """Integer convolution that wraps modulo 2^64."""
    x = np.pad(x.astype(np.uint64).view(np.int64), ((0, 0), *pads, (0, 0)))
    rows, columns = x.shape[1] - 2, x.shape[2] - 2
    places = itertools.product(range(3), repeat=2)
    return sum(x[:, i : i + rows, j : j + columns] @ w[i, j] for i, j in places)


def words(kind, shape, n_bits, rng):
    """uint32 words, of whose signed values some are the largest there are."""
    if kind == "random":
        return rng.integers(0, 2**n_bits, shape, dtype=np.uint32)
    least, most = 1 << (n_bits - 1), (1 << (n_bits - 1)) - 1
    if kind == "least":
        return np.full(shape, least, np.uint32)
    down, across = (np.arange(side) % 4 < 2 for side in shape[1:3])  # Bᵀ d B at its largest
    return np.where((down[:, None] ^ across)[..., None], least, most + np.zeros(shape, np.uint32))


@pytest.mark.parametrize("kind", ("random", "least", "alternating"))
@pytest.mark.parametrize(
    ("n_bits", "shape", "outputs", "pads", "weights"),
    (
        (32, (1, 5, 6, 64), 64, ONES, "bound"),
        (32, (2, 7, 7, 64), 64, ((0, 0), (0, 2)), "signs"),
        (32, (1, 3, 4, 64), 64, ((2, 0), (1, 1)), "random"),
        (28, (1, 4, 4, 512), 512, ONES, "random"),
    ),
)
def test_every_word_is_exact(kind, n_bits, shape, outputs, pads, weights):
    rng = np.random.default_rng(0)
    w_shape = (3, 3, shape[3], outputs)
    if weights == "bound":
        w = np.full(w_shape, AT_BOUND)
        w[..., 1::2] *= -1
    elif weights == "signs":
        w = np.where(rng.uniform(size=w_shape) < 0.5, 4095, -4095)
    else:
        w = rng.integers(-200, 200, w_shape)
    product = convolution(shape, w_shape, pads)
    bits = 13 if shape[3] == 64 else 10
    plan = bilinear.limb_plan(n_bits, n_bits, bits, product)
    kernel = winograd.kernel(product, w, plan)
    assert kernel is not None
    x = words(kind, shape, n_bits, rng)
    found = winograd.multiply(product, jnp.asarray(x), kernel, n_bits)
    wanted = direct(x, w, pads)
    assert found.shape == wanted.shape and found.dtype == jnp.uint32
    np.testing.assert_array_equal(
        ring.low_bits(np.asarray(found), n_bits), wanted.astype(np.uint32) & (2**n_bits - 1)
    )
    by_limbs = bilinear.multiply(product, jnp.asarray(x), jnp.asarray(w), plan)
    np.testing.assert_array_equal(found, by_limbs)


def test_weights_that_might_be_rounded_go_the_direct_way():
    shape, w_shape = (1, 4, 4, 64), (3, 3, 64, 64)
    product = convolution(shape, w_shape)
    plan = bilinear.limb_plan(32, 32, 13, product)
    w = np.zeros(w_shape, np.int64)
    w[..., 7] = AT_BOUND  # one output is enough
    assert winograd.kernel(product, w, plan) is not None
    w[..., 7] += 1
    assert winograd.kernel(product, w, plan) is None
    w[..., 7] = 0
    w[0, 0, :, 7] = 16384  # 64 · 16384 · 2^33 = 2^53
    assert winograd.kernel(product, w, plan) is not None
    w[0, 0, 0, 7] = 16385
    assert winograd.kernel(product, w, plan) is None


@pytest.mark.parametrize(
    "options",
    (
        {"strides": (2, 2)},
        {"groups": 2},
        {"pads": ((-1, 1), (1, 1))},
        {"layout": "NCHW"},
        {"side": 5},
        {"inputs": 32},
        {"n_bits": 64},
        {"unit": bilinear.INT8},
    ),
    ids=lambda options: next(iter(options)),
)
def test_other_products_go_the_direct_way(options):
    options = dict(options)
    side, inputs = options.pop("side", 3), options.pop("inputs", 64)
    n_bits, unit = options.pop("n_bits", 32), options.pop("unit", bilinear.FLOAT64)
    w_shape = (side, side, inputs // options.get("groups", 1), 64)
    shape = (1, inputs, 8, 8) if options.get("layout") == "NCHW" else (1, 8, 8, inputs)
    product = convolution(shape, w_shape, **options)
    plan = bilinear.limb_plan(n_bits, n_bits, 10, product, unit)
    assert winograd.kernel(product, np.ones(w_shape, np.int64), plan) is None


def test_a_network_runs_by_it(compile_quickly):
    """The model owner's messages are those of direct products."""
    rng = np.random.default_rng(1)
    params = (rng.normal(size=(3, 3, 1, 64)), rng.normal(size=(3, 3, 64, 64)))

    def apply_fn(params, x):
        for w in params:
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.nn.relu(lax.conv_general_dilated(x, w, (1, 1), ONES, dimension_numbers=numbers))
        return x.mean((1, 2))

    shape = (1, 3, 4, 1)
    params = jax.tree.map(lambda w: w.astype(np.float32), params)
    images = rng.uniform(size=(4, *shape[1:])).astype(np.float32)
    with jax.enable_x64(False):
        program = inference.encrypt(
            apply_fn,
            params,
            jax.ShapeDtypeStruct(shape, jnp.float32),
            calibration=images,
            config=MpcConfig(),
        )
        found, _ = program.run(images[:1])
        wanted = apply_fn(params, images[:1])
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    circuit, owner = program.circuit, program._driver.states[MODEL_OWNER]
    held = [weights for weights, _ in owner.weights]
    assert [isinstance(weights, winograd.Kernel) for weights in held] == [False, True]
    segment, product = circuit.segments[1], circuit.products[1]
    w, _ = circuit.quantised_weights(params)[1]
    x = jnp.asarray(rng.integers(0, 2**32, 12 * 64, dtype=np.uint32))
    kappa = jnp.asarray(rng.integers(0, 2**32, 12 * 64, dtype=np.uint32))
    results = [
        circuit.owner_values(1)(
            [(x, None)], [weights], [owner.weights[1][1]], list(owner.constants[1]), [], [kappa]
        )
        for weights in (
            held[1],
            bilinear.weight_digits(jnp.asarray(w), circuit.owner_plan(product)),
        )
    ]
    assert len(segment.values) == 1
    jax.tree.map(np.testing.assert_array_equal, *results)
