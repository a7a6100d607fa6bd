"""The figures of a latency study, the statistics on them, and the file that keeps them."""

import dataclasses
import os
import pathlib
import typing
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from primia_jax.core.storage import parse_json, write_json
from primia_jax.errors import DataError

BASELINE = "securenn"
REFERENCE_MBPS = 1000.0
_FORMAT = 1  # of study.json

Record = TypeVar("Record")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One protocol on one network under one kind of link.

    Attributes:
      network: its name.
      protocol: its name.
      latency_ms: one way.
      bandwidth_mbps: in Mbit/s; 0 for unlimited.
      seconds: of the online phase, one a repetition: the critical path by virtual clocks.
      offline_seconds: likewise, of dealing what one run needs.
      online_bytes: of all messages of a run.
      key_bytes: that the party with most receives for one run before there is an image.
      round_trips: one-way messages on the critical path, halved.
    """

    network: str
    protocol: str
    latency_ms: float
    bandwidth_mbps: float
    seconds: tuple[float, ...]
    offline_seconds: tuple[float, ...]
    online_bytes: int
    key_bytes: int
    round_trips: float

    @property
    def mean(self) -> float:
        """Mean of `seconds`."""
        return float(np.mean(self.seconds))

    @property
    def deviation(self) -> float:
        """Standard deviation of `seconds` (n - 1)."""
        return float(np.std(self.seconds, ddof=1))

    @property
    def offline_mean(self) -> float:
        """Mean of `offline_seconds`."""
        return float(np.mean(self.offline_seconds))


@dataclasses.dataclass(frozen=True)
class Layer:
    """The cost of one stage of a protocol's online phase.

    Attributes:
      network: its name.
      protocol: its name.
      name: of the stage.
      seconds: computing by party, the mean over the repetitions.
      n_bytes: sent in it.
      messages: sent in it.
    """

    network: str
    protocol: str
    name: str
    seconds: dict[str, float]
    n_bytes: int
    messages: int


@dataclasses.dataclass(frozen=True)
class Session:
    """The set-up of a protocol on a network, and the precision of its results.

    Attributes:
      network: its name.
      protocol: its name.
      set_up_seconds: computing of all parties, compiling included.
      set_up_bytes: of all messages.
      error: largest difference of an output from the network's in float32, over the largest
        output; over all repetitions.
      warnings: of the protocol about this network.
    """

    network: str
    protocol: str
    set_up_seconds: float
    set_up_bytes: int
    error: float
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Validation:
    """The same parties as real actors with real delays, beside the virtual clocks.

    Attributes:
      network: its name.
      protocol: its name.
      latency_ms: one way.
      bandwidth_mbps: in Mbit/s; 0 for unlimited.
      wall_seconds: of the online phase over actors, one a run.
      virtual_seconds: by the virtual clocks, one a repetition.
    """

    network: str
    protocol: str
    latency_ms: float
    bandwidth_mbps: float
    wall_seconds: tuple[float, ...]
    virtual_seconds: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Wall-clock over virtual seconds, of the means."""
        return float(np.mean(self.wall_seconds) / np.mean(self.virtual_seconds))

    def line(self) -> dict[str, Any]:
        """One JSON line."""
        return {
            "benchmark": "validation",
            "protocol": self.protocol,
            "network": self.network,
            "latency_ms": self.latency_ms,
            "bandwidth_mbps": self.bandwidth_mbps,
            "wall_seconds": round(float(np.mean(self.wall_seconds)), 4),
            "virtual_seconds": round(float(np.mean(self.virtual_seconds)), 4),
            "wall_over_virtual": round(self.ratio, 3),
        }


class Comparison(NamedTuple):
    """A protocol against the baseline; both are None for the baseline itself or without one."""

    reduction_percent: float | None  # positive: faster
    p_value: float | None  # of Student's t-test; None too where nothing varies


def compare(seconds: Iterable[float], baseline: Iterable[float]) -> Comparison:
    """Percent by which the mean is lower than the baseline's; two-sided test, equal variances."""
    a, b = np.asarray(list(seconds)), np.asarray(list(baseline))
    reduction = 100 * (1 - float(a.mean() / b.mean()))
    if not np.ptp(a) and not np.ptp(b):
        return Comparison(reduction, None)
    return Comparison(reduction, float(stats.ttest_ind(a, b).pvalue))


