"""A hospital: its state, and the party programs that it runs.

The programs are the functions `set_up`, `catch_up` and `train_round`, and those of
`hospital_files`, which open, save and restore what lies in its folder. Each takes the state first
and ends with (new state, report). The report, one of `records`, goes to whoever operates the run
(its console and rounds.jsonl), never to the model owner.
"""

import dataclasses
import secrets
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from primia_jax import environment, tasks
from primia_jax.config import ExperimentConfig
from primia_jax.core.identity import Credentials
from primia_jax.data import Dataset
from primia_jax.errors import ProtocolError, TrainingError
from primia_jax.federated import (
    local_training,
    perturbation,
    privacy,
    privacy_units,
    private_training,
    quantities,
    recording,
    records,
    rules,
    sealing,
    statistics,
    sums,
    variables,
)
from primia_jax.federated.aggregation import OWNER, PROVIDER, Contribution, Making
from primia_jax.federated.early_stopping import RoundWatch, SiteWatch
from primia_jax.federated.local_training import Learner, Statistics, Step
from primia_jax.federated.quantities import DUE, STATISTICS, UPDATE, VALIDATION, Quantity
from primia_jax.federated.sum_journal import HospitalJournal
from primia_jax.federated.variables import Vectors
from primia_jax.runtime import Receive, Steps


@dataclasses.dataclass(frozen=True)
class Hospital:
    """What one hospital holds. The data and everything derived from it alone stay here."""

    name: str
    index: int
    roster: tuple[str, ...]  # all hospitals of the run, as fixed at its beginning
    hospitals: tuple[str, ...]  # those that take part at present
    config: ExperimentConfig
    train: Dataset
    validation: Dataset
    learner: Learner
    credentials: Credentials | None = None  # where sums are secure
    keys: sealing.KeyRing | None = None
    journal: HospitalJournal | None = None  # of secure sums
    statistics: Statistics | None = None
    variables: Any = None  # the global model; under FedBN with this site's batch norms
    model: str = ""  # digest of the global model, as the owner sent it, where sums are secure
    moments: str = ""  # likewise of the moments of its batch norms
    opt_state: Any = None  # None: as at the start
    watch: SiteWatch = SiteWatch()
    guarantee: privacy.Site | None = None  # where config.privacy asks for one
    private_learner: private_training.PrivateLearner | None = None  # in its mode `record`
    truth: recording.Truth | None = None  # of the round not saved yet, where it is recorded

    @property
    def size(self) -> int:
        """Training images that this hospital counts for; patients, where those are protected."""
        units = self.guarantee.train if self.guarantee else None
        return len(self.train) if units is None else len(units)

    @property
    def validation_size(self) -> int:
        """Validation images that it counts for, or patients."""
        units = self.guarantee.validation if self.guarantee else None
        return len(self.validation) if units is None else len(units)

    def contribute(
        self,
        quantity: Quantity,
        make: Making,
        participants: tuple[str, ...] | None = None,
        charged: bool = False,
    ) -> Steps:
        """Contributes to one sum, or refuses (`sums`).

        Args:
          quantity: what is summed.
          make: makes the contribution, called when it is due.
          participants: hospitals in the sum; None: all that take part at present.
          charged: as in `sums.contribute`.
        """
        yield from sums.contribute(
            self.name,
            self.keys,
            self.journal,
            self.config,
            self.hospitals if participants is None else participants,
            self.roster,
            quantity,
            make,
            charged,
            "" if quantity.purpose == STATISTICS else self._start(),
        )

    def with_digests(self, message: Any) -> "Hospital":
        """The state with digests of the model in `message`; in the clear the state as it is."""
        if self.journal is None:
            return self
        vectors = Vectors(*message["model"])
        return dataclasses.replace(
            self,
            model=quantities.digest_of_vectors(vectors),
            moments=quantities.digest_of_arrays(vectors.moments),
        )

    def _start(self) -> str:
        """Digest of what the owner sent beside the parameters, the same for all in a sum."""
        if self.journal is None:
            return ""
        return self.moments + quantities.digest_of_arrays(tuple(self.statistics or ()))

    def note_final(self, quantity: Quantity) -> None:
        """Notes that the result of a sum came back."""
        if self.journal is not None:
            self.journal.note_final(quantity)


