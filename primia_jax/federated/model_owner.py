"""The model owner: its state, and the party programs that it runs.

It learns pooled statistics, summed models and summed confusion matrices; with secure aggregation
nothing else (see `aggregation`).
"""

import dataclasses
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from primia_jax import models, tasks
from primia_jax.config import ExperimentConfig, to_plain
from primia_jax.federated import (
    checkpoints,
    local_training,
    privacy,
    private_sums,
    quantities,
    recording,
    records,
    rules,
    safety,
    statistics,
    sums,
    variables,
)
from primia_jax.federated.aggregation import Total
from primia_jax.federated.local_training import Statistics
from primia_jax.federated.owner_journal import OwnerJournal
from primia_jax.federated.quantities import DUE, STATISTICS, UPDATE, VALIDATION, Quantity
from primia_jax.federated.variables import Vectors
from primia_jax.runtime import Send, Steps

_FACTS = ("best_round", "best_score", "best_loss", "saved")  # of a checkpoint, to go on from


@dataclasses.dataclass(frozen=True)
class ModelOwner:
    """State of the model owner."""

    hospitals: tuple[str, ...]
    config: ExperimentConfig
    class_names: tuple[str, ...]
    template: Any  # shapes and types of the network's variables
    vectors: Vectors  # the global model
    rule_state: Any
    optimizer_sizes: tuple[int, ...]  # of the float leaves of a hospital's optimiser state
    statistics: Statistics | None = None
    best_round: int = 0
    best_score: float = -float("inf")
    best_loss: float = float("inf")  # decides where scores are equal, as on small validation sets
    journal: OwnerJournal | None = None  # of secure sums
    digest: str = ""  # of `vectors`, where sums are secure; empty until it is needed
    view: recording.OwnerView | None = None  # of the round not saved yet, where it is recorded

    @property
    def task(self) -> tasks.Task:
        """The task that the network is for."""
        return tasks.make(self.config, self.class_names)


def make_owner(
    config: ExperimentConfig, hospitals: tuple[str, ...], class_names: tuple[str, ...]
) -> ModelOwner:
    """The state of the owner: a fresh network, or the pretrained one that the config names.

    Raises:
      CheckpointError: if pretrained weights do not fit the network.
      ConfigError: if a user's own network does not keep to the contract.
    """
    task = tasks.make(config, class_names)
    learner = local_training.make_learner(config, task)
    models.check(learner.module, config, task.n_outputs, task.spatial)
    task.check_loss(config.data.image_size)
    initial = models.init(
        learner.module,
        jax.random.key(config.seed),
        config.data.image_size,
        config.model.channels,
    )
    if config.model.pretrained:
        initial = models.load_torch(
            config.model.pretrained, config.model, len(class_names), initial
        )
    vectors = variables.to_vectors(initial)
    opt_state = jax.eval_shape(learner.optimizer.init, initial["params"])
    floats = [x.size for x in jax.tree.leaves(opt_state) if np.issubdtype(x.dtype, np.floating)]
    return ModelOwner(
        hospitals=hospitals,
        config=config,
        class_names=class_names,
        template=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), initial),
        vectors=vectors,
        rule_state=rules.make(config.federated).init(vectors.params),
        optimizer_sizes=tuple(floats),
    )


def open_journal(state: ModelOwner, folder: pathlib.Path) -> tuple[ModelOwner, None]:
    """Opens the owner's record of secure sums in its own folder.

    Raises:
      CheckpointError: if it is damaged.
    """
    return dataclasses.replace(state, journal=OwnerJournal(folder)), None


def begin_again(state: ModelOwner) -> tuple[ModelOwner, None]:
    """The state before the first round; the pooled statistics hold."""
    fresh = make_owner(state.config, state.hospitals, state.class_names)
    return dataclasses.replace(fresh, statistics=state.statistics, journal=state.journal), None


def knows_statistics(state: ModelOwner) -> tuple[ModelOwner, records.Pooled]:
    """Finds out if the statistics of the data were pooled before, in this process or another."""
    known = state.statistics is not None or _revealed(state, STATISTICS, None) is not None
    return state, records.Pooled(known)


def revealed(state: ModelOwner, number: int) -> tuple[ModelOwner, records.Revealed]:
    """The sums of round `number` that were revealed, or may have been."""
    totals = (_revealed(state, purpose, number) for purpose in (UPDATE, VALIDATION))
    update, validation = (total.took_part if total else None for total in totals)
    uncertain = state.journal.uncertain(number) if state.journal else ()
    return state, records.Revealed(update, validation, uncertain)


def _revealed(state: ModelOwner, purpose: str, number: int | None) -> Total | None:
    if state.journal is None:
        return None
    return state.journal.total(Quantity(purpose, number, ""))


def _digested(state: ModelOwner) -> ModelOwner:
    """The state with the digest of its model, where sums are secure."""
    if state.journal is None or state.digest:
        return state
    return dataclasses.replace(state, digest=quantities.digest_of_vectors(state.vectors))


