"""Local steps of a hospital in one round, plain or private, and what is recorded of them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from primia_jax.config import ExperimentConfig
from primia_jax.federated import local_training, privacy_units, private_training, recording
from primia_jax.federated.early_stopping import RoundWatch
from primia_jax.federated.hospital_state import Hospital
from primia_jax.federated.local_training import Step


class Trained(NamedTuple):
    """Result of local training."""

    variables: Any  # None once they are not needed any more
    opt_state: Any  # None likewise
    loss: float | None
    steps: int
    learning_rate: float
    samples: tuple[privacy_units.Sample, ...] = ()  # drawn for each step by private training


def optimizer_state(state: Hospital) -> Any:
    """Optimiser state that the next round begins with."""
    if state.opt_state is None:
        return state.learner.optimizer.init(state.variables["params"])
    return state.opt_state


def steps_per_round(config: ExperimentConfig, n_train: int) -> int:
    """Local steps between two synchronisations at a site with `n_train` images or patients."""
    every = config.federated.sync_every
    if config.federated.sync_unit == "steps":
        return every
    return every * local_training.steps_per_epoch(n_train, config.training.batch_size)


def to_keep(config: ExperimentConfig, result: Trained) -> Trained:
    """Drops arrays as long as the network that only the contribution needs."""
    fed = config.federated
    return result._replace(
        variables=result.variables if fed.batch_norm == "fedbn" else None,
        opt_state=result.opt_state if fed.optimizer_state != "reset" else None,
    )


def train_locally(state: Hospital, number: int) -> tuple[Hospital, Trained]:
    """Runs the local steps of a round; the state changes only in its early-stopping watch."""
    config, fed = state.config, state.config.federated
    per_round = steps_per_round(config, len(state.train))
    rate = local_training.learning_rate(config.training, (number - 1) / fed.rounds)
    opt_state = optimizer_state(state)
    if state.private_learner is not None:
        return state, _train_privately(state, number, opt_state)  # its samples are always new
    stopping = fed.early_stopping
    order = local_training.batches(
        config.seed,
        state.index,
        len(state.train),
        config.training.batch_size,
        (number - 1) * per_round,
    )
    # The step consumes its arguments, and the round's start is needed again if the round fails.
    current, opt_state = _copy(state.variables), _copy(opt_state)
    watch, losses, targets = RoundWatch(), [], state.learner.task.targets(state.train)
    for step, batch in zip(range(per_round), order):
        progress = ((number - 1) + step / per_round) / fed.rounds
        rate = local_training.learning_rate(config.training, progress)
        current, opt_state, loss = state.learner.train(
            current,
            opt_state,
            state.variables["params"],
            state.train.images[batch],
            targets[batch],
            state.statistics,
            np.uint32(config.seed),
            _place(number, state.index, step),
            np.float32(rate),
        )
        losses.append(loss)
        if stopping.enabled and (step + 1) % stopping.check_every == 0:
            watch = watch.after_check(score(state, current).loss, _copy((current, opt_state)))
            if watch.exhausted(stopping):
                break
    if stopping.enabled:
        if watch.best is None:  # fewer steps than a check, or all losses NaN
            watch = watch.after_check(score(state, current).loss, (current, opt_state))
        if watch.best is not None:
            current, opt_state = watch.best
        site = state.watch.after_round(watch.best_loss, stopping)
        state = dataclasses.replace(state, watch=site)
    loss = float(np.mean([np.asarray(loss) for loss in losses], dtype=np.float64))
    return state, Trained(current, opt_state, loss, len(losses), rate)


def _train_privately(state: Hospital, number: int, opt_state: Any) -> Trained:
    """The local steps of a round in mode `record`."""
    config, release = state.config, state.privacy_site.mechanisms.training
    units = state.privacy_site.train
    assert state.private_learner and state.statistics and units

    def rate(step: int) -> float:
        progress = ((number - 1) + step / release.steps) / config.federated.rounds
        return local_training.learning_rate(config.training, progress)

    samples: list[privacy_units.Sample] = []
    model, opt_state = private_training.train(
        state.private_learner,
        state.variables,
        opt_state,
        state.train,
        units,
        state.statistics,
        release,
        config,
        rate,
        samples.append if recording.wanted(config.federated, number) else lambda sample: None,
    )
    last = rate(release.steps - 1)
    return Trained(model, opt_state, None, release.steps, last, tuple(samples))


def recorded(state: Hospital, number: int, result: "Trained", weight: int) -> Hospital:
    """The state with what its local steps were given, where the round is recorded."""
    if not (result.steps and recording.wanted(state.config.federated, number)):
        return state
    return dataclasses.replace(state, truth=_entered(state, number, result, weight))


def _entered(state: Hospital, number: int, trained: Trained, weight: int) -> recording.Truth:
    """The inputs of the local steps of round `number`, made once more for the recording."""
    config = state.config
    stored = state.learner.task.targets(state.train)
    images = [np.zeros((0, *state.train.images.shape[1:]), np.float32)]
    targets = [np.asarray(state.learner.task.encode(jax.numpy.asarray(stored[:0])))]
    records = [np.zeros(0, np.int64)]

    def entered(batch: np.ndarray, pixels: Any, target: Any) -> None:
        images.append(np.asarray(pixels))
        targets.append(np.asarray(target))
        records.append(batch)

    if state.private_learner is not None:
        for sample in trained.samples:
            for batch in sample.images:
                one = state.train.images[batch], stored[batch], sample.keys[batch]
                entered(batch, *state.private_learner.augmented(*one))
        sizes = [sum(map(len, sample.images)) for sample in trained.samples]
    else:
        first = (number - 1) * steps_per_round(config, len(state.train))
        n, size = len(state.train), config.training.batch_size
        order = local_training.batches(config.seed, state.index, n, size, first)
        for step, batch in zip(range(trained.steps), order):
            place = _place(number, state.index, step)
            chosen = state.train.images[batch], stored[batch]
            entered(batch, *state.learner.enter(*chosen, np.uint32(config.seed), place))
        sizes = [len(batch) for batch in records[1:]]
    return recording.Truth(
        images=np.concatenate(images),
        targets=np.concatenate(targets),
        records=np.concatenate(records),
        sizes=np.asarray(sizes, np.int64),
        weight=weight,
    )


def _place(number: int, site: int, step: int) -> Step:
    """Position of a local step, which its random draws depend on."""
    return Step(np.uint32(number), np.uint32(site), np.uint32(step))


def score(state: Hospital, model: Any) -> local_training.Score:
    """Scores a model on the hospital's validation images."""
    assert state.statistics is not None, "evaluated before set-up"
    return local_training.score(
        state.learner, model, state.validation, state.statistics, state.config.evaluation.batch_size
    )


def _copy(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), tree)
