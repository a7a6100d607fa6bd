"""Evaluation of a finished model by all hospitals, without training.

Every hospital evaluates it on its own images and contributes its confusion matrix; with secure
aggregation the model owner learns the sum alone. Each hospital's own metrics go to the operator of
the run, as in a training.

A model of FedBN is evaluated twice: as the owner has it, with the hospitals' averaged batch norms,
and as each hospital uses it, with its own ("personalised").

Matrices and metrics are exact and no ledger is charged, so that hospitals refuse to take part where
`config.privacy` protects anything, and where a ledger says that it did.
"""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np

from primia_jax.config import ExperimentConfig
from primia_jax.data import Dataset
from primia_jax.errors import CheckpointError, ConfigError
from primia_jax.federated import (
    local_training,
    privacy,
    privacy_ledger,
    quantities,
    records,
    sums,
    variables,
)
from primia_jax.federated.aggregation import OWNER, Contribution
from primia_jax.federated.hospital_files import with_own_batch_norm
from primia_jax.federated.hospital_state import Hospital
from primia_jax.federated.local_training import Score, Statistics
from primia_jax.federated.model_owner import ModelOwner
from primia_jax.federated.quantities import VALIDATION, Quantity
from primia_jax.federated.trained_model import load_trained
from primia_jax.federated.variables import Vectors
from primia_jax.runtime import Receive, Send, Steps

_KINDS = "", ", with local batch norms"  # of an evaluation, after its purpose


def check(config: ExperimentConfig) -> None:
    """Refuses an evaluation under differential privacy.

    Raises:
      ConfigError: if `config.privacy` protects anything.
    """
    if privacy.is_on(config):
        raise ConfigError(
            f"config.privacy.mode = {config.privacy.mode!r}: the evaluation of a finished model "
            "sums exact confusion matrices, which no ledger is charged for; set it to 'none' if "
            "the hospitals allow that"
        )


def check_no_ledger(state: Hospital, folders: Collection[pathlib.Path]) -> tuple[Hospital, None]:
    """Refuses an evaluation where a ledger holds releases of this hospital's images.

    To be run before anything of the hospital is summed, the pixel statistics included.

    Args:
      state: of the hospital.
      folders: its own, of the evaluation and of the run whose model is evaluated.

    Raises:
      ConfigError: if a ledger lies in one of them, or in that of `config.privacy.ledger`.
    """
    for folder in folders:
        for path in (
            privacy_ledger.path_of(state.config.privacy, state.name, folder),
            folder / privacy_ledger.FILE,
            *privacy_ledger.marks_of(state.config.privacy, state.name, folder),
        ):
            if path.exists():
                raise ConfigError(
                    f"{state.name}: its images are protected by the privacy ledger {path}, and an "
                    "evaluation would release exact confusion matrices of them uncharged; "
                    "name another --workdir only if the images are others"
                )
    return state, None


def judge(state: Hospital, every: bool = False, own: pathlib.Path | None = None) -> Steps:
    """Receives a model and evaluates it; to be run after `hospital.set_up`.

    Args:
      state: of the hospital; it stays as it is.
      every: takes all of the hospital's images, in place of those for validation alone.
      own: this hospital's folder in the run whose model is evaluated; with its batch norms there
        the model is evaluated a second time.

    Raises:
      CheckpointError: if there are none of that model in `own`.
      ConfigError: if `config.privacy` protects this hospital's images.
    """
    check(state.config)
    message = yield Receive(OWNER)
    model = variables.from_vectors(state.variables, Vectors(*message["model"]))
    given = Statistics(*message["statistics"])
    models = [model]
    if own is not None:
        models.append(with_own_batch_norm(state, own, int(message["round"]), model))
    scores = []
    sent = dataclasses.replace(state.with_digests(message), statistics=given)
    for kind, each in zip(_KINDS, models):
        quantity = Quantity(_purpose(every) + kind, None, sent.model)
        scores.append((yield from _judged(sent, each, given, every, quantity)))
    return state, records.Evaluation(tuple(scores))


def adopt_statistics(state: ModelOwner, run: pathlib.Path) -> tuple[ModelOwner, None]:
    """The owner with the statistics of the run in `run`, so that none are pooled again."""
    return dataclasses.replace(state, statistics=load_trained(run, state.config).statistics), None


def _purpose(every: bool) -> str:
    return "evaluation on all images" if every else VALIDATION


def _judged(
    state: Hospital, model: Any, given: Statistics, every: bool, quantity: Quantity
) -> Steps:
    """Evaluates one model and contributes its confusion matrix; returns its scores."""
    size = state.config.evaluation.batch_size
    parts = [
        (local_training.score(state.learner, model, data, given, size), len(data))
        for data in _judged_on(state, every)
    ]
    n = sum(count for _, count in parts)
    loss = sum(score.loss * count for score, count in parts) / n
    score = Score(loss, np.concatenate([score.rows for score, _ in parts]))
    own = Contribution((np.asarray([score.loss]),), n, score.summed)
    yield from state.contribute(quantity, lambda: own)
    return records.Scores.of(score.summed, score.loss)


def _judged_on(state: Hospital, every: bool) -> list[Dataset]:
    parts = [state.train, state.validation] if every else [state.validation]
    return [data for data in parts if len(data)]


def have_judged(
    state: ModelOwner,
    run: pathlib.Path | None = None,
    personalised: bool = False,
    every: bool = False,
) -> Steps:
    """Sends a model out and sums its confusion matrices; to be run after `model_owner.set_up`.

    Args:
      state: of the model owner; it stays as it is.
      run: the folder of a run whose best model is evaluated; else the owner's own, which
        `config.model.pretrained` may name.
      personalised: has the hospitals evaluate it with their own batch norms as well.
      every: as in `judge`.

    Raises:
      CheckpointError: if there is no such model, or it is of another kind.
    """
    vectors, given, number = state.vectors, state.statistics, 0
    if run is not None:
        model = load_trained(run, state.config)
        if model.class_names != state.class_names:
            raise CheckpointError(
                f"the model in {run} knows the classes {', '.join(model.class_names)}; the "
                f"hospitals have {', '.join(state.class_names)}"
            )
        if model.image_size != state.config.data.image_size:
            raise CheckpointError(
                f"the model in {run} is for images of {model.image_size} pixels; add "
                f"--config.data.image_size={model.image_size}"
            )
        vectors, given = variables.to_vectors(model.variables), model.statistics
        number = model.round
    assert given is not None, "evaluated before set-up"
    message: dict[str, Any] = {
        "model": tuple(vectors),
        "statistics": tuple(given),
        "round": np.int64(number),
    }
    yield Send(state.hospitals, message, "judged model")
    task, scores = state.task, []
    start = "" if state.journal is None else quantities.digest_of_vectors(vectors)
    for kind in _KINDS[: 1 + personalised]:
        quantity = Quantity(_purpose(every) + kind, None, start)
        collect = sums.collecting(
            state.journal, state.config, state.hospitals, quantity, keep=False
        )
        total = yield from collect((1,), task.n_summed)
        scores.append(records.Scores.of(total.counts, float(total.mean()[0][0])))
    return state, records.Evaluation(tuple(scores))
