"""Parties in a Ray actor: a thin shell that keeps their states, runs programs, carries messages.

Usually there is one party in an actor; where several share it (simulated hospitals), each has its
own state, mailbox and keys, and they compute by turns.
"""

import dataclasses
import hashlib
import hmac
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import ray

from primia_jax.core import identity
from primia_jax.core.records import Check
from primia_jax.environment import close_to_others, give_memory_back, private_cache
from primia_jax.errors import ProtocolError, UserError
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
    name_party,
    receivers,
)
from primia_jax.runtime.trace import MessageRecord, PartyTrace, Span, SpanRecorder
from primia_jax.runtime.turns import Turns


class PartyRun(NamedTuple):
    """Result of a party's run for its driver; times by the monotonic clock of its machine."""

    report: Any
    trace: PartyTrace
    spans: list[Span]
    received: list[MessageRecord]
    begin_s: float
    clock: str  # parties with the same name of it share a clock
    missed: tuple[str, ...] = ()  # whom it missed


class Mail(NamedTuple):
    """Mail handle for messages to one peer.

    Attributes:
      actor: that hosts the peer.
      stamps: by sender, of those in this actor: what the peer's host takes mail from it by.
    """

    actor: Any
    stamps: Mapping[str, bytes]


class PartyShell:
    """One party: its state, its mailbox, its seals."""

    def __init__(
        self,
        name: str,
        timeout_s: float,
        sealed: bool,
        turns: Turns | None = None,
        place: int = 0,
        credentials: Callable[[], identity.Credentials] | None = None,
        check_report: Check | None = None,
    ):
        self.check_report = check_report
        self.name, self.timeout_s = name, timeout_s
        self.turns, self.place = turns or Turns(), place
        self.mailbox = Mailbox()
        self._credentials, self.sealed = credentials, sealed
        self.seals: frames.Seals | None = None
        self.peers: dict[str, Mail] = {}
        self.clock = _clock_name()
        self._state: Any = None
        self._newest = 0  # run
        self._pending: tuple[int, Any] | None = None

    def hello(self) -> bytes:
        """Begins a session of sealed frames: fresh public keys of this party."""
        credentials = self._credentials() if self._credentials else None
        self.seals = frames.Seals(self.name, credentials)
        return self.seals.hello

    def sign(self, hellos: Mapping[str, bytes]) -> bytes:
        """Signature over the public keys of all parties."""
        assert self.seals is not None, "no session was begun"
        return self.seals.sign(hellos)

    def agree(self, signatures: Mapping[str, bytes]) -> None:
        """Ends the key agreement of a session; `signatures` are everybody's."""
        assert self.seals is not None, "no session was begun"
        self.seals.agree(signatures)

    def make(self, make_state: Callable[[], Any]) -> None:
        """Makes the state."""
        self._pending, self._state = None, make_state()

    def deliver(self, envelope: Envelope, number: int, body: Any, content: Any = None) -> None:
        """Takes in a message."""
        self.mailbox.put(Delivery(envelope, number, body, time.monotonic(), content))

    def run(self, run: int, program: Program, parties: tuple[str, ...], link: Link) -> PartyRun:
        """Runs `program` to its end; `commit` then makes the new state count."""
        self.mailbox.begin(run)
        self._newest = max(run, self._newest)
        transport = _Transport(self, run, dict.fromkeys(parties), link)
        self.turns.take(self.place)
        try:
            (state, report), party_run = run_party(self.name, program(self._state), transport)
        finally:
            self.turns.give()
        if self.check_report is not None:
            self.check_report(self.name, report)
        unread = [name for name in self.mailbox.unread(run) if name not in party_run.missed]
        if unread:
            raise ProtocolError(
                f"{self.name} left messages unread at the end of its program, from "
                f"{', '.join(unread)}"
            )
        if run == self._newest:  # else it was given up meanwhile
            self._pending = (run, state)
        give_memory_back()
        return party_run._replace(report=report)

    def commit(self, run: int) -> None:
        """Takes over the new state, once every party has come to its end."""
        if self._pending is not None and self._pending[0] == run:
            self._state = self._pending[1]
        self._pending = None


