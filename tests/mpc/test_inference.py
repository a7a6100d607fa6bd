"""Whole networks, encrypted: they give what the network itself gives.

Protects `mpc.encrypt` from end to end, over the networks of this project and layers that others
use; the fixed-point evaluation in the clear, by which users judge the rounding; calibration;
several devices; and the arithmetic units of accelerators.

Errors are relative to the network's largest output. `ROUNDING` bounds what fixed point costs in the
clear, where nothing is random; `NOISE` bounds what the protocol adds: a value's last bit, and the
sign of values near zero.

Axis letters: n images, h/w rows and columns, c channels.
"""

import gc
import os
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import plan_reference
import pytest
from flax import nnx
from jax import lax
from test_secure_jaxpr import network, norm, values

from primia_jax import models
from primia_jax.config.sections import ModelConfig, MpcConfig
from primia_jax.errors import ConfigError, ProtocolError
from primia_jax.mpc import bilinear, gates, inference, range_check
from primia_jax.mpc.protocols import DATA_OWNER, MODEL_OWNER

ROUNDING = 0.003
NOISE = 0.02


pytestmark = pytest.mark.usefixtures("compile_quickly")


def pictures(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def initial(module, shape):
    spec = jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32)
    return values(jax.eval_shape(module.init, jax.random.key(0), spec))


def encrypted(apply_fn, params, shape, **settings):
    """A program for images of `shape` [n ...], calibrated on eight of them."""
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    calibration = pictures((8, *shape[1:]), seed=1)
    config = MpcConfig(**settings)
    return inference.encrypt(apply_fn, params, example, calibration=calibration, config=config)


def error(found: Any, wanted: Any) -> float:
    """Largest difference over the largest magnitude, of all outputs together."""
    structure: Any = jax.tree.structure(found)
    assert structure == jax.tree.structure(wanted)
    leaves, wanted_leaves = jax.tree.leaves(found), jax.tree.leaves(wanted)
    for f, w in zip(leaves, wanted_leaves):
        assert f.shape == w.shape and f.dtype == w.dtype
    flat, wanted_flat = (
        np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in each])
        for each in (leaves, wanted_leaves)
    )
    return np.abs(flat - wanted_flat).max() / np.abs(wanted_flat).max()


def check(apply_fn, params, shape, in_the_clear=True, **settings):
    """Encrypts a network and holds a run against fixed point in the clear and the network."""
    program = encrypted(apply_fn, params, shape, **settings)
    images = pictures(shape, seed=2)
    wanted = jax.jit(apply_fn, compiler_options=plan_reference.QUICK)(params, images)
    found, trace = program.run(images)
    assert error(found, wanted) < NOISE
    if in_the_clear:
        clear = program.plaintext(images)
        assert error(clear, wanted) < ROUNDING
        assert error(found, clear) < NOISE
    assert trace.round_trips == program.circuit.plan.n_levels + 1
    return program


def check_module(body, shape=(1, 8, 8, 3), **settings):
    module = network(body)
    return check(module.apply, initial(module, shape), shape, **settings)


# --- the networks of this project


def check_project(side, batch=1, width=4, in_the_clear=True, **config):
    module = models.build(ModelConfig(convolution="xla", width=width, **config), 3)
    shape = (batch, side, side, 1)
    params = initial(module, shape)
    check(lambda v, x: module.apply(v, x, train=False), params, shape, in_the_clear)


def test_u_net():
    """Skip connections are concatenated and pixels repeated without a message."""
    check_project(8, name="unet", pooling="avg")


def test_resnet18():
    """Its pools' factors of 1/9, no powers of two, go into the units."""
    check_project(32, name="resnet18", pooling="avg", in_the_clear=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "batch", "config"),
    (
        (32, 1, {"name": "resnet18"}),
        (32, 1, {"name": "resnet18", "pooling": "avg"}),
        (32, 1, {"name": "resnet18", "stem": "small", "norm": "frozen"}),
        (64, 1, {"name": "resnet18", "width": 64}),
        (32, 1, {"name": "resnet34"}),
        (32, 1, {"name": "vgg16"}),
        (32, 2, {"name": "vgg16", "norm": "batch"}),
        (32, 1, {"name": "vgg16", "pooling": "avg"}),
    ),
)
def test_larger_networks(side, batch, config):
    check_project(side, batch, **config)


def lenet(x):
    for features in (4, 6):
        x = nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
    x = x.reshape(len(x), -1)
    for features in (8, 7):
        x = nn.relu(nn.Dense(features)(x))
    return nn.Dense(3)(x)


