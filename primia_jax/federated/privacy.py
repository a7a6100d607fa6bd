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
from primia_jax.federated import (
    accounting,
    checkpoints,
    discrete_noise,
    privacy_units,
    private_training,
)
from primia_jax.federated.accounting import Release
from primia_jax.federated.aggregation import Contribution, Total
from primia_jax.federated.local_training import Score, Statistics
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
from primia_jax.mpc import prg
from primia_jax.runtime import Steps
from primia_jax.tasks import Task

# Of statistics and counts, of which a unit's share is at most 1: so fine that their noise is as
# good as continuous.
_GRID = 2.0**-16
_STATISTICS_NORM = math.sqrt(3)  # of a unit: two moments and its classes, each of norm at most 1
_VALIDATION_RATIO = 3.0  # client: noise multiplier of confusion matrices over that of updates
_PSEUDO_IMAGES = 1000  # client: what shares of a confusion matrix are counted in
_TAIL = 12.0  # client: deviations of noise that a value has room for; 2^-108 lies beyond
_NEUTRAL = (0.5, 0.25)  # pixel mean and deviation that stand for none known


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
    split = _fingerprint(train, validation, with_patients=by_patient)
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
        _bound(config, own.clip_norm, deviation / math.sqrt(n_noisy))
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


# --- pixel statistics and class counts ---------------------------------------------------------


def releases_statistics(config: ExperimentConfig) -> bool:
    """True if hospitals release noised pixel statistics and class counts."""
    return config.privacy.mode == "record" and config.privacy.statistics_noise > 0


def statistics_contribution(site: Site, data: Dataset, task: Task) -> Contribution:
    """Noised sums over the units of 2·mean(x − ½), 4·mean((x − ½)²) and classes; charged.

    A unit of several images counts with their mean. The very numbers that were released before are
    given again, at no further cost, as long as the images, their units and the noise are the same.

    Raises:
      BudgetError: if the ledger cannot bear it.
    """
    release, units = site.mechanisms.statistics, site.train
    assert release is not None and units is not None, "statistics are not released"
    print_ = _fingerprint(data, with_patients=units.kind == privacy_units.PATIENT)
    for entry in site.ledger.entries():
        about = entry.about
        if (entry.release, entry.unit) == (release, units.kind) and about.get("images") == print_:
            return _statistics(np.asarray(about["released"], np.int64), len(units))
    moments = units.means(_pixel_moments(data))
    sums = np.rint(moments / _GRID).astype(np.int64).sum(0)
    counts = _shares(units, task.presence(data) / task.largest_presence)
    deviation = release.noise_multiplier * _STATISTICS_NORM / _GRID
    noised = _with_share_of_noise(np.concatenate([sums, counts]), deviation, 1)
    about = {"what": "pixel statistics", "images": print_, "released": noised.tolist()}
    entry = Entry(TRAINING, release, about, site.mechanisms.split, units.kind)
    site.ledger.charge([entry], "the pixel statistics")
    return _statistics(noised, len(units))


def _pixel_moments(data: Dataset) -> np.ndarray:
    """[n, 2] 2·mean(x − ½) and 4·mean((x − ½)²) over each image's pixels without its padding.

    About the middle, the two range over less and need less noise. All padding counts as grey.
    """
    grey = data.images[..., 0] / np.float64(np.iinfo(data.images.dtype).max)
    grey -= 0.5
    if data.padding is None:
        return np.stack([2 * grey.mean((1, 2)), 4 * (grey**2).mean((1, 2))], 1)
    grey[data.padding] = 0
    counted = np.maximum(1, (~data.padding).sum((1, 2)))
    return np.stack([2 * grey.sum((1, 2)), 4 * (grey**2).sum((1, 2))], 1) / counted[:, None]


def _shares(units: Units, rows: np.ndarray) -> np.ndarray:
    """int64 [c] in grid units: the sum over units of the means of their images' rows.

    Args:
      units: u of them, of n images.
      rows: [n c] of each image, at least 0 and of norm at most 1.

    Means are rounded down, so that a unit's have a norm of at most 1 too.
    """
    return np.floor(units.means(rows) / _GRID).astype(np.int64).sum(0)


