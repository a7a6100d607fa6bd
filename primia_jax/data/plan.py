"""Plan of the records that each party of a run holds, decided before anything starts.

The plan travels to the parties as recipes: a hospital reads its own images in its own process.
"""

import dataclasses
import hashlib

import numpy as np

from primia_jax.config import DataConfig, ExperimentConfig
from primia_jax.data.catalogue import TEST, TRAIN, VALIDATION, Catalogue, Dataset, load
from primia_jax.data.file_catalogue import OWN_PATIENT, UnusableImages
from primia_jax.data.folders import KERMANY_CLASSES, KERMANY_NOTE
from primia_jax.data.partition import hospital_names, partition
from primia_jax.data.sources import open_catalogue
from primia_jax.data.splits import assign_splits
from primia_jax.errors import DataError

POOLED = "pooled"  # the only site of mode `local`
_SITE = "{site}"


@dataclasses.dataclass(frozen=True)
class SiteData:
    """Source of one hospital's training and validation images."""

    site: str
    data: DataConfig
    seed: int
    catalogue: Catalogue | None  # None: the site opens `data.path` for itself
    train: np.ndarray | None
    validation: np.ndarray | None
    class_names: tuple[str, ...] = ()  # of the run; empty: those of the site's path
    test_digests: frozenset[str] = frozenset()  # of the model owner's test images

    def load(self) -> tuple[Dataset, Dataset]:
        """Training and validation images.

        Raises:
          DataError: if the site's own folder cannot be used, or holds an image of the test set.
        """
        catalogue, train, validation = self.catalogue, self.train, self.validation
        if catalogue is None or train is None or validation is None:
            catalogue = open_catalogue(
                self.data, 1, self.seed, path=self.own_path(), class_names=self.class_names
            )
            self._check_not_tested_on(catalogue)
            fraction = self.data.validation_fraction
            splits = assign_splits(catalogue, fraction, 0.0, self.seed, all_classes=False)
            train, validation = (
                np.flatnonzero(splits == TRAIN),
                np.flatnonzero(splits == VALIDATION),
            )
        size = self.data.image_size
        return load(catalogue, train, size), load(catalogue, validation, size)

    def own_path(self) -> str:
        """`data.path` of this site."""
        return self.data.path.replace(_SITE, self.site)

    def _check_not_tested_on(self, catalogue: Catalogue) -> None:
        """UnusableImages, which lists the files: for this site's eyes alone."""
        kind = "test images of the model owner"
        shared = [
            (name, kind)
            for name, digest in zip(catalogue.names, catalogue.digests)
            if digest in self.test_digests
        ]
        if shared:
            advice = "remove them here or from config.data.test_path"
            raise UnusableImages(shared, len(catalogue), self.site, advice, kind)


@dataclasses.dataclass(frozen=True)
class DataPlan:
    """Everybody's data."""

    sites: tuple[SiteData, ...]
    class_names: tuple[str, ...]
    test_catalogue: Catalogue
    test: np.ndarray  # records of `test_catalogue` that the model owner holds for the final test
    summary: tuple[dict, ...]  # {"site", "split", "counts", "patients"} where known at the door
    skipped: tuple[tuple[str, str], ...]  # files left out, with reasons
    fingerprint: str  # of all records known at the door and what each is for
    used: frozenset[str] = frozenset()  # digests of the images for training and validation
    used_patients: frozenset[str] = frozenset()  # as `patient_digests`, of the same records
    used_numbers: frozenset[str] = frozenset()  # the same, without the patients' sites
    compared: frozenset[str] = frozenset()  # digests of test images that hospitals compare
    remarks: tuple[str, ...] = ()  # assumptions about the sources that a user should check

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the values of masks, if the source has any."""
        return self.test_catalogue.structures

    def load_test(self, image_size: int) -> Dataset:
        """The test images, each with its site's name (or "test")."""
        dataset = load(self.test_catalogue, self.test, image_size)
        if self.test_catalogue.sites is None:
            dataset = dataclasses.replace(dataset, sites=np.full(len(dataset), TEST))
        return dataset


