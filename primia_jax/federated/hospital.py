"""Party programs of a hospital: set-up, rounds, catching up.

They are the functions `set_up`, `catch_up` and `train_round`; those of `hospital_files` open, save
and restore what lies in its folder. Each takes the state (`hospital_state`) first and ends with
(new state, report). The report, one of `records`, goes to whoever operates the run (its console and
rounds.jsonl), never to the model owner.
"""

import dataclasses
import secrets
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import numpy as np
import optax

from primia_jax import environment
from primia_jax.errors import ProtocolError, TrainingError
from primia_jax.federated import (
    hospital_training,
    local_training,
    perturbation,
    privacy,
    private_sums,
    records,
    sealing,
    statistics,
    variables,
)
from primia_jax.federated.aggregation import OWNER, PROVIDER, Contribution
from primia_jax.federated.early_stopping import SiteWatch
from primia_jax.federated.hospital_state import Hospital
from primia_jax.federated.hospital_training import Trained, optimizer_state, recorded, to_keep
from primia_jax.federated.local_training import Statistics
from primia_jax.federated.quantities import DUE, STATISTICS, UPDATE, VALIDATION, Quantity
from primia_jax.federated.variables import Vectors
from primia_jax.runtime import Receive, Steps


def set_up(state: Hospital, pool: bool = True) -> Steps:
    """Exchanges keys, contributes to the pooled statistics, receives them and the present model.

    `pool` is False where the owner has the statistics already.
    """
    if state.config.federated.mode == "federated_secure":
        peers = [name for name in state.hospitals if name != state.name]
        assert state.credentials is not None, "the hospital's identity was not opened"
        keys = yield from sealing.exchange_keys(state.name, peers, PROVIDER, state.credentials)
        state = dataclasses.replace(state, keys=keys)
    quantity = Quantity(STATISTICS, None, "")
    if not pool:
        pass
    elif not privacy.is_on(state.config):
        yield from state.contribute(
            quantity, lambda: statistics.contribution(state.train, state.learner.task)
        )
    elif privacy.releases_statistics(state.config):
        guarantee = state.privacy_site
        yield from state.contribute(
            quantity,
            lambda: private_sums.statistics_contribution(
                guarantee, state.train, state.learner.task
            ),
            charged=True,
        )
    pooled = yield Receive(OWNER)
    state.note_final(quantity)
    size, channels = state.config.data.image_size, state.config.model.channels
    template = local_training.template(state.learner.module, size, channels)
    model = variables.from_vectors(template, Vectors(*pooled["model"]))
    state = dataclasses.replace(
        state.with_digests(pooled),
        statistics=Statistics(*pooled["statistics"]),
        variables=model,
        opt_state=None,
        watch=SiteWatch(),
    )
    report: dict[str, Any] = {"samples": state.size, "validation_samples": state.validation_size}
    if state.guarantee:
        report |= privacy.planned_report(state.config, state.guarantee)
    return state, records.SiteSetUp(**report)


def catch_up(state: Hospital) -> Steps:
    """Receives the model of rounds that this hospital did not take part in."""
    message = yield Receive(OWNER)
    model = variables.from_vectors(state.variables, Vectors(*message["model"]))
    if state.config.federated.batch_norm == "fedbn":
        model = variables.keep_batch_norm(model, state.variables)
    return dataclasses.replace(state.with_digests(message), variables=model), None


def train_round(
    state: Hospital,
    number: int,
    due: Collection[str] = DUE,
    trained: bool = True,
    trainers: tuple[str, ...] | None = None,
) -> Steps:
    """Round `number` (from 1): trains, contributes, receives the new model, evaluates it.

    Args:
      state: of the hospital.
      number: of the round.
      due: purposes of the round's sums that were not revealed yet. A sum that was is final: of its
        round this hospital only makes up what it lacks.
      trained: False if this hospital is not in the sum of updates that was revealed.
      trainers: hospitals in the sum of updates; None: all that take part. The others receive the
        new model and evaluate it.

    Raises:
      ProtocolError: if this hospital refuses a sum.
    """
    start = Quantity(UPDATE, number, state.model)
    trainers = state.hospitals if trainers is None else trainers
    if UPDATE not in due:
        state, result = _make_up(state, number, trained)
    elif state.name in trainers:
        state, result = yield from _contribute_update(state, number, start, trainers)
    else:
        state, result = _make_up(state, number, trained=False)
    state = _take_over(state, result, (yield Receive(OWNER)))
    state.note_final(start)
    judged = hospital_training.score(state, state.variables)
    if VALIDATION in due:
        yield from _contribute_score(state, number, judged)
    report: dict[str, Any] = {
        "loss": result.loss,
        "validation_loss": judged.loss,
        "validation_accuracy": state.learner.task.metrics(judged.summed)["accuracy"],
        "samples": state.size,
        "steps": result.steps,
        "learning_rate": result.learning_rate,
        "stopped": state.watch.stopped,
        **environment.memory_used(),
    }
    if state.guarantee:
        # Exact figures about images stay here.
        exact = state.config.privacy.validation == "exact"
        withheld = ("loss",) if exact else ("loss", "validation_loss", "validation_accuracy")
        report |= {**dict.fromkeys(withheld), **privacy.spent_report(state.guarantee)}
    return state, records.SiteRound(**report)


