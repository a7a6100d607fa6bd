"""Judging a model that exists already at all hospitals, without training.

Every hospital judges it on its own images and contributes its confusion matrix; with secure
aggregation the model owner learns the sum alone. What a hospital found by itself goes to whoever
operates the run, as in a training.

A model of FedBN is judged twice: as the owner has it, with the hospitals' averaged batch norms, and
as each hospital uses it, with its own ("personalised").
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from primia_jax.data import Dataset
from primia_jax.errors import CheckpointError
from primia_jax.evaluation.metrics import metrics_from_confusion
from primia_jax.federated import local_training, quantities, sums, variables
from primia_jax.federated.aggregation import OWNER, Contribution
from primia_jax.federated.hospital import Hospital, with_own_batch_norm
from primia_jax.federated.local_training import Score, Statistics
from primia_jax.federated.model_owner import ModelOwner
from primia_jax.federated.quantities import VALIDATION, Quantity
from primia_jax.federated.trained_model import load_trained
from primia_jax.federated.variables import Vectors
from primia_jax.runtime import Receive, Send, Steps


def judge(state: Hospital, every: bool = False, own: pathlib.Path | None = None) -> Steps:
    """Receives a model and judges it; to be run after `hospital.set_up`.

    Args:
      state: of the hospital; it stays as it is.
      every: takes all of the hospital's images, in place of those for validation alone.
      own: this hospital's folder in the run whose model is judged; its batch norms there make
        the model that it judges besides.

    Raises:
      CheckpointError: if there are none of that model in `own`.
    """
    message = yield Receive(OWNER)
    model = variables.from_vectors(state.variables, Vectors(*message["model"]))
    given = Statistics(*message["statistics"])
    models = [model]
    if own is not None:
        models.append(with_own_batch_norm(state, own, int(message["round"]), model))
    reports = []
    for each in models:
        reports.append((yield from _judged(state, each, given, every)))
    return state, reports


def adopt_statistics(state: ModelOwner, run: pathlib.Path) -> tuple[ModelOwner, None]:
    """The owner with the statistics of the run in `run`, so that none are pooled again."""
    return dataclasses.replace(state, statistics=load_trained(run, state.config).statistics), None


def _purpose(every: bool) -> str:
    return "evaluation on all images" if every else VALIDATION


def _judged(state: Hospital, model: Any, given: Statistics, every: bool) -> Steps:
    """Judges one model and contributes what it is worth, which is the report."""
    size = state.config.evaluation.batch_size
    parts = [
        (local_training.score(state.learner, model, data, given, size), len(data))
        for data in _judged_on(state, every)
    ]
    n = sum(count for _, count in parts)
    loss = sum(score.loss * count for score, count in parts) / n
    confusion = np.sum([score.confusion for score, _ in parts], axis=0)
    found = Score(loss, confusion, np.concatenate([score.cells for score, _ in parts]))
    own = Contribution((np.asarray([found.loss]),), n, found.confusion.ravel())
    yield from state.contribute(state.quantity(_purpose(every), None, model), lambda: own)
    metrics = metrics_from_confusion(found.confusion, state.validation.class_names)
    return {**metrics, "loss": found.loss}


def _judged_on(state: Hospital, every: bool) -> list[Dataset]:
    parts = [state.train, state.validation] if every else [state.validation]
    return [data for data in parts if len(data)]


def have_judged(
    state: ModelOwner,
    run: pathlib.Path | None = None,
    personalised: bool = False,
    every: bool = False,
) -> Steps:
    """Sends a model out and adds up what it is worth; to be run after `model_owner.set_up`.

    Args:
      state: of the model owner; it stays as it is.
      run: the folder of a run whose best model is judged; else the owner's own, which
        `config.model.pretrained` may name.
      personalised: whether the hospitals judge it with their own batch norms besides.
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
    assert given is not None, "judged before set-up"
    message: dict[str, Any] = {
        "model": tuple(vectors),
        "statistics": tuple(given),
        "round": np.int64(number),
    }
    yield Send(state.hospitals, message, "judged model")
    k, reports = len(state.class_names), []
    start = "" if state.journal is None else quantities.digest_of_vectors(vectors)
    for kind in ("", ", with local batch norms")[: 1 + personalised]:
        quantity = Quantity(_purpose(every) + kind, None, start)
        collect = sums.collecting(
            state.journal, state.config, state.hospitals, quantity, keep=False
        )
        total = yield from collect((1,), k**2)
        metrics = metrics_from_confusion(total.counts.reshape(k, k), state.class_names)
        reports.append({**metrics, "loss": float(total.mean()[0][0])})
    return state, reports
