"""Each party in a Ray actor of its own: the real thing.

An actor keeps its party's state between runs. Messages go from actor to actor; the driver hands
out programs, watches that every party lives, and ends the others when one fails.
"""

import contextlib
import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from primia_jax.environment import compilation_cache_dir, give_memory_back, thread_variables
from primia_jax.errors import ClusterError, ProtocolError, UserError
from primia_jax.runtime.link import Link
from primia_jax.runtime.party import (
    Message,
    Program,
    Send,
    checked_event,
    message_bytes,
    receivers,
)
from primia_jax.runtime.trace import PartyTrace, Trace

_POLL_SECONDS = 0.5


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
    ):
        """Starts an actor a party, and makes its state there by calling its entry of `parties`.

        Raises:
          UserError: what making a state raised, e.g. a DataError of a hospital.
          ClusterError: if the cluster is too small for the placements, or an actor does not start.
        """
        placements = placements or {}
        _check_resources(placements)
        self.actors: dict[str, Any] = {}
        for name in parties:
            place = placements.get(name, Placement())
            self.actors[name] = _RemoteParty.options(
                num_cpus=place.num_cpus,
                num_gpus=place.num_gpus,
                scheduling_strategy=_here() if place.with_driver else "SPREAD",
                runtime_env={"env_vars": thread_variables(place.threads)},
            ).remote(name, link, timeout_s)
        self._runs = 0
        self._gather(
            {
                name: actor.start.remote(parties[name], self.actors)
                for name, actor in self.actors.items()
            }
        )

    def run(self, programs: Mapping[str, Program]) -> tuple[dict[str, Any], Trace]:
        """See `party.Driver.run`.

        Raises:
          UserError: what a party raised, or a ClusterError that names a party that was lost.
        """
        self._runs += 1
        names = tuple(programs)
        results = self._gather(
            {
                name: self.actors[name].run.remote(self._runs, program, names)
                for name, program in programs.items()
            }
        )
        self._gather({name: self.actors[name].commit.remote(self._runs) for name in programs})
        reports = {name: report for name, (report, _) in results.items()}
        return reports, Trace({name: trace for name, (_, trace) in results.items()})

    def close(self) -> None:
        """Ends the actors."""
        for actor in self.actors.values():
            ray.kill(actor)
        self.actors.clear()

    def peak_bytes(self) -> dict[str, int]:
        """Largest resident memory of each actor so far, in bytes."""
        return self._gather({n: a.peak_bytes.remote() for n, a in self.actors.items()})

    def _gather(self, tasks: dict[str, Any]) -> dict[str, Any]:
        """Waits for all tasks; on the first failure tells the other parties to give up."""
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
                        for other in waiting:
                            self.actors[names[other]].abort.remote(self._runs, str(failure))
        if failure is not None:
            raise failure
        return results


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
        cause = error.cause
        if isinstance(cause, UserError):
            return cause
        return error
    if isinstance(error, ray.exceptions.RayError):
        return ClusterError(f"{party} was lost: {_first_line(error)}")
    return error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class _Aborted(ProtocolError):
    """Another party failed, so that this one must not wait any longer."""


class _Mailbox:
    """Messages that arrived for one party; every sender's in its order of sending."""

    def __init__(self) -> None:
        self._messages: dict[tuple[int, str, int], tuple[Message, int, float]] = {}
        self._aborted: dict[int, str] = {}
        self._changed = threading.Condition()

    def put(self, run: int, sender: str, sequence: int, item: tuple[Message, int, float]) -> None:
        with self._changed:
            self._messages[run, sender, sequence] = item
            self._changed.notify_all()

    def abort(self, run: int, reason: str) -> None:
        with self._changed:
            self._aborted[run] = reason
            self._changed.notify_all()

    def take(
        self, run: int, sender: str, sequence: int, timeout_s: float
    ) -> tuple[Message, int, float]:
        key, deadline = (run, sender, sequence), time.monotonic() + timeout_s
        with self._changed:
            while key not in self._messages:
                if run in self._aborted:
                    raise _Aborted(self._aborted[run])
                if time.monotonic() > deadline:
                    raise ClusterError(f"no message from {sender} within {timeout_s:.0f} s")
                self._changed.wait(_POLL_SECONDS)
            return self._messages.pop(key)

    def forget(self, run: int) -> int:
        """Drops what is left of `run`; returns how many messages nobody read."""
        with self._changed:
            left = [key for key in self._messages if key[0] <= run]
            for key in left:
                del self._messages[key]
            return len(left)


