"""ResNet-18 on one encrypted image: CrypTen and SPU, each in turns with this project.

    python -m benchmarks.peers [--crypten_python=PYTHON] [--spu_python=PYTHON]
        [--image_size=224] [--runs=3] [--protocols=fss,ariann,securenn]

Every system runs the same network with the same weights on the same image: batch 1, max-pooled
stem, parties as processes on the same cores, over loopback without injected delay. A run of
another system is followed by one of ours (fss) until each had its runs; the first of each
compiles and does not count. README.md beside this file tells how to install the others. Prints
JSON lines, one a system:

- `seconds`: median wall-clock of the online phase (README.md: from when to when), and
  `seconds_of_runs`; `fss_seconds`: median of our runs in between.
- `cpu_seconds` (median) and `bytes` of all parties, `rounds`.
- `key_bytes` that the party with most receives before there is an image, and `offline_seconds`
  (median) of dealing them; null where all is dealt in the run itself, or nothing.
- `weights_owner`, `dealer`; `load_average`: the machine's over the last minute, at the end.
- `max_error`: largest difference from the logits in the clear, over the largest of those.
- `error`, instead of all figures, of a system that failed; the exit code is then 1.

The last line has `best_peer_over_fss`, seconds of the fastest peer over those of ours from in
between (over 1: ours is faster), and `best_peer_over_fss_with_offline`, our dealing included.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from primia_jax import environment

environment.set_up_process()
os.environ.setdefault("RAY_worker_niceness", "0")  # the peers' processes give way to none either

import numpy as np  # noqa: E402

from benchmarks.peers import network, ours, subprocesses  # noqa: E402
from primia_jax.errors import UserError  # noqa: E402
from primia_jax.mpc.protocols.choice import PROTOCOLS  # noqa: E402
from primia_jax.runtime import ray_driver  # noqa: E402

FSS = "fss"
SHARED, OWNED = "shared between the parties", "model owner"
FOLDER = pathlib.Path(__file__).parent

Run = Callable[[], dict[str, Any]]


class System(NamedTuple):
    """What is run.

    Attributes:
      name: in the rows.
      weights_owner: who holds the weights.
      dealer: who deals correlated randomness.
      flag: of a peer, that names its Python.
      script: of a peer, in this folder, with its arguments after the network's file.
      largest_side: of images; beyond it a run takes minutes.
    """

    name: str
    weights_owner: str
    dealer: str
    flag: str = ""
    script: tuple[str, ...] = ()
    largest_side: int = 1024


_PARTY_0 = "party 0, in the run"
PEERS = (
    System("crypten", SHARED, _PARTY_0, "crypten_python", ("crypten_peer.py",)),
    System("spu_semi2k", SHARED, _PARTY_0, "spu_python", ("spu_peer.py", "SEMI2K")),
    System("spu_aby3", SHARED, "none", "spu_python", ("spu_peer.py", "ABY3")),
    System("spu_cheetah", OWNED, "none", "spu_python", ("spu_peer.py", "CHEETAH"), 64),
)
_THIRD = "crypto provider, before the run"
OURS = {
    FSS: System(FSS, OWNED, _THIRD),
    "ariann": System("ariann", SHARED, _THIRD),
    "securenn": System("securenn", SHARED, "none: the crypto provider assists in the run"),
}


def main() -> None:
    flags = parse(sys.argv[1:])
    try:
        benchmark = measure(flags)
    except UserError as error:
        print(f"benchmarks.peers: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(1 if benchmark.failed else 0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags; what is wrong with them ends the program."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.peers", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--crypten_python", default="")
    parser.add_argument("--spu_python", default="")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--protocols", default=FSS)
    flags = parser.parse_args(arguments)
    flags.protocols = flags.protocols.split(",")
    unknown = [name for name in flags.protocols if name not in PROTOCOLS]
    if unknown or FSS not in flags.protocols:
        parser.error(f"--protocols: expected fss and any of {', '.join(sorted(PROTOCOLS))}")
    if flags.image_size < 32 or flags.image_size % 32:
        parser.error(f"--image_size={flags.image_size}: expected a multiple of 32")
    if flags.runs < 1:
        parser.error(f"--runs={flags.runs}: expected at least 1")
    return flags


def chosen(flags: argparse.Namespace) -> list[System]:
    """The peers to run; the others are named on standard error."""
    found = []
    for peer in PEERS:
        reason = ""
        if not getattr(flags, peer.flag):
            reason = f"--{peer.flag} is not given"
        elif flags.image_size > peer.largest_side:
            reason = f"it takes minutes beyond {peer.largest_side} pixels"
        if reason:
            print(f"benchmarks.peers: {peer.name} is left out: {reason}", file=sys.stderr)
        else:
            found.append(peer)
    return found


def measure(flags: argparse.Namespace) -> "Benchmark":
    """Runs everything and prints its rows."""
    peers = chosen(flags)
    variables = network.variables(flags.image_size)
    image = network.images(flags.image_size, 1, seed=1)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = os.path.join(folder, "network.npz")
        network.save(path, image, variables)
        stack.enter_context(ray_driver.cluster(None))
        fss = stack.enter_context(ours.actors(FSS, image))
        benchmark = Benchmark(fss, network.logits(variables, image), flags)
        for peer in peers:
            script, *arguments = peer.script
            python = getattr(flags, peer.flag)
            benchmark.compare(
                peer, subprocesses.started(python, FOLDER / script, [path, *arguments])
            )
        for name in flags.protocols:
            if name != FSS:
                benchmark.compare(OURS[name], ours.actors(name, image))
        benchmark.conclude()
    return benchmark


class Benchmark:
    """Rows so far.

    Attributes:
      failed: whether a system did.
    """

    def __init__(self, fss: Run, expected: np.ndarray, flags: argparse.Namespace):
        self.failed = False
        self._fss, self._expected, self._flags = fss, expected, flags
        self._fss_runs: list[dict[str, Any]] = []
        self._ratios: dict[str, tuple[float, float]] = {}
        fss()  # compiles

    def compare(self, system: System, starts: contextlib.AbstractContextManager[Run]) -> None:
        """Runs a system and fss in turns, and prints the system's row."""
        theirs, between = [], []
        try:
            with starts as run:
                run()  # compiles
                for _ in range(self._flags.runs):
                    theirs.append(run())
                    between.append(self._fss())
        except (subprocesses.PeerError, UserError) as error:
            self.failed = True
            self._show(system=system.name, error=" ".join(str(error).split()))
            return
        self._fss_runs += between
        seconds, fss_seconds = median(theirs, "seconds"), median(between, "seconds")
        if system.script:
            with_offline = fss_seconds + median(between, "offline_seconds")
            self._ratios[system.name] = seconds / fss_seconds, seconds / with_offline
        self._show(**self._row(system, theirs), fss_seconds=round(fss_seconds, 3))

    def conclude(self) -> None:
        """Prints the row of fss, over all its runs, and what it is to the best peer."""
        if not self._fss_runs:
            self._fss_runs = [self._fss() for _ in range(self._flags.runs)]
        self._show(**self._row(OURS[FSS], self._fss_runs))
        best = min(self._ratios, key=lambda name: self._ratios[name][0], default=None)
        ratios = self._ratios[best] if best else (None, None)
        names = ("best_peer_over_fss", "best_peer_over_fss_with_offline")
        rounded = {name: ratio and round(ratio, 2) for name, ratio in zip(names, ratios)}
        self._show(best_peer=best, **rounded)

    def _row(self, system: System, runs: list[dict[str, Any]]) -> dict[str, Any]:
        off = max(np.abs(np.ravel(self._expected) - run["logits"]).max() for run in runs)
        key_bytes = runs[-1].get("key_bytes") or None
        return {
            "system": system.name,
            "seconds": round(median(runs, "seconds"), 3),
            "cpu_seconds": round(median(runs, "cpu_seconds"), 3),
            "bytes": runs[-1]["bytes"],
            "rounds": runs[-1]["rounds"],
            "key_bytes": key_bytes,
            "offline_seconds": round(median(runs, "offline_seconds"), 3) if key_bytes else None,
            "weights_owner": system.weights_owner,
            "dealer": system.dealer,
            "max_error": float(f"{off / np.abs(self._expected).max():.2g}"),
            "seconds_of_runs": [round(run["seconds"], 3) for run in runs],
            "load_average": round(os.getloadavg()[0], 2),
        }

    def _show(self, **figures: Any) -> None:
        settings = {"network": network.NAME, "image_size": self._flags.image_size}
        print(json.dumps({"benchmark": "peers", **settings, **figures}), flush=True)


def median(runs: list[dict[str, Any]], name: str) -> float:
    """Of a figure over the runs."""
    return statistics.median(run[name] for run in runs)


if __name__ == "__main__":
    main()