def make_plan(config: ExperimentConfig) -> DataPlan:
    """Opens the source, splits by patient and divides over the hospitals of `config`.

    Mode `local` pools what the hospitals would hold, with the same split.

    Raises:
      DataError: for anything that cannot be used, see `open_catalogue`, `assign_splits`,
        `partition`.
    """
    data, hospitals = config.data, config.federated.hospitals
    if _SITE in data.path and data.source != "phantom":
        return _plan_of_own_paths(config)
    catalogue, splits = _open_and_split(config)
    held = np.flatnonzero(splits != TEST)
    names = hospital_names(catalogue, hospitals, data.partition)
    parts = partition(catalogue, held, hospitals, data, _seed(config), splits=splits)
    if config.federated.mode == "local":
        names, parts = (POOLED,), [held]
    sites, summary, skipped = [], [], list(catalogue.skipped)
    for name, part in zip(names, parts):
        train, validation = part[splits[part] == TRAIN], part[splits[part] == VALIDATION]
        for split, records in ((TRAIN, train), (VALIDATION, validation)):
            if not len(records):
                raise DataError(
                    f"{name} has no {split} images; change config.data.partition, "
                    "config.data.validation_fraction or config.federated.hospitals"
                )
            summary.append(_summary(name, split, catalogue, records))
        sites.append(SiteData(name, data, _seed(config), catalogue, train, validation))
    test_catalogue, test = catalogue, np.flatnonzero(splits == TEST)
    if data.test_path:
        test_catalogue, test = _own_test_set(config, catalogue.class_names)
        skipped += test_catalogue.skipped
        _check_apart(catalogue, held, test_catalogue, test)
    if len(test):
        summary.append(_summary("model owner", TEST, test_catalogue, test))
    return DataPlan(
        tuple(sites),
        catalogue.class_names,
        test_catalogue,
        test,
        tuple(summary),
        tuple(skipped),
        _fingerprint((catalogue, splits), (test_catalogue, None)),
        frozenset(catalogue.digests[i] for i in held),
        patient_digests(catalogue, held),
        patient_digests(catalogue, held, bare=True),
        frozenset(),
        tuple(dict.fromkeys((*catalogue.remarks, *test_catalogue.remarks))),
    )


def make_test_plan(config: ExperimentConfig, class_names: tuple[str, ...] = ()) -> DataPlan:
    """The same plan without the hospitals, for evaluating a finished model.

    Args:
      config: of the experiment.
      class_names: the model's; a test set named by `data.test_path` may lack some of them.

    Raises:
      DataError: if there is no test set.
    """
    if config.data.test_path:
        catalogue, test = _own_test_set(config, class_names)
    else:
        catalogue, splits = _open_and_split(config, to_train=False)
        test = np.flatnonzero(splits == TEST)
    if not len(test):
        raise DataError(
            "there is no test set; give config.data.test_path or a positive "
            "config.data.test_fraction"
        )
    summary = (_summary("model owner", TEST, catalogue, test),)
    return DataPlan((), catalogue.class_names, catalogue, test, summary, catalogue.skipped, "")


def _fingerprint(*parts: tuple[Catalogue, np.ndarray | None]) -> str:
    """Changes with any image, label, patient or split of the catalogues."""
    content = hashlib.sha256()
    for catalogue, splits in parts:
        columns = (catalogue.names, catalogue.digests, catalogue.labels, catalogue.patients)
        for record in zip(*columns, catalogue.names if splits is None else splits):
            line = "\0".join(map(str, record)) + "\n"
            content.update(line.encode("utf-8", "surrogateescape"))
    return content.hexdigest()


def _open_and_split(
    config: ExperimentConfig, to_train: bool = True
) -> tuple[Catalogue, np.ndarray]:
    """The source and what each of its records is for; `to_train` if each class must be trained."""
    data = config.data
    catalogue = open_catalogue(data, config.federated.hospitals, _seed(config))
    test_fraction = 0.0 if data.test_path else data.test_fraction
    try:
        splits = assign_splits(
            catalogue,
            data.validation_fraction,
            test_fraction,
            _seed(config),
            all_classes=to_train,
        )
    except DataError as error:
        if catalogue.class_names != KERMANY_CLASSES:
            raise
        raise DataError(f"{error} ({KERMANY_NOTE})") from error
    return catalogue, splits


