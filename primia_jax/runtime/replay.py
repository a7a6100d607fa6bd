"""Virtual clocks, and a run that is judged again under other links without computing anything.

What a party computes and sends does not depend on how long its messages travel. So the list of a
run's actions, each with the seconds of computing before it, gives the trace of the same run under
any link. The driver of one process keeps its clocks here as well: under the link of the run itself
a replay gives the very same trace.
"""

import collections
from collections.abc import Callable, Iterable, Sequence

from primia_jax.errors import ProtocolError
from primia_jax.runtime.link import Line, Link
from primia_jax.runtime.trace import Action, MessageRecord, PartyTrace, SpanRecorder, Trace


class Clocks:
    """A virtual clock a party, and everything that a trace tells, while a run goes on."""

    def __init__(
        self,
        parties: Iterable[str],
        link: Link,
        delay: Callable[[str, str, str], float] = lambda *_: 0.0,
    ):
        """`delay` of (sender, receiver, stage): seconds that a message takes longer than usual."""
        self._link, self._delay = link, delay
        self._traces = {name: PartyTrace() for name in parties}
        self._recorders = {name: SpanRecorder(name) for name in self._traces}
        self._lines: dict[tuple[str, str], Line] = {}
        self._coming: dict[tuple[str, str], collections.deque[tuple[float, int]]] = (
            collections.defaultdict(collections.deque)
        )
        self._messages: list[MessageRecord] = []
        self._actions: list[Action] = []

    def act(self, action: Action) -> None:
        """A party computes and then does something; what it receives must have been sent."""
        self._actions.append(action)
        trace, recorder = self._traces[action.party], self._recorders[action.party]
        start = trace.seconds
        trace.compute_seconds += action.seconds
        trace.seconds += action.seconds
        recorder.computed(start, trace.seconds)
        if action.kind == "send":
            for to in action.others:
                self._send(action, to)
        elif action.kind == "receive":
            arrives_s, depth = self._coming[action.others[0], action.party].popleft()
            trace.seconds = max(trace.seconds, arrives_s)
            trace.depth = max(trace.depth, depth)
        elif action.kind == "miss":
            trace.seconds = max(trace.seconds, action.until_s)
            self._coming.pop((action.others[0], action.party), None)
        elif action.kind == "stage":
            recorder.stage = action.label

    def now(self, party: str) -> float:
        """The party's clock."""
        return self._traces[party].seconds

    def arrival(self, sender: str, receiver: str) -> float:
        """When the next message on that line arrives; it must have been sent."""
        return self._coming[sender, receiver][0][0]

    def _send(self, action: Action, to: str) -> None:
        name, n_bytes, trace = action.party, action.n_bytes, self._traces[action.party]
        if (name, to) not in self._lines:
            self._lines[name, to] = Line(self._link, name, to)
        stage = self._recorders[name].stage
        arrives_s = self._lines[name, to].arrival(trace.seconds, n_bytes)
        arrives_s += self._delay(name, to, stage)
        trace.bytes_sent += n_bytes
        trace.messages_sent += 1
        self._messages.append(
            MessageRecord(name, to, action.label, n_bytes, trace.seconds, arrives_s, stage)
        )
        self._coming[name, to].append((arrives_s, trace.depth + 1))

    def trace(self) -> Trace:
        """Cost of the run."""
        spans = [span for recorder in self._recorders.values() for span in recorder.spans]
        spans.sort(key=lambda span: span.start_s)
        messages = sorted(self._messages, key=lambda message: message.sent_s)
        return Trace(self._traces, tuple(messages), tuple(spans), tuple(self._actions))


def replay(recording: Sequence[Action], link: Link) -> Trace:
    """The trace of a recorded run (`Trace.recording`) with every two parties joined by `link`.

    Raises:
      ProtocolError: if nothing was recorded, as when the parties were actors or one went missing.
    """
    if not recording:
        raise ProtocolError(
            "there is nothing to replay: only a run in one process is recorded, and only if no "
            "message went missing"
        )
    # Every party acts before any can be waiting, so that this is their order in the run.
    clocks = Clocks(dict.fromkeys(action.party for action in recording), link)
    for action in recording:
        clocks.act(action)
    return clocks.trace()
