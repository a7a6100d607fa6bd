"""From what a run recorded to what an attacker sees, with the truth kept beside it.

Axis letters: n images behind an update, t local steps, b images of a step, s their side, k classes,
h hospitals, m images of a hospital.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from primia_jax import tasks
from primia_jax.config import AuditConfig, AugmentationConfig, ExperimentConfig, TrainingConfig
from primia_jax.data.augmentation import augment
from primia_jax.errors import CheckpointError, ConfigError, DataError
from primia_jax.federated import checkpoints, local_training, recording, rules, variables
from primia_jax.federated.recording import Arrival, OwnerView, Truth
from primia_jax.inversion import LocalTraining, Observed
from primia_jax.inversion.observed import PLAIN_SGD

_THIRDS = {"start": 0, "middle": 1, "end": 2}
HOW_TO_RECORD = "--config.federated.record_updates=true"


@dataclasses.dataclass(frozen=True)
class Case:
    """One update: what the attacker sees of it, and the truth that it is judged by."""

    observed: Observed
    round: int
    sender: str  # a hospital, or `recording.SUM`
    images: np.ndarray  # [n s s 1]
    labels: np.ndarray  # [n]
    hospitals: tuple[str, ...]  # [n] whose each image is
    records: np.ndarray  # [n] which of that hospital's images


class Views(NamedTuple):
    """Everything that is attacked of one run."""

    cases: tuple[Case, ...]
    images: dict[str, np.ndarray]  # by hospital, all its own images [m s s 1]
    notes: tuple[str, ...]  # what a reader must know of them


def check(config: ExperimentConfig, audit: AuditConfig, name: str) -> None:
    """Checks that a run of `config` allows the threat model.

    Raises:
      ConfigError: one line that says what the run does not allow.
    """
    norm = config.model.norm
    where = f"config.audit, {name}"
    if audit.moments_known and norm != "batch":
        raise ConfigError(
            f"{where}: moments_known needs config.model.norm = 'batch'; with {norm!r} no moments "
            "come back"
        )
    if audit.norm_mode == "eval" and norm == "batch":
        raise ConfigError(
            f"{where}: norm_mode = 'eval' is not what hospitals do with config.model.norm = "
            "'batch', whose steps use the moments of the batch; take norm = 'frozen', or 'train'"
        )
    if config.federated.early_stopping.enabled:
        raise ConfigError(
            f"{where}: with config.federated.early_stopping.enabled nobody but the hospital knows "
            "how many steps its update is of; attack a run without it"
        )
    if audit.labels_known and config.augmentation.mixup_p:
        raise ConfigError(
            f"{where}: labels_known needs config.augmentation.mixup_p = 0, mixed labels being none"
        )


def check_ahead(config: ExperimentConfig, audit: AuditConfig, name: str) -> None:
    """As `check`, for a run that is still to be trained: its updates must not be too large.

    Raises:
      ConfigError: see `check`; of too large updates where the settings tell.
    """
    check(config, audit, name)
    fed = config.federated
    if fed.sync_unit != "steps" or config.privacy.mode == "record":
        return  # it depends on the hospitals' images, or on what is drawn
    summed = fed.mode == "federated_secure" and fed.participation == 1
    hospitals = fed.hospitals if summed else 1
    _check_size(fed.sync_every, config.training.batch_size, hospitals, audit, name)


def _check_size(t: int, b: int, hospitals: int, audit: AuditConfig, where: str) -> None:
    n = t * b * hospitals
    if n > audit.largest_update:
        raise ConfigError(
            f"{where}: {n} images stand behind an update ({t} steps of {b}, {hospitals} "
            f"hospitals), more than config.audit.largest_update = {audit.largest_update}; raise "
            "it, or record a run that synchronises more often"
        )


def views(folder: pathlib.Path, config: ExperimentConfig, audit: AuditConfig, wanted: int) -> Views:
    """The updates that are attacked: of the rounds that `audit.checkpoint` means, until `wanted`
    images stand behind them.

    Args:
      folder: of the run.
      config: of the run.
      audit: the threat model.
      wanted: images, at least, if there are so many.

    Raises:
      CheckpointError: if nothing was recorded.
      ConfigError: if no such round was, or an update is of too many images.
      DataError: if a hospital's truth is not there.
    """
    owner = folder / "checkpoints"
    recorded = recording.rounds(owner)
    if not recorded:
        raise CheckpointError(
            f"the run in {folder} recorded no updates; train with {HOW_TO_RECORD} to record them"
        )
    cases: list[Case] = []
    for number in _chosen(recorded, config, audit, folder):
        view = recording.read_view(owner, number)
        for arrival in view.arrivals:
            if arrival.weight and sum(len(case.images) for case in cases) < wanted:
                case = _case(folder, config, audit, number, view, arrival)
                cases += [case] if case is not None else []
    if not cases:
        raise DataError(f"no image stands behind the rounds recorded in {folder}")
    names = sorted({name for case in cases for name in case.hospitals})
    images = {name: recording.read_images(checkpoints.site_folder(folder, name)) for name in names}
    return Views(tuple(cases), images, tuple(_notes(config, audit, cases, wanted)))


def _chosen(
    recorded: Sequence[int], config: ExperimentConfig, audit: AuditConfig, folder: pathlib.Path
) -> list[int]:
    """The recorded rounds in the third that is meant, the nearest to its checkpoint first."""
    last, third = checkpoints.latest(folder / "checkpoints").round, _THIRDS[audit.checkpoint]
    last = max(last, recorded[-1])
    inside = [r for r in recorded if min(2, 3 * (r - 1) // last) == third or last < 3]
    if not inside:
        raise ConfigError(
            f"config.audit.checkpoint = {audit.checkpoint!r}: of {last} rounds the run in {folder} "
            f"recorded {_ranges(recorded)} only; see config.federated.record_rounds"
        )
    targets = {"start": 1, "middle": (last + 1) / 2, "end": last}
    return sorted(inside, key=lambda r: (abs(r - targets[audit.checkpoint]), r))


def _ranges(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _case(
    folder: pathlib.Path,
    config: ExperimentConfig,
    audit: AuditConfig,
    number: int,
    view: OwnerView,
    arrival: Arrival,
) -> Case | None:
    """One update with its truth; None where its steps happened to draw no image."""
    truths = _truths(folder, number, arrival)
    parts = list(truths.values())
    steps = {tuple(part.sizes) for part in parts}
    if len(steps) > 1 or len(set(parts[0].sizes)) > 1:
        raise ConfigError(
            f"round {number} of {folder}: local steps were of unlike numbers of images, or "
            "hospitals took unlike numbers of steps, which an attack cannot follow; record a run "
            "with config.federated.sync_unit = steps (and sync_every = 1 under config.privacy)"
        )
    t, b = len(parts[0].sizes), int(parts[0].sizes[0])
    _check_size(t, b, len(parts), audit, f"round {number} of {folder}")
    if not t * b:
        return None
    rates = _rates(config, number, t)
    weights = tuple(part.weight for part in parts)
    training, template = _training(config, audit, view, rates, b, weights)
    labels = np.concatenate([part.targets for part in parts]).argmax(-1)
    return Case(
        observed=_observed(config, audit, view, arrival, training, template, labels, rates[0]),
        round=number,
        sender=arrival.sender,
        images=np.concatenate([part.images for part in parts]),
        labels=labels,
        hospitals=tuple(name for name in truths for _ in range(t * b)),
        records=np.concatenate([part.records for part in parts]),
    )


def _truths(folder: pathlib.Path, number: int, arrival: Arrival) -> dict[str, Truth]:
    """Inputs of the local steps behind an arrival, by hospital, in the run's order."""
    truths = {}
    for name in arrival.hospitals:
        site = checkpoints.site_folder(folder, name)
        if number not in recording.rounds(site):
            raise DataError(
                f"round {number}: what the steps of {name} were given is not in {site}, so that no "
                "attack can be judged; copy sites/NAME/recorded from every hospital"
            )
        truths[name] = recording.read_truth(site, number)
    return truths