def _statistics(noised: np.ndarray, n: int) -> Contribution:
    # The aggregation multiplies by n again, and rounds to the grid's very numbers, or coarser ones.
    return Contribution((noised * _GRID / n,), n, np.zeros(0, np.int64))


def _fingerprint(*groups: Dataset, with_patients: bool = False) -> str:
    digest = hashlib.sha256()
    for data in groups:
        digest.update(np.ascontiguousarray(data.images).data)
        digest.update(np.ascontiguousarray(data.labels).data)
        if with_patients:
            digest.update(json.dumps([str(patient) for patient in data.patients]).encode())
    return digest.hexdigest()[:32]


def collect_statistics(
    config: ExperimentConfig, collect: Callable[[Sequence[int], int], Steps], task: Task
) -> Steps:
    """The owner's part; returns `Statistics`, from constants where nothing is released."""
    n_classes = len(task.class_names)
    if not releases_statistics(config):
        grey, deviation = map(np.float32, _NEUTRAL)
        return Statistics(grey, deviation, np.ones(n_classes, np.float32))
    total: Total = yield from collect((2 + n_classes,), 0)
    sums, n = total.values[0], max(1, total.weight)
    offset, second = np.clip(sums[0] / (2 * n), -0.5, 0.5), sums[1] / (4 * n)
    mean, std = 0.5 + offset, math.sqrt(max(second - offset**2, 1e-3))  # noise can make it negative
    counts = np.maximum(sums[2:] * task.largest_presence, 1.0)
    weights = np.ones(n_classes)
    if config.training.class_weights:
        weights = counts.sum() / (n_classes * counts)
    return Statistics(np.float32(mean), np.float32(std), weights.astype(np.float32))


# --- confusion matrices ------------------------------------------------------------------------


def validation_contribution(
    config: ExperimentConfig, site: Site, score: Score, task: Task, number: int, n_attending: int
) -> Contribution:
    """A noised sum for validation, charged anew whenever it is made: its noise is new each time.

    What an image adds (`Task.summable`) is divided by the largest norm that it can have. Sums over
    units in mode `record`, where one of several images counts with their mean; in mode `client`
    means over the hospital's images, and the noise is this hospital's share of the sum's.

    Args:
      config: of the experiment.
      site: whose sum it is.
      score: of the new model on its validation images.
      task: that it is scored for.
      number: of the round.
      n_attending: hospitals in the sum.

    Raises:
      BudgetError: if the ledger cannot bear it.
    """
    release = site.mechanisms.validation
    assert release is not None, "validation sums are not released"
    rows = score.rows / task.largest_row(config.data.image_size)
    charge = site.mechanisms.of_validation(config.privacy.mode, number)
    site.ledger.charge(charge, f"the confusion matrix of round {number}")
    if config.privacy.mode == "record":
        assert site.validation is not None
        n, counts = len(site.validation), _shares(site.validation, rows)
        in_units = _with_share_of_noise(counts, release.noise_multiplier / _GRID, 1)
        return Contribution((in_units * _GRID / n,), n, np.zeros(0, np.int64))
    scale = 2**config.secure_aggregation.frac_bits
    mean = rows.sum(0) / max(1, len(rows)) * (1 - 2.0**-40)  # less float64's error in the mean
    shares = np.floor(mean * scale).astype(np.int64)  # rounded down: their norm stays at most 1
    deviation, n_noisy = release.noise_multiplier * scale, noisy_hospitals(config, n_attending)
    limit = _bound(config, 1.0, deviation / math.sqrt(n_noisy))
    values = np.clip(_with_share_of_noise(shares, deviation, n_noisy), -limit, limit)
    return Contribution((values / scale,), 1, np.zeros(0, np.int64))


