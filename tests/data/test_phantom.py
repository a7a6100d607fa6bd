"""The phantom films: reproducible, honestly divided, and too hard for simple statistics."""

import dataclasses
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from primia_jax.config.sections import PhantomConfig
from primia_jax.data import catalogue as catalogues
from primia_jax.data import phantom
from primia_jax.data.phantom_scanner import scanner
from primia_jax.errors import ConfigError

SMALL = PhantomConfig(n_train=60, n_test=21)


@pytest.fixture(scope="module")
def small() -> catalogues.Catalogue:
    return phantom.catalogue(SMALL, hospitals=3, seed=5)


def test_same_settings_draw_the_same_films(small):
    """A film depends on the seed and its identity alone."""
    again = phantom.catalogue(SMALL, hospitals=3, seed=5)
    assert again.names == small.names and again.digests == small.digests
    np.testing.assert_array_equal(again.labels, small.labels)
    for index in (0, 33, 80):
        np.testing.assert_array_equal(again.read(index, 48).pixels, small.read(index, 48).pixels)


def test_films_do_not_depend_on_the_order_or_thread_of_reading(small):
    """Readers run in threads and in any order; a shared generator would show here."""
    forwards = [small.read(i, 32).pixels for i in range(24)]
    backwards = [small.read(i, 32).pixels for i in reversed(range(24))][::-1]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda i: small.read(i, 32).pixels, range(24)))
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_array_equal(forwards, threaded)


def test_films_survive_the_journey_to_another_process(small):
    """Hospitals are processes of their own: the catalogue travels pickled."""
    travelled = pickle.loads(pickle.dumps(small))
    np.testing.assert_array_equal(travelled.read(7, 32).pixels, small.read(7, 32).pixels)