def _rates(config: ExperimentConfig, number: int, t: int) -> tuple[float, ...]:
    """The learning rates of a round's steps, which the schedule fixes for all."""
    rounds = config.federated.rounds
    progress = [((number - 1) + step / t) / rounds for step in range(t)]
    return tuple(local_training.learning_rate(config.training, p) for p in progress)


def _training(
    config: ExperimentConfig,
    audit: AuditConfig,
    view: OwnerView,
    rates: tuple[float, ...],
    b: int,
    weights: tuple[int, ...],
) -> tuple[LocalTraining, Any]:
    """Local training as far as the attacker knows it, and the network's shapes."""
    settings, t = config.training, len(rates)
    learner = local_training.make_learner(config, tasks.make(config, view.class_names))
    template = local_training.template(
        learner.module, config.data.image_size, config.model.channels
    )
    weighted = audit.sizes_known and config.privacy.mode != "client"
    gradient = t == 1 and settings.optimizer == "sgd"
    training = LocalTraining(
        module=learner.module,
        content="gradient" if gradient else "weights",
        train=config.model.norm == "batch",  # the others do the same in training and evaluation
        local_steps=t,
        batch_size=0 if gradient else b,
        # Of a gradient it is divided out, so that rounds differ in nothing that is compiled.
        learning_rate=rates if t > 1 else 1.0 if gradient else rates[0],
        optimizer=PLAIN_SGD if gradient else _optimizer(settings),
        proximal_mu=rules.make(config.federated).proximal_mu,
        hospitals=len(weights),
        weights=tuple(map(float, weights)) if weighted and len(weights) > 1 else (),
        mean=float(view.statistics.mean),
        std=float(view.statistics.std),
        channels=config.model.channels,
        class_weights=tuple(float(w) for w in view.statistics.class_weights),
        task=learner.task,
    )
    return training, template


@functools.cache
def _optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """One object for like settings, so that what is compiled for it is found again."""
    return local_training.make_optimizer(config)


