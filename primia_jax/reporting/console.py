"""Progress of a training: a live table on a terminal, plain lines in a pipe."""

import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

import rich.box
import rich.console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from primia_jax.evaluation.record import score

ALL = "all"  # the site name of a round's summary line
_MAX_ROWS = 20
_ETA_ROUNDS = 5  # the estimate follows the median of this many latest rounds
_NAME_WIDTH = 18
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Console:
    """Shows the progress of a training, as a context manager.

    On a terminal it keeps one live table of the sites; messages scroll above it. In a pipe, or
    outside the `with` block, it prints one line a round of the form
    `round 3/20  loss 0.412  val MCC 0.71  12.3 s  ETA 3 min  sent 90 MB`, where a value that is not
    known is `-`, and a kept round ends in `  best`. Stages are not printed there.
    """

    def __init__(
        self, total_rounds: int, sites: Sequence[str], stream: TextIO | None = None
    ) -> None:
        """`stream` is standard output by default; it decides between the table and the lines."""
        self._stream = sys.stdout if stream is None else stream
        self._total = total_rounds
        self._sites = list(sites)
        self._latest: dict[str, Mapping[str, Any]] = {}
        self._sent = dict.fromkeys(self._sites, 0.0)
        self._total_sent = 0.0
        self._durations: list[float] = []
        self._round = 0
        self._summary: Mapping[str, Any] = {}
        self._best: float | None = None
        self._stage = "waiting"
        self._started = self._stage_started = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> "Console":
        self._started = self._stage_started = time.monotonic()
        terminal = rich.console.Console(file=self._stream)
        if self._stream.isatty() and not terminal.is_dumb_terminal:
            self._live = Live(console=terminal, get_renderable=self._screen, refresh_per_second=1)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self.stage("finished" if kind is None else "stopped")
            self._live.stop()
            self._live = None

    def message(self, text: str) -> None:
        """Shows one line of text that stays."""
        if self._live is not None:
            self._live.console.print(Text(text))
        else:
            self._write(text)

    def stage(self, name: str) -> None:
        """Says what the sites are doing now; only the live table shows it."""
        self._stage, self._stage_started = name, time.monotonic()
        self._refresh()

    def round(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Shows a finished round: its lines of rounds.jsonl, one a site and one for all of them.

        Rounds count from 1. Values may be absent or None; without a line for all sites, loss,
        seconds and bytes are put together from those of the sites.
        """
        sites = [line for line in lines if line.get("site") != ALL]
        summary = next((dict(line) for line in lines if line.get("site") == ALL), {})
        for line in sites:
            site = str(line.get("site"))
            self._latest[site] = line
            self._sent[site] = self._sent.get(site, 0.0) + (line.get("bytes_sent") or 0)
        if summary.get("loss") is None:
            summary["loss"] = _mean_loss(sites)
        if summary.get("seconds") is None:
            summary["seconds"] = max((v for v in _values(sites, "seconds")), default=None)
        if summary.get("bytes_sent") is None and _values(sites, "bytes_sent"):
            summary["bytes_sent"] = sum(_values(sites, "bytes_sent"))
        if summary["seconds"] is not None:
            self._durations.append(summary["seconds"])
        self._total_sent += summary.get("bytes_sent") or 0
        self._round = next(
            (line["round"] for line in lines if line.get("round") is not None), self._round + 1
        )
        self._summary = summary
        value = score(summary).value
        if value is not None and (self._best is None or value > self._best):
            self._best = value
        if self._live is not None:
            self._refresh()
        else:
            self._write(self._line(summary))

    def _line(self, summary: Mapping[str, Any]) -> str:
        parts = [
            f"round {self._round}/{self._total}",
            f"loss {_number(summary['loss'], 3)}",
            f"val {score(summary).name} {_number(score(summary).value, 2)}",
            f"{_number(summary['seconds'], 1)} s",
            f"ETA {self._eta()}",
            f"sent {format_bytes(summary.get('bytes_sent'))}",
        ]
        spent = _values(list(self._latest.values()), "epsilon")
        if spent:
            parts.append(f"ε {max(spent):.2f}")
        if summary.get("best"):
            parts.append("best")
        return "  ".join(parts)

    def _eta(self) -> str:
        if not self._durations:
            return "-"
        # The first round compiles, so it tells little of the others.
        recent = self._durations[1:][-_ETA_ROUNDS:] or self._durations
        return format_duration(statistics.median(recent) * max(0, self._total - self._round))

    def _screen(self) -> rich.console.Group:
        """The live table between its title and totals, drawn at every refresh: its clocks move."""
        now = time.monotonic()
        title = [
            f"round {self._round}/{self._total}",
            f"validation {score(self._summary).name} {_number(score(self._summary).value, 3)}"
            f" (highest so far {_number(self._best, 3)})",
        ]
        footer = [
            f"{self._stage} for {format_duration(now - self._stage_started)}",
            f"elapsed {format_duration(now - self._started)}",
            f"ETA {self._eta()}",
        ]
        totals = [f"sent in all {format_bytes(self._total_sent)}"]
        memory = total_memory(self._latest.values())
        if memory is not None:
            totals.append(f"RSS in all {format_bytes(memory)}")
        private = any(line.get("epsilon") is not None for line in self._latest.values())
        heads = ["loss", "val.\nloss", "val.\nacc.", "samples", "sent", "RSS", *["ε"] * private]
        table = narrow_table(["site", "stage"], heads)
        for site in self._sites[:_MAX_ROWS]:
            line = self._latest.get(site, {})
            samples = line.get("samples")
            table.add_row(
                Text(site),
                Text("stopped early" if line.get("stopped") else self._stage),
                _number(line.get("loss"), 3),
                _number(line.get("validation_loss"), 3),
                _number(line.get("validation_accuracy"), 3),
                "-" if samples is None else f"{samples:,}",
                format_bytes(self._sent[site]),
                format_bytes(line.get("rss_bytes")),
                *[_number(line.get("epsilon"), 2)] * private,
            )
        if len(self._sites) > _MAX_ROWS:
            table.add_row(f"and {len(self._sites) - _MAX_ROWS} more", *[""] * (len(heads) + 1))
        return rich.console.Group(
            Text("   ".join(title), style="bold"),
            table,
            Text("   ".join(footer), style="italic"),
            Text("   ".join(totals), style="italic"),
        )

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _write(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def narrow_table(text_heads: Sequence[str], number_heads: Sequence[str]) -> Table:
    """An empty table without frames, whose rows fit into 80 columns; long names are cut short."""
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in text_heads:
        table.add_column(name, no_wrap=True, max_width=_NAME_WIDTH, overflow="ellipsis")
    for name in number_heads:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def total_memory(lines: Iterable[Mapping[str, Any]]) -> float | None:
    """Bytes held by all that tell it; sites that share a process count once. None if none does."""
    known = {
        line.get("process") or line.get("site"): line["rss_bytes"]
        for line in lines
        if line.get("rss_bytes") is not None
    }
    return sum(known.values()) if known else None


def format_bytes(count: float | None) -> str:
    """`count` bytes in decimal units, such as `90 MB` or `1.2 GB`; `-` for None."""
    if count is None:
        return "-"
    value = float(count)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    digits = 1 if value < 9.95 and unit != "B" else 0
    return f"{value:.{digits}f} {unit}"


def format_duration(seconds: float | None) -> str:
    """`seconds` rounded for reading: `48 s`, `3 min`, `2 h 05 min`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _values(lines: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [line[key] for line in lines if line.get(key) is not None]


def _mean_loss(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean training loss of a sample, as far as the sites tell it."""
    known = [line for line in lines if line.get("loss") is not None]
    weights = [line.get("samples") or 0 for line in known]
    if not known:
        return None
    if not all(weights):
        return statistics.fmean(line["loss"] for line in known)
    return statistics.fmean((line["loss"] for line in known), weights)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