def _contribute_update(
    state: Hospital, number: int, start: Quantity, trainers: tuple[str, ...]
) -> Steps:
    """Trains when the sum is due, and contributes; returns the state and what it is worth.

    Raises:
      ProtocolError: if it has stopped: it would add nothing, and the sum would be over fewer
        hospitals than it seems.
    """
    if state.watch.stopped:
        raise ProtocolError(
            f"{state.name} refuses to be in the sum of updates of round {number}: it has stopped "
            "training (config.federated.early_stopping), and the sum would hide the others less"
        )
    weight = state.size
    mode, round_name = state.config.privacy.mode, f"round {number}"
    if state.guarantee:
        releases = state.guarantee.mechanisms.of_round(mode, number)
        state.guarantee.ledger.check(releases, round_name)
    trained: list[tuple[Hospital, Trained]] = []

    def update() -> Contribution:
        with environment.memory_kept():
            new, result = hospital_training.train_locally(state, number)
        new = recorded(new, number, result, weight)
        if state.guarantee:  # before the result can be told, if only by an error
            due = state.guarantee.mechanisms.of_update(mode, number)
            state.guarantee.ledger.charge(due, round_name)
        in_sum = dataclasses.replace(new, hospitals=trainers)
        contribution = _contribution(in_sum, result, weight)
        if mode == "client" and not _is_finite(_floats(result.opt_state)):
            result = result._replace(opt_state=optimizer_state(state))
        trained.append((new, to_keep(state.config, result)))
        return contribution

    yield from state.contribute(start, update, trainers, charged=state.guarantee is not None)
    return trained.pop()


def _make_up(state: Hospital, number: int, trained: bool) -> tuple[Hospital, Trained]:
    """The local state after a round whose sum of updates was revealed before.

    The local steps of this hospital, if it is in that sum, are taken once more, and give the same
    optimiser state, batch norms and early stopping; nothing of them leaves it. Private steps are
    not: their noise would be another, and would have to be paid for.
    """
    if not trained or privacy.is_on(state.config):
        rate = local_training.learning_rate(
            state.config.training, (number - 1) / state.config.federated.rounds
        )
        return state, Trained(state.variables, optimizer_state(state), None, 0, rate)
    with environment.memory_kept():
        new, result = hospital_training.train_locally(state, number)
    return recorded(new, number, result, state.size), to_keep(state.config, result)


def _contribute_score(state: Hospital, number: int, judged: local_training.Score) -> Steps:
    """Contributes to the evaluation of the new model what `config.privacy` lets out."""
    guarantee, config = state.guarantee, state.config
    if guarantee and config.privacy.validation == "none":
        return

    def score() -> Contribution:
        if guarantee and config.privacy.validation == "noised":
            n_attending = len(state.hospitals)
            return private_sums.validation_contribution(
                config, guarantee, judged, state.learner.task, number, n_attending
            )
        return Contribution((np.asarray([judged.loss]),), len(state.validation), judged.summed)

    charged = config.privacy.validation == "noised" and guarantee is not None
    yield from state.contribute(Quantity(VALIDATION, number, state.model), score, charged=charged)


def _contribution(state: Hospital, result: Trained, weight: int) -> Contribution:
    """The site's part of the model average, and whether it will train in the next round (1 or 0).

    The sum is over `state.hospitals`; so many add noise to it in mode `client`.

    In the round in which a site decides to stop it still counts; from then on it is in no such sum.

    Raises:
      TrainingError: if the training diverged; never in mode `client`, as that tells of the data.
    """
    params, moments = variables.to_vectors(result.variables)
    if state.config.federated.update_clip:
        rng = np.random.default_rng(secrets.randbits(128))  # not the seed, which others know
        before = variables.flat(state.variables["params"])
        params = perturbation.perturbed(before, params, state.config.federated, rng)
    if state.config.privacy.mode == "client":
        before = variables.flat(state.variables["params"])
        return private_sums.client_update(
            state.config, state.privacy_site, before, params, len(state.hospitals)
        )
    values = (*params, moments)
    if not _is_finite(values):
        raise TrainingError(
            f"{state.name}: the training diverged (weights are not finite numbers); lower "
            f"config.training.learning_rate = {state.config.training.learning_rate:g}"
        )
    if state.config.federated.optimizer_state == "average":
        values += variables.flat(_floats(_with_moments(jax.numpy.sqrt, result.opt_state)))
    return Contribution(values, weight, np.asarray([not state.watch.stopped], np.int64))


def _take_over(state: Hospital, result: Trained, message: Any) -> Hospital:
    """The state with the model that the owner sent, as the batch-norm policy says."""
    new = variables.from_vectors(state.variables, Vectors(*message["model"]))
    if state.config.federated.batch_norm == "fedbn":
        new = variables.keep_batch_norm(new, result.variables)
    opt_state = result.opt_state
    if "optimizer" in message:
        averaged = iter(variables.unflat(_floats(opt_state), message["optimizer"]))
        leaves, structure = jax.tree.flatten(opt_state)
        opt_state = jax.tree.unflatten(
            structure, [next(averaged) if _is_float(leaf) else leaf for leaf in leaves]
        )
        opt_state = _with_moments(jax.numpy.square, opt_state)
    return dataclasses.replace(state.with_digests(message), variables=new, opt_state=opt_state)


def _with_moments(function: Callable[[Any], Any], opt_state: Any) -> Any:
    """`opt_state` with Adam's second moments changed by `function`.

    Their roots are what is averaged: the moments themselves, often below 10^-8, would vanish in the
    fixed point.
    """

    def changed(part: Any) -> Any:
        is_adam = isinstance(part, optax.ScaleByAdamState)
        return part._replace(nu=jax.tree.map(function, part.nu)) if is_adam else part

    return jax.tree.map(
        changed, opt_state, is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState)
    )


def _floats(tree: Any) -> list[Any]:
    """The floating-point leaves of an optimiser's state; step counts stay local."""
    return [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def _is_finite(arrays: Iterable[Any]) -> bool:
    return all(np.isfinite(array).all() for array in arrays)


def _is_float(leaf: Any) -> bool:
    return np.issubdtype(leaf.dtype, np.floating)