def _with_model(state: ModelOwner, vectors: Vectors, rule_state: Any) -> ModelOwner:
    """The state with a new model."""
    return dataclasses.replace(state, vectors=vectors, digest="", rule_state=rule_state)


def _collecting(
    state: ModelOwner,
    purpose: str,
    number: int | None,
    participants: Sequence[str] | None = None,
    *,
    of_models: bool = False,
) -> sums.Collect:
    """The owner's part of one sum, from the present model.

    `participants` are the hospitals in it; None: all that take part at present.
    """
    return sums.collecting(
        state.journal,
        state.config,
        state.hospitals if participants is None else participants,
        Quantity(purpose, number, "" if number is None else state.digest),
        of_models=of_models,
    )


def set_up(state: ModelOwner, pool: bool = True) -> Steps:
    """Pools the statistics of the data, and sends them out with the model.

    They are pooled once and hold for all of the run. `pool` is False where it was done.
    """
    collect = _collecting(state, STATISTICS, None)
    pooled, counted = state.statistics, {}
    if pooled is not None and not pool:
        pass
    elif privacy.is_on(state.config):
        pooled = yield from private_sums.collect_statistics(state.config, collect, state.task)
    else:
        total = yield from collect((statistics.N_MOMENTS,), len(state.class_names))
        weighted = state.config.training.class_weights
        pooled = statistics.pooled(total, state.class_names, weighted)
        counts = tuple(int(count) for count in total.counts)
        counted = {"class_counts": counts, "samples": total.weight}
    assert pooled is not None
    state = dataclasses.replace(state, statistics=pooled)
    yield from _send_model(state.hospitals, state.vectors, statistics=tuple(pooled))
    return state, records.OwnerSetUp(float(pooled.mean), float(pooled.std), **counted)


def send_model(state: ModelOwner, to: Sequence[str]) -> Steps:
    """Sends the present model to hospitals that took no part in the last round."""
    yield from _send_model(to, state.vectors)
    return state, None


def train_round(
    state: ModelOwner,
    number: int,
    due: Collection[str] = DUE,
    trainers: tuple[str, ...] | None = None,
) -> Steps:
    """Round `number` (from 1): averages, applies the rule, has the new model evaluated.

    The training is finished once too few sites will go on: under secure aggregation fewer than
    `safety.min_participants`, since those that have stopped are in no sum of updates.

    Args:
      state: of the owner.
      number: of the round.
      due: purposes of the round's sums that were not revealed yet; the others are in the journal.
      trainers: hospitals in the sum of updates; None: all that take part at present. Each of them
        refuses if it has stopped (`hospital.train_round`).
    """
    if state.config.privacy.mode == "client":
        return (yield from _client_round(state, number, due))
    state = _digested(state)
    n_params = len(state.vectors.params)
    sizes = [len(vector) for vector in (*state.vectors.params, state.vectors.moments)]
    if state.config.federated.optimizer_state == "average":
        sizes += state.optimizer_sizes
    collect = _collecting(state, UPDATE, number, trainers, of_models=True)
    total = yield from collect(sizes, 1)
    if recording.wanted(state.config.federated, number):
        state = _recorded(state, total)
    mean = total.mean()
    params, moments, optimizer = mean[:n_params], mean[n_params], mean[n_params + 1 :]
    rule = rules.make(state.config.federated)
    new, rule_state = rule.apply(state.rule_state, state.vectors.params, params)
    state = _with_model(state, Vectors(new, moments), rule_state)
    more = {}
    if optimizer:
        more = {"optimizer": tuple(vector.astype(np.float32) for vector in optimizer)}
    yield from _send_model(_present(state, total, due, trainers), state.vectors, **more)
    state, scores = yield from _judged(state, number)
    finished = int(total.counts[0]) < safety.min_participants(state.config)
    return state, records.RoundSummary(scores, state.best_round, total.weight, finished)


def _present(
    state: ModelOwner,
    total: Total,
    due: Collection[str],
    trainers: tuple[str, ...] | None = None,
) -> tuple[str, ...]:
    """Hospitals that the round goes on with after the sum of updates."""
    if UPDATE not in due or trainers is None:
        return total.present if UPDATE in due else state.hospitals
    lost = set(trainers).difference(total.present)
    return tuple(name for name in state.hospitals if name not in lost)


def _recorded(state: ModelOwner, total: Total, *, changes: bool = False) -> ModelOwner:
    """The state with what was seen of the round, for `save` to write."""
    assert state.statistics is not None, "trained before set-up"
    view = recording.owner_view(
        state.vectors, total, state.statistics, state.class_names, changes=changes
    )
    return dataclasses.replace(state, view=view)


