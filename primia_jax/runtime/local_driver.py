"""All parties in one process, each with a virtual clock.

A party's clock advances by the measured time of its own computing; a message arrives at
`max(send time, end of the line's last transfer) + bytes / bandwidth + latency`. So one machine
shows the seconds that several would take at any latency, without sleeping. Messages are handed
over, not copied; checking and delivering them is nobody's time.

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
from primia_jax.runtime.link import Line, Link
from primia_jax.runtime.party import (
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
from primia_jax.runtime.trace import MessageRecord, PartyTrace, SpanRecorder, Trace

_BEGIN, _END = object(), object()


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
    spans = [span for recorder in run.recorders.values() for span in recorder.spans]
    spans.sort(key=lambda span: span.start_s)
    run.records.sort(key=lambda record: record.sent_s)
    results = {name: run.results[name] for name in parties}
    return results, Trace(run.traces, tuple(run.records), tuple(spans))


class _LocalRun:
    """The state of one `run_local`."""

    def __init__(self, parties: Mapping[str, Steps], link: Link):
        self.steps = dict(parties)
        self.link = link
        self.traces = {name: PartyTrace() for name in parties}
        self.recorders = {name: SpanRecorder(name) for name in parties}
        self.records: list[MessageRecord] = []
        self.results: dict[str, Any] = {}
        self.waiting: dict[str, Any] = dict.fromkeys(parties, _BEGIN)  # name -> Receive or start
        self.inbox: dict[tuple[str, str], collections.deque] = collections.defaultdict(
            collections.deque
        )
        self.lines: dict[tuple[str, str], Line] = {}

    def until_all_end(self) -> None:
        _finish(jax.live_arrays())  # what was begun before the run is nobody's
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
        return event is _BEGIN or bool(self.inbox[name, event.sender])

    def _advance(self, name: str) -> None:
        """Runs `name` until it waits for a message that is not there, or ends."""
        event = self.waiting.pop(name)
        message = None if event is _BEGIN else self._take(name, event)
        while (event := self._step(name, message)) is not _END:
            message = None
            if isinstance(event, Send):
                self._put(name, event)
            elif isinstance(event, Stage):
                self.recorders[name].stage = event.label
            elif self._can_go_on(name, event):
                message = self._take(name, event)
            else:
                self.waiting[name] = event
                return

    def _step(self, name: str, message: Message) -> Any:
        """The next event of `name`, or _END; advances its clock by what it computed until then."""
        begin = time.perf_counter()
        try:
            try:
                event: Any = self.steps[name].send(message)
            except StopIteration as stop:
                event, self.results[name] = _END, stop.value
            seconds = time.perf_counter() - begin
            if event is not _END:
                event = checked_event(name, event, self.traces)
            # A message leaves when it is ready, whatever else its sender has begun meanwhile.
            sent = isinstance(event, Send)
            if _finish(jax.tree.leaves(event.message) if sent else jax.live_arrays()):
                seconds = time.perf_counter() - begin
        except Exception as error:
            name_party(error, name)
            raise
        trace = self.traces[name]
        start = trace.seconds
        trace.compute_seconds += seconds
        trace.seconds += seconds
        self.recorders[name].computed(start, trace.seconds)
        return event

    def _put(self, name: str, event: Send) -> None:
        trace, n_bytes = self.traces[name], message_bytes(event.message)
        for to in receivers(event):
            if (name, to) not in self.lines:
                self.lines[name, to] = Line(self.link, name, to)
            arrives = self.lines[name, to].arrival(trace.seconds, n_bytes)
            trace.bytes_sent += n_bytes
            trace.messages_sent += 1
            stage = self.recorders[name].stage
            self.records.append(
                MessageRecord(name, to, event.label, n_bytes, trace.seconds, arrives, stage)
            )
            self.inbox[to, name].append((event.message, arrives, trace.depth + 1))

    def _take(self, name: str, event: Receive) -> Message:
        message, arrives, depth = self.inbox[name, event.sender].popleft()
        trace = self.traces[name]
        trace.seconds = max(trace.seconds, arrives)
        trace.depth = max(trace.depth, depth)
        return message


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
