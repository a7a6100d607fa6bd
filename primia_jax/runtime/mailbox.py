"""Mailbox in which an actor keeps messages until its party's program asks for them."""

import threading
import time
from typing import Any, NamedTuple

from primia_jax.errors import ClusterError, ProtocolError

_POLL_SECONDS = 0.5
_TWICE = object()


class Envelope(NamedTuple):
    """Metadata of a message. Where messages are sealed, all fields but the last two are too."""

    run: int
    sender: str
    receiver: str
    sequence: int  # 0 for the first message from this sender to this receiver in the run
    depth: int  # one-way messages on the longest chain that ends with it
    label: str
    stage: str
    n_bytes: int  # of the arrays
    sent_s: float  # by the monotonic clock of the sender's machine
    clock: str  # which machine that is


class Delivery(NamedTuple):
    """A message as it arrived."""

    envelope: Envelope
    number: int  # of the sealed frame
    body: Any  # the frame, or the message itself
    arrived_s: float  # by this machine's monotonic clock
    content: Any = None  # of a sealed message for several, which the frame opens


class Aborted(ProtocolError):
    """Another party failed, so that this one must not wait any longer."""


class Mailbox:
    """Messages that arrived for one party; every sender's in its order of sending."""

    def __init__(self) -> None:
        self._messages: dict[tuple[int, str, int], Any] = {}
        self._aborted: dict[int, str] = {}
        self._gone: dict[tuple[int, str], str] = {}  # (run, sender) -> why
        self._run = 0
        self._changed = threading.Condition()
        self.waits_for = ""  # the sender of the message that is waited for now

    def begin(self, run: int) -> None:
        """Drops what failed runs before `run` left behind, now and when it comes late."""
        with self._changed:
            self._run = run
            self._messages = {key: item for key, item in self._messages.items() if key[0] >= run}
            self._aborted = {key: why for key, why in self._aborted.items() if key >= run}
            self._gone = {key: why for key, why in self._gone.items() if key[0] >= run}

    def put(self, delivery: Delivery) -> None:
        """Takes in a message."""
        envelope = delivery.envelope
        key = (envelope.run, envelope.sender, envelope.sequence)
        with self._changed:
            if envelope.run < self._run:
                return
            # Of two messages with one number neither can be told to be the right one.
            self._messages[key] = _TWICE if key in self._messages else delivery
            self._changed.notify_all()

    def abort(self, run: int, reason: str) -> None:
        """Ends all waiting in `run`."""
        with self._changed:
            self._aborted[run] = reason
            self._changed.notify_all()

    def lose(self, run: int, sender: str, reason: str) -> None:
        """Ends all waiting for `sender` in `run`: it has gone."""
        with self._changed:
            self._gone[run, sender] = reason
            self._changed.notify_all()

    def take(
        self, run: int, sender: str, sequence: int, timeout_s: float, optional: bool = False
    ) -> tuple[Delivery | None, bool]:
        """The message, and whether it had to be waited for.

        One that is `optional` is None if nothing comes in time, or its sender has gone.

        Raises:
          Aborted: if another party failed.
          ClusterError: if a message does not come that is needed.
          ProtocolError: if two messages claim this place.
        """
        key, deadline, waited = (run, sender, sequence), time.monotonic() + timeout_s, False
        with self._changed:
            self.waits_for = sender
            try:
                while key not in self._messages:
                    if run < self._run:
                        raise Aborted("a later run has begun")
                    if run in self._aborted:
                        raise Aborted(self._aborted[run])
                    left, gone = deadline - time.monotonic(), self._gone.get((run, sender))
                    if optional and (left <= 0 or gone is not None):
                        return None, waited
                    if gone is not None:
                        raise ClusterError(f"{sender} was lost: {gone}")
                    if left <= 0:
                        raise ClusterError(f"no message from {sender} within {timeout_s:.0f} s")
                    waited = True
                    self._changed.wait(min(_POLL_SECONDS, left))
            finally:
                self.waits_for = ""
            delivery = self._messages.pop(key)
        if delivery is _TWICE:
            raise ProtocolError(f"two messages from {sender} claim to be number {sequence}")
        return delivery, waited

    def unread(self, run: int) -> list[str]:
        """Names of the senders whose messages of `run` nobody took, after dropping those."""
        with self._changed:
            left = [key for key in self._messages if key[0] == run]
            for key in left:
                del self._messages[key]
        return sorted({sender for _, sender, _ in left})
