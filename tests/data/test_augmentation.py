"""Augmentation: each operation against a plain reference, and the promises of the whole."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from primia_jax.config.sections import AugmentationConfig
from primia_jax.data.augmentation import augment, geometry, intensity, mixup

NONE = AugmentationConfig(
    **{name: 0.0 for name in AugmentationConfig.__dataclass_fields__ if name.endswith("_p")}
)
OPERATIONS = {
    "rotation": {"rotation_p": 1.0, "rotation_degrees": 45.0},
    "scale": {"scale_p": 1.0, "scale": 0.3},
    "translation": {"translation_p": 1.0, "translation": 0.3},
    "flip": {"flip_p": 0.5},
    "elastic": {"elastic_p": 1.0, "elastic": 0.1},
    "grid": {"grid_p": 1.0, "grid": 0.1},
    "brightness": {"brightness_p": 1.0, "brightness": 0.5},
    "gamma": {"gamma_p": 1.0, "gamma": 1.0},
    "noise": {"noise_p": 1.0, "noise": 0.3},
    "blur": {"blur_p": 1.0, "blur_pixels": 2.0},
    "equalise": {"equalise_p": 1.0},
    "mixup": {"mixup_p": 1.0, "mixup_alpha": 1.0},
}
EVERYTHING = dataclasses.replace(
    NONE, **{key: value for changes in OPERATIONS.values() for key, value in changes.items()}
)


def only(name: str, **changes: float) -> AugmentationConfig:
    return dataclasses.replace(NONE, **{**OPERATIONS[name], **changes})


def batch(b: int = 4, s: int = 16, c: int = 1, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.Generator(np.random.Philox(seed))
    images = rng.random((b, s, s, c), dtype=np.float32)
    return jnp.asarray(images), jnp.eye(3, dtype=jnp.float32)[np.arange(b) % 3]


run = jax.jit(augment, static_argnames="config")
run_everything = jax.jit(  # compiled in a hurry: without this it takes a quarter of a minute
    functools.partial(augment, config=EVERYTHING),
    compiler_options={"xla_backend_optimization_level": "0"},
)
sample = jax.jit(geometry.sample)
blur = jax.jit(intensity.blur, static_argnames="radius")
equalise = jax.jit(intensity.equalise, static_argnames="clip")
elastic = jax.jit(geometry.elastic_displacement, static_argnums=(1, 2, 3))
grid = jax.jit(geometry.grid_displacement, static_argnums=(1, 2, 3))
mix = jax.jit(mixup)


# The promises of the whole.


def test_nothing_enabled_is_the_identity_and_leaves_no_trace():
    """With all probabilities 0 the compiled step must not pay for augmentation."""
    images, labels = batch()
    jaxpr = jax.make_jaxpr(lambda k, x, y: augment(k, x, y, NONE))(
        jax.random.key(0), images, labels
    )
    assert not jaxpr.eqns
    new_images, new_labels = run(jax.random.key(0), images, labels, NONE)
    np.testing.assert_array_equal(new_images, images)
    np.testing.assert_array_equal(new_labels, labels)


def test_a_batch_that_nothing_picks_keeps_its_bits():
    """The default operations compiled in, none applied: sampling must be exact at whole pixels."""
    default = AugmentationConfig()
    on = {name + "_p" for name in OPERATIONS if getattr(default, name + "_p") > 0}
    rare = dataclasses.replace(default, **dict.fromkeys(on, 1e-12))
    images, labels = batch(3, 17, 3)
    new_images, new_labels = run(jax.random.key(0), images, labels, rare)
    np.testing.assert_array_equal(new_images, images)
    np.testing.assert_array_equal(new_labels, labels)


def _program(config: AugmentationConfig) -> str:
    images, labels = batch()
    key = jax.random.key(0)
    return str(jax.make_jaxpr(lambda k, x, y: augment(k, x, y, config))(key, images, labels))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_of_probability_zero_is_absent(name):
    """Switching one off shortens the program, and its strength no longer matters."""
    off = dataclasses.replace(EVERYTHING, **{name + "_p": 0.0})
    program = _program(off)
    assert program.count("\n") < _program(EVERYTHING).count("\n")
    strengths = {key: 0.123 for key in OPERATIONS[name] if not key.endswith("_p")}
    assert _program(dataclasses.replace(off, **strengths)) == program


@pytest.mark.parametrize(
    ("name", "trace"),
    [
        ("rotation", " cos "),
        ("gamma", " pow "),
        ("noise", " erf_inv "),
        ("equalise", " scatter-add"),
        ("elastic", " dot_general"),
        ("mixup", "random_gamma"),
    ],
)
def test_the_costly_part_of_an_operation_comes_and_goes_with_it(name, trace):
    assert trace in _program(only(name))
    assert trace not in _program(dataclasses.replace(EVERYTHING, **{name + "_p": 0.0}))


def test_intensity_changes_alone_resample_nothing():
    assert " gather" not in _program(only("brightness"))
    assert " gather" in _program(only("flip"))


@pytest.mark.parametrize(("b", "s", "c"), [(1, 9, 1), (3, 17, 3)])
def test_output_has_the_shape_type_and_range_of_the_input(b, s, c):
    """Any batch, odd sides, one or three channels; also black and white, where powers misbehave."""
    images, labels = batch(b, s, c)
    for given in (images, jnp.zeros_like(images), jnp.ones_like(images)):
        new_images, new_labels = run_everything(jax.random.key(1), given, labels)
        assert new_images.shape == images.shape and new_images.dtype == jnp.float32
        assert new_labels.shape == labels.shape and new_labels.dtype == jnp.float32
        assert np.isfinite(new_images).all() and new_images.min() >= 0 and new_images.max() <= 1


def test_the_key_decides():
    images, labels = batch(3, 17, 3)
    first = run_everything(jax.random.key(1), images, labels)
    again = run_everything(jax.random.key(1), images, labels)
    other = run_everything(jax.random.key(2), images, labels)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**31 - 1))
def test_any_key_keeps_the_range(seed):
    images, labels = batch(3, 17, 3, seed % 7)
    new_images, new_labels = run_everything(jax.random.key(seed), images, labels)
    assert new_images.min() >= 0 and new_images.max() <= 1
    np.testing.assert_allclose(new_labels.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n != "mixup"])
def test_each_operation_picks_images_with_its_probability(name):
    """Of 600 equal images the share of changed ones lies within five standard deviations of p.

    Those not picked keep their bits, labels stay, and every picked one has a draw of its own.
    """
    p = 0.3
    images, labels = batch(1, 12)
    images, labels = jnp.repeat(images, 600, 0), jnp.repeat(labels, 600, 0)
    changed, new_labels = run(jax.random.key(5), images, labels, only(name, **{name + "_p": p}))
    picked = np.asarray((changed != images).any(axis=(1, 2, 3)))
    assert abs(picked.mean() - p) < 5 * np.sqrt(p * (1 - p) / 600)
    assert changed.min() >= 0 and changed.max() <= 1
    np.testing.assert_array_equal(new_labels, labels)
    if name not in ("flip", "equalise"):  # these two leave nothing to draw
        kinds = {image.tobytes() for image in np.asarray(changed)[picked]}
        assert len(kinds) > 0.95 * picked.sum()


def test_operations_draw_independently():
    """Being turned must not mean being noisy too: picks come from separate keys."""
    images, labels = jnp.full((500, 8, 8, 1), 0.5), jnp.zeros((500, 3))
    gamma, _ = run(jax.random.key(6), images, labels, only("gamma", gamma_p=0.5))
    noise, _ = run(jax.random.key(6), images, labels, only("noise", noise_p=0.5))
    picked = [(x != images).any(axis=(1, 2, 3)).astype(float) for x in (gamma, noise)]
    assert abs(np.corrcoef(*picked)[0, 1]) < 0.2


# Geometry.


@pytest.mark.parametrize("s", [8, 13])
def test_quarter_turn_equals_rot90(s):
    images, _ = batch(2, s, 3)
    x, y = geometry.rotate(*geometry.centred_grid(s), jnp.full(2, np.pi / 2, jnp.float32))
    np.testing.assert_allclose(sample(images, x, y), np.rot90(images, 1, axes=(1, 2)), atol=1e-4)


def test_flip_mirrors_left_and_right():
    images, labels = batch(5, 9, 3)
    flipped, _ = run(jax.random.key(0), images, labels, only("flip", flip_p=1.0))
    np.testing.assert_array_equal(flipped, images[:, :, ::-1])


def test_sampling_agrees_with_map_coordinates():
    """Bilinear, with the edge repeated outside, as SciPy does it."""
    images, _ = batch(1, 15)
    rng = np.random.Generator(np.random.Philox(3))
    x, y = rng.uniform(-12, 12, (2, 1, 15, 15)).astype(np.float32)
    ours = sample(images, jnp.asarray(x), jnp.asarray(y))[0, ..., 0]
    places = np.stack([y[0] + 7, x[0] + 7])
    reference = ndimage.map_coordinates(
        np.asarray(images[0, ..., 0]), places, order=1, mode="nearest"
    )
    np.testing.assert_allclose(ours, reference, atol=1e-5)


def test_shift_moves_the_picture_by_at_most_its_limit():
    images = jnp.zeros((200, 21, 21, 1)).at[:, 10, 10].set(1.0)
    moved, _ = run(
        jax.random.key(2), images, jnp.zeros((200, 3)), only("translation", translation=0.2)
    )
    mass = moved.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(mass, 1, atol=1e-4)
    line = jnp.arange(21.0) - 10
    for axis in (1, 2):
        centre = (moved.sum(axis=(3 - axis, 3)) * line).sum(axis=1)
        assert np.abs(centre).max() <= 0.2 * 21 + 1e-3
        assert np.abs(centre).max() > 0.15 * 21 and abs(centre.mean()) < 0.6


def test_zoom_magnifies_as_often_as_it_shrinks():
    """A disc's area follows the square of the zoom, within its limits."""
    line = jnp.arange(65.0) - 32
    disc = (line[:, None] ** 2 + line[None, :] ** 2 < 15**2).astype(jnp.float32)
    images = jnp.broadcast_to(disc[None, :, :, None], (200, 65, 65, 1))
    zoomed, _ = run(jax.random.key(2), images, jnp.zeros((200, 3)), only("scale", scale=0.3))
    zoom = np.sqrt(np.asarray(zoomed.sum(axis=(1, 2, 3)) / disc.sum()))
    assert 0.68 < zoom.min() < 0.75 and 1.25 < zoom.max() < 1.32 and abs(zoom.mean() - 1) < 0.06


