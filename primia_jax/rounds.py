"""The rounds of a training: each trained, begun again where parties are lost, saved and told of."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from primia_jax.errors import PartyLost, TrainingError, UserError
from primia_jax.federated import checkpoints, privacy_statement, safety
from primia_jax.federated.aggregation import OWNER
from primia_jax.federated.checkpoints import Progress
from primia_jax.federated.federation import Federation
from primia_jax.runtime import Trace
from primia_jax.tasks import Task
from primia_jax.watch.watch import Watch
from primia_jax.workdir import Workdir, write_scalars


class Phases:
    """Seconds and bytes by phase of a run."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time spent within to the phase `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._of(name)["seconds"] += time.perf_counter() - start

    def add_bytes(self, name: str, trace: Trace) -> None:
        """Adds what a run's messages held to the phase `name`."""
        self._of(name)["bytes"] += trace.bytes_sent

    def _of(self, name: str) -> dict[str, float]:
        return self.phases.setdefault(name, {"seconds": 0.0, "bytes": 0})


def train_rounds(
    federation: Federation,
    task: Task,
    directory: Workdir,
    console: Watch,
    clock: Phases,
    progress: Progress,
    on_round: Callable[[Mapping[str, Any]], bool] | None,
) -> Progress:
    """Trains from where `progress` is to the end, or until `on_round` gives False."""
    console.not_there(federation.absent, progress.round + 1)
    console.stage("set-up")
    with clock("set-up"):
        reports, trace = _set_up(federation, console, progress.round)
    clock.add_bytes("set-up", trace)
    if safety.is_secure(federation.config):
        console.message(safety.counts_statement(federation.config))
    for text in privacy_statement.opening(federation.config, reports):
        console.message(text)
    with directory.tensorboard(progress.round + 1) as writer:
        for number in range(progress.round + 1, federation.config.federated.rounds + 1):
            reports, trace, seconds = _round(federation, console, clock, number)
            clock.add_bytes("rounds", trace)
            owner = reports[OWNER]
            progress = Progress(number, owner.best_round, owner.finished)
            lines = _round_lines(number, federation, task, reports, trace, seconds)
            with clock("checkpoints"):
                directory.append_rounds(lines)
                checkpoints.commit(federation.owner_folder, progress)
            write_scalars(writer, lines)
            console.round(lines)
            if progress.finished:
                console.message(f"too few sites go on training; it ends after round {number}")
                break
            if on_round is not None and not on_round(lines[-1]):
                console.message(f"ended after round {number}, as was asked for")
                break
    return progress


def _set_up(
    federation: Federation, console: Watch, after_round: int
) -> tuple[dict[str, Any], Trace]:
    """The set-up, begun again where parties are lost on the way."""
    attempts = federation.config.runtime.retries
    while True:
        try:
            return federation.set_up(after_round)
        except PartyLost as error:
            if not attempts:
                raise
            attempts -= 1
            console.message(f"the set-up is begun again: {federation.mend(error)}")


def _round(
    federation: Federation, console: Watch, clock: Phases, number: int
) -> tuple[dict[str, Any], Trace, float]:
    """Trains round `number` and has it saved; begins it again where parties are lost on the way.

    Returns:
      the reports, the trace, and the seconds of the training that succeeded.

    Raises:
      UserError: what ended the round, if too few hospitals are left or it fails too often.
    """
    failure: UserError | None = None
    attempts = federation.config.runtime.retries + 1
    while True:
        attempts -= 1
        try:
            if failure is not None:
                mended = federation.recover(failure, number - 1)
                console.message(f"round {number} is begun again: {mended}")
            elif mended := federation.readmit(number - 1):
                console.message(f"round {number}: {mended}")
            console.stage("training")
            with clock("rounds"):
                start = time.perf_counter()
                reports, trace = federation.train_round(number)
                seconds = time.perf_counter() - start
            console.stage("saving")
            with clock("checkpoints"):
                federation.save(number)
            return reports, trace, seconds
        except (PartyLost, TrainingError) as error:
            if error is failure or not attempts:
                raise
            failure = error


def _round_lines(
    number: int,
    federation: Federation,
    task: Task,
    reports: dict[str, Any],
    trace: Trace,
    seconds: float,
) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl: one a site, and one for all."""
    lines = []
    for name in federation.hospitals:
        if name not in reports:  # took no part
            continue
        cost = trace.parties[name]
        lines.append(
            {
                "round": number,
                "site": name,
                **reports[name].line(),
                "seconds": cost.seconds,
                "compute_seconds": cost.compute_seconds,
                "bytes_sent": cost.bytes_sent,
            }
        )
    owner = reports[OWNER]
    metrics = None if owner.validation is None else owner.validation.metrics(task)
    lines.append(
        {
            "round": number,
            "site": "all",
            "validation": metrics,
            "score": scored(task, metrics),
            "best": owner.best_round == number,
            "samples": owner.samples,
            "seconds": seconds,
            "compute_seconds": trace.compute_seconds,
            "bytes_sent": trace.bytes_sent,
            "round_trips": trace.round_trips,
            "absent": {**federation.absent, **trace.lost},
        }
    )
    return lines


def scored(task: Task, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Name and value of the score that rounds are compared by."""
    return {"name": task.score.name, "value": (metrics or {}).get(task.score.key)}


def absences(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Warnings that name the hospitals without which rounds went on."""
    rounds: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    for line in lines:
        for name, reason in line.get("absent", {}).items():
            rounds.setdefault(name, []).append(line["round"])
            reasons[name] = reason
    return [
        f"{name} took no part in {len(numbers)} rounds, from {numbers[0]} on: {reasons[name]}"
        for name, numbers in rounds.items()
    ]