@pytest.mark.parametrize("scanner_number", [0, phantom.FOREIGN])
@pytest.mark.parametrize("site_shift", [0.0, 3.0])
@pytest.mark.parametrize("difficulty", [0.0, 3.0])
def test_the_ends_of_the_settings_still_give_pictures(difficulty, site_shift, scanner_number):
    """No overflow (warnings are errors) and no blank film at the limits of the configuration."""
    config = dataclasses.replace(
        SMALL, difficulty=difficulty, site_shift=site_shift, scanner=scanner_number
    )
    films = phantom.catalogue(config, hospitals=8, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = catalogues.load(films, np.arange(40), 32).images
    assert (images.std(axis=(1, 2, 3)) > 8).all()


def test_another_seed_draws_other_films(small):
    other = phantom.catalogue(SMALL, hospitals=3, seed=6)
    assert not set(other.digests) & set(small.digests)
    assert (other.read(0, 32).pixels != small.read(0, 32).pixels).mean() > 0.5


def test_every_record_is_a_different_film(small):
    """Digests promise to be equal exactly where images are."""
    images = {small.read(i, 32).pixels.tobytes() for i in range(len(small))}
    assert len(images) == len(set(small.digests)) == len(set(small.names)) == len(small)


@pytest.mark.parametrize(
    "change",
    [{"difficulty": 2.0}, {"site_shift": 2.0}, {"scanner": 7}],
    ids=lambda c: next(iter(c)),
)
def test_settings_that_change_the_picture_change_the_digest(small, change):
    other = phantom.catalogue(dataclasses.replace(SMALL, **change), hospitals=3, seed=5)
    assert not set(other.digests) & set(small.digests)
    assert (other.read(0, 32).pixels != small.read(0, 32).pixels).any()


def test_patients_stay_in_one_set_one_site_one_class(small):
    """A patient in both sets would leak anatomy into the test score."""
    seen: dict[str, set[tuple[str, str, int]]] = {}
    for patient, site, split, label in zip(small.patients, small.sites, small.splits, small.labels):
        seen.setdefault(str(patient), set()).add((str(site), str(split), int(label)))
    assert all(len(places) == 1 for places in seen.values())
    films = np.unique(small.patients, return_counts=True)[1]
    assert films.min() >= 1 and films.max() <= 3 and films.max() > 1


def test_films_of_a_patient_share_anatomy(small):
    """Films of a patient look more alike than films of strangers of the same class and site."""
    data = catalogues.load(small, np.arange(60), 32)
    images = data.images[..., 0].astype(np.float64)
    images -= images.mean(axis=(1, 2), keepdims=True)
    images /= images.std(axis=(1, 2), keepdims=True)
    alike = np.einsum("iyx,jyx->ij", images, images) / 32**2
    same_kind = (data.labels[:, None] == data.labels) & (data.sites[:, None] == data.sites)
    same_patient = data.patients[:, None] == data.patients
    pairs = np.triu(np.ones_like(same_kind), 1)
    kin = alike[pairs & same_patient].mean()
    strangers = alike[pairs & same_kind & ~same_patient].mean()
    assert kin > strangers


@pytest.mark.parametrize("hospitals", [1, 3, 7])
@pytest.mark.parametrize(("n_train", "n_test"), [(12, 3), (100, 31), (765, 300)])
def test_classes_and_sites_are_spread_evenly(hospitals, n_train, n_test):
    """Every site has its share of every class, to within one film."""
    config = PhantomConfig(n_train=n_train, n_test=n_test)
    films = phantom.catalogue(config, hospitals, seed=1)
    assert films.splits is not None and films.sites is not None
    assert len(films) == n_train + n_test
    assert (films.splits == "test").sum() == n_test and (films.splits == "").sum() == n_train
    assert set(films.sites) == {f"hospital_{i}" for i in range(hospitals)}
    for split, total in (("", n_train), ("test", n_test)):
        chosen = films.splits == split
        classes = np.bincount(films.labels[chosen], minlength=3)
        assert np.abs(classes - total * np.array(phantom.CLASS_SHARES)).max() < 1
        for label in range(3):
            sites = films.sites[chosen & (films.labels == label)]
            counts = [(sites == f"hospital_{i}").sum() for i in range(hospitals)]
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("s", [16, 33, 64, 224, 512])
def test_any_size_shows_the_same_film(small, s):
    """Films are drawn at the size asked for; the picture must not change with it."""
    film = small.read(4, s).pixels
    assert film.shape == (s, s) and film.dtype == np.uint8
    assert film.std() > 20
    reference = small.read(4, 128).pixels.reshape(16, 8, 16, 8).mean(axis=(1, 3))
    nearest = ((np.arange(16) + 0.5) * s / 16).astype(int)
    width = max(1, s // 16)
    coarse = np.stack(
        [
            [
                film[max(0, r - width // 2) :][:width, max(0, c - width // 2) :][:, :width].mean()
                for c in nearest
            ]
            for r in nearest
        ]
    )
    assert np.corrcoef(coarse.ravel(), reference.ravel())[0, 1] > 0.9


def test_foreign_scanners_look_different():
    """An external test set must differ by more than the sites differ from one another."""

    def mean_film(number: int) -> np.ndarray:
        films = phantom.catalogue(PhantomConfig(n_train=40, n_test=3, scanner=number), 1, seed=2)
        return catalogues.load(films, np.arange(40), 32).images.astype(np.float64).mean(axis=0)

    home = np.stack([mean_film(k) for k in range(4)])
    foreign = np.stack([mean_film(phantom.FOREIGN + k) for k in range(2)])
    among = np.sqrt(((home - home.mean(axis=0)) ** 2).mean())
    between = np.sqrt(((foreign.mean(axis=0) - home.mean(axis=0)) ** 2).mean())
    assert between > among


def test_without_shift_all_home_scanners_are_one():
    assert scanner(0, 0.0) == scanner(5, 0.0) and scanner(0, 1.0) != scanner(5, 1.0)


def test_a_linear_model_on_pixels_fails():
    """The films must need shapes and textures, not brightness in places: MCC below 0.6."""
    films = phantom.catalogue(PhantomConfig(n_train=765, n_test=300), 3, seed=0)
    data = catalogues.load(films, np.arange(len(films)), 64)
    x = data.images.reshape(len(data), -1).astype(np.float32)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, tol=1e-2))
    model.fit(x[:765], data.labels[:765])
    assert matthews_corrcoef(data.labels[765:], model.predict(x[765:])) < 0.6


def test_a_large_home_consortium_has_no_foreign_sites():
    """Only the first scanner's number decides: site 100 of a large family is at home."""
    config = PhantomConfig(n_train=120, n_test=3)
    home = phantom.catalogue(config, 101, seed=0)
    away = phantom.catalogue(dataclasses.replace(config, scanner=phantom.FOREIGN), 1, seed=0)
    assert not set(home.digests) & set(away.digests)
    assert scanner(100, 1.0).age < 1 < scanner(100, 1.0, foreign=True).age


def test_equal_films_of_two_catalogues_have_equal_digests():
    """Digests follow the pixels: a scanner's films are the same whichever site it stands at."""
    config = PhantomConfig(n_train=30, n_test=3)
    films = [phantom.catalogue(dataclasses.replace(config, scanner=k), 3, seed=0) for k in (0, 1)]
    pixels = [{d: c.read(i, 32).pixels.tobytes() for i, d in enumerate(c.digests)} for c in films]
    for key in pixels[0].keys() | pixels[1].keys():
        if key in pixels[0] and key in pixels[1]:
            assert pixels[0][key] == pixels[1][key]
    common = set(pixels[0].values()) & set(pixels[1].values())
    assert len(common) == len(pixels[0].keys() & pixels[1].keys())


def test_too_few_films_and_too_small_images_are_refused(small):
    with pytest.raises(ConfigError, match=r"n_train = 12.* 20 hospitals"):
        phantom.catalogue(PhantomConfig(n_train=12), hospitals=20, seed=0)
    with pytest.raises(ConfigError, match="image_size = 8"):
        small.read(0, 8)


def test_masks_are_the_geometry_that_films_are_drawn_from(small):
    """The air of the lungs lies within the mask, and the outlines do not depend on the size."""
    films = catalogues.load(small, np.arange(12), 64)
    assert films.structures == phantom.STRUCTURES and films.masks.dtype == np.uint8
    for i, mask in enumerate(films.masks):
        scene = phantom._drawn(small.read_mask.args[0][i], SMALL, 5, 64)[-1]
        np.testing.assert_array_equal(mask == 2, scene.heart > 0.5)
        np.testing.assert_array_equal(mask == 1, (scene.lung > 0.5) & (scene.heart <= 0.5))
        assert scene.air[mask == 0].max() < 0.5 * scene.air.max()
        large = small.read_mask(i, 128)
        assert (mask.repeat(2, 0).repeat(2, 1) == large).mean() > 0.96
        assert 0.1 < (mask == 1).mean() < 0.6 and 0.02 < (mask == 2).mean() < 0.25
    dark = [image[mask == 1].mean() for image, mask in zip(films.images[..., 0], films.masks)]
    heart = [image[mask == 2].mean() for image, mask in zip(films.images[..., 0], films.masks)]
    assert np.mean(np.less(dark, heart)) > 0.9


def test_masks_are_read_only_where_they_are_wanted(small):
    assert catalogues.load(small.without_masks(), np.arange(3), 32).masks is None
    part = catalogues.load(small, np.arange(5), 32).take(np.array([3, 1]))
    np.testing.assert_array_equal(part.masks[0], small.read_mask(3, 32))
