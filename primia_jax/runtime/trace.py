"""What a run cost: seconds of computing, bytes, messages and round trips, by party."""

import dataclasses


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
    """One message as the link saw it."""

    sender: str
    receiver: str
    label: str
    n_bytes: int
    sent_s: float  # sender's clock
    arrives_s: float  # receiver's clock


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a run of all parties cost."""

    parties: dict[str, PartyTrace]
    messages: tuple[MessageRecord, ...] = ()

    @property
    def bytes_sent(self) -> int:
        """Bytes on all links together."""
        return sum(party.bytes_sent for party in self.parties.values())

    @property
    def seconds(self) -> float:
        """Time at which the last party ended."""
        return max((party.seconds for party in self.parties.values()), default=0.0)

    @property
    def compute_seconds(self) -> float:
        """Computing of all parties together."""
        return sum(party.compute_seconds for party in self.parties.values())

    @property
    def round_trips(self) -> float:
        """One-way messages on the critical path, halved."""
        return max((party.depth for party in self.parties.values()), default=0) / 2
