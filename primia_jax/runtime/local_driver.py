"""All parties in one process, each with a virtual clock.

A party's clock advances by the measured time of its own computing; a message arrives at
`max(send time, end of the line's last transfer) + bytes / bandwidth + latency`. So one machine
shows the seconds that several would take at any latency, without sleeping. Messages are handed
over, not copied; checking and delivering them is nobody's time. Every run is recorded, so that
`replay` can judge it under other links.

JAX computes asynchronously. At every stage, before a party waits and at its end, the driver
finishes what is still being computed and charges it to that party, so that no other is charged for
it. It finds that work by its results, `jax.live_arrays()`; work whose result nobody holds any more
is not found.
"""

import collections
import copy
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from primia_jax.errors import ProtocolError
from primia_jax.runtime.link import Link
from primia_jax.runtime.party import (
    Event,
    Message,
    Program,
    Receive,
    Send,
    Stage,
    Steps,
    checked_event,
    message_bytes,
    name_party,
    receivers,
)
from primia_jax.runtime.replay import Clocks
from primia_jax.runtime.trace import Action, Trace


class LocalDriver:
    """Runs programs of all parties in this process."""

    def __init__(self, parties: Mapping[str, Callable[[], Any]], link: Link = Link()):  # noqa: B008
        """Makes each party's state by calling its entry of `parties`."""
        self.states = {name: make() for name, make in parties.items()}
        self._link = link

    def with_link(self, link: Link) -> "LocalDriver":
        """The same parties, with the same states, joined by other links."""
        driver = copy.copy(self)
        driver._link = link
        return driver

    def run(self, programs: Mapping[str, Program]) -> tuple[dict[str, Any], Trace]:
        """See `party.Driver.run`."""
        steps = {name: program(self.states[name]) for name, program in programs.items()}
        results, trace = run_local(steps, self._link)
        for name, (state, _) in results.items():
            self.states[name] = state
        return {name: report for name, (_, report) in results.items()}, trace

    def close(self) -> None:
        """Forgets the states."""
        self.states.clear()


def run_local(parties: Mapping[str, Steps], link: Link = Link()) -> tuple[dict[str, Any], Trace]:  # noqa: B008
    """Steps the generators of `parties` in turn until all have returned.

    Returns:
      what each generator returned, and the trace with every message and span.

    Raises:
      ProtocolError: if all that remain wait (named with whom they wait for), or a message was never
        received.
    """
    run = _LocalRun(parties, link)
    run.until_all_end()
    return {name: run.results[name] for name in parties}, run.clocks.trace()


class _LocalRun:
    """The state of one `run_local`."""

    def __init__(self, parties: Mapping[str, Steps], link: Link):
        self.steps = dict(parties)
        self.clocks = Clocks(parties, link)
        self.results: dict[str, Any] = {}
        # A party that has not begun waits for nothing.
        self.waiting: dict[str, Action | None] = dict.fromkeys(parties)
        self.inbox: dict[tuple[str, str], collections.deque] = collections.defaultdict(
            collections.deque
        )

    def until_all_end(self) -> None:
        _finish(jax.live_arrays())  # what was begun before the run is nobody's
        while self.waiting:
            ready = [name for name, wait in self.waiting.items() if self._can_go_on(name, wait)]
            if not ready:
                waits = ", ".join(
                    f"{n} waits for {w.others[0]}" for n, w in self.waiting.items() if w
                )
                raise ProtocolError(f"deadlock: {waits}")
            for name in ready:
                self._advance(name)
        unread = [f"{s} to {r}" for (r, s), box in self.inbox.items() if box]
        if unread:
            raise ProtocolError(f"messages were sent but never received: {', '.join(unread)}")

    def _can_go_on(self, name: str, wait: Action | None) -> bool:
        return wait is None or bool(self.inbox[name, wait.others[0]])

    def _advance(self, name: str) -> None:
        """Runs `name` until it waits for a message that is not there, or ends."""
        wait = self.waiting.pop(name)
        while self._can_go_on(name, wait):
            message = None
            if wait is not None:
                self.clocks.act(wait)
                message = self.inbox[name, wait.others[0]].popleft()
            action, event = self._step(name, message)
            wait = action if action.kind == "receive" else None
            if wait is None:
                self.clocks.act(action)
            for to in action.others if isinstance(event, Send) else ():
                self.inbox[to, name].append(event.message)
            if action.kind == "end":
                return
        self.waiting[name] = wait

    def _step(self, name: str, message: Message) -> tuple[Action, Any]:
        """What `name` does next, with the seconds it computed until then, and its event."""
        begin = time.perf_counter()
        event: Any = None
        try:
            try:
                event = self.steps[name].send(message)
                ended = False
            except StopIteration as stop:
                self.results[name], ended = stop.value, True
            seconds = time.perf_counter() - begin
            if not ended:
                event = checked_event(name, event, self.steps)
            # A message leaves when it is ready, whatever else its sender has begun meanwhile.
            sent = isinstance(event, Send)
            if _finish(jax.tree.leaves(event.message) if sent else jax.live_arrays()):
                seconds = time.perf_counter() - begin
        except Exception as error:
            name_party(error, name)
            raise
        return _action(name, seconds, event), event


def _action(name: str, seconds: float, event: Event | None) -> Action:
    if isinstance(event, Send):
        n_bytes = message_bytes(event.message)
        return Action(name, seconds, "send", tuple(receivers(event)), event.label, n_bytes)
    if isinstance(event, Receive):
        return Action(name, seconds, "receive", (event.sender,))
    if isinstance(event, Stage):
        return Action(name, seconds, "stage", label=event.label)
    return Action(name, seconds, "end")


def _finish(arrays: Iterable[Any]) -> bool:
    """Waits for JAX to compute `arrays`; False if that was done already."""
    pending = [array for array in arrays if _is_pending(array)]
    for array in pending:
        array.block_until_ready()
    return bool(pending)


def _is_pending(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return False
    array: Any = leaf
    return not (array.is_deleted() or array.is_ready())
