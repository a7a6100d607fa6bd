"""DP-SGD at a hospital: no unit moves the sum by more than the clip, and the noise is there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primia_jax.config import ExperimentConfig, ModelConfig, PrivacyConfig, TrainingConfig
from primia_jax.config.sections import AugmentationConfig
from primia_jax.data import Dataset
from primia_jax.errors import ConfigError
from primia_jax.federated import discrete_noise, local_training, privacy_units, private_training
from primia_jax.federated.accounting import Release
from primia_jax.federated.local_training import Statistics, Step
from primia_jax.federated.privacy_units import Sample
from primia_jax.federated.private_training import GRID_BITS
from primia_jax.tasks import Classification

STILL = AugmentationConfig(
    **{f.name: 0.0 for f in dataclasses.fields(AugmentationConfig) if f.name.endswith("_p")}
)
ALL = AugmentationConfig(  # all operations but MixUp, at any image or at half of them
    **{
        f.name: 0.5 if f.name in ("flip_p", "equalise_p") else float(f.name != "mixup_p")
        for f in dataclasses.fields(AugmentationConfig)
        if f.name.endswith("_p")
    }
)
STATISTICS = Statistics(np.float32(0.5), np.float32(0.25), np.asarray([0.5, 1, 2], np.float32))
N = 21
SGD = {"optimizer": "sgd", "beta1": 0.0, "weight_decay": 0.0, "schedule": "constant"}


def norm_of(integers):
    """In exact arithmetic, in grid units."""
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(integers)])
    return float(np.sqrt(np.sum(flat.astype(np.float64) ** 2)))


@given(
    scale=st.floats(-12, 12),
    clip=st.floats(-4, 3),
    seed=st.integers(0, 2**32 - 1),
    spike=st.booleans(),
)
def test_no_gradient_is_longer_than_the_clip(scale, clip, seed, spike):
    rng = np.random.default_rng(seed)
    tree = {"a": rng.standard_normal((40, 50)), "b": rng.standard_normal(7)}
    if spike:
        tree["a"][3, 4] = 1e6
    gradient = jax.tree.map(lambda x: jnp.asarray(x * 10.0**scale, jnp.float32), tree)
    integers = private_training.clipped_integers(gradient, 10.0**clip)
    assert norm_of(integers) <= 2**GRID_BITS
    length = float(np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in gradient.values())))
    if length < 0.9 * 10.0**clip:  # short ones go through, but for rounding
        unit = 10.0**clip / 2**GRID_BITS
        for g, k in zip(gradient.values(), integers.values()):
            np.testing.assert_allclose(np.asarray(k) * unit, g, atol=0.51 * unit, rtol=1e-5)


@pytest.mark.parametrize("clip", [0.0, 1e-20, 1e-7, np.nan])
def test_a_clip_whose_square_is_lost_is_refused(clip):
    """At 1e-20 old code gave integers beyond the clip."""
    with pytest.raises(ValueError, match="at least 1e-06"):
        private_training.clipped_integers({"a": jnp.full(1000, 1e-20)}, clip)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_counts_nothing(bad):
    gradient = {"a": jnp.asarray([1.0, bad, 2.0], jnp.float32)}
    assert norm_of(private_training.clipped_integers(gradient, 1.0)) <= 2**GRID_BITS
    blank = private_training.clipped_integers({"a": jnp.ones(3)}, 1.0, jnp.asarray(False))
    assert norm_of(blank) == 0


@pytest.fixture(scope="module")
def site():
    """A network, its learners and images."""
    config = ExperimentConfig(
        model=ModelConfig(name="simple", width=4, norm="group"),
        training=TrainingConfig(batch_size=7, learning_rate=0.5, **SGD),
        augmentation=STILL,
        privacy=PrivacyConfig(mode="record", clip_norm=0.1, microbatch_size=4),
    )
    learner = local_training.make_learner(config, Classification(("a", "b", "c")))
    private = private_training.make(config, learner, 7.0, 0.0)
    image = jnp.zeros((1, 16, 16, 1))
    variables = dict(learner.module.init(jax.random.key(1), image))
    rng = np.random.default_rng(0)
    data = Dataset(
        rng.integers(0, 256, (N, 16, 16, 1), dtype=np.uint8),
        rng.integers(0, 3, N).astype(np.int32),
        tuple(map(str, range(N))),
        np.asarray([str(i) for i in range(N)]),
        np.full(N, "h"),
        ("a", "b", "c"),
    )
    return config, learner, private, variables, data


KEYS = np.random.default_rng(7).integers(0, 2**32, (N, 2), dtype=np.uint32)


def summed(site, units, size=4, statistics=STATISTICS):
    """The integer sum over `units`, each of some images, in microbatches of `size` images."""
    _, _, private, variables, data = site
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), variables["params"])
    sample = Sample(tuple(np.asarray(images) for images in units), KEYS)
    for index, real in private_training.microbatches(sample, size):
        total = private.accumulate(
            variables, total, data.images[index], data.labels[index], real, KEYS[index], statistics
        )
    return jax.tree.map(np.asarray, total)


def with_augmentation(site, augmentation):
    config, learner, _, variables, data = site
    config = dataclasses.replace(config, augmentation=augmentation)
    return config, learner, private_training.make(config, learner, 7.0, 0.0), variables, data


SINGLES = [[i] for i in range(N)]
PATIENTS = [
    *([0], [1, 2], [3, 4, 5], [6, 7, 8, 9], [10], [11, 12], [13, 14, 15], [16], [17, 18]),
    *([19], [20]),
]


@pytest.mark.parametrize(
    ("augmentation", "units", "size"),
    [
        ("all", SINGLES, 16),
        ("shipped", PATIENTS, 4),
        ("all", PATIENTS, 16),
    ],
)
def test_one_unit_more_changes_the_sum_by_its_own_integers(site, augmentation, units, size):
    """Whatever else is in the sample, in whatever order and batches, to the last bit."""
    site = with_augmentation(site, ALL if augmentation == "all" else AugmentationConfig())
    alone = [summed(site, [unit], size) for unit in units]
    assert all(0 < norm_of(own) <= 2**GRID_BITS for own in alone)
    rng = np.random.default_rng(0)
    for _ in range(8):
        chosen = rng.permutation(len(units))[: rng.integers(1, len(units) + 1)]
        whole = summed(site, [units[i] for i in chosen], size)
        jax.tree.map(
            lambda total, *own: np.testing.assert_array_equal(total, sum(own)),
            whole, *(alone[i] for i in chosen),
        )  # fmt: skip


def test_one_image_of_16_bits_changes_no_other_unit(site):
    """`load` stores all images in 16 bits then; old code rounded all of them otherwise."""
    site = with_augmentation(site, ALL)
    config, learner, private, variables, data = site
    deep = data.in_16_bits()
    assert deep.images.dtype == np.uint16 and deep.in_16_bits() is deep
    for chosen in (SINGLES[:4], SINGLES[4:8]):
        same = summed((config, learner, private, variables, deep), chosen)
        jax.tree.map(np.testing.assert_array_equal, summed(site, chosen), same)


def test_a_unit_without_a_finite_gradient_takes_no_other_along(site):
    """Nor do blanks, in whose place the first image stands."""
    _, _, _, _, data = site
    broken = STATISTICS._replace(class_weights=np.asarray([1, 1, np.inf], np.float32))
    bad = [i for i in range(N) if data.labels[i] == 2]
    good = [i for i in range(N) if data.labels[i] != 2]
    assert bad and good
    for size in (1, 4):
        alone = summed(site, [[good[0]], [good[1]]], size, broken)
        mixed = summed(site, [[bad[0]], [good[0]], [bad[1]], [good[1]]], size, broken)
        jax.tree.map(np.testing.assert_array_equal, alone, mixed)
    assert norm_of(summed(site, [[bad[0]]], 4, broken)) == 0
    first = bad[:1] + good  # the first image is bad, and a unit of three is filled up with it
    data = dataclasses.replace(data, images=data.images[first], labels=data.labels[first])
    sound = dataclasses.replace(data, labels=np.minimum(data.labels, 1))
    sums = [summed((*site[:4], each), [[1, 2, 3]], 4, broken) for each in (data, sound)]
    jax.tree.map(np.testing.assert_array_equal, *sums)


def test_a_patient_s_gradient_is_the_clipped_mean_of_its_images(site):
    """Where nothing is clipped, it is the mean of what its images give alone."""
    config, learner, _, variables, data = site
    config = dataclasses.replace(
        config, privacy=dataclasses.replace(config.privacy, clip_norm=50.0)
    )
    wide = (config, learner, private_training.make(config, learner, 7.0, 0.0), variables, data)
    together = summed(wide, [[3, 4, 5]])
    singly = summed(wide, [[3], [4], [5]])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, atol=6), together, singly)


@pytest.mark.parametrize(
    "changes", [{"augmentation": AugmentationConfig(mixup_p=0.1)}, {"model": ModelConfig()}]
)
def test_what_mixes_images_is_refused(site, changes):
    """Also where a configuration did not pass the checks at the door."""
    with pytest.raises(ConfigError, match="mixes images"):
        private_training.make(dataclasses.replace(site[0], **changes), site[1], 7.0, 0.0)


def test_without_clipping_it_is_the_plain_gradient(site):
    """A clip far above all gradients gives the sum that a plain step takes the mean of."""
    config, learner, _, variables, data = site
    config = dataclasses.replace(
        config, privacy=dataclasses.replace(config.privacy, clip_norm=50.0)
    )
    private = private_training.make(config, learner, 8.0, 0.0)
    total = summed((config, learner, private, variables, data), SINGLES[:8])
    step = Step(np.uint32(1), np.uint32(0), np.uint32(0))
    start = jax.tree.map(lambda x: jnp.array(x, copy=True), variables)
    after, _, _ = learner.train(
        start, learner.optimizer.init(variables["params"]), variables["params"],
        data.images[:8], data.labels[:8], STATISTICS, np.uint32(0), step, np.float32(1.0),
    )  # fmt: skip
    for w, new, k in zip(*map(jax.tree.leaves, (variables["params"], after["params"], total))):
        np.testing.assert_allclose(k * (50.0 / 2**GRID_BITS) / 8, w - new, atol=3e-4)


def train(site, monkeypatch, release, noise=None, sample=None):
    config, learner, private, variables, data = site
    units = privacy_units.units_of(config.privacy, data)
    if noise is not None:
        monkeypatch.setattr(discrete_noise, "rounded_gaussian", noise)
    if sample is not None:
        monkeypatch.setattr(discrete_noise, "poisson_sample", sample)
    before = jax.tree.map(np.array, variables)
    after, _ = private_training.train(
        private, variables, learner.optimizer.init(variables["params"]), data, units,
        STATISTICS, release, config, lambda step: config.training.learning_rate,
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, before, variables)  # the round can be repeated
    leaves = zip(jax.tree.leaves(after["params"]), jax.tree.leaves(before["params"]))
    return np.concatenate([(new - old).ravel() for new, old in leaves])


def test_the_model_moves_no_further_than_clip_and_noise_allow(site, monkeypatch):
    """T steps of SGD without noise: at most η · T · m/B · C; noise alone: η · σC/B a step."""
    config = site[0]
    rate, clip, expected = config.training.learning_rate, config.privacy.clip_norm, 7.0
    release = Release(3.0, 7 / N, 5)
    with monkeypatch.context() as patch:
        moved = train(
            site, patch, release, noise=lambda seed, n, deviation: np.zeros(n, np.int32),
            sample=lambda seed, n, rate: np.arange(n),
        )  # fmt: skip
    assert 0 < np.linalg.norm(moved) <= rate * 5 * N / expected * clip * (1 + 1e-5)
    with monkeypatch.context() as patch:
        noise = train(site, patch, release, sample=lambda seed, n, rate: np.zeros(0, np.int64))
    deviation = rate * 3.0 * clip / expected * np.sqrt(5)
    assert abs(noise.std() / deviation - 1) < 6 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 6 * deviation / np.sqrt(noise.size)


def test_large_noise_drowns_the_images(site, monkeypatch):
    """With σ = 100 the images' part of the change cannot be told from chance."""
    direction = train(
        site, monkeypatch, Release(1e-3, 1.0, 1), sample=lambda seed, n, rate: np.arange(n)
    )
    monkeypatch.undo()
    moved = train(site, monkeypatch, Release(100.0, 7 / N, 3))
    cosine = direction @ moved / np.linalg.norm(direction) / np.linalg.norm(moved)
    assert abs(cosine) < 5 / np.sqrt(direction.size)