class _Host:
    """The actor. Every call names the party that it is for.

    Two kinds of callers are told apart. The driver shows its key with every call. Peers hold this
    actor's handle too, and may deliver mail, each under its own name, and nothing else. That
    keeps parties to their programs; it is no wall, since Ray unpickles the arguments of any call
    before they are looked at here (see `ray_cluster`).
    """

    def __init__(
        self,
        names: Sequence[str],
        timeout_s: float,
        sealed: bool,
        key_digest: bytes,
        credentials: Mapping[str, Callable[[], identity.Credentials]] | None = None,
        check_report: Check | None = None,
    ):
        close_to_others()
        jax.config.update("jax_compilation_cache_dir", private_cache())
        turns, makers = Turns(), credentials or {}
        self._key_digest = key_digest
        self._stamps: Mapping[tuple[str, str], bytes] = {}  # (sender, receiver)
        self._parties = {
            name: PartyShell(
                name,
                timeout_s,
                sealed,
                turns,
                place,
                makers.get(name),
                check_report,
            )
            for place, name in enumerate(names)
        }

    def _admit(self, key: bytes) -> None:
        """Refuses whoever is not the driver that started this actor."""
        digest = hashlib.sha256(key if isinstance(key, bytes) else b"").digest()
        if not hmac.compare_digest(digest, self._key_digest):
            raise ProtocolError(
                f"{', '.join(self._parties)}: only the driver that started a party may call it; "
                "others may deliver mail"
            )

    def hellos(self, key: bytes) -> dict[str, bytes]:
        """Begins a session of sealed frames."""
        self._admit(key)
        return {name: party.hello() for name, party in self._parties.items()}

    def sign(self, key: bytes, hellos: Mapping[str, bytes]) -> dict[str, bytes]:
        self._admit(key)
        return {name: party.sign(hellos) for name, party in self._parties.items()}

    def agree(self, key: bytes, signatures: Mapping[str, bytes]) -> None:
        self._admit(key)
        for party in self._parties.values():
            party.agree(signatures)

    def start(
        self,
        key: bytes,
        makers: Mapping[str, Callable[[], Any]],
        peers: dict[str, Mail],
        stamps: Mapping[tuple[str, str], bytes],
    ) -> None:
        """Tells all parties of their peers, and makes the states of those in `makers`.

        `stamps` are those by which mail for these parties is known, by (sender, receiver).
        """
        self._admit(key)
        self._stamps = stamps
        for party in self._parties.values():
            party.peers = peers
        for name, make_state in makers.items():
            self.make(key, name, make_state)

    def make(self, key: bytes, name: str, make_state: Callable[[], Any]) -> None:
        """Makes one party's state, at first or anew."""
        self._admit(key)
        try:
            self._parties[name].make(make_state)
        except UserError as error:
            name_party(error, name)
            raise

    def run(
        self,
        key: bytes,
        name: str,
        run: int,
        program: Program,
        parties: tuple[str, ...],
        link: Link,
    ) -> PartyRun:
        self._admit(key)
        return self._parties[name].run(run, program, parties, link)

    def commit(self, key: bytes, name: str, run: int) -> None:
        self._admit(key)
        self._parties[name].commit(run)

    @ray.method(concurrency_group="mail")
    def deliver(
        self, stamp: bytes, envelope: Envelope, number: int, body: Any, content: Any = None
    ) -> None:
        """Takes in mail that has the stamp of its sender and receiver; drops all other."""
        expected = self._stamps.get((envelope.sender, envelope.receiver))
        if expected is None or not hmac.compare_digest(stamp, expected):
            raise ProtocolError(f"mail for {envelope.receiver} without {envelope.sender}'s stamp")
        self._parties[envelope.receiver].deliver(envelope, number, body, content)

    @ray.method(concurrency_group="control")
    def abort(self, key: bytes, name: str, run: int, reason: str) -> None:
        self._admit(key)
        self._parties[name].mailbox.abort(run, reason)

    @ray.method(concurrency_group="control")
    def lose(self, key: bytes, name: str, run: int, sender: str, reason: str) -> None:
        self._admit(key)
        self._parties[name].mailbox.lose(run, sender, reason)

    @ray.method(concurrency_group="control")
    def waits_for(self, key: bytes, name: str) -> str:
        """The party whose message is waited for now; empty while this one computes."""
        self._admit(key)
        return self._parties[name].mailbox.waits_for

    @ray.method(concurrency_group="control")
    def replace_peers(self, key: bytes, peers: dict[str, Mail]) -> None:
        self._admit(key)
        for party in self._parties.values():
            party.peers = {**party.peers, **peers}

    @ray.method(concurrency_group="control")
    def peak_bytes(self, key: bytes) -> int:
        self._admit(key)
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


