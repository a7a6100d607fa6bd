"""The network between two parties."""

import dataclasses
import zlib

import numpy as np

from primia_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Link:
    """Every pair of parties is joined by such a link, one each way.

    Attributes:
      latency_s: one-way delay, in seconds.
      bandwidth_bps: bits per second; 0 means unlimited. Messages on one link queue.
      jitter_s: standard deviation of a half-normal addition to the latency, in seconds.
      seed: of the jitter.

    Raises:
      ConfigError: if one of them is negative or not finite.
    """

    latency_s: float = 0.0
    bandwidth_bps: float = 0.0
    jitter_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("latency_s", "bandwidth_bps", "jitter_s"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ConfigError(f"{field} of a link = {getattr(self, field)}: take 0 or more")

    def transfer_seconds(self, n_bytes: int) -> float:
        """Time that the line is busy with a message."""
        return 8 * n_bytes / self.bandwidth_bps if self.bandwidth_bps else 0.0

    def delay_seconds(self, sequence: int, line: tuple[str, str] = ("", "")) -> float:
        """Time that the `sequence`-th message of a line travels once it is on it.

        Args:
          sequence: 0 for the first message from this sender to this receiver in a run.
          line: (sender, receiver); every line has jitter of its own.
        """
        if not self.jitter_s:
            return self.latency_s
        key = [self.seed, sequence, zlib.crc32("\0".join(line).encode())]
        jitter = np.random.Generator(np.random.Philox(key)).normal()
        return self.latency_s + self.jitter_s * abs(float(jitter))


class Line:
    """The line from one party to another in one run: messages go onto it one after another."""

    def __init__(self, link: Link, sender: str, receiver: str):
        self._link, self._ends = link, (sender, receiver)
        self._sequence, self._free_s = 0, -float("inf")

    def arrival(self, sent_s: float, n_bytes: int) -> float:
        """Time at which the next message, handed over at `sent_s`, comes out at the other end."""
        self._free_s = max(sent_s, self._free_s) + self._link.transfer_seconds(n_bytes)
        delay = self._link.delay_seconds(self._sequence, self._ends)
        self._sequence += 1
        return self._free_s + delay