@dataclasses.dataclass(frozen=True)
class Study:
    """All figures of a study.

    Attributes:
      settings: those that decide the figures.
      machine: that ran it, as names and values.
      command: that ran it.
      cells: the figures.
      layers: each protocol's profile.
      sessions: by network and protocol.
      validations: over real actors.
    """

    settings: dict[str, Any]
    machine: dict[str, str]
    command: str = ""
    cells: tuple[Cell, ...] = ()
    layers: tuple[Layer, ...] = ()
    sessions: tuple[Session, ...] = ()
    validations: tuple[Validation, ...] = ()

    @property
    def networks(self) -> tuple[str, ...]:
        """Those that were measured."""
        return tuple(dict.fromkeys(cell.network for cell in self.cells))

    @property
    def protocols(self) -> tuple[str, ...]:
        """Those that were measured."""
        return tuple(dict.fromkeys(cell.protocol for cell in self.cells))

    @property
    def latencies_ms(self) -> tuple[float, ...]:
        """One-way latencies, in order."""
        return tuple(sorted({cell.latency_ms for cell in self.cells}))

    @property
    def bandwidths_mbps(self) -> tuple[float, ...]:
        """Widest first; 0 for unlimited."""
        return tuple(sorted({c.bandwidth_mbps for c in self.cells}, key=lambda b: -(b or np.inf)))

    @property
    def reference_mbps(self) -> float:
        """The bandwidth nearest to 1 Gbit/s, at which the main table and the plots stand."""
        return reference(self.bandwidths_mbps)

    def cell(self, network: str, protocol: str, latency_ms: float, mbps: float) -> Cell | None:
        """The cell of these, if it was measured."""
        key = (network, protocol, latency_ms, mbps)
        cells = (
            cell for cell in self.cells
            if (cell.network, cell.protocol, cell.latency_ms, cell.bandwidth_mbps) == key
        )  # fmt: skip
        return next(cells, None)

    def stages(self, network: str) -> dict[str, dict[str, Layer]]:
        """{stage: {protocol: layer}} of a network, outputs last; not what precedes the first."""
        stages: dict[str, dict[str, Layer]] = {}
        for layer in self.layers:
            if layer.network == network and layer.name:
                stages.setdefault(layer.name, {})[layer.protocol] = layer
        if "outputs" in stages:
            stages["outputs"] = stages.pop("outputs")
        return stages

    def compared(self, cell: Cell) -> Comparison:
        """`cell` against the baseline under the same link."""
        baseline = self.cell(cell.network, BASELINE, cell.latency_ms, cell.bandwidth_mbps)
        if baseline is None or cell.protocol == BASELINE:
            return Comparison(None, None)
        return compare(cell.seconds, baseline.seconds)

    def line(self, cell: Cell) -> dict[str, Any]:
        """A cell as one JSON line."""
        reduction, p_value = self.compared(cell)
        return {
            "benchmark": "protocols",
            "protocol": cell.protocol,
            "network": cell.network,
            "latency_ms": cell.latency_ms,
            "bandwidth_mbps": cell.bandwidth_mbps,
            "seconds": round(cell.mean, 5),
            "seconds_sd": round(cell.deviation, 5),
            "online_bytes": cell.online_bytes,
            "key_bytes": cell.key_bytes,
            "round_trips": cell.round_trips,
            "offline_seconds": round(cell.offline_mean, 5),
            "reduction_vs_securenn": None if reduction is None else round(reduction, 2),
            "p_value": p_value,
        }

    def lines(self, networks: Iterable[str]) -> list[dict[str, Any]]:
        """The JSON lines of these networks: their cells, then their validations."""
        chosen = set(networks)
        cells = [self.line(cell) for cell in self.cells if cell.network in chosen]
        return cells + [v.line() for v in self.validations if v.network in chosen]

    def joined(
        self, cells: tuple[Cell, ...], layers: tuple[Layer, ...], sessions: tuple[Session, ...]
    ) -> "Study":
        """The study with the figures of one network more."""
        return dataclasses.replace(
            self,
            cells=self.cells + cells,
            layers=self.layers + layers,
            sessions=self.sessions + sessions,
        )

    def validated_by(self, actors: Iterable[Validation]) -> "Study":
        """The study with runs over actors, each beside the virtual seconds under the same link."""
        beside = []
        for one in actors:
            cell = self.cell(one.network, one.protocol, one.latency_ms, one.bandwidth_mbps)
            assert cell is not None
            beside.append(dataclasses.replace(one, virtual_seconds=cell.seconds))
        return dataclasses.replace(self, validations=tuple(beside))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Replaces the file `path` by the study, whole or not at all.

        Raises:
          StorageError: if it cannot be written.
        """
        fields = {"format": _FORMAT, **dataclasses.asdict(self)}
        write_json(pathlib.Path(path), fields, indent=1)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Study":
        """Reads the file of `write`.

        Raises:
          DataError: if it cannot be read as that.
        """
        try:
            fields = parse_json(pathlib.Path(path).read_bytes())
            if fields.pop("format") != _FORMAT:
                raise ValueError("made by another version")
            kinds = {"cells": Cell, "layers": Layer, "sessions": Session, "validations": Validation}
            for key, kind in kinds.items():
                fields[key] = tuple(_record(kind, record) for record in fields[key])
            return cls(**fields)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no study that can be read: {error}") from error


def reference(bandwidths_mbps: Sequence[float]) -> float:
    """The one of these that is nearest to 1 Gbit/s."""
    return min(bandwidths_mbps, key=lambda mbps: abs(np.log((mbps or 1e9) / REFERENCE_MBPS)))


def _record(kind: type[Record], fields: dict[str, Any]) -> Record:
    """A record from what JSON gave: its tuples are lists there."""
    hints = typing.get_type_hints(kind)
    tuples = {name for name, hint in hints.items() if typing.get_origin(hint) is tuple}
    return kind(**{k: tuple(v) if k in tuples else v for k, v in fields.items()})