def test_no_two_trainings_draw_the_same(site, monkeypatch):
    """Samples and noise come from the operating system, not from the seed of the run."""
    release = Release(1.0, 7 / N, 1)
    assert not np.array_equal(train(site, monkeypatch, release), train(site, monkeypatch, release))


def test_samples_are_worked_off_whole(site, monkeypatch):
    """No sample is cut to a batch: the images that count are those that were drawn."""
    seen = []
    config, learner, private, variables, data = site

    def watch(variables, total, images, labels, real, *rest):
        seen.append(int(real.sum()))
        return private.accumulate(variables, total, images, labels, real, *rest)

    spy = private._replace(accumulate=watch)
    sizes = [0, 1, 4, 5, 21]
    draws = iter(sizes)
    monkeypatch.setattr(
        discrete_noise, "poisson_sample", lambda seed, n, rate: np.arange(next(draws))
    )
    private_training.train(
        spy, variables, learner.optimizer.init(variables["params"]), data,
        privacy_units.units_of(config.privacy, data), STATISTICS,
        Release(1.0, 0.3, len(sizes)), config, lambda step: 0.1,
    )  # fmt: skip
    assert seen == [1, 4, 4, 1, 4, 4, 4, 4, 4, 1]


def test_hospitals_of_one_process_share_what_is_compiled(site):
    """Also after a recovery; how large their samples are does not matter."""
    config, learner, private, _, _ = site
    again = private_training.make(config, learner, 7.0, 0.0)
    other = private_training.make(config, learner, 5.5, 0.0)
    assert again.accumulate is other.accumulate is private.accumulate
    assert again.update.func is other.update.func is private.update.func
    assert private_training.make(config, learner, 7.0, 0.5).accumulate is not private.accumulate
    coarse = dataclasses.replace(config.privacy, clip_norm=0.2)
    coarse = private_training.make(dataclasses.replace(config, privacy=coarse), learner, 7.0, 0.0)
    assert coarse.accumulate is not private.accumulate


def test_a_proximal_term_is_not_clipped_and_needs_no_noise(site):
    config, learner, _, variables, _ = site
    private = private_training.make(config, learner, 7.0, 0.5)
    params = jax.tree.map(lambda w: jnp.array(w + 1.0), variables["params"])
    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.int32), params)
    moved, _ = private.update(
        params, learner.optimizer.init(variables["params"]), variables["params"], zeros, zeros,
        np.float32(0.1),
    )  # fmt: skip
    for new, anchor in zip(jax.tree.leaves(moved), jax.tree.leaves(variables["params"])):
        np.testing.assert_allclose(new - anchor, 1 - 0.1 * 0.5, rtol=1e-5)
