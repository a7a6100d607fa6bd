"""That simulated updates are those of a hospital: else attacks match the wrong thing."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from primia_jax.errors import ConfigError
from primia_jax.inversion import LocalTraining, observe, simulate
from primia_jax.tasks import Classification

STATISTICS = {"mean": 0.4, "std": 0.3}


@pytest.fixture(scope="module")
def normed():
    module = networks.Normed()
    return module, module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))


def loss_gradient(module, params, rest, images, labels, train):
    def loss(params):
        logits, updated = module.apply(
            {"params": params, **rest}, (images - 0.4) / 0.3, train=train, mutable=list(rest)
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updated

    return jax.grad(loss, has_aux=True)(params)


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=tolerance), a, b)


@pytest.mark.parametrize("train", [False, True])
def test_a_gradient_is_that_of_the_mean_loss(normed, train):
    module, variables = normed
    images, labels = networks.phantoms(3, 16)
    rest = {"batch_stats": variables["batch_stats"]}
    expected, updated = loss_gradient(module, variables["params"], rest, images, labels, train)
    training = LocalTraining(module, train=train, **STATISTICS)
    seen = observe(training, variables, images, labels, moments_known=True)
    assert_close(seen.update, expected)
    assert_close(seen.moments, updated["batch_stats"])


@pytest.mark.slow
def test_weights_of_several_steps_are_those_of_a_plain_loop(normed):
    # Two hospitals of two images, three steps of one image each: 0, 1, and 0 again.
    module, variables = normed
    images, labels = networks.phantoms(4, 16)
    changes = []
    for first in (0, 2):
        params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
        for step in range(3):
            one = slice(first + step % 2, first + step % 2 + 1)
            gradient, rest = loss_gradient(module, params, rest, images[one], labels[one], True)
            params = jax.tree.map(lambda w, g: w - 0.1 * g, params, gradient)
        changes.append(jax.tree.map(jnp.subtract, params, variables["params"]))
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *changes)
    training = LocalTraining(
        module,
        content="weights",
        local_steps=3,
        batch_size=1,
        learning_rate=0.1,
        hospitals=2,
        **STATISTICS,
    )
    assert_close(observe(training, variables, images, labels).update, expected)


def test_class_weights_smoothing_and_optimiser_count():
    module = networks.DenseFirst()
    images, labels = networks.phantoms(2, 16)
    variables = module.init(jax.random.key(0), images)
    weights = np.array([0.5, 2.0, 0.5], np.float32)
    training = LocalTraining(
        module,
        content="weights",
        learning_rate=0.01,
        optimizer=optax.scale_by_adam(),
        class_weights=tuple(weights.tolist()),
        task=Classification((), label_smoothing=0.1),
    )

    def loss(params):
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.1)
        losses = optax.softmax_cross_entropy(module.apply({"params": params}, images), targets)
        return (losses * weights[labels]).mean()

    gradient = jax.grad(loss)(variables["params"])
    expected = jax.tree.map(lambda g: -0.01 * g / (jnp.abs(g) + 1e-8), gradient)
    assert_close(observe(training, variables, images, labels).update, expected)


@pytest.mark.slow
def test_an_update_of_several_steps_differentiates_as_finite_differences_say():
    module = networks.DenseFirst()
    images, labels = networks.phantoms(1, 16)
    variables = module.init(jax.random.key(0), images)
    training = LocalTraining(module, content="weights", local_steps=2, learning_rate=0.5)
    targets = jax.nn.one_hot(labels, 3)
    direction = jax.random.normal(jax.random.key(1), images.shape)

    @jax.jit
    def size(images):
        update = simulate(training, variables, images, targets)
        return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(update.params))

    with jax.default_matmul_precision("highest"):
        slope = jnp.vdot(jax.grad(size)(jnp.asarray(images)), direction)
        step = 1e-2
        ahead, behind = (size(images + sign * step * direction) for sign in (1, -1))
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=0.02)


def test_what_the_attacker_does_not_know_is_not_there(normed):
    module, variables = normed
    images, labels = networks.phantoms(1, 16)
    guess = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    seen = observe(
        LocalTraining(module), variables, images, labels, labels_known=False, guessed_moments=guess
    )
    assert seen.labels is None and seen.moments is None
    assert_close(seen.variables["batch_stats"], guess)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"content": "loss"}, "content of the update = 'loss'"),
        ({"local_steps": 0}, "local_steps = 0"),
        ({"local_steps": 2}, "observe 'weights'"),
        ({"batch_size": -1}, "batch_size = -1"),
        ({"std": 0.0}, "std = 0.0"),
    ],
)
def test_impossible_local_training_is_refused(normed, settings, message):
    with pytest.raises(ConfigError, match=message):
        LocalTraining(normed[0], **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hospitals": 2}, "3 images cannot be shared out evenly over 2"),
        ({"content": "weights", "batch_size": 4}, "batch_size = 4: more than a hospital's 3"),
    ],
)
def test_images_that_do_not_fit_are_refused(normed, settings, message):
    images, labels = networks.phantoms(3, 16)
    with pytest.raises(ConfigError, match=message):
        observe(LocalTraining(normed[0], **settings), normed[1], images, labels)


def test_moments_of_a_network_without_any_cannot_be_known():
    module, variables = networks.small_cnn(16, width=4, norm="none")
    images, labels = networks.phantoms(1, 16)
    with pytest.raises(ConfigError, match="no batch norm"):
        observe(LocalTraining(module), variables, images, labels, moments_known=True)
