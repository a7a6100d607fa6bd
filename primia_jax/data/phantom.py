"""Phantom radiographs: children's chest films drawn from anatomy, in three classes.

The bundled source of images, so that everything can be tried without anybody's data: 0 normal,
1 bacterial (lobes filled by dense consolidation), 2 viral (fine interstitial pattern, both sides).
Pose, size, exposure, noise, wires and markers vary alike in all classes. The patients of a site
share a scanner; scanners differ between sites. Where `config.scanner` is `FOREIGN` or more, the
films are those of another country: other machines, and older patients.

Every film is a pure function of (seed, scanner, set, patient, film) and may be drawn alone, in any
order, by any thread or process, at any size. So is its mask, which shows where the generator drew
lungs and heart: in front of everything else the heart, and lung tissue also where disease fills it.

Axis letters: n records, s image side.
"""

import functools
from typing import NamedTuple

import numpy as np

from primia_jax.config.sections import PhantomConfig
from primia_jax.data.catalogue import TEST, Catalogue, digest
from primia_jax.data.decoded import Fitted
from primia_jax.data.phantom_anatomy import Pose, Scene, draw_anatomy, draw_scene
from primia_jax.data.phantom_findings import affect, draw_disease
from primia_jax.data.phantom_scanner import FOREIGN, Scanner, expose, scanner
from primia_jax.errors import ConfigError

CLASS_NAMES = ("normal", "bacterial", "viral")
CLASS_SHARES = (0.33, 0.40, 0.27)  # of the films of every site
STRUCTURES = ("background", "lungs", "heart")  # names of a mask's values
SMALLEST = 16  # pixels a side
_VERSION = "phantom 1"  # of the drawing, part of every digest
_DEALING, _PATIENTS = 0, 1  # keep the streams of random numbers apart

__all__ = ["CLASS_NAMES", "CLASS_SHARES", "FOREIGN", "SMALLEST", "STRUCTURES", "catalogue"]


class _Film(NamedTuple):
    """The identity of a record: together with the settings, everything its pixels depend on."""

    site: int
    held_out: int  # 1 for the test set
    patient: int
    film: int
    label: int


def catalogue(config: PhantomConfig, hospitals: int, seed: int) -> Catalogue:
    """All films of an experiment: `n_train` free ones (split ""), then `n_test` of split "test".

    Films are dealt evenly over the sites "hospital_0", "hospital_1", …, every class alike: counts
    differ by at most one between sites. A patient has one to three films, all of one class, in one
    set, at one site. The test films of a small set need not reach every site.

    Args:
      config: sizes, difficulty, and the scanners: site i has number `config.scanner` + i.
      hospitals: number of sites.
      seed: of everything random, at least 0.

    Raises:
      ConfigError: if there are more hospitals than training films; from `read`, if an image is
        asked for that is too small to show anything.
    """
    if config.n_train < hospitals:
        raise ConfigError(
            f"config.data.phantom.n_train = {config.n_train}: too few for {hospitals} hospitals;"
            f" take at least {hospitals}, or lower config.federated.hospitals"
        )
    films: list[_Film] = []
    for held_out, count in enumerate((config.n_train, config.n_test)):
        films += _deal(count, held_out, hospitals, seed)
    splits = np.array([TEST if film.held_out else "" for film in films])
    patients = [
        f"hospital_{film.site}/{'test' if film.held_out else 'train'}/patient_{film.patient:04d}"
        for film in films
    ]
    names = tuple(f"{patient}/film_{film.film}" for patient, film in zip(patients, films))
    settings = f"{_VERSION} {config.site_shift!r} {config.difficulty!r}"
    return Catalogue(
        names=names,
        labels=np.array([film.label for film in films], np.int32),
        patients=np.array(patients),
        sites=np.array([f"hospital_{film.site}" for film in films]),
        splits=splits,
        class_names=CLASS_NAMES,
        read=functools.partial(_read, tuple(films), config, seed),
        digests=tuple(
            digest(f"{settings} {_key(film, config, seed)} {film.film} {film.label}".encode())
            for film in films
        ),
        read_mask=functools.partial(_read_mask, tuple(films), config, seed),
        structures=STRUCTURES,
    )


