"""The model owner learns at calibration that its network would be wrong encrypted."""

import warnings

import flax.linen as nn
import jax
import numpy as np
import pytest
from test_inference import encrypted, initial
from test_secure_jaxpr import network

from primia_jax import mpc
from primia_jax.config.sections import MpcConfig
from primia_jax.mpc import calibration, inference

pytestmark = pytest.mark.usefixtures("compile_quickly")


def ordinary(x):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    return nn.Dense(3)(x.mean((1, 2)))


def two_channels(params, images):
    """Logits from the second channel alone."""
    hidden = jax.nn.relu(images.mean((1, 2)) @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def weights(loud):
    return {
        "w1": np.array([[loud, 1.0]], np.float32),
        "b1": np.array([0, -0.5], np.float32),
        "w2": np.array([[0.0, 0.0], [1, -1]], np.float32),
        "b2": np.array([-0.02, 0.02], np.float32),
    }


def shades(count=64):
    """Images from black to white."""
    noise = np.random.default_rng(0).random((count, 8, 8, 1), np.float32)
    return np.clip(
        2 * noise * np.linspace(0, 1, count, dtype=np.float32)[:, None, None, None], 0, 1
    )


def test_a_quiet_channel_beside_a_loud_one_is_reported():
    """One unit and one sign window serve both: the quiet one drowns, with every value in range."""
    params, images = weights(64.0), shades()
    with pytest.warns(mpc.PrecisionWarning, match=r"differ .* by up to \d+\.\d% .*ring_bits"):
        program = mpc.encrypt(two_channels, params, images[:1], calibration=images)
    results, _ = program.run(images[24:40])
    assert not program.out_of_range, "no layer is flagged"
    error = np.abs(results - two_channels(params, images[24:40])).max()
    assert error > calibration.TOLERATED * np.abs(results).max(), "the warning would be needless"


def test_what_the_warning_advises_mends_it():
    params, images = weights(64.0), shades()
    config = MpcConfig(ring_bits=64, effective_bits=24, sign_tolerance=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mpc.PrecisionWarning)
        mpc.encrypt(two_channels, params, images[:1], calibration=images, config=config)
        mpc.encrypt(two_channels, weights(1.0), images[:1], calibration=images)  # alike


def test_an_ordinary_network_is_exact_enough():
    shape = (1, 8, 8, 1)
    module = network(ordinary)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mpc.PrecisionWarning)
        encrypted(module.apply, initial(module, shape), shape)


def test_rounding_is_imitated_as_it_happens():
    """The error predicted on floats is the protocol's, within a factor of two."""
    params, images = weights(64.0), shades(16)
    ranges = inference.find_ranges(two_channels, params, images, MpcConfig())
    plan = inference.lower_network(two_channels, params, images, MpcConfig())
    program = inference.SecureProgram(two_channels, params, plan, ranges, MpcConfig())
    imitated = calibration.difference(program.circuit, plan, params, images)
    wanted = np.asarray(two_channels(params, images))
    errors = [np.abs(program.run(images)[0] - wanted).max() for _ in range(3)]
    measured = np.mean(errors) / np.sqrt(np.square(wanted).mean())
    assert imitated.images == 16
    assert measured / 2 < imitated.relative < measured * 2