def collect_validation(
    config: ExperimentConfig,
    collect: Callable[[Sequence[int], int], Steps],
    task: Task,
) -> Steps:
    """The owner's part: the noised sum [m] int64; None if nothing is released."""
    if config.privacy.validation == "none":
        return None
    total: Total = yield from collect((task.n_summed,), 0)
    counts = total.values[0] * task.largest_row(config.data.image_size)
    if config.privacy.mode == "client":
        counts = counts * _PSEUDO_IMAGES
    return np.rint(np.maximum(counts, 0)).astype(np.int64)


# --- updates in mode `client` ------------------------------------------------------------------


def client_update(
    config: ExperimentConfig,
    site: Site,
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    n_attending: int,
) -> Contribution:
    """A hospital's clipped change of the weights with its share of the noise.

    All hospitals have weight 1. Weights by images would let one hospital's presence change the sum
    by its number of images times the clip, and the sum of the weights would need noise as well.

    Args:
      config: of the experiment.
      site: whose update it is.
      before: [p_j] weights at the beginning of the round.
      after: [p_j] after the local steps. If they are not all finite, the change is zero: an error
        would tell the others of this hospital's images.
      n_attending: hospitals in the sum.

    Returns:
      Values [p_j] float64, whole multiples of 2^-f, so that the aggregation encodes them exactly.

    Raises:
      ConfigError: if the fixed point is too coarse or too narrow for the clip and its noise.
    """
    frac_bits = config.secure_aggregation.frac_bits
    scale = 2.0**frac_bits
    changes = np.concatenate(
        [np.asarray(new, np.float64) - old for old, new in zip(before, after, strict=True)]
    )
    integers = clipped_update(changes, config.privacy.clip_norm, frac_bits)
    deviation = site.mechanisms.training.noise_multiplier * config.privacy.clip_norm * scale
    n_noisy = noisy_hospitals(config, n_attending)
    limit = _bound(config, config.privacy.clip_norm, deviation / math.sqrt(n_noisy))
    noised = np.clip(_with_share_of_noise(integers, deviation, n_noisy), -limit, limit)
    ends = np.cumsum([len(leaf) for leaf in before])[:-1]
    return Contribution(tuple(np.split(noised / scale, ends)), 1, np.zeros(0, np.int64))


def clipped_update(changes: np.ndarray, clip_norm: float, frac_bits: int) -> np.ndarray:
    """int64 [p]: `changes` in units of 2^-f, their norm at most `clip_norm` after rounding.

    If they are not all finite numbers, all are taken for zero.

    Rounding is to the nearest. It can add √p/2 units to the norm, which the clip leaves room for:
    in 64 bits units are so fine that this costs next to nothing, and rounding at random, which
    coarser rings need (Kairouz et al. 2021, section 4.1), would gain nothing.

    Raises:
      ConfigError: if the room left for rounding takes half of the clip.
    """
    room = math.sqrt(len(changes)) / 2 * 2.0**-frac_bits
    if 2 * room > clip_norm:
        raise ConfigError(
            f"config.privacy.clip_norm = {clip_norm:g} is too small for updates of {len(changes)} "
            f"numbers in steps of 2^-{frac_bits}; raise it or config.secure_aggregation.frac_bits"
        )
    if not np.isfinite(changes).all():
        return np.zeros(len(changes), np.int64)
    norm = float(np.linalg.norm(changes))
    inner = (clip_norm - room) * (1 - 2.0**-30)  # for float64's error in the norm
    factor = min(1.0, inner / norm) if norm else 1.0
    return np.rint(changes * (factor * 2.0**frac_bits)).astype(np.int64)


def _with_share_of_noise(values: np.ndarray, deviation: float, n_hospitals: int) -> np.ndarray:
    """`values` with 1/N of a noise of `deviation` units, in variance; int64, of the same shape."""
    variance = deviation**2 / n_hospitals
    return values + discrete_noise.discrete_gaussian(prg.new_seed(), len(values), variance)


def _bound(config: ExperimentConfig, largest: float, deviation: float) -> int:
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


# --- what is said of it ------------------------------------------------------------------------


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
