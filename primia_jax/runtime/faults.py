"""Faults that the driver of one process injects, at the same place in every run."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Vanish:
    """`party` disappears without a word before one of its events.

    Attributes:
      party: its name.
      event: which one, from 0: its messages sent and awaited, and its end, are counted.
      stage: if given, only what comes after `Stage(stage)` and before the next stage counts; a
        stage that comes twice is counted on.
    """

    party: str
    event: int = 0
    stage: str | None = None


@dataclasses.dataclass(frozen=True)
class Delay:
    """Messages from `sender` to `receiver` take `seconds` longer; of one stage if it is given."""

    sender: str
    receiver: str
    seconds: float
    stage: str | None = None


Fault = Vanish | Delay


class Injector:
    """Watches one run and says when a fault is due."""

    def __init__(self, faults: Sequence[Fault]):
        self._delays = [fault for fault in faults if isinstance(fault, Delay)]
        self._vanishing = [fault for fault in faults if isinstance(fault, Vanish)]
        self._counts = [0] * len(self._vanishing)

    def vanishes(self, party: str, stage: str) -> bool:
        """True if `party` disappears now, when it is about to send, wait or end in `stage`."""
        due = False
        for i, fault in enumerate(self._vanishing):
            if fault.party == party and fault.stage in (None, stage):
                due |= self._counts[i] == fault.event
                self._counts[i] += 1
        return due

    def delay(self, sender: str, receiver: str, stage: str) -> float:
        """Seconds that a message takes longer than its link says."""
        return sum(
            fault.seconds
            for fault in self._delays
            if (fault.sender, fault.receiver) == (sender, receiver) and fault.stage in (None, stage)
        )