def _seed(config: ExperimentConfig) -> int:
    """Seed that phantoms, splits and partition are drawn from."""
    return config.seed if config.data.seed < 0 else config.data.seed


def _plan_of_own_paths(config: ExperimentConfig) -> DataPlan:
    """Every hospital opens its own path; only the test set is looked at here."""
    if not config.data.test_path:
        raise DataError(
            "where every hospital has its own path ({site} in config.data.path), the model "
            "owner's test set must be named: config.data.test_path"
        )
    catalogue, test = _own_test_set(config, ())
    names, digests = catalogue.class_names, frozenset(catalogue.digests[i] for i in test)
    sites = tuple(
        SiteData(f"hospital_{i}", config.data, _seed(config), None, None, None, names, digests)
        for i in range(config.federated.hospitals)
    )
    summary = (_summary("model owner", TEST, catalogue, test),)
    return DataPlan(
        sites,
        catalogue.class_names,
        catalogue,
        test,
        summary,
        catalogue.skipped,
        _fingerprint((catalogue, None)),
        compared=digests,
        remarks=catalogue.remarks,
    )


def _own_test_set(
    config: ExperimentConfig, class_names: tuple[str, ...]
) -> tuple[Catalogue, np.ndarray]:
    """The records of `data.test_path`: its test split where it has one, else all of them."""
    path = config.data.test_path
    catalogue = open_catalogue(config.data, 1, _seed(config), path=path, class_names=class_names)
    if catalogue.splits is not None and (catalogue.splits == TEST).any():
        return catalogue, np.flatnonzero(catalogue.splits == TEST)
    return catalogue, np.arange(len(catalogue))


def patient_digests(
    catalogue: Catalogue, records: np.ndarray, *, bare: bool = False
) -> frozenset[str]:
    """SHA-256 of the patients of `records`, those left out that are only an image's own name.

    They tell apart, they do not hide: whoever guesses a patient number can check it.

    Args:
      catalogue: the images.
      records: [m] some of them.
      bare: True for patients without their sites.
    """
    patients = {_patient(catalogue, record, bare=bare) for record in records}
    return frozenset(
        hashlib.sha256(b"patient\0" + patient.encode("utf-8", "surrogateescape")).hexdigest()
        for patient in patients
        if not patient.startswith(OWN_PATIENT)
    )


def _check_apart(
    catalogue: Catalogue, held: np.ndarray, test_catalogue: Catalogue, test: np.ndarray
) -> None:
    """DataError if a test image, or a test patient, is among those trained or validated on.

    A patient without a site in one of the two sources is compared by the number alone.
    """
    bare = catalogue.sites is None or test_catalogue.sites is None
    kinds = (
        ("an image", lambda c, i: c.digests[i]),
        ("a patient", lambda c, i: _patient(c, i, bare=bare)),
    )
    for kind, key in kinds:
        trained = {key(catalogue, i): i for i in held}
        shared = [
            (i, trained[key(test_catalogue, i)]) for i in test if key(test_catalogue, i) in trained
        ]
        if shared:
            mine, other = test_catalogue.names[shared[0][0]], catalogue.names[shared[0][1]]
            raise DataError(
                f"config.data.test_path: {len(shared)} of {len(test)} test images show {kind} "
                f"that is trained on, e.g. {mine} (training data: {other}); remove them, or give "
                "patients that are different people different names"
            )


def _patient(catalogue: Catalogue, record: int, *, bare: bool) -> str:
    """The patient of a record, without its site if `bare`; unique where nobody names it."""
    patient = str(catalogue.patients[record])
    if patient.startswith(OWN_PATIENT):
        return f"{OWN_PATIENT}{catalogue.digests[record]}"
    if bare and catalogue.sites is not None:
        return patient.removeprefix(f"{catalogue.sites[record]}/")
    return patient


def _summary(site: str, split: str, catalogue: Catalogue, records: np.ndarray) -> dict:
    counts = np.bincount(catalogue.labels[records], minlength=len(catalogue.class_names))
    return {
        "site": site,
        "split": split,
        "counts": [int(count) for count in counts],
        "patients": len(set(catalogue.patients[records])),
    }
