"""Bits of the ring are divided between words and weights so that results are as exact as they can.

Protects deep layers, whose headroom once took its bits from the weights alone; the price, which is
none: no message or key grows; and that the choice follows from what is published.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_inference import encrypted, error, initial, pictures
from test_secure_jaxpr import network

from primia_jax.config.sections import MpcConfig
from primia_jax.mpc import inference, precision, scaling
from primia_jax.mpc.units import bypasses, natural_unit

SHAPE = (1, 4, 4, 1)

pytestmark = pytest.mark.usefixtures("compile_quickly")


def deep(x):
    """Sums of 288 products: the worst case takes five bits of headroom."""
    for _ in range(3):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
    return nn.Dense(3)(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def made():
    """A network and its parameters."""
    module = network(deep)
    return module.apply, initial(module, SHAPE)


@pytest.fixture(scope="module")
def program(made):
    return encrypted(*made, SHAPE)


def without_narrowing(monkeypatch, made, **settings):
    with monkeypatch.context() as patched:
        patched.setattr(precision, "best_narrowing", lambda *_: {})
        return encrypted(*made, SHAPE, **settings)


def mean_error(made, program):
    apply_fn, params = made
    images = pictures((16, *SHAPE[1:]), seed=3)
    found = [program.plaintext(images[i : i + 1]) for i in range(len(images))]
    return np.mean([error(f, apply_fn(params, images[i : i + 1])) for i, f in enumerate(found)])


def test_deep_layers_are_exact_beside_their_headroom(made, program, monkeypatch):
    wide = without_narrowing(monkeypatch, made)
    assert max(program.circuit.scaling.headroom) >= 4 and program.circuit.detects
    exact = mean_error(made, program)
    assert exact < 0.001
    assert exact < mean_error(made, wide) / 2


def test_no_message_and_no_key_grows(made, program, monkeypatch):
    wide = without_narrowing(monkeypatch, made)
    narrow_cost, wide_cost = program.circuit.cost(), wide.circuit.cost()
    assert narrow_cost.round_trips == wide_cost.round_trips
    assert narrow_cost.online_bytes <= wide_cost.online_bytes
    for party, size in narrow_cost.key_bytes.items():
        assert size <= wide_cost.key_bytes[party]


def test_the_predicted_error_is_near_the_least(program):
    """No single source that is a bit wider or narrower would do noticeably better."""
    plan, ranges, config = program.circuit.plan, program.ranges, program.config
    model = precision.Model(plan, ranges, config.ring_bits)
    scales = program.circuit.scaling
    narrowing = {
        gate.out: config.effective_bits - scale.width
        for gate, scale in zip(plan.gates, scales.gates)
    } | {plan.image: config.effective_bits - scales.image_width}
    least = model.error(scales)
    assert any(narrowing.values())
    for source, bits in narrowing.items():
        for other in (bits - 1, bits + 1):
            if 0 <= other <= config.effective_bits - precision.NARROWEST:
                changed = scaling._choose(plan, ranges, config, narrowing | {source: other}, False)
                assert model.error(changed) > 0.99 * least


def test_widths_follow_from_what_is_published(made, program):
    """Other weights of the same published ranges get the same units and widths."""
    apply_fn, params = made
    other = jax.tree.map(lambda leaf: leaf * np.float32(1.0005), params)
    plan, config = program.circuit.plan, program.config
    ranges = inference.find_ranges(apply_fn, other, pictures((8, *SHAPE[1:]), seed=1), config)
    assert ranges == program.ranges
    assert scaling.choose(plan, ranges, config) == program.circuit.scaling


def test_a_ring_with_bits_to_spare_keeps_the_full_width(made):
    program = encrypted(*made, SHAPE, ring_bits=64)
    assert {scale.width for scale in program.circuit.scaling.gates} == {MpcConfig().effective_bits}


def test_values_of_other_factors_agree_on_a_unit():
    """An average of nine beside what is not averaged: no bits are lost to a factor of nine."""

    def body(x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        parts = [nn.avg_pool(x, (3, 3), (1, 1), "SAME"), nn.relu(nn.Conv(4, (3, 3))(x))]
        return nn.Conv(2, (1, 1))(jnp.concatenate(parts, -1))

    module, shape = network(body), (1, 8, 8, 1)
    circuit = encrypted(module.apply, initial(module, shape), shape).circuit
    last = circuit.plan.products()[-1].operand
    units = [circuit.units[path.source] / abs(path.factor) for path in bypasses(last)]
    assert len(set(path.factor for path in bypasses(last))) == 2
    assert all(math.log2(unit / units[0]).is_integer() for unit in units)
    assert natural_unit(last, circuit.units) == max(units)
