"""One party in a Ray actor: a thin shell that keeps a state, runs programs, carries messages."""

import json
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import ray

from primia_jax.environment import compilation_cache_dir, give_memory_back
from primia_jax.errors import ProtocolError
from primia_jax.runtime import frames
from primia_jax.runtime.link import Line, Link
from primia_jax.runtime.mailbox import Delivery, Envelope, Mailbox
from primia_jax.runtime.party import (
    MISSING,
    Deadline,
    Message,
    Program,
    Receive,
    Send,
    Stage,
    Steps,
    checked_event,
    message_bytes,
    receivers,
)
from primia_jax.runtime.trace import MessageRecord, PartyTrace, Span, SpanRecorder


class PartyRun(NamedTuple):
    """What a party's run gives its driver; times by the monotonic clock of its machine."""

    report: Any
    trace: PartyTrace
    spans: list[Span]
    received: list[MessageRecord]
    begin_s: float
    clock: str  # parties with the same name of it share a clock
    missed: tuple[str, ...] = ()  # whom it missed


class _PartyActor:
    def __init__(self, name: str, timeout_s: float, sealed: bool):
        self._name, self._timeout_s = name, timeout_s
        self._mailbox = Mailbox()
        self._seals = frames.Seals(name) if sealed else None
        self._state: Any = None
        self._pending: tuple[int, Any] | None = None
        self._peers: dict[str, Any] = {}
        self._clock = _clock_name()

    def public_key(self) -> bytes:
        assert self._seals is not None
        return self._seals.public_key

    def start(
        self,
        make_state: Callable[[], Any],
        peers: dict[str, Any],
        public_keys: dict[str, bytes] | None,
    ) -> None:
        jax.config.update("jax_compilation_cache_dir", compilation_cache_dir())
        self._peers = peers
        if self._seals is not None:
            self._seals.agree(public_keys or {})
        self._state = make_state()

    @ray.method(concurrency_group="mail")
    def deliver(self, envelope: Envelope, number: int, body: Any) -> None:
        self._mailbox.put(Delivery(envelope, number, body, time.monotonic()))

    @ray.method(concurrency_group="control")
    def abort(self, run: int, reason: str) -> None:
        self._mailbox.abort(run, reason)

    @ray.method(concurrency_group="control")
    def lose(self, run: int, sender: str, reason: str) -> None:
        self._mailbox.lose(run, sender, reason)

    @ray.method(concurrency_group="control")
    def waits_for(self) -> str:
        """The party whose message is waited for now; empty while this one computes."""
        return self._mailbox.waits_for

    @ray.method(concurrency_group="control")
    def replace_peer(self, name: str, actor: Any) -> None:
        self._peers = {**self._peers, name: actor}

    @ray.method(concurrency_group="control")
    def peak_bytes(self) -> int:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def run(self, run: int, program: Program, parties: tuple[str, ...], link: Link) -> PartyRun:
        self._mailbox.begin(run)
        transport = _Transport(self, run, dict.fromkeys(parties), link)
        (state, report), party_run = run_party(self._name, program(self._state), transport)
        unread = [name for name in self._mailbox.unread(run) if name not in party_run.missed]
        if unread:
            raise ProtocolError(
                f"{self._name} left messages unread at the end of its program, from "
                f"{', '.join(unread)}"
            )
        self._pending = (run, state)
        give_memory_back()
        return party_run._replace(report=report)

    def commit(self, run: int) -> None:
        """Takes over the new state, once every party has come to its end."""
        if self._pending is not None and self._pending[0] == run:
            self._state = self._pending[1]
        self._pending = None


_ACTOR_OPTIONS: dict[str, Any] = {
    "max_restarts": 0,
    "concurrency_groups": {"mail": 4, "control": 2},
}
RemoteParty: Any = ray.remote(**_ACTOR_OPTIONS)(_PartyActor)


