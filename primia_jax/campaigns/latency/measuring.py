"""Measures a network: runs all protocols in turns, and judges every run under every link."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from primia_jax.campaigns.latency.networks import Network, films
from primia_jax.campaigns.latency.results import Cell, Layer, Session
from primia_jax.config import ExperimentConfig, LatencyStudyConfig
from primia_jax.mpc import inference
from primia_jax.runtime import Link, Trace, replay

# Called with what goes on, how many of its runs are done, and of how many.
Progress = Callable[[str, int, int], None]


class Measured(NamedTuple):
    """What was found of one network."""

    cells: tuple[Cell, ...]
    layers: tuple[Layer, ...]
    sessions: tuple[Session, ...]


def measure(name: str, network: Network, config: ExperimentConfig, progress: Progress) -> Measured:
    """Runs all protocols of the study in turns, and judges every run under every link."""
    study = config.latency_study
    params = network.params(study.pooling, config.seed)
    calibration, images = films(network.image_size, study.repetitions + 1, config.seed)
    steps = _counted(name, len(study.protocols) * len(images), progress)
    next(steps)
    runs = []
    for protocol in study.protocols:
        mpc = dataclasses.replace(config.mpc, protocol=protocol)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            program = inference.encrypt(
                network.apply_fn(study.pooling),
                params,
                images[:1],
                calibration=calibration,
                config=mpc,
            )
        run = _Runs(protocol, program, [str(warning.message) for warning in caught])
        program.set_up()
        program.run(images[:1])  # compiles
        runs.append(run)
        next(steps)
    in_the_clear = jax.jit(network.apply_fn(study.pooling))
    for i in range(1, len(images)):
        expected = np.asarray(in_the_clear(params, images[i : i + 1]))
        first = i % len(runs)
        for run in runs[first:] + runs[:first]:
            run.once(images[i : i + 1], expected)
            next(steps)
    return Measured(
        tuple(cell for run in runs for cell in run.cells(name, study)),
        tuple(layer for run in runs for layer in run.profile(name)),
        tuple(run.session(name) for run in runs),
    )


def _counted(name: str, total: int, progress: Progress) -> Iterator[None]:
    """Tells of one more run each time it is asked."""
    for done in range(total + 1):
        progress(name, done, total)
        yield


@dataclasses.dataclass
class _Runs:
    """The runs of one protocol on one network so far."""

    protocol: str
    program: inference.SecureProgram
    warnings: list[str]
    offline: list[Trace] = dataclasses.field(default_factory=list)
    online: list[Trace] = dataclasses.field(default_factory=list)
    error: float = 0.0

    def once(self, image: np.ndarray, expected: np.ndarray) -> None:
        """One image [1 s s 1] with fresh keys, which the run uses up."""
        self.offline.append(self.program.prepare())
        outputs, trace = self.program.run(image)
        self.online.append(trace)
        error = float(np.abs(outputs - expected).max() / np.abs(expected).max())
        self.error = max(self.error, error)

    def cells(self, network: str, study: LatencyStudyConfig) -> list[Cell]:
        """Every repetition under every link."""
        received: dict[str, int] = {}
        for message in self.offline[0].messages:
            received[message.receiver] = received.get(message.receiver, 0) + message.n_bytes
        first, found = self.online[0], []
        for mbps in study.bandwidths_mbps:
            for latency in study.latencies_ms:
                here = link(latency, mbps)
                found.append(
                    Cell(
                        network,
                        self.protocol,
                        latency,
                        mbps,
                        seconds=_seconds(self.online, here),
                        offline_seconds=_seconds(self.offline, here),
                        online_bytes=first.bytes_sent,
                        key_bytes=max(received.values(), default=0),
                        round_trips=first.round_trips,
                    )
                )
        return found

    def profile(self, network: str) -> list[Layer]:
        """Each stage's computing and messages; seconds are means over the repetitions."""
        tables, found = [trace.by_stage() for trace in self.online], []
        for stage, shares in tables[0].items():
            seconds = {
                party: float(np.mean([table[stage][party]["seconds"] for table in tables]))
                for party in shares
            }
            n_bytes = sum(share["bytes_sent"] for share in shares.values())
            messages = sum(share["messages"] for share in shares.values())
            found.append(Layer(network, self.protocol, stage, seconds, n_bytes, messages))
        return found

    def session(self, network: str) -> Session:
        """What was done once."""
        cost = self.program.set_up_trace
        assert cost is not None
        told = tuple(self.warnings)
        return Session(
            network, self.protocol, cost.compute_seconds, cost.bytes_sent, self.error, told
        )


def _seconds(traces: Sequence[Trace], here: Link) -> tuple[float, ...]:
    return tuple(replay(trace.recording, here).seconds for trace in traces)


def link(latency_ms: float, bandwidth_mbps: float) -> Link:
    """One kind of link of the study."""
    return Link(latency_ms / 1e3, bandwidth_mbps * 1e6)
