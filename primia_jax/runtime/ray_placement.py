"""Placement of actors in a Ray cluster, and checks that it has room for them."""

import collections
import dataclasses
from collections.abc import Collection

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from primia_jax.errors import ClusterError


@dataclasses.dataclass(frozen=True)
class Placement:
    """Resources that an actor requests of the cluster, and the threads its computing may use."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()  # custom ones, by name
    threads: int = 1
    with_driver: bool = False  # on the node of the program that starts the run, to share its disk


def here() -> NodeAffinitySchedulingStrategy:
    """Places an actor on the node of this process."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def nowhere(place: Placement) -> str:
    """A line on the custom resource of `place` that no node has; empty if there is none."""
    offered = ray.cluster_resources()
    for resource, amount in place.resources:
        if offered.get(resource, 0.0) < amount:
            return f"no node has the resource {resource}; {_offering(resource)}"
    return ""


def check_resources(
    placements: Collection[Placement], who: str = "the parties", also: str = ""
) -> None:
    """Refuses `placements` that the cluster cannot meet; Ray would wait for ever.

    Raises:
      ClusterError: which says that `who` asks for too much; the remedy ends with `also`.
    """
    there = ray.cluster_resources()
    wanted: collections.Counter[str] = collections.Counter()
    for place in placements:
        wanted.update({"CPU": place.num_cpus, "GPU": place.num_gpus, **dict(place.resources)})
    remedies = {
        "CPU": "lower config.runtime.cpus_per_hospital",
        "GPU": "lower config.runtime.gpus_per_hospital",
    }
    for resource, amount in wanted.items():
        if amount > there.get(resource, 0.0):
            raise ClusterError(
                f"{who} ask for {amount:g} of the resource {resource}, the cluster has "
                f"{there.get(resource, 0.0):g}; {remedies.get(resource, _offering(resource))}{also}"
            )


def _offering(resource: str) -> str:
    return f"start a node with --resources='{{\"{resource}\": 1}}'"