def _observed(
    config: ExperimentConfig,
    audit: AuditConfig,
    view: OwnerView,
    arrival: Arrival,
    training: LocalTraining,
    template: Any,
    labels: np.ndarray,
    rate: float,
) -> Observed:
    before = variables.from_vectors(template, view.before)
    change = [
        np.asarray(after, np.float64) - np.asarray(old, np.float64)
        for old, after in zip(view.before.params, arrival.vectors.params, strict=True)
    ]
    if training.content == "gradient":
        decay = config.training.weight_decay
        change = [
            -part / rate - decay * np.asarray(old, np.float64)
            for old, part in zip(view.before.params, change)
        ]
    moments = None
    if audit.moments_known:
        moments = variables.from_vectors(template, arrival.vectors)["batch_stats"]
    return Observed(
        variables=before,
        update=variables.unflat(template["params"], change),
        moments=moments,
        labels=jnp.asarray(labels, jnp.int32) if audit.labels_known else None,
        training=training,
    )


def _notes(
    config: ExperimentConfig, audit: AuditConfig, cases: Sequence[Case], wanted: int
) -> list[str]:
    """Notes that a reader needs beside the numbers."""
    fed, training, notes = config.federated, config.training, []
    images = sum(len(case.images) for case in cases)
    if images < wanted:
        notes.append(f"only {images} images stand behind the recorded updates, not {wanted}")
    later = any(case.round > 1 for case in cases)
    has_state = training.optimizer != "sgd" or training.beta1 > 0
    if later and has_state and fed.optimizer_state != "reset":
        notes.append(
            "the hospitals' optimisers keep a state from round to round that the attacker does not "
            "see; the attack takes it to be fresh"
        )
    if later and fed.batch_norm == "fedbn":
        notes.append(
            "hospitals train with batch norms of their own (FedBN); the attack takes the global "
            "ones"
        )
    if training.optimizer != "sgd":
        notes.append(
            "a step of Adam keeps little of the gradient but its signs, through which an attack "
            "that differentiates finds little; that does not make it safe"
        )
    if config.augmentation.mixup_p:
        notes.append("mixed-up images are sought as they were mixed, with the larger label")
    if fed.update_clip:
        notes.append("updates are clipped, or noised: no privacy is proven by it")
    if config.privacy.mode != "none":
        notes.append(
            f"differential privacy ({config.privacy.mode}, ε = {config.privacy.epsilon:g}); the "
            "attack takes the update for one without clipping and noise"
        )
    if config.privacy.mode == "record":
        notes.append("how many images a step drew is given to the attacker, who could only guess")
    if not audit.sizes_known and any(len(set(case.hospitals)) > 1 for case in cases):
        notes.append("the attacker takes all hospitals for equally large")
    return notes


def decoys(
    targets: Views,
    config: ExperimentConfig,
    case: Case,
    hospital: str,
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """[n s s 1] images of a hospital that are not behind an update, augmented as those that are.

    Args:
      targets: of the run.
      config: of the run.
      case: the update.
      hospital: one of those behind it.
      n: at most as many as it has.
      rng: consumed.
    """
    chosen = targets.images[hospital][rng.permutation(_others(targets, case, hospital))[:n]]
    key = jax.random.key(int(rng.integers(2**31)))
    if not n:
        return chosen
    size = min(config.training.batch_size, n)  # MixUp mixes the images of a batch
    batches = np.resize(chosen, (-(-n // size), size, *chosen.shape[1:]))
    changed = _augmented(jax.random.split(key, len(batches)), batches, config.augmentation)
    return np.asarray(changed).reshape(-1, *chosen.shape[1:])[:n]


def gallery_size(targets: Views, most: int) -> int:
    """Images in each gallery, the true one and decoys: `most`, or what every hospital has."""
    rest = [
        len(_others(targets, case, name)) for case in targets.cases for name in set(case.hospitals)
    ]
    return min(most, min(rest) + 1)


def _others(targets: Views, case: Case, hospital: str) -> np.ndarray:
    """Indices of a hospital's images that are not behind an update."""
    behind = case.records[np.asarray(case.hospitals) == hospital]
    return np.setdiff1d(np.arange(len(targets.images[hospital])), behind)


@functools.partial(jax.jit, static_argnums=2)
def _augmented(keys: jax.Array, batches: jax.Array, config: AugmentationConfig) -> jax.Array:
    """Batches [g b s s 1] with draws of their own; their labels do not matter."""
    labels = jnp.zeros((batches.shape[1], 1))
    return jax.vmap(lambda key, images: augment(key, images, labels, config)[0])(keys, batches)


def digest(targets: Views) -> str:
    """A hash of all recorded arrays that attacks and their judgement depend on."""
    hasher, arrays = hashlib.sha256(), list(targets.images.values())
    for case in targets.cases:
        own = case.observed
        hasher.update(repr((case.round, case.hospitals)).encode())
        arrays += jax.tree.leaves((own.variables, own.update, own.moments, case.images))
        arrays += [case.labels, case.records]
    for array in map(np.asarray, arrays):
        hasher.update(f"{array.dtype} {array.shape}".encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()
