"""An audit of private training: a lower bound on its ε, measured, against the ledger's ε.

An adversary that knows all images but one, and the weights before and after, guesses if that image
(the canary) took part. `CanaryScoreAuditor` of jax_privacy turns its guesses in many short
trainings into a lower bound on ε, by Clopper and Pearson's intervals, which assume nothing of the
mechanism. It is wrong with a chance of at most `SIGNIFICANCE`: samples and noise come from the
operating system, so that a sound training fails here once in a million runs.

The ledger states an ε for every δ, and each has to hold. Guesses that are often right, which few
trainings are enough to count, speak of large δ.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_privacy.auditing import CanaryScoreAuditor

from primia_jax.config import ExperimentConfig, ModelConfig, PrivacyConfig, TrainingConfig
from primia_jax.config.sections import AugmentationConfig
from primia_jax.data import Dataset
from primia_jax.federated import discrete_noise, local_training, privacy, private_training
from primia_jax.federated.local_training import Statistics
from primia_jax.federated.privacy_ledger import IMAGE, PATIENT, Ledger
from primia_jax.federated.privacy_units import Sample, units_of
from primia_jax.tasks import Classification

SIGNIFICANCE = 1e-6
RATE = 1e-3  # so low that the canary's gradient stays the same through the steps
STATISTICS = Statistics(np.float32(0.5), np.float32(0.25), np.ones(3, np.float32))
SIDE, OTHERS = 16, 3


@dataclasses.dataclass(frozen=True)
class Audited:
    """A training whose last unit is the canary, and what its ledger says that it costs."""

    train: functools.partial  # of the units that take part; returns the change of the weights
    units: privacy.Units
    direction: np.ndarray  # the canary's share of such a change, less what others' shares explain
    epsilon: float

    def scores(self, n, with_canary):
        """Change of the weights along the canary's direction, in `n` trainings."""
        members = self.units.members[: len(self.units) - (not with_canary)]
        units = dataclasses.replace(self.units, members=members)
        return [self.train(units) @ self.direction for _ in range(n)]

    def auditor(self, n):
        """From `n` trainings with the canary and `n` without."""
        return CanaryScoreAuditor(self.scores(n, True), self.scores(n, False))


def canary_of(unit):
    """Four units of two classes; the last one, the canary, is unlike the others."""
    rng = np.random.default_rng(0)
    square = np.zeros((SIDE, SIDE, 1), np.uint8)
    square[4:12, 4:12] = 255
    copies = 3 if unit == PATIENT else 1
    n = OTHERS + copies
    other = rng.integers(0, 256, square.shape, dtype=np.uint8)
    return Dataset(
        np.stack([other] * OTHERS + [square] * copies),
        np.asarray([0] * OTHERS + [2] * copies, np.int32),
        tuple(map(str, range(n))),
        np.asarray([str(min(i, OTHERS)) for i in range(n)]),
        np.full(n, "h"),
        ("a", "b", "c"),
    )


def audited(tmp_path, unit, batch_size, steps, noise_multiplier, delta):
    """The real training of a small network with that many steps, charged as a round of a run."""
    still = {f.name: 0.0 for f in dataclasses.fields(AugmentationConfig) if f.name.endswith("_p")}
    config = ExperimentConfig(
        model=ModelConfig(name="simple", width=4, norm="none"),
        training=TrainingConfig(
            batch_size=batch_size, learning_rate=RATE, optimizer="sgd", beta1=0.0,
            weight_decay=0.0, schedule="constant",
        ),
        augmentation=AugmentationConfig(**still),
        privacy=PrivacyConfig(
            mode="record", unit=unit, clip_norm=0.1, noise_multiplier=noise_multiplier,
            images_per_patient=2, microbatch_size=4, budget=1e3, delta=delta,
        ),
    )  # fmt: skip
    data = canary_of(unit)
    units = units_of(config.privacy, data)
    mechanisms = dataclasses.replace(privacy.mechanisms(config, len(units), steps), unit=unit)
    ledger = Ledger(tmp_path / "ledger.jsonl", 1e3, delta, "h", unit)
    ledger.begin()
    ledger.charge(mechanisms.of_update("record", 1), "round 1")

    learner = local_training.make_learner(config, Classification(("a", "b", "c")))
    private = private_training.make(config, learner, float(batch_size), 0.0)
    variables = dict(learner.module.init(jax.random.key(1), jnp.zeros((1, SIDE, SIDE, 1))))
    opt_state = learner.optimizer.init(variables["params"])
    before = flat(variables["params"])

    def train(units):
        after, _ = private_training.train(
            private, variables, opt_state, data, units, STATISTICS, mechanisms.training, config,
            lambda step: RATE,
        )  # fmt: skip
        return before - flat(after["params"])

    def gradient(images):
        keys = np.zeros((len(data), 2), np.uint32)
        total = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), variables["params"])
        for index, real in private_training.microbatches(Sample((images,), keys), 4):
            total = private.accumulate(
                variables, total, data.images[index], data.labels[index], real, keys[index],
                STATISTICS,
            )  # fmt: skip
        return flat(total)

    other, canary = gradient(units.members[0]), gradient(units.members[-1][:2])
    direction = canary
    if mechanisms.training.sampling_rate < 1:  # else the others' shares are always the same
        direction = canary - (canary @ other) / (other @ other) * other
    direction = direction / np.linalg.norm(direction)
    assert canary @ direction > 0.8 * 2**private_training.GRID_BITS  # an adversary that sees much
    return Audited(train, units, direction, ledger.spent().pld)


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def with_noise(patch, share):
    """Has a training add `share` of the noise that it is charged for."""
    whole = discrete_noise.rounded_gaussian
    patch.setattr(
        discrete_noise,
        "rounded_gaussian",
        lambda seed, n, deviation: whole(seed, n, share * deviation),
    )


@pytest.mark.parametrize(
    ("trainings", "delta", "share"),
    [(700, 0.3, 0.2), pytest.param(8000, 0.1, 0.5, marks=pytest.mark.slow)],
)
def test_the_bound_is_below_the_ledger_s_and_above_it_with_half_the_noise(
    tmp_path, monkeypatch, trainings, delta, share
):
    """One step on all images, which leaves the noise alone to protect the canary."""
    training = audited(tmp_path, IMAGE, OTHERS + 1, 1, 0.5, delta)
    measured = training.auditor(trainings).epsilon_clopper_pearson(SIGNIFICANCE, delta)
    assert share * training.epsilon < measured < training.epsilon
    with monkeypatch.context() as patch:
        with_noise(patch, 0.5)
        weak = training.auditor(trainings).epsilon_clopper_pearson(SIGNIFICANCE, delta)
    assert weak > training.epsilon


def test_the_bound_of_drawn_patients_is_below_the_ledger_s_and_above_it_without_noise(
    tmp_path, monkeypatch
):
    """Two steps; the canary is a patient of three images, of which two are taken."""
    delta = 0.1
    training = audited(tmp_path, PATIENT, 2, 2, 0.7, delta)
    measured = training.auditor(400).epsilon_clopper_pearson(SIGNIFICANCE, delta)
    assert measured < training.epsilon
    with monkeypatch.context() as patch:
        with_noise(patch, 0.0)
        unprotected = training.auditor(400).epsilon_clopper_pearson(SIGNIFICANCE, delta)
    assert unprotected > training.epsilon
