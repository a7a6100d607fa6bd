"""Clipping and noise of an update, by their definitions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from primia_jax.config import FederatedConfig
from primia_jax.federated.perturbation import perturbed


def change(config, scale, seed=0):
    rng = np.random.default_rng(seed)
    before = [rng.standard_normal(50).astype(np.float32), rng.standard_normal(3).astype(np.float32)]
    moves = [scale * rng.standard_normal(len(w)) for w in before]
    after = [(w + m).astype(np.float32) for w, m in zip(before, moves)]
    out = perturbed(before, after, config, np.random.default_rng(1))
    flat = [np.concatenate([b - a for a, b in zip(before, new)]) for new in (after, out)]
    return *flat, after, out


def test_without_a_clip_the_very_same_weights_go_out():
    _, _, after, out = change(FederatedConfig(), 1.0)
    assert all(a is b for a, b in zip(after, out, strict=True))


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2))
def test_a_change_keeps_its_direction_and_is_at_most_the_clip_long(clip, scale):
    asked, given_away, _, _ = change(FederatedConfig(update_clip=clip), scale)
    length = min(clip, np.linalg.norm(asked))
    np.testing.assert_allclose(np.linalg.norm(given_away), length, rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(
        given_away, asked * length / np.linalg.norm(asked), rtol=1e-2, atol=1e-5
    )


def test_noise_is_relative_to_the_clip():
    config = FederatedConfig(update_clip=100.0, update_noise=0.5)
    asked, given_away, _, _ = change(config, 0.0)
    assert not asked.any()
    assert 35 < given_away.std() < 65