def _deal(count: int, held_out: int, hospitals: int, seed: int) -> list[_Film]:
    """The films of one set, site by site, patients in random order."""
    exact = np.array(CLASS_SHARES) * count
    per_class = np.floor(exact).astype(int)
    largest_rests = np.argsort(per_class - exact, kind="stable")
    per_class[largest_rests[: count - per_class.sum()]] += 1
    labels = np.repeat(np.arange(len(CLASS_SHARES)), per_class)
    films = []
    for site in range(hospitals):
        rng = _generator(seed, _DEALING, site, held_out)
        groups: list[tuple[int, int]] = []  # (label, films of this patient)
        for label, left in enumerate(np.bincount(labels[site::hospitals], minlength=3)):
            while left > 0:
                size = min(int(left), int(rng.choice(3, p=(0.6, 0.25, 0.15))) + 1)
                groups.append((label, size))
                left -= size
        for patient, group in enumerate(rng.permutation(len(groups))):
            label, size = groups[group]
            films += [_Film(site, held_out, patient, film, label) for film in range(size)]
    return films


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _key(film: _Film, config: PhantomConfig, seed: int) -> tuple[int, ...]:
    """Key that a patient's random numbers derive from."""
    foreign = int(config.scanner >= FOREIGN)
    return seed, _PATIENTS, config.scanner + film.site, foreign, film.held_out, film.patient


def _read(films: tuple[_Film, ...], config: PhantomConfig, seed: int, index: int, s: int) -> Fitted:
    """The film `index`, [s, s] uint8."""
    if s < SMALLEST:
        raise ConfigError(
            f"config.data.image_size = {s}: phantom films need {SMALLEST} pixels or more"
        )
    film, difficulty = films[index], config.difficulty
    machine, patient, rng, scene = _drawn(film, config, seed, s)
    disease = draw_disease(film.label, patient)
    haze = float(rng.uniform(0.0, 0.22))  # of the whole film: poor breath, thick clothes, scatter
    tissue, air = affect(scene, disease, difficulty, rng, s)
    return Fitted(expose(tissue - air * (1.0 - haze), machine, difficulty, rng, s))


def _read_mask(
    films: tuple[_Film, ...], config: PhantomConfig, seed: int, index: int, s: int
) -> np.ndarray:
    """The mask [s, s] uint8 of the film `index`: indices into `STRUCTURES`."""
    scene = _drawn(films[index], config, seed, s)[-1]
    # The fields are smooth steps, which are 1/2 on the outlines themselves.
    lungs = (scene.lung > 0.5).astype(np.uint8)
    return np.where(scene.heart > 0.5, np.uint8(2), lungs)


def _drawn(
    film: _Film, config: PhantomConfig, seed: int, s: int
) -> tuple[Scanner, np.random.Generator, np.random.Generator, Scene]:
    """The healthy body on a film, its scanner, and the patient's and the film's generators."""
    machine = scanner(config.scanner + film.site, config.site_shift, config.scanner >= FOREIGN)
    key = _key(film, config, seed)
    patient = _generator(*key, 0)
    anatomy = draw_anatomy(patient, machine.age + 0.35 * float(patient.normal()))
    rng = _generator(*key, 1 + film.film)
    pose = _draw_pose(rng)
    return machine, patient, rng, draw_scene(anatomy, pose, rng, s)


def _draw_pose(rng: np.random.Generator) -> Pose:
    return Pose(
        rotation=float(rng.normal() * 0.07),
        zoom=float(rng.uniform(1.04, 1.38)),
        shift_x=float(rng.normal() * 0.06),
        shift_y=float(0.06 + rng.normal() * 0.06),
        turn=float(rng.normal() * 0.07),
        inspiration=float(rng.uniform(-0.10, 0.05)),
        arm_angle=(float(rng.uniform(-1.0, 0.9)), float(rng.uniform(-1.0, 0.9))),
    )
