"""Status of the run in a folder, from its files alone, as `--mode=status` shows it.

It may be asked from any process that can read the folder, while the run goes on or afterwards.
"""

import contextlib
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from primia_jax.errors import CheckpointError
from primia_jax.evaluation.record import ROUNDS, read_rounds, score
from primia_jax.reporting.console import (
    ALL,
    format_bytes,
    format_duration,
    narrow_table,
    total_memory,
)
from primia_jax.watch import heartbeat

_ETA_ROUNDS = 5  # the estimate follows the median of this many latest rounds
DIED = "died"  # it says that it runs, and does not
_STATES = {
    heartbeat.RUNNING: "running",
    heartbeat.FINISHED: "finished",
    heartbeat.FAILED: "failed",
    heartbeat.INTERRUPTED: "interrupted; go on with --resume",
    DIED: "dead: its process is gone; go on with --resume",
}


@dataclasses.dataclass(frozen=True)
class Status:
    """Status of a run."""

    folder: pathlib.Path
    state: str  # one of heartbeat's states, or DIED
    fields: Mapping[str, Any]  # of status.json
    rounds: Sequence[Mapping[str, Any]]  # the lines of rounds.jsonl
    trials: Mapping[int, "Status"]  # of a search: those that run
    now: float

    @property
    def well(self) -> bool:
        """True if it goes on, or came to its end."""
        return self.state in (heartbeat.RUNNING, heartbeat.FINISHED)

    def lines(self) -> list[str]:
        """The state of the whole in a few lines."""
        fields = self.fields
        name = f" “{fields['name']}”" if fields.get("name") else ""
        first = f"{fields.get('kind')}{name} in {self.folder}: {_STATES[self.state]}"
        if self.state == heartbeat.RUNNING:
            first += f" (process {fields.get('pid')} on {fields.get('host')})"
        if fields.get("message"):
            first += f": {fields['message']}"
        body = self._search_lines() if fields.get("kind") == "search" else self._training_lines()
        return [first, *body]

    def _training_lines(self) -> list[str]:
        fields, running = self.fields, self.state == heartbeat.RUNNING
        parts = [f"round {fields.get('round', 0)} of {fields.get('rounds', '?')} complete"]
        if running:
            parts.append(self._stage())
            parts.append(f"ETA {format_duration(self.eta())}")
        elif self.state == DIED:
            parts.append(f"last heard {_ago(self.now, fields.get('heard'))}, {fields.get('stage')}")
        summaries = self._summaries()
        if summaries:
            sent = sum(line.get("bytes_sent") or 0 for line in summaries)
            parts.append(f"sent {format_bytes(sent)}")
        latest = {line.get("site"): line for line in self.rounds}
        if (memory := total_memory(latest.values())) is not None:
            parts.append(f"RSS {format_bytes(memory)}")
        lines = ["; ".join(parts)]
        if summaries:
            for name, reason in (summaries[-1].get("absent") or {}).items():
                lines.append(f"{name} took no part in round {summaries[-1]['round']}: {reason}")
        else:
            for name, reason in (fields.get("absent") or {}).items():
                lines.append(f"{name} is not there yet: {reason}")
        kept = [line for line in summaries if line.get("best")]
        if kept:
            lines.append(
                f"best: round {kept[-1]['round']}, validation {score(kept[-1]).name} "
                f"{_score(score(kept[-1]).value)}; latest: round {summaries[-1]['round']}, "
                f"{_score(score(summaries[-1]).value)}"
            )
        return lines

    def _search_lines(self) -> list[str]:
        fields, counts = self.fields, self.fields.get("counts") or {}
        ended = sum(count for name, count in counts.items() if name != "running")
        each = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "running")
        line = f"{ended} of {fields.get('trials', '?')} trials ended ({each})"
        if self.state == heartbeat.RUNNING:
            line += f"; {self._stage()}; ETA {format_duration(self.eta())}"
        elif self.state == DIED:
            line += f"; last heard {_ago(self.now, fields.get('heard'))}"
        best = fields.get("best")
        if not best:
            return [line, "best: none so far"]
        return [line, f"best: trial {best['number']}, validation MCC {_score(best['mcc'])}"]

    def _stage(self) -> str:
        since = self.fields.get("stage_since") or self.now
        return f"{self.fields.get('stage')} for {format_duration(max(0.0, self.now - since))}"

    def _summaries(self) -> list[Mapping[str, Any]]:
        return [line for line in self.rounds if line.get("site") == ALL]

    def eta(self) -> float | None:
        """Seconds to the end, by the median of the latest rounds or of all trials."""
        fields = self.fields
        if fields.get("kind") == "search":
            each, counts = fields.get("median_seconds"), fields.get("counts") or {}
            left = (fields.get("trials") or 0) - sum(counts.values()) + counts.get("running", 0)
            return (
                None if each is None else each * -(-max(0, left) // (fields.get("parallel") or 1))
            )
        seconds = [line["seconds"] for line in self._summaries() if line.get("seconds") is not None]
        if not seconds:
            return None
        # The first round compiles, so it tells little of the others.
        each = statistics.median(seconds[1:][-_ETA_ROUNDS:] or seconds)
        left = (fields.get("rounds") or 0) - (fields.get("round") or 0)
        spent = self.now - (fields.get("round_ended") or self.now)
        return max(0.0, each * max(0, left) - min(spent, each))

    def table(self) -> Table | None:
        """By site, or of a search by running trial; None where nothing is known."""
        if self.fields.get("kind") == "search":
            return self._trials_table() if self.trials else None
        return self._sites_table() if self.fields.get("sites") else None

    def _sites_table(self) -> Table:
        of_site: dict[str, list[Mapping[str, Any]]] = {}
        for line in self.rounds:
            of_site.setdefault(str(line.get("site")), []).append(line)
        private = any(line.get("epsilon") is not None for line in self.rounds)
        heads = [
            "loss",
            "val.\nloss",
            "val.\nacc.",
            "samples",
            "sent",
            "RSS",
            "round",
            "last\nheard",
        ]
        table = narrow_table(["site"], [*heads, *(["ε"] if private else [])])
        for site, about in self.fields["sites"].items():
            lines = of_site.get(site, [{}])
            last = lines[-1]
            sent = [line["bytes_sent"] for line in lines if line.get("bytes_sent") is not None]
            samples = last.get("samples")
            row = [
                site,
                _score(last.get("loss")),
                _score(last.get("validation_loss")),
                _score(last.get("validation_accuracy")),
                "-" if samples is None else f"{samples:,}",
                format_bytes(sum(sent) if sent else None),
                format_bytes(last.get("rss_bytes")),
                str(about.get("round") or last.get("round") or "-"),
                _since(self.now, about.get("heard")),
            ]
            if private:
                epsilon = last.get("epsilon")
                row.append("-" if epsilon is None else f"{epsilon:.2f}")
            table.add_row(*map(Text, row))
        return table

    def _trials_table(self) -> Table:
        table = narrow_table(["trial"], ["round", "val. MCC", "highest", "ETA", "stage"])
        for number, trial in sorted(self.trials.items()):
            scores = [v for line in trial._summaries() if (v := score(line).value) is not None]
            row = [
                str(number),
                f"{trial.fields.get('round', 0)}/{trial.fields.get('rounds', '?')}",
                _score(scores[-1] if scores else None),
                _score(max(scores, default=None)),
                format_duration(trial.eta()),
                str(trial.fields.get("stage")),
            ]
            table.add_row(*map(Text, row))
        return table


def listing(folder: pathlib.Path, now: float | None = None) -> list[str]:
    """A line for each run in `folder` or one level or two below it, the latest heard of first.

    Raises:
      CheckpointError: if there are none.
    """
    runs = []
    for pattern in (heartbeat.STATUS, f"*/{heartbeat.STATUS}", f"*/*/{heartbeat.STATUS}"):
        for path in folder.glob(pattern):
            with contextlib.suppress(CheckpointError):
                runs.append(read(path.parent, now))
    if not runs:
        raise CheckpointError(
            f"no run in {folder} or in its folders; name one: --mode=status --workdir=FOLDER"
        )
    runs.sort(key=lambda run: -(run.fields.get("heard") or 0))
    return [run.lines()[0] for run in runs]


def read(folder: pathlib.Path, now: float | None = None) -> Status:
    """Reads the status of the run in `folder` at `now` (seconds since 1970).

    Raises:
      CheckpointError: if no run was begun there.
    """
    now = time.time() if now is None else now
    fields = heartbeat.read(folder)
    if fields is None:
        raise CheckpointError(
            f"no run in {folder}: it has no {heartbeat.STATUS}; name the --workdir of a training "
            "or a search"
        )
    state = fields.get("state")
    silent = state == heartbeat.RUNNING and not heartbeat.alive(fields, now)
    if state not in _STATES or silent:
        state = DIED
    trials = {}
    for number in fields.get("running") or () if state == heartbeat.RUNNING else ():
        path = folder / "trials" / f"{number:04d}"
        if heartbeat.read(path) is not None:
            trials[number] = read(path, now)
    return Status(folder, state, fields, read_rounds(folder / ROUNDS), trials, now)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _ago(now: float, then: float | None) -> str:
    return "-" if then is None else f"{_since(now, then)} ago"


def _since(now: float, then: float | None) -> str:
    return format_duration(None if then is None else max(0.0, now - then))