def _refused(self: Any, fn: Any, *args: Any, **kwargs: Any) -> None:
    """Stands where Ray lets whoever holds an actor's handle run any function in its process."""
    raise ProtocolError("a party's process runs its own programs alone")


_ACTOR_OPTIONS: dict[str, Any] = {
    "max_restarts": 0,
    "concurrency_groups": {"mail": 4, "control": 2},
}
RemoteHost: Any = ray.remote(**_ACTOR_OPTIONS)(_Host)
RemoteHost.__ray_metadata__.modified_class.__ray_call__ = _refused


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

    def __init__(self, shell: PartyShell, run: int, parties: Mapping[str, Any], link: Link):
        self._shell, self._run, self.parties, self._link = shell, run, parties, link
        self._me, self._seals, self.clock = shell.name, shell.seals, shell.clock
        self._sent: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._lines: dict[str, Line] = {}
        self.received: list[MessageRecord] = []
        self.missed: list[str] = []

    def send(self, event: Send, held: list[Message], stage: str, depth: int) -> None:
        """Hands a message over to every receiver's actor; does not wait for it to arrive.

        Args:
          event: says to whom, by what label.
          held: the message alone; taken out, so that it need not stay while its bytes are sealed.
          stage: of the sender.
          depth: of the message.
        """
        to, n_bytes, content = receivers(event), message_bytes(held[0]), None
        if self._seals is not None:
            body: Any = frames.pack(held.pop())
            if len(to) > 1:
                body, sealed_once = frames.seal_for_several(body)
                content = ray.put(sealed_once)
        else:
            body = jax.tree.map(np.asarray, held.pop())
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
                if len(to) == 1:
                    body = None  # as long as the message itself
            envelope = envelope._replace(sent_s=time.monotonic())
            mail = self._shell.peers[name]
            mail.actor.deliver.remote(mail.stamps[self._me], envelope, number, carried, content)

    def wait(
        self, sender: str, optional: bool = False, until_s: float = float("inf")
    ) -> tuple[Delivery | None, bool]:
        """The next delivery from `sender`, and whether it took time until this party could go on.

        Meanwhile those that share its process may compute.

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
        self._shell.turns.give()
        try:
            delivery, waited = self._arrived(sender, optional, until_s)
        finally:
            waited_for_turn = self._shell.turns.take(self._shell.place)
        return delivery, waited or waited_for_turn

    def _arrived(self, sender: str, optional: bool, until_s: float) -> tuple[Delivery | None, bool]:
        """The next delivery, and whether it took time until the link let it arrive."""
        sequence, timeout_s = self._taken.get(sender, 0), self._shell.timeout_s
        self._taken[sender] = sequence + 1
        if optional:
            timeout_s = min(timeout_s, until_s - time.monotonic())
        delivery, waited = self._shell.mailbox.take(
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
            if delivery.content is not None:
                payload = frames.open_for_several(payload, delivery.content)
            return frames.unpack(payload)
        except ProtocolError as error:
            raise ProtocolError(f"{envelope.sender} to {self._me}: {error}") from None


def _associated(envelope: Envelope) -> bytes:
    """Data that a seal authenticates beside the message; a wrong time only falsifies a trace."""
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
            to = receivers(event)
            trace.bytes_sent += message_bytes(event.message) * len(to)
            trace.messages_sent += len(to)
            held, event = [event.message], dataclasses.replace(event, message=None)
            transport.send(event, held, recorder.stage, trace.depth + 1)
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
            delivery = None  # the sealed bytes must not stay while the party computes
