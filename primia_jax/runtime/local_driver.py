"""All parties in one process, each with a virtual clock.

A party's clock advances by the measured time of its own computing; a message arrives at
`max(send time, end of the line's last transfer) + bytes / bandwidth + latency`. So one machine
shows the seconds that several would take at any latency, without sleeping.
"""

import collections
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from primia_jax.errors import ProtocolError
from primia_jax.runtime.link import Link
from primia_jax.runtime.party import (
    Message,
    Program,
    Receive,
    Send,
    Steps,
    checked_event,
    message_bytes,
    receivers,
)
from primia_jax.runtime.trace import MessageRecord, PartyTrace, Trace

_NOTHING = object()


class LocalDriver:
    """Runs programs of all parties in this process."""

    def __init__(self, parties: Mapping[str, Callable[[], Any]], link: Link = Link()):  # noqa: B008
        """Makes each party's state by calling its entry of `parties`."""
        self.states = {name: make() for name, make in parties.items()}
        self._link = link

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
      what each generator returned, and the trace with every message.

    Raises:
      ProtocolError: if all that remain wait (named with whom they wait for), or a message was never
        received.
    """
    run = _LocalRun(parties, link)
    run.until_all_end()
    return run.results, Trace(run.traces, tuple(run.records))


class _LocalRun:
    """The state of one `run_local`."""

    def __init__(self, parties: Mapping[str, Steps], link: Link):
        self.steps = dict(parties)
        self.link = link
        self.traces = {name: PartyTrace() for name in parties}
        self.records: list[MessageRecord] = []
        self.results: dict[str, Any] = {}
        self.waiting: dict[str, Any] = dict.fromkeys(parties, _NOTHING)  # name -> Receive or start
        self.inbox: dict[tuple[str, str], collections.deque] = collections.defaultdict(
            collections.deque
        )
        self.line_free: dict[tuple[str, str], float] = collections.defaultdict(float)

    def until_all_end(self) -> None:
        while self.waiting:
            ready = [name for name, event in self.waiting.items() if self._can_go_on(name, event)]
            if not ready:
                waits = ", ".join(f"{n} waits for {e.sender}" for n, e in self.waiting.items())
                raise ProtocolError(f"deadlock: {waits}")
            for name in ready:
                self._advance(name)
        unread = [f"{s} to {r}" for (r, s), box in self.inbox.items() if box]
        if unread:
            raise ProtocolError(f"messages were sent but never received: {', '.join(unread)}")

    def _can_go_on(self, name: str, event: Any) -> bool:
        return event is _NOTHING or bool(self.inbox[name, event.sender])

    def _advance(self, name: str) -> None:
        """Runs `name` until it waits for a message that is not there, or ends."""
        trace, steps = self.traces[name], self.steps[name]
        message: Message = None
        event = self.waiting.pop(name)
        if event is not _NOTHING:
            message = self._take(name, event)
        while True:
            start = time.perf_counter()
            try:
                event = checked_event(name, steps.send(message), self.traces)
                if isinstance(event, Send):
                    _finish_computing(event.message)
            except StopIteration as stop:
                self._account(trace, start)
                self.results[name] = stop.value
                return
            self._account(trace, start)
            message = None
            if isinstance(event, Send):
                self._put(name, event)
            elif self._can_go_on(name, event):
                message = self._take(name, event)
            else:
                self.waiting[name] = event
                return

    @staticmethod
    def _account(trace: PartyTrace, start: float) -> None:
        spent = time.perf_counter() - start
        trace.compute_seconds += spent
        trace.seconds += spent

    def _put(self, name: str, event: Send) -> None:
        trace, n_bytes = self.traces[name], message_bytes(event.message)
        for to in receivers(event):
            line = (name, to)
            begins = max(trace.seconds, self.line_free[line])
            self.line_free[line] = begins + self.link.transfer_seconds(n_bytes)
            arrives = self.line_free[line] + self.link.delay_seconds(len(self.records))
            trace.bytes_sent += n_bytes
            trace.messages_sent += 1
            self.records.append(
                MessageRecord(name, to, event.label, n_bytes, trace.seconds, arrives)
            )
            self.inbox[to, name].append((event.message, arrives, trace.depth + 1))

    def _take(self, name: str, event: Receive) -> Message:
        message, arrives, depth = self.inbox[name, event.sender].popleft()
        trace = self.traces[name]
        trace.seconds = max(trace.seconds, arrives)
        trace.depth = max(trace.depth, depth)
        return message


def _finish_computing(message: Message) -> None:
    """Waits for JAX's asynchronous work on `message`, so that its time is the sender's."""
    for leaf in jax.tree.leaves(message):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            leaf.block_until_ready()
