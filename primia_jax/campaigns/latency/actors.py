"""The protocols over real actors with real delays, to compare with the virtual clocks."""

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from primia_jax.campaigns.engine import Progress, silent
from primia_jax.campaigns.latency.measuring import link
from primia_jax.campaigns.latency.networks import Network, films
from primia_jax.campaigns.latency.results import Validation, reference
from primia_jax.config import ExperimentConfig, MpcConfig
from primia_jax.mpc import inference
from primia_jax.mpc.protocols import PARTIES
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.mpc.scaling import Ranges
from primia_jax.runtime import Link


@dataclasses.dataclass(frozen=True)
class _Public:
    """Public knowledge, from which each party makes its state in its own process."""

    network: Network
    pooling: str
    seed: int
    mpc: MpcConfig
    ranges: Ranges

    def make(self, party: str) -> Any:
        """A party's state."""
        protocol, network = PROTOCOLS[self.mpc.protocol], self.network
        shapes = jax.eval_shape(lambda: network.params(self.pooling, self.seed))
        example = jax.ShapeDtypeStruct((1, network.image_size, network.image_size, 1), np.float32)
        plan = inference.lower_network(network.apply_fn(self.pooling), shapes, example, self.mpc)
        circuit = protocol.circuit(plan, self.ranges, self.mpc)
        weights = functools.partial(network.params, self.pooling, self.seed)
        return protocol.state(party, circuit, weights)


def over_actors(
    name: str,
    network: Network,
    config: ExperimentConfig,
    ray_address: str | None = None,
    progress: Progress = silent,
) -> tuple[Validation, ...]:
    """Runs every protocol over three real actors with injected delays.

    A cluster is not to be started from a process in which JAX runs already: call this before
    anything is measured.

    Args:
      name: of the network.
      network: its description.
      config: of the experiment.
      ray_address: a running Ray cluster; else one is started.
      progress: called after each protocol.

    Returns:
      the seconds over actors; the virtual ones are still to be filled in.

    Raises:
      ClusterError: if the cluster cannot be reached, or a party is lost.
    """
    from primia_jax.runtime import ray_driver  # Ray is slow to import

    with ray_driver.cluster(ray_address, config.runtime.ray_auth):
        validations: list[Validation] = []
        protocols = config.latency_study.protocols
        for done, protocol in enumerate(protocols):
            progress(f"{name} over actors", done, len(protocols))
            validations += in_cluster(name, network, config, protocol)
        progress(f"{name} over actors", len(protocols), len(protocols))
        return tuple(validations)


def in_cluster(
    name: str, network: Network, config: ExperimentConfig, protocol: str
) -> list[Validation]:
    """`over_actors` for one protocol, inside a cluster. Its first run compiles and is left out."""
    from primia_jax.runtime import ray_driver

    study = config.latency_study
    mpc = dataclasses.replace(config.mpc, protocol=protocol)
    calibration, images = films(network.image_size, 1, config.seed)
    params = network.params(study.pooling, config.seed)
    ranges = inference.find_ranges(network.apply_fn(study.pooling), params, calibration, mpc)
    public = _Public(network, study.pooling, config.seed, mpc, ranges)
    mbps = reference(study.bandwidths_mbps)
    driver = ray_driver.RayDriver(
        {party: functools.partial(public.make, party) for party in PARTIES},
        placements=dict.fromkeys(
            PARTIES, ray_driver.Placement(threads=len(os.sched_getaffinity(0)))
        ),
        timeout_s=config.runtime.message_timeout_s,
        sealed=True,
    )

    def seconds(under: Link) -> float:
        """Makes keys, then runs the network; seconds of the latter."""
        PROTOCOLS[protocol].deal_one(driver)
        _, trace = driver.with_link(under).run(PROTOCOLS[protocol].programs(images))
        return float(trace.seconds)

    try:
        driver.run(dict.fromkeys(PARTIES, PROTOCOLS[protocol].set_up))
        seconds(Link())
        return [
            Validation(
                name, protocol, latency, mbps,
                tuple(seconds(link(latency, mbps)) for _ in range(study.validation_repetitions)),
                (),
            )
            for latency in study.validation_latencies_ms
        ]  # fmt: skip
    finally:
        driver.close()
