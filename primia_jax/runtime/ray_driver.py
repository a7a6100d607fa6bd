"""Each party in a Ray actor of its own: the real thing.

An actor keeps its party's state between runs. Messages go from actor to actor; the driver hands
out programs, watches that every party lives, and ends the others when one fails.
"""

import contextlib
import copy
import dataclasses
import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from primia_jax.environment import thread_variables
from primia_jax.errors import ClusterError, UserError
from primia_jax.runtime.link import Link
from primia_jax.runtime.party import Program, name_party
from primia_jax.runtime.ray_party import PartyRun, RemoteParty
from primia_jax.runtime.trace import Trace


@dataclasses.dataclass(frozen=True)
class Placement:
    """What an actor asks of the cluster, and how many threads its computing may use."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    threads: int = 1
    with_driver: bool = False  # on the node of the program that starts the run, to share its disk


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Joins the Ray cluster at `address`, or starts an embedded one; leaves or ends it afterwards.

    Raises:
      ClusterError: if nothing answers at `address`.
    """
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        _check_reachable(address)
        options["address"] = address
    else:
        options.update(
            address="local", include_dashboard=False, num_cpus=max(2, os.cpu_count() or 1)
        )
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises several kinds
        hint = "; set RAY_AUTH_MODE=token on every node and here" if "oken" in str(error) else ""
        raise ClusterError(
            f"no Ray cluster at '{address or 'this machine'}': {_first_line(error)}{hint}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """A dead address would keep `ray.init` waiting for a minute."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"ray_address '{address}': expected HOST:PORT (or 'auto')")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at '{address}' ({error}); start one with `ray start --head`"
        ) from error


class RayDriver:
    """Runs programs in Ray actors, one a party. Use inside `cluster(...)`."""

    def __init__(
        self,
        parties: Mapping[str, Callable[[], Any]],
        link: Link = Link(),  # noqa: B008
        placements: Mapping[str, Placement] | None = None,
        timeout_s: float = 3600.0,
        sealed: bool = False,
    ):
        """Starts an actor a party, and makes its state there by calling its entry of `parties`.

        With `sealed`, messages travel as sealed frames (`runtime.frames`) of dicts, lists, tuples
        and NamedTuples, and this driver hands out the actors' public keys.

        Raises:
          UserError: what making a state raised, e.g. a DataError of a hospital.
          ClusterError: if the cluster is too small for the placements, or an actor does not start.
        """
        placements = placements or {}
        _check_resources(placements)
        self.actors: dict[str, Any] = {}
        self._link, self._runs = link, itertools.count(1)
        for name in parties:
            place = placements.get(name, Placement())
            self.actors[name] = RemoteParty.options(
                num_cpus=place.num_cpus,
                num_gpus=place.num_gpus,
                scheduling_strategy=_here() if place.with_driver else "SPREAD",
                runtime_env={"env_vars": thread_variables(place.threads)},
            ).remote(name, timeout_s, sealed)
        try:
            public_keys = None
            if sealed:
                public_keys = self._gather(
                    {name: actor.public_key.remote() for name, actor in self.actors.items()}
                )
            self._gather(
                {
                    name: actor.start.remote(parties[name], self.actors, public_keys)
                    for name, actor in self.actors.items()
                }
            )
        except BaseException:
            self.close()
            raise

    def with_link(self, link: Link) -> "RayDriver":
        """The same actors, joined by other links."""
        driver = copy.copy(self)
        driver._link = link
        return driver

    def run(self, programs: Mapping[str, Program]) -> tuple[dict[str, Any], Trace]:
        """See `party.Driver.run`.

        Raises:
          UserError: what a party raised, or a ClusterError that names a party that was lost.
        """
        run, names = next(self._runs), tuple(programs)
        results = self._gather(
            {
                name: self.actors[name].run.remote(run, program, names, self._link)
                for name, program in programs.items()
            },
            run,
        )
        self._gather({name: self.actors[name].commit.remote(run) for name in programs})
        return {name: result.report for name, result in results.items()}, _joined(results)

    def close(self) -> None:
        """Ends the actors."""
        for actor in self.actors.values():
            ray.kill(actor)
        self.actors.clear()

    def peak_bytes(self) -> dict[str, int]:
        """Largest resident memory of each actor so far, in bytes."""
        return self._gather({n: a.peak_bytes.remote() for n, a in self.actors.items()})

    def _gather(self, tasks: dict[str, Any], run: int | None = None) -> dict[str, Any]:
        """Waits for all tasks; on the first failure tells the other parties to give up `run`."""
        names = {task: name for name, task in tasks.items()}
        waiting, results, failure = list(names), {}, None
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            for task in done:
                try:
                    results[names[task]] = ray.get(task)
                except Exception as error:
                    if failure is None:
                        failure = _as_user_error(names[task], error)
                        for other in waiting if run is not None else ():
                            self.actors[names[other]].abort.remote(run, str(failure))
        if failure is not None:
            raise failure
        return {name: results[name] for name in tasks}


def _joined(results: Mapping[str, PartyRun]) -> Trace:
    """The trace of all parties: those that share a clock count from the first one's begin."""
    begin: dict[str, float] = {}
    for result in results.values():
        begin[result.clock] = min(result.begin_s, begin.get(result.clock, result.begin_s))
    spans, messages = [], []
    for result in results.values():
        zero = begin[result.clock]
        for span in result.spans:
            spans.append(dataclasses.replace(span, start_s=span.start_s - zero))
        for message in result.received:
            messages.append(
                dataclasses.replace(
                    message, sent_s=message.sent_s - zero, arrives_s=message.arrives_s - zero
                )
            )
    spans.sort(key=lambda span: span.start_s)
    messages.sort(key=lambda message: message.sent_s)
    parties = {name: result.trace for name, result in results.items()}
    return Trace(parties, tuple(messages), tuple(spans))


def _here() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _check_resources(placements: Mapping[str, Placement]) -> None:
    """Ray would wait for ever for what the cluster does not have."""
    there = ray.cluster_resources()
    for resource, setting in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        wanted = sum(getattr(place, setting) for place in placements.values())
        if wanted > there.get(resource, 0.0):
            raise ClusterError(
                f"the parties ask for {wanted:g} {resource}s, the cluster has "
                f"{there.get(resource, 0.0):g}; "
                f"lower config.runtime.{resource.lower()}s_per_hospital"
            )


def _as_user_error(party: str, error: Exception) -> Exception:
    if isinstance(error, ray.exceptions.RayTaskError):
        found = error.cause if isinstance(error.cause, UserError) else error
        name_party(found, party)
        return found
    if isinstance(error, ray.exceptions.RayError):
        return ClusterError(f"{party} was lost: {_first_line(error)}")
    return error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