def test_lenet_in_batches():
    check_module(lenet, (3, 20, 20, 1), in_the_clear=False)


# --- layers of other networks


@pytest.mark.parametrize(
    "options",
    (
        {"feature_group_count": 3, "kernel_dilation": 2, "padding": ((3, 1), (2, 4))},
        {"feature_group_count": 3, "features": 3, "strides": (1, 2), "use_bias": False},
    ),
    ids=("grouped, dilated, padded unevenly", "depthwise, strided, without bias"),
)
def test_convolutions(options):
    """The whole map is put out: nothing averages a misplaced row away."""
    options = {"features": 6, "kernel_size": (3, 3), **options}
    check_module(lambda x: nn.Conv(2, (1, 1))(nn.relu(nn.Conv(**options)(x))))


def test_pooling_of_several_sizes_and_concatenation():
    def body(x):
        x = nn.relu(norm()(nn.Conv(4, (3, 3), use_bias=False)(x)))
        pooled = [
            nn.max_pool(x, (2, 2), (2, 2)),
            nn.max_pool(x, (3, 3), (2, 2), "SAME"),
            nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
        ]
        return nn.Conv(2, (1, 1))(jnp.concatenate(pooled, -1))

    check_module(body)


def test_residual_block_before_activation():
    def body(x):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        y = nn.relu(norm()(x))
        y = nn.relu(norm()(nn.Conv(4, (3, 3), use_bias=False)(y)))
        x = x + nn.Conv(4, (3, 3), use_bias=False)(y)
        return nn.Dense(3)(nn.relu(norm()(x)).mean((1, 2)))

    check_module(body)


def test_convolutions_without_activation_between():
    def body(x):
        x = nn.Conv(4, (3, 3))(nn.Conv(4, (3, 3))(x))
        return nn.Conv(2, (1, 1))(nn.relu(x))

    program = check_module(body)
    assert [gate.kind for gate in program.circuit.plan.gates] == ["rescale", "relu"]


def averaged(x):
    return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


def averaged_leaky(x):
    return nn.Dense(3)(nn.leaky_relu(nn.Conv(4, (3, 3))(x), 0.3).mean((1, 2)))


def averaged_before_and_after(x):
    return nn.Dense(3)(nn.Conv(4, (3, 3))(nn.avg_pool(x, (7, 7), (1, 1))).mean((1, 2)))


def ranges_apart(x):
    parts = [nn.relu(nn.Conv(2, (3, 3), (4, 4))(x)) * scale for scale in (1.0, 1000.0)]
    return nn.Dense(3)(jnp.concatenate(parts, -1).reshape(len(x), -1))


@pytest.mark.parametrize(
    ("body", "side"),
    ((averaged, 64), (averaged_leaky, 32), (averaged_before_and_after, 16), (ranges_apart, 16)),
)
def test_long_words_leave_the_weights_their_bits(body, side):
    """Words of an average over 4096 pixels have 28 bits: the ring would leave the weights 4."""
    program = check_module(body, (1, side, side, 1))
    scales = program.circuit.scaling
    widths = [scales.image_width, *(scale.width for scale in scales.gates)]
    assert min(widths) < program.config.effective_bits  # what is averaged may be coarser


def test_a_ring_too_narrow_for_the_weights_is_said():
    module, shape = network(lambda x: nn.Dense(3)(nn.relu(x).mean((1, 2)))), (1, 64, 64, 3)
    with pytest.warns(UserWarning, match="leaves the weights of .*Dense_0.* bits beside"):
        encrypted(module.apply, initial(module, shape), shape, ring_bits=24)


def test_several_outputs_of_other_activations():
    """A dict with a tuple in it; float16 among them; a batch of two."""

    def body(x):
        x = nn.Conv(4, (3, 3))(x)
        y = nn.Dense(2)(nn.relu6(4 * x))
        return {
            "leaky": nn.leaky_relu(x, 0.1),
            "pair": (y, abs(x).mean((1, 2)).astype(jnp.float16)),
            "clipped": jnp.clip(x, -0.5, 0.25),
        }

    check_module(body, (2, 8, 8, 3))


def test_a_network_without_gates():
    """One round trip: the masked image there, the masked outputs back."""
    weight = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)
    program = check(lambda w, x: x.mean((1, 2)) @ w, weight, (2, 8, 8, 3))
    assert program.circuit.plan.n_levels == 0


# --- what goes in


def small(x):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    x = nn.avg_pool(x, (2, 2), (2, 2))
    return nn.Dense(3)(x.mean((1, 2)))


SHAPE = (1, 8, 8, 1)
MODULE = network(small)