def _client_round(state: ModelOwner, number: int, due: Collection[str]) -> Steps:
    """A round of which the owner learns the noised sum of clipped updates, all of weight 1."""
    state = _digested(state)
    collect = _collecting(state, UPDATE, number)
    total = yield from collect([len(vector) for vector in state.vectors.params], 0)
    if recording.wanted(state.config.federated, number):
        state = _recorded(state, total, changes=True)
    average = tuple(w + change for w, change in zip(state.vectors.params, total.mean()))
    rule = rules.make(state.config.federated)
    new, rule_state = rule.apply(state.rule_state, state.vectors.params, average)
    state = _with_model(state, Vectors(new, state.vectors.moments), rule_state)
    yield from _send_model(_present(state, total, due), state.vectors)
    state, scores = yield from _judged(state, number)
    return state, records.RoundSummary(scores, state.best_round, samples=None, finished=False)


def _judged(state: ModelOwner, number: int) -> Steps:
    """The state with the best round so far, and the scores of the new model.

    Where hospitals keep them back there are none, and the last round is taken for the best.
    """
    own, task, state = state.config.privacy, state.task, _digested(state)
    collect = _collecting(state, VALIDATION, number)
    if own.mode != "none" and own.validation != "exact":
        summed = yield from private_sums.collect_validation(state.config, collect, task)
        loss = None
    else:
        judged = yield from collect((1,), task.n_summed)
        summed, loss = judged.counts, float(judged.mean()[0][0])
    if summed is None:
        return dataclasses.replace(state, best_round=number), None
    score = task.metrics(summed)[task.score.key]
    if score is not None:  # as noise can leave it
        rank = (score, -math.inf if loss is None else -loss)
        if rank > (state.best_score, -state.best_loss):
            best = {"best_round": number, "best_score": rank[0], "best_loss": -rank[1]}
            state = dataclasses.replace(state, **best)
    return state, records.Scores.of(summed, loss)


def _send_model(to: Sequence[str], vectors: Vectors, **more: Any) -> Steps:
    yield Send(tuple(to), {"model": tuple(vectors), **more}, "global model")


def save(
    state: ModelOwner, folder: pathlib.Path, number: int, saved: Mapping[str, int] | None = None
) -> tuple[ModelOwner, None]:
    """Writes the state after a round, with the last round that each hospital `saved` its own of.

    The last two rounds stay, and the best ones as of now and as of the last commit, so that there
    is a best model to be found whenever a crash comes.
    """
    about = {
        "round": number,
        "best_round": state.best_round,
        "best_score": state.best_score,
        "best_loss": state.best_loss,
        "saved": dict(saved or {}),
        "task": state.config.task,
        "class_names": list(state.class_names),
        "image_size": state.config.data.image_size,
        "model": to_plain(state.config.model),
    }
    if state.view is not None:
        recording.write_view(folder, number, state.view)
        state = dataclasses.replace(state, view=None)
    assert state.statistics is not None, "saved before set-up"
    model = {
        "variables": variables.from_vectors(state.template, state.vectors),
        "statistics": state.statistics._asdict(),
    }
    keep = (number - 1, state.best_round, checkpoints.committed_best(folder))
    checkpoints.save(folder, number, {"model": model, "server": _server(state)}, about, keep)
    return state, None


def restore(
    state: ModelOwner, folder: pathlib.Path, number: int
) -> tuple[ModelOwner, records.OwnerRestored]:
    """The state after round `number`, and the last round that each hospital saved its own of.

    To be run before `set_up`, which sends the model out.

    Raises:
      CheckpointError: if the checkpoint is missing or damaged.
    """
    about = checkpoints.about(folder, number, _FACTS)
    server = checkpoints.restore(folder, number, "server", _server(state))
    model = load_model(folder, number, state.template, len(state.class_names))
    vectors = variables.to_vectors(model["variables"])
    state = dataclasses.replace(
        state,
        vectors=vectors._replace(moments=server["moments"]),
        digest="",
        rule_state=server["rule"],
        statistics=model["statistics"],
        best_round=about["best_round"],
        best_score=about["best_score"],
        best_loss=about["best_loss"],
    )
    return state, records.OwnerRestored(dict(about["saved"]))


def load_model(folder: pathlib.Path, number: int, template: Any, n_classes: int) -> dict[str, Any]:
    """{"variables", "statistics"}: what a diagnosis needs of the checkpoint of round `number`.

    Raises:
      CheckpointError: if there is none, or it is of another network than `template`.
    """
    weights = np.zeros(n_classes, np.float32)
    statistics_template = Statistics(np.zeros((), np.float32), np.zeros((), np.float32), weights)
    tree = {"variables": template, "statistics": statistics_template._asdict()}
    model = checkpoints.restore(folder, number, "model", tree)
    return {**model, "statistics": Statistics(**model["statistics"])}


def _server(state: ModelOwner) -> dict[str, Any]:
    """State that a resumed run needs besides the model; float64, so that it is bit-identical."""
    return {"rule": state.rule_state, "moments": state.vectors.moments}
