"""Measures a network: runs all protocols in turns, and times every run under every link."""

import dataclasses
import itertools
import warnings
from collections.abc import Sequence

import jax
import numpy as np

from primia_jax.campaigns.engine import Progress
from primia_jax.campaigns.latency.networks import Network, films
from primia_jax.campaigns.latency.results import Cell, Layer, Session
from primia_jax.config import ExperimentConfig, LatencyStudyConfig
from primia_jax.mpc import inference
from primia_jax.runtime import Link, Trace, replay

Figures = tuple[tuple[Cell, ...], tuple[Layer, ...], tuple[Session, ...]]


def measure(name: str, network: Network, config: ExperimentConfig, progress: Progress) -> Figures:
    """Runs all protocols of the study in turns, and times every run under every link."""
    study = config.latency_study
    params = network.params(study.pooling, config.seed)
    calibration, images = films(network.image_size, study.repetitions + 1, config.seed)
    total, done = len(study.protocols) * len(images), itertools.count(1)
    progress(name, 0, total)
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
        program.set_up()
        program.run(images[:1])  # compiles
        runs.append(_Runs(name, protocol, program, tuple(str(w.message) for w in caught)))
        progress(name, next(done), total)
    in_the_clear = jax.jit(network.apply_fn(study.pooling))
    for i in range(1, len(images)):
        image = images[i : i + 1]
        expected = np.asarray(in_the_clear(params, image))
        first = i % len(runs)
        for run in runs[first:] + runs[:first]:
            run.once(image, expected)
            progress(name, next(done), total)
    return (
        tuple(cell for run in runs for cell in run.cells(study)),
        tuple(layer for run in runs for layer in run.profile()),
        tuple(run.session() for run in runs),
    )


@dataclasses.dataclass
class _Runs:
    """The runs of one protocol on one network so far."""

    network: str
    protocol: str
    program: inference.SecureProgram
    warnings: tuple[str, ...]
    offline: list[Trace] = dataclasses.field(default_factory=list)
    online: list[Trace] = dataclasses.field(default_factory=list)
    error: float = 0.0

    def once(self, image: np.ndarray, expected: np.ndarray) -> None:
        """Runs one image [1 s s 1] with fresh keys, which the run uses up."""
        self.offline.append(self.program.prepare())
        outputs, trace = self.program.run(image)
        self.online.append(trace)
        error = float(np.abs(outputs - expected).max() / np.abs(expected).max())
        self.error = max(self.error, error)

    def cells(self, study: LatencyStudyConfig) -> list[Cell]:
        """Every repetition under every link."""
        received: dict[str, int] = {}
        for message in self.offline[0].messages:
            received[message.receiver] = received.get(message.receiver, 0) + message.n_bytes
        return [
            Cell(
                self.network,
                self.protocol,
                latency,
                mbps,
                seconds=_seconds(self.online, link(latency, mbps)),
                offline_seconds=_seconds(self.offline, link(latency, mbps)),
                online_bytes=self.online[0].bytes_sent,
                key_bytes=max(received.values(), default=0),
                round_trips=self.online[0].round_trips,
            )
            for mbps in study.bandwidths_mbps
            for latency in study.latencies_ms
        ]

    def profile(self) -> list[Layer]:
        """Each stage's computing and messages; seconds are means over the repetitions."""
        tables, layers = [trace.by_stage() for trace in self.online], []
        for stage, shares in tables[0].items():
            seconds = {
                party: float(np.mean([table[stage][party]["seconds"] for table in tables]))
                for party in shares
            }
            n_bytes = sum(share["bytes_sent"] for share in shares.values())
            messages = sum(share["messages"] for share in shares.values())
            layers.append(Layer(self.network, self.protocol, stage, seconds, n_bytes, messages))
        return layers

    def session(self) -> Session:
        """The set-up, and the largest error."""
        cost = self.program.set_up_trace
        assert cost is not None
        return Session(
            self.network, self.protocol, cost.compute_seconds, cost.bytes_sent, self.error,
            self.warnings,
        )  # fmt: skip


def _seconds(traces: Sequence[Trace], under: Link) -> tuple[float, ...]:
    return tuple(replay(trace.recording, under).seconds for trace in traces)


def link(latency_ms: float, bandwidth_mbps: float) -> Link:
    """One kind of link of the study."""
    return Link(latency_ms / 1e3, bandwidth_mbps * 1e6)
