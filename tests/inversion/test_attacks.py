"""That the attacks do recover images where they can: else all figures of an audit mean nothing."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from primia_jax.errors import ConfigError
from primia_jax.inversion import (
    Attack,
    DeepLeakage,
    LocalTraining,
    deep_leakage,
    invert,
    invert_all,
    inverting_gradients,
    observe,
)
from primia_jax.inversion.matching import moments_distance, total_variation
from primia_jax.inversion.observed import Update


def attack_small_cnn(side, steps, **settings):
    module, variables = networks.small_cnn(side, **settings)
    images, labels = networks.phantoms(1, side)
    training = LocalTraining(module, train=False, mean=0.6, std=0.25)
    seen = observe(training, variables, images, labels, labels_known=False)
    found = invert(inverting_gradients(), seen, images.shape, jax.random.key(0), steps=steps)
    return networks.psnr(found.images, images), found


def test_a_plain_gradient_of_the_small_cnn_gives_the_image_away():
    # The honesty test: the network as it comes (64 channels, batch norm, max pooling), untrained,
    # in evaluation mode, attacked by the gradient of one image with its label unknown.
    psnr, found = attack_small_cnn(32, 400)
    assert psnr >= 20
    assert found.images.min() >= 0 and found.images.max() <= 1


@pytest.fixture(scope="module")
def smooth():
    module = networks.Smooth()
    images, labels = networks.phantoms(2, 16)
    variables = module.init(jax.random.key(0), images)
    return module, variables, images, labels


@pytest.mark.parametrize(
    ("labels", "known"), [("joint", True), ("joint", False), ("inferred", False)]
)
def test_deep_leakage_recovers_image_and_label(smooth, labels, known):
    module, variables, images, truth = smooth
    training = LocalTraining(module, mean=0.5, std=0.25)
    seen = observe(training, variables, images[1:], truth[1:], labels_known=known)
    attack = deep_leakage(DeepLeakage(labels=labels))
    found = invert(attack, seen, (1, 16, 16, 1), jax.random.key(3), steps=150, restarts=2)
    assert networks.psnr(found.images, images[1:]) > 30
    assert found.targets.argmax(-1).tolist() == truth[1:].tolist()


@pytest.mark.slow
def test_several_local_steps_are_differentiated_through(smooth):
    module, variables, images, labels = smooth
    training = LocalTraining(
        module, content="weights", local_steps=2, learning_rate=0.1, mean=0.5, std=0.25
    )
    seen = observe(training, variables, images[:1], labels[:1])
    found = invert(deep_leakage(), seen, (1, 16, 16, 1), jax.random.key(3), steps=150, restarts=2)
    assert networks.psnr(found.images, images[:1]) > 25


class _Walk(NamedTuple):
    images: jax.Array
    targets: jax.Array
    at: jax.Array


def _walking(losses):
    """An attack whose image at step i of restart r is r + i/100, with the losses [r, i] given."""

    def init(observed, shape, key):
        restart = jnp.argmax(jnp.all(jax.random.key_data(key) == STARTS, -1))
        images = jnp.full(shape, restart, jnp.float32) / 10
        return _Walk(images, jnp.ones((shape[0], 3)) / 3, jnp.array([restart, 0]))

    def step(observed, state, progress):
        after = _Walk(state.images + 0.01, state.targets, state.at.at[1].add(1))
        return after, jnp.asarray(losses)[state.at[0], state.at[1]]

    return Attack(init, step)


STARTS = np.stack(
    [
        jax.random.key_data(jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), r))
        for r in range(3)
    ]
)


@pytest.mark.parametrize("vectorised", [False, True])
def test_the_lowest_matching_loss_decides_whenever_it_was_reached(smooth, vectorised):
    # The image after the last step counts too, and NaN never wins.
    module, variables, images, labels = smooth
    seen = observe(LocalTraining(module), variables, images[:1], labels[:1])
    nan, inf = np.nan, np.inf
    losses = np.array([[5, 3, 4], [9, 8, 1], [nan, inf, nan]], np.float32)
    found = invert(
        _walking(losses),
        seen,
        (1, 2, 2, 1),
        jax.random.key(5),
        steps=2,
        restarts=3,
        vectorised=vectorised,
    )
    assert found.restart_losses.tolist() == [3, 1, inf]
    assert found.loss == 1
    np.testing.assert_allclose(found.images, 0.12, rtol=1e-6)
    np.testing.assert_allclose(found.restart_images[:, 0, 0, 0, 0], [0.01, 0.12, 0.2], rtol=1e-6)


@pytest.mark.slow
def test_runs_side_by_side_find_what_runs_in_turn_find():
    # Two updates and two restarts, labels unknown; few steps, before rounding tells them apart.
    module = networks.DenseFirst()
    images, labels = networks.phantoms(2, 16)
    variables = module.init(jax.random.key(0), images)
    training = LocalTraining(module, mean=0.5, std=0.25)
    seen = [
        observe(training, variables, images[i : i + 1], labels[i : i + 1], labels_known=False)
        for i in range(2)
    ]
    attack = inverting_gradients()
    settings = {"shape": (1, 16, 16, 1), "key": jax.random.key(0), "steps": 5, "restarts": 2}
    in_turn = invert_all(attack, seen, vectorised=False, **settings)
    together = invert_all(attack, seen, vectorised=True, **settings)
    for a, b in zip(in_turn, together, strict=True):
        np.testing.assert_allclose(a.restart_losses, b.restart_losses, rtol=1e-2)
        np.testing.assert_allclose(a.restart_images, b.restart_images, atol=0.02)
    assert not np.allclose(in_turn[0].images, in_turn[1].images, atol=0.01)
    again = invert(attack, seen[0], **settings)
    np.testing.assert_array_equal(again.restart_images, in_turn[0].restart_images)


@pytest.mark.slow
def test_known_moments_count_in_both_attacks():
    module = networks.Normed()
    images, labels = networks.phantoms(2, 16)
    variables = module.init(jax.random.key(0), images)
    training = LocalTraining(module, train=True)
    seen = observe(training, variables, images, labels, moments_known=True)
    darker = observe(training, variables, images * 0.5, labels, moments_known=True)
    assert moments_distance(Update(seen.update, seen.moments), seen) == 0
    assert moments_distance(Update(darker.update, darker.moments), seen) > 0.01
    others = dataclasses.replace(seen, moments=jax.tree.map(jnp.zeros_like, seen.moments))
    for attack in (inverting_gradients(), deep_leakage()):
        found, misled = (
            invert(attack, view, images.shape, jax.random.key(0), steps=3).images
            for view in (seen, others)
        )
        assert not np.array_equal(found, misled)


def test_total_variation_by_hand():
    image = jnp.array([[0.0, 0.5], [0.25, 1.0]])[None, :, :, None]
    np.testing.assert_allclose(total_variation(image), (0.25 + 0.5) / 2 + (0.5 + 0.75) / 2)


def test_impossible_attacks_are_refused(smooth):
    module, variables, images, labels = smooth
    training = LocalTraining(module)
    seen = observe(training, variables, images[:1], labels[:1])
    key, attack = jax.random.key(0), inverting_gradients()
    with pytest.raises(ConfigError, match="steps = 0"):
        invert(attack, seen, (1, 16, 16, 1), key, steps=0)
    with pytest.raises(ConfigError, match=r"shape = \(16, 16\)"):
        invert(attack, seen, (16, 16), key, steps=1)
    with pytest.raises(ConfigError, match=r"shape = \(2, 16, 16, 1\): 1 labels are known"):
        invert(attack, seen, (2, 16, 16, 1), key, steps=1)
    with pytest.raises(ConfigError, match="labels = 'guess'"):
        DeepLeakage(labels="guess")
    other = observe(training, jax.tree.map(lambda w: w + 1, variables), images[:1], labels[:1])
    with pytest.raises(ConfigError, match="of one model"):
        invert_all(attack, [seen, other], (1, 16, 16, 1), key, steps=1, vectorised=True)
    assert invert_all(attack, [], (1, 16, 16, 1), key, steps=1) == []
