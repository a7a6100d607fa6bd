"""Differential privacy of a federation: what is noised, by how much, and what it costs.

- `record`: every hospital protects its images, one by one or all of a patient together
  (`privacy_units`), against everybody else: DP-SGD (`private_training`) at each hospital with noise
  of its own.
- `client`: every hospital as a whole is protected against the model owner, which learns only the
  secure sum. Each hospital clips its update and adds its share of the noise before it encodes it:
  discrete Gaussian noise in the aggregation's fixed point (Kairouz, Liu and Steinke 2021). Nobody
  ever holds the sum without it.

Besides the model, a training tells of the data by its pixel statistics with class counts (once) and
its confusion matrices on validation images (each round). In mode `record` both go out with noise,
and are charged; in mode `client` the former are constants. Every release is written into the
hospital's ledger (`privacy_ledger`) before it leaves.

A sum of hospitals' discrete Gaussians with the deviations met here, thousands of units, differs
from one discrete Gaussian, and that from a continuous one, by less than any float can tell (their
theorem 1 and Canonne et al. 2020, propositions 5 and 19), so the accountants take it for one.

The number of units (images, patients, hospitals) is taken to be public: it weighs a hospital in the
average and sets its sampling rate, steps and noise. The number of a patient's images is not.

Axis letters: k classes, p_j parameters of the j-th leaf, n images.
"""

import collections
import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from primia_jax.config import ExperimentConfig
from primia_jax.data import Dataset
from primia_jax.errors import CheckpointError, ConfigError, DataError
from primia_jax.federated import accounting, checkpoints, privacy_units, private_training
from primia_jax.federated.accounting import Release
from primia_jax.federated.privacy_ledger import (
    HOSPITAL,
    TRAINING,
    VALIDATION,
    Entry,
    Ledger,
    largest_epsilon,
    marks_of,
    path_of,
)
from primia_jax.federated.privacy_units import Units
from primia_jax.federated.quantities import STATISTICS, UPDATE, Quantity
from primia_jax.federated.quantities import VALIDATION as VALIDATION_SUM

_VALIDATION_RATIO = 3.0  # client: noise multiplier of validation sums over that of updates
_TAIL = 12.0  # client: deviations of noise that a value has room for; 2^-108 lies beyond


@dataclasses.dataclass(frozen=True)
class Mechanisms:
    """The noisy releases of one hospital."""

    training: Release  # of a round: steps of DP-SGD, or one update
    statistics: Release | None  # once
    validation: Release | None  # each round
    split: str = ""  # of the hospital's images, see `Entry`
    unit: str = privacy_units.IMAGE  # that mode `record` protects

    def of_update(self, mode: str, number: int) -> list[Entry]:
        """The charge for the weights that leave the hospital in round `number`."""
        group = TRAINING if mode == "record" else HOSPITAL
        return [self._entry(group, self.training, number, "update")]

    def of_validation(self, mode: str, number: int) -> list[Entry]:
        """The charge for its confusion matrix, if one is released."""
        group = VALIDATION if mode == "record" else HOSPITAL
        if self.validation is None:
            return []
        return [self._entry(group, self.validation, number, "confusion matrix")]

    def of_round(self, mode: str, number: int) -> list[Entry]:
        """Both, as each round costs that is not interrupted."""
        return self.of_update(mode, number) + self.of_validation(mode, number)

    def _entry(self, group: str, release: Release, number: int, what: str) -> Entry:
        return Entry(group, release, {"round": number, "what": what}, self.split, self.unit)


@dataclasses.dataclass(frozen=True)
class Site:
    """Noise, ledger and units by which a hospital keeps its guarantee."""

    mechanisms: Mechanisms
    ledger: Ledger
    train: Units | None = None  # of the training images, in mode `record`
    validation: Units | None = None  # likewise


def is_on(config: ExperimentConfig) -> bool:
    """True if anything is protected."""
    return config.privacy.mode != "none"


def releases_statistics(config: ExperimentConfig) -> bool:
    """True if hospitals release noised pixel statistics and class counts."""
    return config.privacy.mode == "record" and config.privacy.statistics_noise > 0