def test_elastic_displacement_is_smooth_and_bounded():
    dx, dy = elastic(jax.random.key(0), 3, 64, 4.0)
    for d in (dx, dy):
        assert d.shape == (3, 64, 64) and 0.5 < np.abs(d).max() <= 4.0
        assert max(np.abs(np.diff(d, axis=a)).max() for a in (1, 2)) < 0.9
    assert (dx != dy).any()


@pytest.mark.parametrize("limit", [0.05, 0.1, 0.2, 0.5])
def test_grid_distortion_never_folds(limit):
    """Columns stay in order even when lines may move by half the image."""
    dx, dy = grid(jax.random.key(1), 50, 33, limit)
    for d in (dx, dy):
        place = np.arange(33) + np.asarray(d)
        assert (np.diff(place, axis=1) >= -1e-4).all()
        assert np.abs(place[:, 0]).max() < 1e-4 and np.abs(place[:, -1] - 32).max() < 1e-4
        assert np.abs(d).max() <= limit * 32 + 1e-4 and np.abs(d).max() > limit * 16


# Grey values.


def test_brightness_adds_one_number_to_an_image():
    images = batch(50)[0] * 0.2 + 0.4
    changed, _ = run(
        jax.random.key(1), images, jnp.zeros((50, 3)), only("brightness", brightness=0.3)
    )
    added = np.asarray(changed - images)
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-6)
    assert 0.2 < np.abs(added).max() <= 0.3 + 1e-6 and added.min() < 0 < added.max()


