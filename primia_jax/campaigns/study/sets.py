"""The three sets of images on which all models are judged: validation, Test Set 1, Test Set 2."""

import dataclasses
from typing import NamedTuple

import numpy as np

from primia_jax.config import ExperimentConfig
from primia_jax.data import Catalogue, DataPlan, Dataset, load, make_plan, make_test_plan
from primia_jax.errors import ConfigError, DataError

VALIDATION, TEST_1, TEST_2 = "validation", "test_1", "test_2"
TITLES = {VALIDATION: "Validation", TEST_1: "Test Set 1", TEST_2: "Test Set 2"}


class ImageSet(NamedTuple):
    """One set, its pixels not yet read."""

    key: str
    what: str  # for readers of the report
    catalogue: Catalogue
    records: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names, in order."""
        return tuple(self.catalogue.names[i] for i in self.records)

    @property
    def labels(self) -> np.ndarray:
        """[n] the true classes."""
        return self.catalogue.labels[self.records]

    @property
    def counts(self) -> list[int]:
        """[k] images of each class."""
        k = len(self.catalogue.class_names)
        return [int(c) for c in np.bincount(self.labels, minlength=k)]

    @property
    def patients(self) -> int:
        """Number of patients that the images are of."""
        return len(set(self.catalogue.patients[self.records]))

    def load(self, image_size: int) -> Dataset:
        """The images."""
        return load(self.catalogue, self.records, image_size)


class Material(NamedTuple):
    """Everything a study judges on, checked before anything is trained."""

    plan: DataPlan  # of the hospitals
    sets: tuple[ImageSet, ...]
    class_names: tuple[str, ...]


def gather(config: ExperimentConfig) -> Material:
    """Opens the data of a study and checks every set.

    Args:
      config: of the study; its seed and mode do not matter where `data.seed` is set.

    Raises:
      ConfigError: for settings with which no study can be made.
      DataError: for a set that is missing, too small, of other classes or seen in training.
    """
    if "{site}" in config.data.path and config.data.source != "phantom":
        raise ConfigError(
            f"config.data.path = {config.data.path!r}: a study also trains on all images in one "
            "place, which {site} (every hospital its own path) forbids; name one path"
        )
    plan = make_plan(config)
    names = plan.class_names
    catalogue = plan.sites[0].catalogue
    assert catalogue is not None, "one path, so one catalogue"
    held = [site.validation for site in plan.sites if site.validation is not None]
    sets = [ImageSet(VALIDATION, "of the training hospitals", catalogue, np.concatenate(held))]
    if not len(plan.test):
        raise DataError(
            "a study needs a Test Set 1: give config.data.test_path or a positive "
            "config.data.test_fraction"
        )
    sets.append(ImageSet(TEST_1, _of_test_1(config), plan.test_catalogue, plan.test))
    second = _second(config)
    if second is not None:
        sets.append(second)
    for image_set in sets:
        _check(image_set, names, config.study.min_per_class)
    _check_apart(plan, sets)
    return Material(plan, tuple(sets), names)


def _of_test_1(config: ExperimentConfig) -> str:
    if config.data.test_path and config.data.source != "phantom":
        return "held out, of config.data.test_path"
    return "held-out patients of the training hospitals"


def _second(config: ExperimentConfig) -> ImageSet | None:
    """Test Set 2, if there is one."""
    study, data = config.study, config.data
    if data.source != "phantom":
        if not study.second_test_path:
            return None
        other = dataclasses.replace(data, test_path=study.second_test_path)
        what = "of config.study.second_test_path"
    else:
        if study.second_test_path:
            raise ConfigError(
                "config.study.second_test_path goes with a config.data.source that reads files; "
                "phantoms draw their Test Set 2 (config.study.second_scanner)"
            )
        if study.second_scanner == data.phantom.scanner:
            raise ConfigError(
                f"config.study.second_scanner = {study.second_scanner} is that of the training; "
                "take another, from 100 on another country's"
            )
        drawn = dataclasses.replace(
            data.phantom, scanner=study.second_scanner, n_test=study.second_n_test
        )
        other = dataclasses.replace(data, phantom=drawn)
        what = "other scanners and patients"
        if study.second_scanner >= 100:
            what += ", of another country"
    plan = make_test_plan(dataclasses.replace(config, data=other))
    return ImageSet(TEST_2, what, plan.test_catalogue, plan.test)


def _check(image_set: ImageSet, class_names: tuple[str, ...], least: int) -> None:
    """Checks that every class has images enough."""
    if image_set.catalogue.class_names != class_names:
        raise DataError(
            f"{TITLES[image_set.key]} has classes {', '.join(image_set.catalogue.class_names)}; "
            f"the training data have {', '.join(class_names)}"
        )
    few = [f"{n} of {name}" for name, n in zip(class_names, image_set.counts) if n < least]
    if few:
        raise DataError(
            f"{TITLES[image_set.key]} is too small: {', '.join(few)}, and at least {least} are "
            "needed (config.study.min_per_class); add images to it"
        )


def _check_apart(plan: DataPlan, sets: list[ImageSet]) -> None:
    """Checks that no test image was trained or validated on, or is in both test sets."""
    sources = {digest: "training and validation" for digest in plan.used}
    for image_set in sets[1:]:
        digests = [image_set.catalogue.digests[i] for i in image_set.records]
        twice = [name for name, digest in zip(image_set.names, digests) if digest in sources]
        if twice:
            where = sources[digests[image_set.names.index(twice[0])]]
            raise DataError(
                f"{TITLES[image_set.key]}: {len(twice)} of {len(digests)} images are also in "
                f"{where}, e.g. {twice[0]}; take them out of one of the two"
            )
        sources.update(dict.fromkeys(digests, TITLES[image_set.key]))