def make_hospital(
    config: ExperimentConfig,
    hospitals: tuple[str, ...],
    index: int,
    train: Dataset,
    validation: Dataset,
) -> Hospital:
    """The state of hospital number `index` before anything was exchanged."""
    mu = rules.make(config.federated).proximal_mu
    task = tasks.make(config, tasks.classes(config, train))
    learner = local_training.make_learner(config, task, mu)
    return Hospital(
        hospitals[index], index, hospitals, hospitals, config, train, validation, learner
    )


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
        guarantee = _guarantee(state)
        yield from state.contribute(
            quantity,
            lambda: privacy.statistics_contribution(guarantee, state.train, state.learner.task),
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
    judged = _score(state, state.variables)
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
        # What tells of images exactly stays here.
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
    trained: list[tuple[Hospital, _Trained]] = []

    def update() -> Contribution:
        with environment.memory_kept():
            new, result = _train_locally(state, number)
        new = _recorded(new, number, result, weight)
        if state.guarantee:  # before the result can be told, if only by an error
            due = state.guarantee.mechanisms.of_update(mode, number)
            state.guarantee.ledger.charge(due, round_name)
        in_sum = dataclasses.replace(new, hospitals=trainers)
        contribution = _contribution(in_sum, result, weight)
        if mode == "client" and not _is_finite(_floats(result.opt_state)):
            result = result._replace(opt_state=optimizer_state(state))
        trained.append((new, _to_keep(state.config, result)))
        return contribution

    yield from state.contribute(start, update, trainers, charged=state.guarantee is not None)
    return trained.pop()


def _make_up(state: Hospital, number: int, trained: bool) -> tuple[Hospital, "_Trained"]:
    """The local state after a round whose sum of updates was revealed before.

    The local steps of this hospital, if it is in that sum, are taken once more, and give the same
    optimiser state, batch norms and early stopping; nothing of them leaves it. Private steps are
    not: their noise would be another, and would have to be paid for.
    """
    if not trained or privacy.is_on(state.config):
        rate = local_training.learning_rate(
            state.config.training, (number - 1) / state.config.federated.rounds
        )
        return state, _Trained(state.variables, optimizer_state(state), None, 0, rate)
    with environment.memory_kept():
        new, result = _train_locally(state, number)
    return _recorded(new, number, result, state.size), _to_keep(state.config, result)


def _recorded(state: Hospital, number: int, result: "_Trained", weight: int) -> Hospital:
    """The state with what its local steps were given, where the round is recorded."""
    if not (result.steps and recording.wanted(state.config.federated, number)):
        return state
    return dataclasses.replace(state, truth=_entered(state, number, result, weight))


def _contribute_score(state: Hospital, number: int, judged: local_training.Score) -> Steps:
    """Contributes to the evaluation of the new model what `config.privacy` lets out."""
    guarantee, config = state.guarantee, state.config
    if guarantee and config.privacy.validation == "none":
        return

    def score() -> Contribution:
        if guarantee and config.privacy.validation == "noised":
            n_attending = len(state.hospitals)
            return privacy.validation_contribution(
                config, guarantee, judged, state.learner.task, number, n_attending
            )
        return Contribution((np.asarray([judged.loss]),), len(state.validation), judged.summed)

    charged = config.privacy.validation == "noised" and guarantee is not None
    yield from state.contribute(Quantity(VALIDATION, number, state.model), score, charged=charged)


def _guarantee(state: Hospital) -> privacy.Site:
    assert state.guarantee is not None, "the ledger was not opened"
    return state.guarantee


class _Trained(NamedTuple):
    """What local training gives."""

    variables: Any  # None once they are not needed any more
    opt_state: Any  # None likewise
    loss: float | None
    steps: int
    learning_rate: float
    samples: tuple[privacy_units.Sample, ...] = ()  # drawn for each step by private training


def optimizer_state(state: Hospital) -> Any:
    """That the next round begins with."""
    if state.opt_state is None:
        return state.learner.optimizer.init(state.variables["params"])
    return state.opt_state


def _to_keep(config: ExperimentConfig, result: _Trained) -> _Trained:
    """`result` without what is as long as the network and needed for the contribution only."""
    fed = config.federated
    return result._replace(
        variables=result.variables if fed.batch_norm == "fedbn" else None,
        opt_state=result.opt_state if fed.optimizer_state != "reset" else None,
    )


def _train_locally(state: Hospital, number: int) -> tuple[Hospital, _Trained]:
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
            watch = watch.seen(_score(state, current).loss, _copy((current, opt_state)))
            if watch.exhausted(stopping):
                break
    if stopping.enabled:
        if watch.best is None:  # fewer steps than a check, or all losses NaN
            watch = watch.seen(_score(state, current).loss, (current, opt_state))
        if watch.best is not None:
            current, opt_state = watch.best
        site = state.watch.after_round(watch.best_loss, stopping)
        state = dataclasses.replace(state, watch=site)
    loss = float(np.mean([np.asarray(loss) for loss in losses], dtype=np.float64))
    return state, _Trained(current, opt_state, loss, len(losses), rate)


def _train_privately(state: Hospital, number: int, opt_state: Any) -> _Trained:
    """The local steps of a round in mode `record`."""
    config, release = state.config, _guarantee(state).mechanisms.training
    units = _guarantee(state).train
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
    return _Trained(model, opt_state, None, release.steps, last, tuple(samples))


def _place(number: int, site: int, step: int) -> Step:
    """Where a local step stands, for what is drawn in it."""
    return Step(np.uint32(number), np.uint32(site), np.uint32(step))


def _entered(state: Hospital, number: int, trained: _Trained, weight: int) -> recording.Truth:
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


def steps_per_round(config: ExperimentConfig, n_train: int) -> int:
    """Local steps between two synchronisations at a site with `n_train` images or patients."""
    every = config.federated.sync_every
    if config.federated.sync_unit == "steps":
        return every
    return every * local_training.steps_per_epoch(n_train, config.training.batch_size)


def _contribution(state: Hospital, result: _Trained, weight: int) -> Contribution:
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
        return privacy.client_update(
            state.config, _guarantee(state), before, params, len(state.hospitals)
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


def _score(state: Hospital, model: Any) -> local_training.Score:
    assert state.statistics is not None, "judged before set-up"
    return local_training.score(
        state.learner, model, state.validation, state.statistics, state.config.evaluation.batch_size
    )


def _copy(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), tree)


def _take_over(state: Hospital, result: _Trained, message: Any) -> Hospital:
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