def _clock_name() -> str:
    """Names the machine whose monotonic clock this process reads."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return platform.node()


class _Transport:
    """Carries one party's messages in one run.

    Attributes:
      parties: the run's.
      received: a record of every message that this party got.
      missed: the parties whose messages turned out missing.
      clock: names the machine's clock.
    """

    def __init__(self, actor: Any, run: int, parties: Mapping[str, Any], link: Link):
        self._actor, self._run, self.parties, self._link = actor, run, parties, link
        self._me, self._seals, self.clock = actor._name, actor._seals, actor._clock
        self._sent: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._lines: dict[str, Line] = {}
        self.received: list[MessageRecord] = []
        self.missed: list[str] = []

    def send(self, event: Send, stage: str, depth: int) -> None:
        """Hands a message over to every receiver's actor; does not wait for it to arrive."""
        to, n_bytes = receivers(event), message_bytes(event.message)
        if self._seals is not None:
            body: Any = frames.pack(event.message)
        else:
            body = jax.tree.map(np.asarray, event.message)
            if len(to) > 1:
                body = ray.put(body)  # once for all; Ray hands receivers the value
        for name in to:
            sequence = self._sent.get(name, 0)
            self._sent[name] = sequence + 1
            envelope = Envelope(
                *(self._run, self._me, name, sequence, depth, event.label, stage, n_bytes),
                *(0.0, self.clock),
            )
            number, carried = 0, body
            if self._seals is not None:
                number, carried = self._seals.seal(name, body, _associated(envelope))
            envelope = envelope._replace(sent_s=time.monotonic())
            self._actor._peers[name].deliver.remote(envelope, number, carried)

    def wait(
        self, sender: str, optional: bool = False, until_s: float = float("inf")
    ) -> tuple[Delivery | None, bool]:
        """The next delivery from `sender`, and whether it took time until the link let it arrive.

        What Ray needs to carry a message is part of the link's delay and not added to it, where
        sender and receiver share a clock. One that is `optional` is None if its sender has gone, or
        it does not arrive before `until_s`, or an earlier one did not.

        Raises:
          ProtocolError: if one that is not optional is asked of a sender that was missed before.
        """
        if sender in self.missed:
            if not optional:
                raise ProtocolError(
                    f"{self._me} asks for a message of {sender}, whom it missed before"
                )
            return None, False
        sequence, timeout_s = self._taken.get(sender, 0), self._actor._timeout_s
        self._taken[sender] = sequence + 1
        if optional:
            timeout_s = min(timeout_s, until_s - time.monotonic())
        delivery, waited = self._actor._mailbox.take(
            self._run, sender, sequence, timeout_s, optional
        )
        if delivery is None:
            self.missed.append(sender)
            return None, waited
        # Whoever carried it may have written any envelope: it is held to what is due here.
        envelope = delivery.envelope._replace(
            run=self._run, sender=sender, receiver=self._me, sequence=sequence
        )
        sent, n_bytes = delivery.arrived_s, envelope.n_bytes
        if envelope.clock == self.clock:
            sent = min(envelope.sent_s, sent)
        if sender not in self._lines:
            self._lines[sender] = Line(self._link, sender, self._me)
        arrives = max(delivery.arrived_s, self._lines[sender].arrival(sent, n_bytes))
        if optional and arrives > max(until_s, time.monotonic()):
            time.sleep(max(0.0, until_s - time.monotonic()))
            self.missed.append(sender)
            return None, True
        self.received.append(
            MessageRecord(sender, self._me, envelope.label, n_bytes, sent, arrives, envelope.stage)
        )
        while (left := arrives - time.monotonic()) > 0:
            waited = True
            time.sleep(left)
        return delivery._replace(envelope=envelope), waited

    def open(self, delivery: Delivery) -> Message:
        """The message of a delivery.

        Raises:
          ProtocolError: if it is sealed and not authentic.
        """
        envelope = delivery.envelope
        if self._seals is None:
            return delivery.body
        payload = self._seals.open(
            envelope.sender, delivery.number, delivery.body, _associated(envelope)
        )
        try:
            return frames.unpack(payload)
        except ProtocolError as error:
            raise ProtocolError(f"{envelope.sender} to {self._me}: {error}") from None


def _associated(envelope: Envelope) -> bytes:
    """What a seal authenticates beside the message; a wrong time only falsifies a trace."""
    return json.dumps(envelope[:-2]).encode()


def run_party(name: str, steps: Steps, transport: _Transport) -> tuple[Any, PartyRun]:
    """Runs one party's generator to its end over `transport`; returns what it returned."""
    trace, recorder, message = PartyTrace(), SpanRecorder(name), None
    begin = since = time.monotonic()
    until = float("inf")

    def computed(since: float) -> float:
        now = time.monotonic()
        trace.compute_seconds += now - since
        recorder.computed(since, now)
        return now

    while True:
        try:
            event = checked_event(name, steps.send(message), transport.parties)
        except StopIteration as stop:
            trace.seconds = computed(since) - begin
            run = PartyRun(None, trace, recorder.spans, transport.received, begin, transport.clock)
            return stop.value, run._replace(missed=tuple(transport.missed))
        message = None
        if isinstance(event, Send):
            transport.send(event, recorder.stage, trace.depth + 1)
            to = receivers(event)
            trace.bytes_sent += message_bytes(event.message) * len(to)
            trace.messages_sent += len(to)
        since = computed(since)
        if isinstance(event, Stage):
            recorder.stage = event.label
        elif isinstance(event, Deadline):
            until = float("inf") if event.seconds is None else since + event.seconds
        elif isinstance(event, Receive):
            delivery, waited = transport.wait(event.sender, event.optional, until)
            if waited:
                since = time.monotonic()
            if delivery is None:
                message = MISSING
                continue
            message = transport.open(delivery)
            trace.depth = max(trace.depth, delivery.envelope.depth)