@pytest.fixture(scope="module")
def params():
    return initial(MODULE, SHAPE)


@pytest.fixture(scope="module")
def program(params):
    return encrypted(MODULE.apply, params, SHAPE)


@pytest.mark.parametrize(
    "converted",
    (
        np.float16,
        np.float64,
        jnp.asarray,
        lambda x: jnp.asarray(x, jnp.bfloat16),
        lambda x: x.tolist(),
        np.asfortranarray,
        lambda x: np.round(x).astype(np.uint8),
    ),
    ids=("float16", "float64", "jax", "bfloat16", "list", "by columns", "uint8"),
)
def test_images_of_any_type(converted, program, params):
    images = converted(pictures(SHAPE, seed=4))
    wanted = MODULE.apply(params, jnp.asarray(images, jnp.float32))
    assert error(program.run(images)[0], wanted) < NOISE
    assert error(program.plaintext(images), wanted) < ROUNDING


def test_any_number_of_images_at_a_time(program, params):
    """Each number has keys of its own, and each image its own logits."""
    images = pictures((5, 8, 8, 1), seed=5)
    for chosen in (slice(0, 3), slice(0, 1), slice(2, 5)):
        found = program.run(images[chosen])[0]
        assert error(found, MODULE.apply(params, images[chosen])) < NOISE
    assert program.batch_size == 1
    assert program.for_batch(3) is program.for_batch(3)
    assert program.for_batch(3).ranges == program.ranges


@pytest.mark.parametrize("shape", ((1, 8, 8, 3), (1, 8, 9, 1), (2, 9, 8, 1), (8, 8, 1), (), (0,)))
def test_images_of_another_shape_are_refused(shape, program):
    for of in (program.run, program.plaintext):
        with pytest.raises(ProtocolError, match=r"takes images of shape \(.*8, 8, 1\), not"):
            of(np.zeros(shape, np.float32))


def test_preparing_nothing_is_refused(program):
    with pytest.raises(ProtocolError, match="n_keys = 0"):
        program.prepare(0)


def test_a_refused_image_costs_no_key(program):
    program.run(pictures(SHAPE))
    program.prepare(2)
    store = program._driver.states[DATA_OWNER].store
    before = store.available()
    with pytest.raises(ProtocolError, match="not finite"):
        program.run(np.full(SHAPE, np.inf))
    assert store.available() == before == 2
    program.run(pictures(SHAPE))
    assert store.available() == 1


def test_parameters_of_any_float_type(params):
    """As given by NumPy in double, and by JAX in half precision."""
    images = pictures(SHAPE, seed=6)
    for cast in (lambda leaf: leaf.astype(np.float64), lambda leaf: jnp.asarray(leaf, jnp.float16)):
        converted = jax.tree.map(cast, params)
        found = encrypted(jax.jit(MODULE.apply), converted, SHAPE).run(images)[0]
        assert error(found, MODULE.apply(params, images)) < NOISE


def test_a_scalar_may_be_among_the_parameters(params):
    def scaled(given, images):
        return MODULE.apply(given["params"], images) * given["scale"]

    given, images = {"params": params, "scale": 2.0}, pictures(SHAPE, seed=6)
    assert error(encrypted(scaled, given, SHAPE).run(images)[0], scaled(given, images)) < NOISE


# --- ranges


def test_calibration_images_are_like_the_example(params):
    wanted = r"made for images \[8, 8, 1\], calibration has \[8, 8, 3\]"
    with pytest.raises(ConfigError, match=wanted):
        inference.encrypt(MODULE.apply, params, np.zeros(SHAPE), calibration=np.zeros((2, 8, 8, 3)))