def open_site(
    config: ExperimentConfig,
    name: str,
    folder: pathlib.Path,
    train: Dataset,
    validation: Dataset,
    steps: Callable[[int], int],
    after_round: int = 0,
) -> Site:
    """Finds the noise, and the ledger.

    Args:
      config: of the experiment.
      name: of the hospital.
      folder: its own, for the ledger unless `config.privacy.ledger` names another.
      train: its training images.
      validation: its validation images.
      steps: local steps a round of a hospital with so many training units.
      after_round: the last complete round of the run. The ledger is made before the first; later
        it must be there, and hold what the hospital's last checkpoint stands for.

    Raises:
      ConfigError: if no noise keeps ε within the target.
      CheckpointError: if the ledger, or a part of it, was lost.
      DataError: if a patient has images of both kinds, and patients are protected.
    """
    own = config.privacy
    budget = own.budget or own.epsilon
    path, marks = path_of(own, name, folder), marks_of(own, name, folder)
    ledger = Ledger(path, budget, own.delta, name, own.unit, marks)
    if after_round:
        ledger.check_whole()
        ledger.check_kept(checkpoints.newest(folder, after_round))
    else:
        ledger.begin()
    units = [privacy_units.units_of(own, data) for data in (train, validation)]
    by_patient = own.unit == privacy_units.PATIENT
    shared = np.intersect1d(train.patients, validation.patients)
    if by_patient and len(shared):
        raise DataError(
            f"{name}: {len(shared)} patients have images both for training and for validation; "
            "config.privacy.unit = 'patient' needs a split by patient"
        )
    n = len(units[0])
    releases = mechanisms(config, n, steps(n))
    split = fingerprint(train, validation, with_patients=by_patient)
    return Site(dataclasses.replace(releases, split=split, unit=own.unit), ledger, *units)


_CHARGED_AS = {STATISTICS: "pixel statistics", UPDATE: "update", VALIDATION_SUM: "confusion matrix"}


def check_charged(site: Site, charged: Mapping[tuple[str, int | None], int]) -> None:
    """Refuses a ledger that lacks a charge which the hospital's record of secure sums names.

    Args:
      site: of the hospital.
      charged: contributions that were charged, by purpose and round.

    Raises:
      CheckpointError: if the ledger has fewer charges of one.
    """
    present = collections.Counter(
        (entry.about.get("what"), entry.about.get("round")) for entry in site.ledger.entries()
    )
    for (purpose, number), count in charged.items():
        # The same noised statistics are given again at no further cost.
        needed = 1 if purpose == STATISTICS else count
        held = present[_CHARGED_AS.get(purpose), number]
        if held < needed:
            raise CheckpointError(
                f"{site.ledger.owner}: its record of secure sums names {needed} contributions to "
                f"the {Quantity(purpose, number, '')} that were charged, the privacy ledger "
                f"{site.ledger.path} has {held}: it is an older copy, and what was spent cannot be "
                "told; restore the file"
            )


def mechanisms(config: ExperimentConfig, n_train: int, steps: int) -> Mechanisms:
    """The releases of a hospital with `n_train` training units and `steps` local steps a round.

    Raises:
      ConfigError: if no noise keeps ε within `config.privacy.epsilon`, or more than fits.
    """
    own, rounds = config.privacy, config.federated.rounds
    noised = own.validation == "noised"
    if own.mode == "client":
        planned = [Release(1.0, steps=rounds)]
        if noised:
            planned.append(Release(_VALIDATION_RATIO, steps=rounds))
        noise = own.noise_multiplier or _noise_for(config, planned)
        judged = Release(_VALIDATION_RATIO * noise) if noised else None
        deviation = noise * own.clip_norm * 2.0**config.secure_aggregation.frac_bits
        n_noisy = noisy_hospitals(config, config.federated.hospitals)
        room(config, own.clip_norm, deviation / math.sqrt(n_noisy))
        return Mechanisms(Release(noise), None, judged)
    rate = min(1.0, config.training.batch_size / n_train)
    statistics = Release(own.statistics_noise) if own.statistics_noise else None
    noise = own.noise_multiplier or _noise_for(
        config, [Release(1.0, rate, steps * rounds)], [statistics] if statistics else []
    )
    if noise > private_training.MOST_NOISE:
        raise ConfigError(
            f"config.privacy.epsilon = {own.epsilon:g} needs a noise multiplier of {noise:.0f}, "
            f"and at most {private_training.MOST_NOISE:g} can be added; raise epsilon, or lower "
            "config.federated.rounds or config.training.batch_size"
        )
    judged = Release(_noise_for(config, [Release(1.0, steps=rounds)])) if noised else None
    return Mechanisms(Release(noise, rate, steps), statistics, judged)


