"""This project's three parties as Ray actors, for one network and one protocol."""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers import network
from primia_jax.config import MpcConfig
from primia_jax.mpc import inference
from primia_jax.mpc.protocols import DATA_OWNER, PARTIES
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.mpc.scaling import Ranges
from primia_jax.runtime import Locally, ray_driver

_TIMEOUT_S = 1800.0


class _Public(NamedTuple):
    """What every party knows, from which each makes its state in its own process."""

    image_size: int
    config: MpcConfig
    ranges: Ranges

    def make(self, party: str) -> Any:
        """A party's state."""
        size, protocol = self.image_size, PROTOCOLS[self.config.protocol]
        image = np.empty((1, size, size, 3), np.float32)
        plan = inference.lower_network(network.apply_fn, network.shapes(size), image, self.config)
        circuit = protocol.circuit(plan, self.ranges, self.config)
        return protocol.state(party, circuit, lambda: network.variables(size))


@contextlib.contextmanager
def actors(name: str, image: np.ndarray) -> Iterator[Callable[[], dict[str, Any]]]:
    """Starts the actors of a protocol in the cluster, and sets them up; ends them.

    Yields:
      what deals a key, then runs the network on `image` [1 s s 3] and tells what that took; the
      first run compiles.
    """
    config, size = MpcConfig(protocol=name), image.shape[1]
    calibration = network.images(size, 8, seed=2)
    ranges = inference.find_ranges(network.apply_fn, network.variables(size), calibration, config)
    public = _Public(size, config, ranges)
    threads = ray_driver.Placement(threads=len(os.sched_getaffinity(0)))
    driver = ray_driver.RayDriver(
        {party: functools.partial(public.make, party) for party in PARTIES},
        placements=dict.fromkeys(PARTIES, threads),
        timeout_s=_TIMEOUT_S,
        sealed=True,
    )
    try:
        driver.run(dict.fromkeys(PARTIES, PROTOCOLS[name].set_up))
        yield functools.partial(_run, driver, name, image)
    finally:
        driver.close()


def _run(driver: ray_driver.RayDriver, name: str, image: np.ndarray) -> dict[str, Any]:
    protocol = PROTOCOLS[name]
    offline = protocol.deal_one(driver)
    received = dict.fromkeys(PARTIES, 0)
    for message in offline.messages:
        received[message.receiver] += message.n_bytes
    before = _cpu_seconds(driver)
    start = time.perf_counter()
    reports, online = driver.run(protocol.programs(image))
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "cpu_seconds": _cpu_seconds(driver) - before,
        "bytes": online.bytes_sent,
        "rounds": max(party.depth for party in online.parties.values()),
        "key_bytes": max(received.values()),
        "offline_seconds": offline.seconds,
        "logits": np.ravel(reports[DATA_OWNER].outputs[0]).tolist(),
    }


def _cpu_seconds(driver: ray_driver.RayDriver) -> float:
    """Of all threads of the three processes so far."""
    return sum(driver.run(dict.fromkeys(PARTIES, Locally(_process_time)))[0].values())


def _process_time(state: Any) -> tuple[Any, float]:
    return state, time.process_time()
