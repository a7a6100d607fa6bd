"""Cost of a run: seconds of computing, bytes, messages and round trips, by party and stage."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple


@dataclasses.dataclass
class PartyTrace:
    """One party's share of a run."""

    compute_seconds: float = 0.0  # its own computing, waiting left out
    seconds: float = 0.0  # its clock at its end: virtual (one process) or wall (actors)
    bytes_sent: int = 0
    messages_sent: int = 0
    depth: int = 0  # one-way messages on the longest chain that ends at this party


@dataclasses.dataclass(frozen=True)
class MessageRecord:
    """One message as the link saw it; times in seconds since the run's begin.

    With actors both times are by the receiver's clock. On one machine that is the sender's too; the
    clock of another machine is not comparable, and `sent_s` is then the time at which the
    message reached the receiver's machine.
    """

    sender: str
    receiver: str
    label: str
    n_bytes: int  # of the arrays
    sent_s: float
    arrives_s: float
    stage: str = ""  # of the sender


@dataclasses.dataclass(frozen=True)
class Span:
    """Computing of one party in one stage, from one wait to the next.

    The party's clock starts with the run. Actors on one machine share a clock, which starts when
    the first of them begins.
    """

    party: str
    stage: str
    start_s: float
    seconds: float

    @property
    def end_s(self) -> float:
        """Time at which it ends."""
        return self.start_s + self.seconds


class Action(NamedTuple):
    """Next action of a party in a recorded run, and its computing time before it."""

    party: str
    seconds: float
    kind: Literal["send", "receive", "miss", "stage", "deadline", "end"]
    others: tuple[str, ...] = ()  # whom it sent to, received from, or missed
    label: str = ""  # of the message sent, or of the stage
    n_bytes: int = 0  # of the message sent, to each
    until_s: float = 0.0  # of a message that is missing: when the party gave it up, by its clock


class SpanRecorder:
    """Puts one party's spans together while it runs.

    Attributes:
      stage: what the party does now.
      spans: those so far.
    """

    def __init__(self, party: str):
        self.stage = ""
        self.spans: list[Span] = []
        self._party, self._end = party, float("nan")

    def computed(self, start_s: float, end_s: float) -> None:
        """Records computing; what begins at the very end of a span of this stage continues it."""
        if end_s <= start_s:
            return
        begin = start_s
        if start_s == self._end and self.spans[-1].stage == self.stage:
            begin = self.spans.pop().start_s
        self.spans.append(Span(self._party, self.stage, begin, end_s - begin))
        self._end = end_s


@dataclasses.dataclass(frozen=True)
class Trace:
    """Cost of a run of all parties.

    Attributes:
      parties: each party's share.
      messages: every message, in its order of sending.
      spans: every party's computing, in order of beginning.
      recording: of a run in one process in which nothing went missing, all that `replay` needs, in
        an order in which everything was sent before it was received; otherwise empty.
      lost: the parties that the run ended without, and why.
    """

    parties: dict[str, PartyTrace]
    messages: tuple[MessageRecord, ...] = ()
    spans: tuple[Span, ...] = ()
    recording: tuple[Action, ...] = dataclasses.field(default=(), compare=False, repr=False)
    lost: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def bytes_sent(self) -> int:
        """Bytes on all links together."""
        return sum(party.bytes_sent for party in self.parties.values())

    @property
    def seconds(self) -> float:
        """Time at which the last party ended: the length of the critical path."""
        return max((party.seconds for party in self.parties.values()), default=0.0)

    @property
    def compute_seconds(self) -> float:
        """Computing of all parties together."""
        return sum(party.compute_seconds for party in self.parties.values())

    @property
    def round_trips(self) -> float:
        """One-way messages on the critical path, halved."""
        return max((party.depth for party in self.parties.values()), default=0) / 2

    def by_stage(self) -> dict[str, dict[str, dict[str, Any]]]:
        """stage -> party -> {seconds, bytes_sent, bytes_received, messages}, in order of time.

        Seconds are of computing. A message belongs to its sender's stage, at its receiver too;
        `messages` counts those sent. What a party does before it names a stage is in stage "".
        """
        starts = [(span.start_s, span.stage) for span in self.spans]
        starts += [(message.sent_s, message.stage) for message in self.messages]
        table = {
            stage: {
                party: {"seconds": 0.0, "bytes_sent": 0, "bytes_received": 0, "messages": 0}
                for party in self.parties
            }
            for stage in _distinct(stage for _, stage in sorted(starts, key=lambda pair: pair[0]))
        }
        for span in self.spans:
            table[span.stage][span.party]["seconds"] += span.seconds
        for message in self.messages:
            sender = table[message.stage][message.sender]
            sender["bytes_sent"] += message.n_bytes
            sender["messages"] += 1
            table[message.stage][message.receiver]["bytes_received"] += message.n_bytes
        return table

    def to_json(self) -> dict[str, Any]:
        """Totals, parties and stages as plain data for `json.dumps`."""
        return {
            "critical_path_seconds": self.seconds,
            "compute_seconds": self.compute_seconds,
            "bytes_sent": self.bytes_sent,
            "messages": sum(party.messages_sent for party in self.parties.values()),
            "round_trips": self.round_trips,
            "parties": {name: dataclasses.asdict(party) for name, party in self.parties.items()},
            "stages": self.by_stage(),
        }

    def chrome_trace(self) -> dict[str, Any]:
        """The run in the trace-event format of Chrome and Perfetto: `json.dumps` it into a file.

        A party is a process, a span a complete event, a message a flow from its sender to its
        receiver; microseconds.
        """
        numbers = {party: i for i, party in enumerate(self.parties, 1)}
        events: list[dict[str, Any]] = []
        for party, pid in numbers.items():
            events.append(
                {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": party}}
            )
        for span in self.spans:
            events.append(
                {
                    "ph": "X",
                    "cat": "stage",
                    "name": span.stage or "computing",
                    "pid": numbers[span.party],
                    "tid": 0,
                    "ts": 1e6 * span.start_s,
                    "dur": 1e6 * span.seconds,
                }
            )
        for i, message in enumerate(self.messages):
            flow = {
                "cat": "message",
                "name": message.label or "message",
                "id": i,
                "tid": 0,
                "args": {"bytes": message.n_bytes, "label": message.label, "stage": message.stage},
            }
            ends = (
                ("s", message.sender, message.sent_s),
                ("f", message.receiver, message.arrives_s),
            )
            for phase, party, time_s in ends:
                events.append({**flow, "ph": phase, "pid": numbers[party], "ts": 1e6 * time_s})
        return {"traceEvents": events, "displayTimeUnit": "ms"}


def _distinct(stages: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(stages))
