"""Keys made in one process are used in another, once."""

import jax
import numpy as np
import pytest

from primia_jax.config import MpcConfig
from primia_jax.errors import ProtocolError
from primia_jax.mpc import inference

IMAGES = np.random.default_rng(0).uniform(size=(4, 6)).astype(np.float32)


def apply_fn(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(6, 40)).astype(np.float32),
        "b": rng.normal(size=(40, 3)).astype(np.float32),
    }


def fresh(params, **settings):
    """A program as a new process would make it."""
    config = MpcConfig(**settings)
    return inference.encrypt(apply_fn, params, IMAGES[:1], calibration=IMAGES, config=config)


@pytest.mark.parametrize("settings", ({}, {"sign_slack_bits": 2}))
def test_a_session_is_taken_up_again(tmp_path, settings):
    params = make_params()
    first = fresh(params, **settings)
    assert first.set_up(tmp_path / "s") is not None
    first.prepare(3)
    before, _ = first.run(IMAGES[:1])
    second = fresh(params, **settings)
    assert second.set_up(tmp_path / "s") is None
    stores = [second._driver.states[name].store for name in ("data_owner", "model_owner")]
    assert [store.available() for store in stores] == [2, 2]
    after, _ = second.run(IMAGES[:1])
    np.testing.assert_allclose(before, after, atol=0.02)
    np.testing.assert_allclose(after, apply_fn(params, IMAGES[:1]), atol=0.02)
    second.run(IMAGES[:1])
    assert [store.available() for store in stores] == [0, 0]
    second.run(IMAGES[:1])  # makes a key, with a number of its own
    third = fresh(params, **settings)
    third.set_up(tmp_path / "s")
    third.run(IMAGES[:1])


def test_other_weights_or_networks_are_refused(tmp_path):
    fresh(make_params()).set_up(tmp_path)
    with pytest.raises(ProtocolError, match="other weights"):
        program = fresh(make_params())
        program._params = make_params(1)
        program.set_up(tmp_path)
    with pytest.raises(ProtocolError, match="another network or version"):
        fresh(make_params(), ring_bits=24, effective_bits=12).set_up(tmp_path)
    (tmp_path / "model_owner" / "session.npz").write_bytes(b"")
    with pytest.raises(ProtocolError, match="no session can be read"):
        fresh(make_params()).set_up(tmp_path)


def test_weights_that_the_function_holds_are_told_apart_too(tmp_path):
    def program(params):
        return inference.encrypt(
            lambda _, x: apply_fn(params, x), {}, IMAGES[:1], calibration=IMAGES
        )

    first = make_params()
    program(first).set_up(tmp_path)
    swapped = {"a": first["a"][:, ::-1], "b": first["b"]}
    with pytest.raises(ProtocolError, match=r"other weights|another network"):
        program(swapped).set_up(tmp_path)


def test_secrets_are_for_their_owner_alone(tmp_path):
    program = fresh(make_params())
    program.set_up(tmp_path)
    program.prepare(1)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0, path
