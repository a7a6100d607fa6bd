"""The network between two parties."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Link:
    """Every pair of parties is joined by such a link, one each way.

    Attributes:
      latency_s: one-way delay, in seconds.
      bandwidth_bps: bits per second; 0 means unlimited. Messages on one link queue.
      jitter_s: standard deviation of a half-normal addition to the latency, in seconds.
      seed: of the jitter.
    """

    latency_s: float = 0.0
    bandwidth_bps: float = 0.0
    jitter_s: float = 0.0
    seed: int = 0

    def transfer_seconds(self, n_bytes: int) -> float:
        """Time that the line is busy with a message."""
        return 8 * n_bytes / self.bandwidth_bps if self.bandwidth_bps else 0.0

    def delay_seconds(self, sequence: int) -> float:
        """Time that the `sequence`-th message travels once it is on the line."""
        if not self.jitter_s:
            return self.latency_s
        jitter = np.random.Generator(np.random.Philox([self.seed, sequence])).normal()
        return self.latency_s + self.jitter_s * abs(float(jitter))