class _PartyActor:
    """A thin shell: keeps a state, runs programs, carries messages."""

    def __init__(self, name: str, link: Link, timeout_s: float):
        self._name, self._link, self._timeout_s = name, link, timeout_s
        self._mailbox = _Mailbox()
        self._state: Any = None
        self._pending: tuple[int, Any] | None = None
        self._peers: dict[str, Any] = {}

    def start(self, make_state: Callable[[], Any], peers: dict[str, Any]) -> None:
        jax.config.update("jax_compilation_cache_dir", compilation_cache_dir())
        self._peers = peers
        self._state = make_state()

    @ray.method(concurrency_group="mail")
    def deliver(self, run: int, sender: str, sequence: int, depth: int, message: Message) -> None:
        arrived = time.monotonic()
        self._mailbox.put(run, sender, sequence, (message, depth, arrived))

    @ray.method(concurrency_group="control")
    def abort(self, run: int, reason: str) -> None:
        self._mailbox.abort(run, reason)

    @ray.method(concurrency_group="control")
    def peak_bytes(self) -> int:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def run(self, run: int, program: Program, parties: tuple[str, ...]) -> tuple[Any, PartyTrace]:
        transport = _Transport(self, run, dict.fromkeys(parties))
        (state, report), trace = run_party(self._name, program(self._state), transport)
        if self._mailbox.forget(run):
            raise ProtocolError(f"{self._name} left messages unread at the end of its program")
        self._pending = (run, state)
        give_memory_back()
        return report, trace

    def commit(self, run: int) -> None:
        """Takes over the new state, once every party has come to its end."""
        if self._pending is not None and self._pending[0] == run:
            self._state = self._pending[1]
        self._pending = None


_ACTOR_OPTIONS: dict[str, Any] = {
    "max_restarts": 0,
    "concurrency_groups": {"mail": 4, "control": 2},
}
_RemoteParty: Any = ray.remote(**_ACTOR_OPTIONS)(_PartyActor)


class _Transport:
    """Carries one party's messages in one run."""

    def __init__(self, actor: Any, run: int, parties: Mapping[str, Any]):
        self._actor, self._run, self.parties = actor, run, parties
        self._sent: dict[str, int] = {}
        self._received: dict[str, int] = {}

    def send(self, to: tuple[str, ...], message: Message, depth: int) -> None:
        message = jax.tree.map(np.asarray, message)
        if len(to) > 1:
            message = ray.put(message)  # once for all; Ray hands receivers the value
        for name in to:
            sequence = self._sent.get(name, 0)
            self._sent[name] = sequence + 1
            self._actor._peers[name].deliver.remote(
                self._run, self._actor._name, sequence, depth, message
            )

    def receive(self, sender: str) -> tuple[Message, int]:
        sequence = self._received.get(sender, 0)
        self._received[sender] = sequence + 1
        link = self._actor._link
        message, depth, arrived = self._actor._mailbox.take(
            self._run, sender, sequence, self._actor._timeout_s
        )
        if link.latency_s or link.bandwidth_bps:
            delay = link.delay_seconds(sequence) + link.transfer_seconds(message_bytes(message))
            time.sleep(max(0.0, arrived + delay - time.monotonic()))
        return message, depth


def run_party(name: str, steps: Any, transport: _Transport) -> tuple[Any, PartyTrace]:
    """Runs one party's generator to its end over `transport`."""
    trace, message, begin = PartyTrace(), None, time.perf_counter()
    while True:
        start = time.perf_counter()
        try:
            event = checked_event(name, steps.send(message), transport.parties)
        except StopIteration as stop:
            trace.compute_seconds += time.perf_counter() - start
            trace.seconds = time.perf_counter() - begin
            return stop.value, trace
        message = None
        if isinstance(event, Send):
            to = receivers(event)
            transport.send(to, event.message, trace.depth + 1)
            trace.bytes_sent += message_bytes(event.message) * len(to)
            trace.messages_sent += len(to)
        trace.compute_seconds += time.perf_counter() - start
        if not isinstance(event, Send):
            message, depth = transport.receive(event.sender)
            trace.depth = max(trace.depth, depth)