def edges(x):
    """Answers to what changes from pixel to pixel, not to what is even."""
    kernel = jnp.asarray([[[1.0, -1.0], [-1.0, 1.0]]]).reshape(2, 2, 1, 1)
    return lax.conv_general_dilated(
        x, kernel * 8, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_an_overflow_is_foreseen_and_mended():
    """Even images show little of what a layer reaches; images with edges overflow it."""

    def apply_fn(params, x):
        return nn.relu(edges(x * params)).mean((1, 2))

    rng = np.random.default_rng(7)
    even = 0.5 + 0.01 * rng.uniform(size=(4, 8, 8, 1))
    rough = rng.uniform(size=SHAPE) * 0.5
    example = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    program = inference.encrypt(apply_fn, np.ones(1, np.float32), example, calibration=even)
    assert program.check_range(even) == []
    found = program.check_range(rough)
    assert [overflow.layer for overflow in found] == [program.circuit.plan.gates[0].name]
    assert all(overflow.reached >= overflow.limit for overflow in found)
    assert "reaches" in str(found[0]) and "provided for" in str(found[0])

    wanted = apply_fn(np.ones(1, np.float32), rough.astype(np.float32))
    with pytest.warns(inference.OutOfRangeWarning, match="left the calibrated range in relu"):
        assert error(program.run(rough)[0], wanted) > 0.1
    assert program.out_of_range == ("relu",)
    wider = inference.calibrate(program, rough)
    assert wider.check_range(rough) == []
    assert wider.ranges.gates[0] > program.ranges.gates[0]
    assert error(wider.run(rough)[0], wanted) < NOISE
    assert program.check_range(rough), "the program that was calibrated anew stays as it was"


def test_calibration_takes_every_image(program, params):
    """Also those of an incomplete batch: the ranges are the largest of each alone."""
    images = pictures((11, 8, 8, 1), seed=8)
    images[10] *= 3
    ranges = inference.find_ranges(MODULE.apply, params, images, program.config)
    alone = [
        inference.find_ranges(MODULE.apply, params, images[i : i + 1], program.config)
        for i in (0, 10)
    ]
    assert ranges.image / 2 < images.max() <= ranges.image
    assert ranges.gates[0] == alone[1].gates[0]
    assert ranges.gates[0] > alone[0].gates[0]
    with pytest.raises(ConfigError, match="at least one image"):
        program.calibrate(images[:0])


# --- runs


def test_runs_differ_only_in_rounding(program, params):
    images = pictures(SHAPE, seed=9)
    wanted = MODULE.apply(params, images)
    for _ in range(10):
        assert error(program.run(images)[0], wanted) < NOISE


@pytest.mark.parametrize("settings", ({}, {"sign_slack_bits": 0}), ids=("tables", "trees"))
def test_jax_keeps_its_types(settings, params, monkeypatch):
    """Words of 64 bits are the parties' own affair, whichever of them ends first, or fails."""
    program = encrypted(MODULE.apply, params, SHAPE, **settings)
    for of in (program.prepare, program.prepare, lambda: program.run(pictures(SHAPE))):
        of()
        assert jnp.zeros(()).dtype == jnp.float32

    def fails(*arguments):
        raise RuntimeError("power cut")

    monkeypatch.setattr(gates, "packed_out_share", fails)
    with pytest.raises(RuntimeError, match="power cut"):
        program.run(pictures(SHAPE))
    gc.collect()  # ends the programs of the other parties
    assert jnp.zeros(()).dtype == jnp.float32


def test_two_programs_side_by_side(params):
    """Sessions share nothing: two models of one architecture, and one of another, in turn."""
    others = jax.tree.map(lambda leaf: leaf[..., ::-1].copy(), params)
    plain = network(lambda x: nn.Dense(2)(x.mean((1, 2))))
    kinds = [
        (MODULE.apply, params),
        (MODULE.apply, others),
        (plain.apply, initial(plain, SHAPE)),
    ]
    programs = [encrypted(apply_fn, weights, SHAPE) for apply_fn, weights in kinds]
    for program in programs[::2]:
        program.prepare(3)
    for seed in (10, 11):
        for program, (apply_fn, weights) in zip(programs, kinds):
            images = pictures(SHAPE, seed)
            assert error(program.run(images)[0], apply_fn(weights, images)) < NOISE
    left = [
        [program._driver.states[party].store.available() for party in (DATA_OWNER, MODEL_OWNER)]
        for program in programs
    ]
    assert left == [[1, 1], [0, 0], [1, 1]]


def test_random_keys_among_the_parameters_are_no_weights():
    """An NNX network keeps the keys of its dropout in its state; in evaluation it draws none."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(16, 2, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dense(self.dropout(nnx.relu(x.reshape(len(x), -1))))

    network = Network(nnx.Rngs(0))
    network.eval()
    graph, state = nnx.split(network)
    images = pictures((1, 4, 4, 1))
    program = inference.encrypt(
        lambda weights, x: nnx.merge(graph, weights)(x), state, images, calibration=images
    )
    np.testing.assert_allclose(program.run(images)[0], network(jnp.asarray(images)), atol=1e-3)


def test_seconds_are_round_trips_and_bytes():
    """2 · latency · round trips + bits on the critical path / bandwidth.

    Of the two messages with sign bits, which cross, one is on it; so it is with the outputs and the
    request of the range checks. Computing is nothing beside.
    """
    module = network(lambda x: nn.Dense(3)(nn.max_pool(nn.relu(nn.Conv(2, (3, 3))(x)), (2, 2))))
    program = encrypted(module.apply, initial(module, SHAPE), SHAPE)
    images = pictures(SHAPE)
    program.run(images)  # compiles
    latency, bandwidth = 1000.0, 2.0
    _, trace = program.run(images, latency_s=latency, bandwidth_bps=bandwidth)
    crossing = sum(
        -(-spec.n_elements // 8) for spec in program.circuit.specs.values() if spec.compares
    )
    crossing += range_check.SUMS * len(program.circuit.checked_gates)
    transfer = 8 * (trace.bytes_sent - crossing) / bandwidth
    expected = 2 * latency * trace.round_trips + transfer
    assert 0.1 < transfer / expected < 0.9, "both terms are seen"
    assert expected < trace.seconds
    assert trace.seconds == pytest.approx(expected, rel=0.01)


# --- other machines

SHARDED = """
import collections
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from primia_jax.config.sections import MpcConfig
from primia_jax.mpc import devices, encrypt, gates

assert len(jax.local_devices()) == 8
jax.config.update("jax_disable_most_optimizations", True)

assert len(devices.spread(jnp.zeros((5, 64))).sharding.device_set) == 8
assert devices.spread(jnp.zeros((5, 64))).addressable_shards[0].data.shape == (5, 8)
assert len(devices.spread(jnp.zeros((5, 63))).sharding.device_set) == 1
assert len(devices.gather(devices.spread(jnp.zeros(64))).sharding.device_set) == 1

class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))  # 256 elements: 32 a device
        x = nn.relu(nn.Dense(7)(x.reshape(len(x), -1)))  # 7: not to be divided
        return nn.Dense(3)(x)

