"""Monitoring of a run while it goes on: console, heartbeat, MLflow."""

import contextlib
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from primia_jax.config import ExperimentConfig
from primia_jax.reporting.console import ALL, Console
from primia_jax.watch import heartbeat
from primia_jax.watch.heartbeat import Heartbeat
from primia_jax.watch.tracking import Tracking


class Watch:
    """Hands what happens in a training to everyone who looks at it.

    A context manager around the whole run; `open` begins it once the run's folder is there.
    """

    def __init__(
        self, config: ExperimentConfig, folder: pathlib.Path, stream: TextIO | None = None
    ):
        """`stream` is where the console writes; standard output by default.

        Raises:
          ConfigError: if MLflow is asked for and is not installed.
        """
        self._config, self._folder, self._stream = config, folder, stream
        self._tracking = Tracking(config.runtime.mlflow) if config.runtime.mlflow else None
        self._stack = contextlib.ExitStack()
        self._console: Console | None = None
        self._heartbeat: Heartbeat | None = None
        self._sites: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def open(self, sites: Sequence[str], after_round: int = 0) -> Iterator["Watch"]:
        """Begins, after `after_round` rounds of an earlier process; at the end the console closes.

        Raises:
          StorageError: if the sign of life cannot be written.
          ConfigError: if MLflow does not answer.
        """
        earlier = heartbeat.read(self._folder) or {} if after_round else {}
        self._sites = {name: dict((earlier.get("sites") or {}).get(name, {})) for name in sites}
        config = self._config
        # MLflow goes first: it may fail, and then nothing was begun.
        if self._tracking is not None:
            self._stack.enter_context(self._tracking.run(config, self._folder, bool(after_round)))
        self._heartbeat = self._stack.enter_context(Heartbeat(self._folder, "training"))
        self._heartbeat.update(
            name=config.name,
            mode=config.federated.mode,
            round=after_round,
            rounds=config.federated.rounds,
            sites=self._sites,
        )
        self._console = Console(config.federated.rounds, sites, self._stream)
        with self._console:
            yield self

    def message(self, text: str) -> None:
        """Shows one line of text that stays."""
        if self._console is not None:
            self._console.message(text)

    def not_there(self, absent: Mapping[str, str], number: int) -> None:
        """Says which sites are not there as round `number` begins, and why."""
        for name, reason in absent.items():
            self.message(f"{name} is not there yet, round {number} goes without it: {reason}")
        if self._heartbeat is not None:
            self._heartbeat.update(absent=dict(absent))

    def stage(self, name: str) -> None:
        """Says what the run does now."""
        if self._console is not None:
            self._console.stage(name)
        if self._heartbeat is not None:
            self._heartbeat.stage(name)

    def round(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Shows a finished round: its lines of rounds.jsonl."""
        if self._console is not None:
            self._console.round(lines)
        now, number = time.time(), max((line["round"] for line in lines), default=0)
        for line in lines:
            if line["site"] != ALL:
                self._sites[line["site"]] = {"round": number, "heard": now}
        if self._heartbeat is not None:
            self._heartbeat.update(round=number, round_ended=now, sites=self._sites)
        if self._tracking is not None and (problem := self._tracking.round(lines)):
            self.message(problem)

    def results(self, metrics: Mapping[str, Any], files: Sequence[pathlib.Path]) -> None:
        """Hands over what the run found, and the files that tell of it."""
        if self._tracking is not None and (problem := self._tracking.results(metrics, files)):
            self.message(problem)
