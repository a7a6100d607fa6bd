"""Products in the ring are exact on every unit, at the extremes too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from primia_jax.errors import ProtocolError
from primia_jax.mpc import bilinear, ring
from primia_jax.mpc.bilinear import BFLOAT16, FLOAT64, INT8
from primia_jax.mpc.plan import Product

UNITS = {"float64": FLOAT64, "int8": INT8, "bfloat16": BFLOAT16}
DEEPEST = 4608  # 3·3·512, the deepest convolution of ResNet-18


def matmul(depth: int) -> Product:
    def apply(x, w, out):
        return lax.dot(x, w, preferred_element_type=out)

    def split(x, w, parts):
        step = -(-x.shape[1] // parts)
        return [(x[:, i : i + step], w[i : i + step]) for i in range(0, x.shape[1], step)]

    return Product(apply, depth, 1, 1, split)


def convolution(depth: int, groups: int = 1) -> Product:
    def apply(x, w, out):
        return lax.conv_general_dilated(
            x,
            w,
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            preferred_element_type=out,
        )

    def split(x, w, parts):
        step = -(-x.shape[3] // parts)
        return [(x[..., i : i + step], w[:, :, i : i + step]) for i in range(0, x.shape[3], step)]

    return Product(apply, depth, 3, 3, split if groups == 1 else None)


def expected(x, w, n_bits):
    """The product in Python's own integers."""
    found = np.asarray(x).astype(object) @ np.asarray(w).astype(object)
    return (found % (1 << n_bits)).astype(np.uint64)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("n_bits", (24, 28, 32, 64))
@pytest.mark.parametrize("extreme", (False, True))
def test_words_times_words_wrap_exactly(unit, n_bits, extreme):
    with ring.x64():
        word = ring.word_type(n_bits)
        rng = np.random.default_rng(n_bits)
        half = 1 << (n_bits - 1)
        x = rng.integers(0, 1 << n_bits, (3, DEEPEST), dtype=np.uint64)
        w = rng.integers(0, 1 << n_bits, (DEEPEST, 2), dtype=np.uint64)
        if extreme:  # every digit at its largest magnitude: no sum is larger
            x, w = np.full_like(x, half), np.full_like(w, half)
            x[1], w[:, 1] = (1 << n_bits) - 1, int("80" * 8, 16) % (1 << n_bits)
        product = matmul(DEEPEST)
        plan = bilinear.limb_plan(n_bits, n_bits, n_bits, product, UNITS[unit])
        got = bilinear.multiply(
            product, jnp.asarray(x.astype(word)), jnp.asarray(w.astype(word)), plan
        )
        np.testing.assert_array_equal(ring.low_bits(got, n_bits), expected(x, w, n_bits))


@pytest.mark.parametrize("unit", UNITS)
def test_words_times_small_weights(unit):
    """The online product: one float64 limb each where it fits."""
    with ring.x64():
        rng = np.random.default_rng(0)
        x = rng.integers(0, 1 << 32, (2, DEEPEST), dtype=np.uint32)
        x[0] = 1 << 31
        w = rng.integers(-512, 512, (DEEPEST, 3))
        w[:, 0] = -512
        product = matmul(DEEPEST)
        plan = bilinear.limb_plan(32, 32, 10, product, UNITS[unit])
        if unit == "float64":
            assert plan.products == 1
        got = bilinear.multiply(product, jnp.asarray(x), jnp.asarray(w), plan)
        np.testing.assert_array_equal(got, expected(x, w, 32))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("groups", (1, 4))
def test_convolutions_too(unit, groups):
    with ring.x64():
        rng = np.random.default_rng(1)
        x = rng.integers(0, 1 << 32, (2, 5, 6, 4), dtype=np.uint32)
        w = rng.integers(0, 1 << 32, (3, 3, 4 // groups, 8), dtype=np.uint32)
        product = convolution(9 * 4 // groups, groups)
        plan = bilinear.limb_plan(32, 32, 32, product, UNITS[unit])
        got = bilinear.multiply(product, jnp.asarray(x), jnp.asarray(w), plan)
        wide = lax.conv_general_dilated(
            jnp.asarray(x.astype(np.int64)),
            jnp.asarray(w.astype(np.int64)),
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        np.testing.assert_array_equal(got, np.asarray(wide).astype(np.uint32))


def test_a_plan_that_could_round_is_refused():
    with pytest.raises(ProtocolError, match="exact to 2\\^53"):
        bilinear.LimbPlan(FLOAT64, 32, 1, 32, 1, 12, 1, DEEPEST)
    bilinear.LimbPlan(FLOAT64, 32, 1, 32, 1, 10, 1, DEEPEST)


def test_digits_are_small_and_make_up_the_value():
    with ring.x64():
        values = jnp.asarray(
            [0, 1, -1, 127, 128, -128, 2**31 - 1, -(2**31), 0x7F807F80], jnp.int64
        ).astype(jnp.int32)
        found = bilinear.digits(values, 4, 8, INT8)
        total = sum(np.asarray(d, np.int64) << (8 * i) for i, d in enumerate(found))
        np.testing.assert_array_equal(total.astype(np.int32), values)


def test_packing_loses_nothing_but_the_high_bits():
    with ring.x64():
        words = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, 1001, dtype=np.uint32))
        for bits in (5, 8, 13, 16, 20, 24, 28, 32):
            packed = jax.jit(ring.pack, static_argnums=1)(words, bits)
            np.testing.assert_array_equal(ring.unpack(packed, bits), ring.low_bits(words, bits))
        bits = words[:1001].astype(jnp.uint8) & 1
        np.testing.assert_array_equal(ring.unpack_bits(ring.pack_bits(bits), 1001), bits)
