"""The local step and the loop around it: order, schedule, loss and prediction."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primia_jax import models
from primia_jax.config import ExperimentConfig, ModelConfig, TrainingConfig
from primia_jax.config.sections import AugmentationConfig
from primia_jax.federated import local_training
from primia_jax.federated.local_training import Statistics, Step
from primia_jax.tasks import Classification

STILL = AugmentationConfig(
    **{f.name: 0.0 for f in dataclasses.fields(AugmentationConfig) if f.name.endswith("_p")}
)
STATISTICS = Statistics(np.float32(0.5), np.float32(0.25), np.asarray([0.5, 1, 2], np.float32))


def small(**training):
    return ExperimentConfig(
        model=ModelConfig(name="simple", width=4, norm="group"),
        training=TrainingConfig(**training),
        augmentation=STILL,
    )


def take(n, *arguments):
    return list(itertools.islice(local_training.batches(*arguments), n))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_every_epoch_sees_every_record(n, batch_size, site):
    per_epoch = local_training.steps_per_epoch(n, batch_size)
    epoch = take(per_epoch, 0, site, n, batch_size, 0)
    assert {len(batch) for batch in epoch} == {min(n, batch_size)}
    assert set(np.concatenate(epoch)) == set(range(n))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 30))
def test_going_on_is_the_same_as_never_stopping(n, batch_size, first):
    whole = take(first + 5, 7, 1, n, batch_size, 0)
    np.testing.assert_array_equal(take(5, 7, 1, n, batch_size, first), whole[first:])


def test_sites_and_epochs_differ():
    a, b = take(2, 0, 0, 50, 50, 0)
    (c,) = take(1, 0, 1, 50, 50, 0)
    assert not np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize("schedule", ["log_linear", "cosine"])
def test_schedules_go_from_start_to_end(schedule):
    config = TrainingConfig(schedule=schedule, learning_rate=1e-2, end_learning_rate=1e-4)
    rates = [local_training.learning_rate(config, p) for p in np.linspace(0, 0.999, 50)]
    assert rates[0] == pytest.approx(1e-2) and rates[-1] == pytest.approx(1e-4, rel=0.05)
    assert all(x > y for x, y in itertools.pairwise(rates))


def test_log_linear_is_geometric_and_restarts():
    config = TrainingConfig(learning_rate=1e-2, end_learning_rate=1e-4, restarts=1)
    assert local_training.learning_rate(config, 0.25) == pytest.approx(1e-3)
    assert local_training.learning_rate(config, 0.5) == pytest.approx(1e-2)


def one_step(config, learning_rate=0.1, mu=0.0, anchor=None, seed=3):
    task = Classification(("a", "b", "c"), config.training.label_smoothing)
    learner = local_training.make_learner(config, task, mu)
    variables = models.init(learner.module, jax.random.key(0), 16, 1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)
    labels = np.asarray([0, 1, 2, 1, 0], np.int32)
    start = jax.tree.map(np.array, variables)
    new, _, loss = learner.train(
        variables,
        learner.optimizer.init(variables["params"]),
        start["params"] if anchor is None else anchor,
        images,
        labels,
        STATISTICS,
        np.uint32(seed),
        Step(np.uint32(1), np.uint32(0), np.uint32(0)),
        np.float32(learning_rate),
    )
    return learner, start, new, float(loss), images, labels


def test_one_sgd_step_is_what_the_formula_says():
    """Weighted, smoothed cross-entropy of standardised images, and w − lr (g + decay · w)."""
    config = small(optimizer="sgd", beta1=0.0, weight_decay=0.01, label_smoothing=0.1)
    learner, start, new, loss, images, labels = one_step(config)

    def loss_of(params):
        inputs = (images.astype(np.float32) / 255 - 0.5) / 0.25
        logits = learner.module.apply({"params": params}, inputs, train=True)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.1)
        losses = optax.softmax_cross_entropy(logits, targets)
        return (losses * STATISTICS.class_weights[labels]).mean()

    value, gradient = jax.value_and_grad(loss_of)(start["params"])
    assert loss == pytest.approx(float(value), rel=1e-5)
    expected = jax.tree.map(lambda w, g: w - 0.1 * (g + 0.01 * w), start["params"], gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new["params"], expected
    )


def test_proximal_term_pulls_towards_the_anchor():
    config = small(optimizer="sgd", beta1=0.0, weight_decay=0.0)
    _, start, plain, *_ = one_step(config)
    far = jax.tree.map(lambda w: w + 1, start["params"])
    _, _, pulled, *_ = one_step(config, mu=0.5, anchor=far)
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(q - p, 0.1 * 0.5, atol=1e-5),
        plain["params"],
        pulled["params"],
    )


def test_the_augmentation_depends_on_seed_and_step_only():
    config = dataclasses.replace(small(), augmentation=AugmentationConfig())
    losses = [one_step(config, seed=seed)[3] for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


def test_prediction_does_not_depend_on_the_batches():
    config = small()
    learner, _, new, *_ = one_step(config)
    images = np.random.default_rng(1).integers(0, 65536, (11, 16, 16, 1)).astype(np.uint16)
    whole = local_training.predict(learner, new, images, STATISTICS, 11)
    parts = local_training.predict(learner, new, images, STATISTICS, 4)
    assert whole.shape == (11, 3)
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-5)


def test_depth_does_not_change_the_grey_level():
    """To the last bit, compiled or not; what lies between two levels of 8 bits stays there."""
    eight = np.arange(256, dtype=np.uint8)
    for to_unit in (local_training.to_unit, jax.jit(local_training.to_unit)):
        units = np.asarray(to_unit(jnp.asarray(eight)))
        deep = np.asarray(to_unit(jnp.asarray(np.arange(65536, dtype=np.uint16))))
        np.testing.assert_array_equal(units, deep[::257])
        assert units[0] == 0 and units[255] == 1 and (np.diff(deep) > 0).all()
        np.testing.assert_allclose(deep, np.arange(65536) / 65535, rtol=1e-6)
