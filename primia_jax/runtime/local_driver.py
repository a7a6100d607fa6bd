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

Faults can be injected (`runtime.faults`): a party that vanishes at a given event, a line that is
slow. Deadlines are of the parties' virtual clocks, so that what goes missing does not depend on
the machine's mood where delays are long beside the computing.
"""

import collections
import copy
import dataclasses
import time
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from primia_jax.core.records import Check
from primia_jax.errors import DataError, PartyLost, ProtocolError, UserError, joined
from primia_jax.runtime.faults import Fault, Injector
from primia_jax.runtime.link import Link
from primia_jax.runtime.party import (
    DROPOUTS,
    MISSING,
    Deadline,
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
    with_lost,
)
from primia_jax.runtime.replay import Clocks
from primia_jax.runtime.trace import Action, Trace


class LocalDriver:
    """Runs programs of all parties in this process."""

    missing: Mapping[str, str] = types.MappingProxyType({})  # nobody ever is

    def __init__(
        self,
        parties: Mapping[str, Callable[[], Any]],
        link: Link = Link(),  # noqa: B008
        faults: Sequence[Fault] = (),
        check_report: Check | None = None,
    ):
        """Makes each party's state by calling its entry of `parties`.

        Reports that `check_report` refuses fail the run, as with actors.
        """
        self._makers, self._check_report = dict(parties), check_report
        self.states: dict[str, Any] = {}
        failure: DataError | None = None
        for name, make in parties.items():
            try:
                self.states[name] = make()
            except DataError as error:
                failure = joined(failure, error) if failure else error
        if failure:
            raise failure
        self._link, self._faults = link, tuple(faults)

    def with_link(self, link: Link) -> "LocalDriver":
        """The same parties, with the same states, joined by other links."""
        driver = copy.copy(self)
        driver._link = link
        return driver

    def with_faults(self, *faults: Fault) -> "LocalDriver":
        """The same parties, with the same states; every run suffers these faults and no others."""
        driver = copy.copy(self)
        driver._faults = faults
        return driver

    def run(
        self,
        programs: Mapping[str, Program],
        deadline_s: float = 0.0,
        optional: Collection[str] = (),
    ) -> tuple[dict[str, Any], Trace]:
        """See `party.Driver.run`; there is one process, and nobody is ended for being slow."""
        steps = {name: program(self.states[name]) for name, program in programs.items()}
        results, trace = run_local(steps, self._link, optional, self._faults)
        if self._check_report is not None:
            for name, (_, report) in results.items():
                self._check_report(name, report)
        for name, (state, _) in results.items():
            self.states[name] = state
        return {name: report for name, (_, report) in results.items()}, trace

    def revive(self, name: str, timeout_s: float = 0.0) -> bool:
        """See `party.Driver.revive`; the party is there at once."""
        self.states[name] = self._makers[name]()
        return True

    def close(self) -> None:
        """Forgets the states."""
        self.states.clear()


def run_local(
    parties: Mapping[str, Steps],
    link: Link = Link(),  # noqa: B008
    optional: Collection[str] = (),
    faults: Sequence[Fault] = (),
) -> tuple[dict[str, Any], Trace]:
    """Steps the generators of `parties` in turn until all have returned.

    Args:
      parties: name -> generator.
      link: that joins every two.
      optional: those whom the run may end without, see `party.Driver.run`.
      faults: what goes wrong.

    Returns:
      what each generator returned, those lost left out, and the trace with every message and span.

    Raises:
      ProtocolError: if all that remain wait (named with whom they wait for), or a message was never
        received.
      PartyLost: if a party is lost that the run cannot end without.
    """
    run = _LocalRun(parties, link, optional, faults)
    try:
        run.until_all_end()
    except UserError as error:
        failure = with_lost(error, run.lost)
        if failure is error:
            raise
        raise failure from error
    trace = dataclasses.replace(run.clocks.trace(), lost=run.lost)
    if faults or any(run.missed.values()):
        trace = dataclasses.replace(trace, recording=())
    return {name: run.results[name] for name in parties if name not in run.lost}, trace


class _Wait(NamedTuple):
    """Action that a party waits for."""

    action: Action
    optional: bool
    deadline_s: float  # by the party's clock

    @property
    def sender(self) -> str:
        return self.action.others[0]


class _LocalRun:
    """The state of one `run_local`."""

    def __init__(
        self,
        parties: Mapping[str, Steps],
        link: Link,
        optional: Collection[str],
        faults: Sequence[Fault],
    ):
        self.steps = dict(parties)
        self.faults = Injector(faults)
        self.clocks = Clocks(parties, link, self.faults.delay)
        self.optional = frozenset(optional)
        self.results: dict[str, Any] = {}
        self.lost: dict[str, str] = {}  # name -> why
        self.missed: dict[str, set[str]] = {name: set() for name in parties}  # by whom: whom
        self.deadlines = dict.fromkeys(parties, float("inf"))
        self.stages = dict.fromkeys(parties, "")
        # A party that has not begun waits for nothing.
        self.waiting: dict[str, _Wait | None] = dict.fromkeys(parties)
        self.inbox: dict[tuple[str, str], collections.deque] = collections.defaultdict(
            collections.deque
        )

    def until_all_end(self) -> None:
        _finish(jax.live_arrays())  # what was begun before the run is nobody's
        while self.waiting:
            ready = [name for name, wait in self.waiting.items() if self._can_go_on(name, wait)]
            if not ready:
                self._end_a_wait()
            for name in ready:
                self._advance(name)
        unread = [
            f"{sender} to {to}"
            for (to, sender), box in self.inbox.items()
            if box and to not in self.lost
        ]
        if unread:
            raise ProtocolError(f"messages were sent but never received: {', '.join(unread)}")

    def _can_go_on(self, name: str, wait: _Wait | None) -> bool:
        if wait is None or self.inbox[name, wait.sender]:
            return True
        return wait.sender in self.missed[name] or (wait.optional and wait.sender in self.lost)

    def _end_a_wait(self) -> None:
        """All wait: the first deadline passes, or those who cannot go on are lost.

        Nothing is on its way, and whatever a party sends hereafter arrives after that deadline.
        """
        waits = {name: wait for name, wait in self.waiting.items() if wait is not None}
        due = {
            name: max(wait.deadline_s, self._clock(name, wait))
            for name, wait in waits.items()
            if wait.optional and wait.deadline_s < float("inf")
        }
        if due:
            self._advance(min(due, key=due.__getitem__), gives_up=True)
            return
        for name, wait in waits.items():
            if wait.sender in self.lost:
                error = PartyLost(
                    f"{wait.sender} was lost: {self.lost[wait.sender]}", (wait.sender,)
                )
                if name not in self.optional:
                    raise error
                self._lose(name, str(error))
                return
        late = set().union(*self.missed.values()) & self.optional
        if waits.keys() <= late:
            for name in waits:
                self._lose(name, "it did not come in time")
            return
        listed = ", ".join(f"{name} waits for {wait.sender}" for name, wait in waits.items())
        raise ProtocolError(f"deadlock: {listed}")

    def _clock(self, name: str, wait: _Wait) -> float:
        """The party's clock when it begins to wait."""
        return self.clocks.now(name) + wait.action.seconds

    def _lose(self, name: str, reason: str) -> None:
        if name not in self.optional:
            raise PartyLost(f"{name} was lost: {reason}", (name,))
        self.lost[name] = reason
        self.waiting.pop(name, None)
        self.results.pop(name, None)
        self.steps[name].close()

    def _advance(self, name: str, gives_up: bool = False) -> None:
        """Runs `name` until it waits for a message that is not there, or ends or vanishes."""
        wait = self.waiting.pop(name)
        while gives_up or self._can_go_on(name, wait):
            message = None if wait is None else self._received(name, wait)
            gives_up = False
            try:
                action, event = self._step(name, message)
            except DROPOUTS as error:
                if name not in self.optional:
                    raise
                self._lose(name, str(error))
                return
            counts = action.kind in ("send", "receive", "end")
            if counts and self.faults.vanishes(name, self.stages[name]):
                self._lose(name, "it vanished")
                return
            wait = None
            if isinstance(event, Receive):
                wait = _Wait(action, event.optional, self.deadlines[name])
                continue
            self.clocks.act(action)
            if isinstance(event, Stage):
                self.stages[name] = event.label
            elif isinstance(event, Deadline):
                seconds = float("inf") if event.seconds is None else event.seconds
                self.deadlines[name] = self.clocks.now(name) + seconds
            elif isinstance(event, Send):
                for to in action.others:
                    if to not in self.lost and name not in self.missed[to]:
                        self.inbox[to, name].append(event.message)
            else:
                return
        self.waiting[name] = wait

    def _received(self, name: str, wait: _Wait) -> Message:
        """The message waited for, or MISSING."""
        sender, box = wait.sender, self.inbox[name, wait.sender]
        begin_s = self._clock(name, wait)
        if sender in self.missed[name] and not wait.optional:
            raise ProtocolError(f"{name} asks for a message of {sender}, whom it missed before")
        if box:
            due_s = max(wait.deadline_s, begin_s)
            if not wait.optional or self.clocks.arrival(sender, name) <= due_s:
                self.clocks.act(wait.action)
                return box.popleft()
        gone = sender in self.missed[name] or (sender in self.lost and not box)
        gone_s = min(wait.deadline_s, self.clocks.now(sender))  # its clock stands since then
        until_s = max(begin_s, gone_s) if gone else wait.deadline_s
        self.clocks.act(wait.action._replace(kind="miss", until_s=until_s))
        self.missed[name].add(sender)
        box.clear()
        return MISSING

    def _step(self, name: str, message: Message) -> tuple[Action, Any]:
        """Next action of `name`, with the seconds it computed until then, and its event."""
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
    if isinstance(event, Deadline):
        return Action(name, seconds, "deadline")
    return Action(name, seconds, "end")


def _finish(arrays: Iterable[Any]) -> bool:
    """Waits for JAX to compute `arrays`; False if that was done already.

    Other threads may hold some of them, and delete or donate them meanwhile.
    """
    waited = False
    for array in arrays:
        if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
            continue
        concrete: Any = array
        try:
            if not concrete.is_deleted() and not concrete.is_ready():
                waited = True
                concrete.block_until_ready()
        except RuntimeError:
            if not concrete.is_deleted():
                raise
    return waited