def test_gamma_is_a_power():
    images = batch(50)[0] * 0.9 + 0.05
    changed, _ = run(jax.random.key(1), images, jnp.zeros((50, 3)), only("gamma", gamma=0.5))
    exponents = np.log(changed) / np.log(images)
    middle = np.median(exponents, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(exponents, np.broadcast_to(middle, exponents.shape), rtol=2e-3)
    assert np.exp(-0.5) - 0.01 < middle.min() < 0.8 and 1.25 < middle.max() < np.exp(0.5) + 0.01


def test_noise_is_centred_with_a_deviation_up_to_the_limit():
    images = jnp.full((60, 32, 32, 1), 0.5)
    changed, _ = run(jax.random.key(1), images, jnp.zeros((60, 3)), only("noise", noise=0.05))
    deviations = np.asarray(changed - images).std(axis=(1, 2, 3))
    assert deviations.min() < 0.01 and 0.04 < deviations.max() < 0.055
    assert abs(float(changed.mean()) - 0.5) < 1e-3


@pytest.mark.parametrize("deviation", [0.0, 0.7, 2.0])
def test_blur_agrees_with_scipy(deviation):
    images, _ = batch(1, 20)
    ours = blur(images, jnp.full((1, 1, 1, 1), deviation), radius=6)[0, ..., 0]
    reference = np.asarray(images[0, ..., 0])
    if deviation:
        reference = ndimage.gaussian_filter(reference, deviation, mode="nearest", radius=6)
    np.testing.assert_allclose(ours, reference, atol=1e-5)


def test_equalisation_stretches_a_flat_image_and_keeps_order():
    """A low-contrast image gains contrast; where all tiles are alike, order is kept strictly."""
    tile = np.random.Generator(np.random.Philox(1)).uniform(0.4, 0.5, (8, 8)).astype(np.float32)
    images = jnp.asarray(np.tile(tile, (4, 4))[None, :, :, None])
    changed = equalise(images, 40.0)
    assert changed.std() > 3 * images.std()
    order = np.argsort(images.ravel(), kind="stable")
    assert (np.diff(np.asarray(changed).ravel()[order]) > -1e-5).all()


def test_equalisation_of_one_tile_is_plain_histogram_equalisation():
    """Without a clip limit that bites, one tile's mapping is its cumulative histogram."""
    images, _ = batch(2, 15, 3)
    images = images**2
    changed = equalise(images, 1e3)
    for i in range(2):
        for c in range(3):
            image = np.asarray(images[i, ..., c])
            counts, edges = np.histogram(image, intensity.BINS, (0, 1))
            below = np.concatenate([[0], np.cumsum(counts)]) / image.size
            np.testing.assert_allclose(
                changed[i, ..., c], np.interp(image, edges, below), atol=1e-5
            )


def test_equalisation_is_limited():
    """The clip limit holds the change back."""
    images = batch(2, 32)[0] ** 3
    change = [float(jnp.abs(equalise(images, clip) - images).mean()) for clip in (1, 2, 40)]
    assert change[0] < 0.5 * change[2] and change[0] < change[1] < change[2]


# MixUp.


def test_mixup_blends_images_and_labels_alike():
    """The labels' shares are the images' shares: each image carries its own label's colour."""
    labels = jnp.eye(3)[np.arange(12) % 3]
    images = jnp.broadcast_to(labels[:, None, None, :], (12, 4, 4, 3))
    blended = 0
    for seed in range(20):
        new_images, new_labels = mix(jax.random.key(seed), images, labels, 1.0, 1.0)
        np.testing.assert_allclose(new_images[:, 0, 0], new_labels, atol=1e-6)
        np.testing.assert_allclose(new_labels.sum(axis=1), 1, atol=1e-6)
        blended += int((new_labels.max(axis=1) < 0.999).any())
    assert blended > 15


def test_mixup_picks_whole_batches_with_its_probability():
    images, labels = batch(12, 4, 3)
    changed = [
        bool((mix(jax.random.key(seed), images, labels, 0.3, 1.0)[0] != images).any())
        for seed in range(200)
    ]
    assert abs(np.mean(changed) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 200)


def test_mixup_of_one_image_is_that_image():
    images, labels = batch(1, 4, 3)
    new_images, new_labels = mix(jax.random.key(0), images, labels, 1.0, 0.2)
    np.testing.assert_allclose(new_images, images, atol=1e-6)
    np.testing.assert_allclose(new_labels, labels, atol=1e-6)