seen = collections.defaultdict(set)

def watched(name, module):
    original = getattr(module, name)
    def function(gate, party, y, *others):
        out = original(gate, party, y, *others)
        arrays = [leaf for leaf in jax.tree.leaves((y, *others, out)) if hasattr(leaf, "sharding")]
        for leaf in arrays:
            if leaf.shape and leaf.shape[-1] == gate.n_elements:
                seen[name, party, gate.n_elements].add(len(leaf.sharding.device_set))
        return out
    setattr(module, name, function)

for name in ("sign_share", "out_share"):
    watched(name, gates)

images = np.random.default_rng(0).uniform(size=(8, 8, 8, 1)).astype(np.float32)
module = Network()
params = module.init(jax.random.key(1), images[:1])
wanted = np.asarray(module.apply(params, images[:1]))
for slack in SLACKS:
    program = encrypt(
        module.apply, params, images[:1], calibration=images,
        config=MpcConfig(sign_slack_bits=slack),
    )
    found, _ = program.run(images[:1])
    assert np.abs(found - wanted).max() < NOISE * np.abs(wanted).max(), (slack, found, wanted)
    for party in (0, 1):
        assert 8 in seen["sign_share", party, 256], seen
        assert seen["sign_share", party, 7] == {1}, seen
    assert 8 in seen["out_share", 1, 256], seen
    seen.clear()
print("same on 8 devices")
"""


def run_on_eight_devices(slacks):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    script = SHARDED.replace("SLACKS", repr(slacks)).replace("NOISE", repr(NOISE))
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "same on 8 devices" in result.stdout


def test_keys_are_spread_over_devices():
    """Truth tables: what belongs to a gate is divided among eight devices, the answer the same."""
    run_on_eight_devices((-1,))


@pytest.mark.slow
def test_trees_are_spread_over_devices():
    run_on_eight_devices((3,))


@pytest.mark.parametrize("unit", (bilinear.INT8, bilinear.BFLOAT16), ids=("int8", "bfloat16"))
@pytest.mark.parametrize("ring_bits", (32, pytest.param(64, marks=pytest.mark.slow)))
def test_units_of_accelerators(unit, ring_bits, params, monkeypatch):
    """Limbs of bytes, or of bfloat16: to the bit what float64 gives in the clear, and encrypted."""
    settings: dict[str, Any] = {"ring_bits": ring_bits}
    images = pictures(SHAPE, seed=12)
    wanted = encrypted(MODULE.apply, params, SHAPE, **settings).plaintext(images)
    monkeypatch.setattr(bilinear, "arithmetic", lambda backend=None: unit)
    program = encrypted(MODULE.apply, params, SHAPE, **settings)
    for product in program.circuit.products:
        for plan in (program.circuit.owner_plan(product), program.circuit.mask_plan(product)):
            assert plan.unit is unit and plan.products > 1
    np.testing.assert_array_equal(program.plaintext(images), wanted)
    assert error(program.run(images)[0], MODULE.apply(params, images)) < NOISE