def _noise_for(
    config: ExperimentConfig, planned: Sequence[Release], others: Sequence[Release] = ()
) -> float:
    own = config.privacy
    target = min(own.epsilon, own.budget or own.epsilon)
    factor = accounting.find_noise(tuple(planned), target, own.delta, tuple(others))
    if math.isinf(factor):
        spent = accounting.by_pld(others, own.delta)
        raise ConfigError(
            f"config.privacy.epsilon = {target:g} cannot be kept at delta = {own.delta:g}: "
            f"the pixel statistics alone cost {spent:.2f}; raise epsilon or "
            "config.privacy.statistics_noise, or set the latter to 0 to release none"
        )
    return factor


def noisy_hospitals(config: ExperimentConfig, n_attending: int) -> int:
    """Number of the hospitals in a sum that add noise for certain.

    Raises:
      ConfigError: if it could be none.
    """
    n = n_attending - config.privacy.missing_hospitals
    if n < 1:
        raise ConfigError(
            f"config.privacy.missing_hospitals = {config.privacy.missing_hospitals} of "
            f"{n_attending} hospitals in the sum: none would be left to add noise"
        )
    return n


def room(config: ExperimentConfig, largest: float, deviation: float) -> int:
    """Largest value, in units of 2^-f, that the secure sum takes from one hospital.

    A value beyond it would be refused by name, and tell of the hospital with no more than its own
    share of the noise. So there has to be room for the noise, by the configuration alone; what
    exceeds it all the same, with a chance below 2^-100, is cut off without a word.

    Args:
      config: of the experiment.
      largest: magnitude of a value without noise.
      deviation: of the hospital's share of the noise, in units of 2^-f.

    Raises:
      ConfigError: if there is too little room.
    """
    own = config.secure_aggregation
    scale = 2.0**own.frac_bits
    needed = largest + _TAIL * deviation / scale
    if needed > own.clip:
        raise ConfigError(
            f"config.secure_aggregation.clip = {own.clip:g} is too small for values of up to "
            f"{largest:g} with the noise of config.privacy.mode = 'client': {needed:.3g} are "
            "needed; raise it, or lower config.privacy.clip_norm or noise_multiplier"
        )
    return math.floor(own.clip * scale)


def fingerprint(*groups: Dataset, with_patients: bool = False) -> str:
    """Digest of images and labels, and of the patients' names if asked for."""
    digest = hashlib.sha256()
    for data in groups:
        digest.update(np.ascontiguousarray(data.images).data)
        digest.update(np.ascontiguousarray(data.labels).data)
        if with_patients:
            digest.update(json.dumps([str(patient) for patient in data.patients]).encode())
    return digest.hexdigest()[:32]


def planned_report(config: ExperimentConfig, site: Site) -> dict[str, float]:
    """For the report of a hospital's set-up: its noise, and ε if all rounds are trained."""
    own, planned = site.mechanisms, site.ledger.entries()
    done = {entry.about.get("round") for entry in planned}
    for number in range(1, config.federated.rounds + 1):
        if number not in done or config.privacy.ledger:
            planned += own.of_round(config.privacy.mode, number)
    return {
        "noise_multiplier": own.training.noise_multiplier,
        "planned_epsilon": largest_epsilon(planned, config.privacy.delta),
    }


def spent_report(site: Site) -> dict[str, float]:
    """For a site's line of rounds.jsonl."""
    spent = site.ledger.spent()
    return {"epsilon": spent.pld, "epsilon_rdp": spent.rdp}
