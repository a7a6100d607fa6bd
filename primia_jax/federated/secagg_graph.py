"""Graphs of masking pairs: SecAgg+'s k-regular graphs, and the choice of k and threshold.

J. Bell et al., "Secure single-server aggregation with (poly)logarithmic overhead", CCS 2020. The
hospitals stand on a circle in an order drawn at random, and each is joined to the k/2 next ones on
either side (a Harary graph). Which hospitals collude, and which drop out, is assumed not to depend
on that order. The chances are then hypergeometric; with n hospitals, C of them colluding with the
model owner and D dropping out,

- no hospital has more than c colluding neighbours: n · P[Hyp(n−1, C, k) > c] <= 2^-σ.
- the others stay connected, so that only the sum over all of them is revealed. To part the circle
  takes two runs of k/2 hospitals all of which collude or drop out:
  (n choose 2) · Π_{i<k} (C+D−i)/(n−i) <= 2^-σ.
- no hospital has fewer than y neighbours that stay: n · P[Hyp(n−1, D, k) > k−y] <= 2^-η. So with a
  threshold of at most y every key can be reconstructed that must be.

The threshold t must withstand an owner that lies to single hospitals about who shared keys and who
dropped out: t > (k + 1 + c)/2 and t >= c + 2. Two sets of t out of the k + 1 hospitals that hold
shares of a key then have an honest one in common; `secagg` says what follows from it. k is the
smallest even number (or n−1, everybody) for which such a t <= y exists; as all three chances fall
exponentially in k, k = O(σ + η + log n). t is y, the safest.
"""

import dataclasses
import functools
import math

import numpy as np
from scipy.special import gammaln

from primia_jax.config import SecureAggregationConfig
from primia_jax.errors import ConfigError

_ORDER = 0x63697263  # separates this use of a seed from others


@dataclasses.dataclass(frozen=True)
class Graph:
    """Parameters of the graph for n hospitals.

    Attributes:
      n: hospitals.
      k: neighbours of each.
      threshold: t, shares that open a key; each hospital and its neighbours hold one each.
      colluding: c, colluding neighbours of one hospital provided for.
      insecure: bound on the chance that some hospital has more, or that the graph falls apart.
      incorrect: bound on the chance that a key cannot be reconstructed with D dropouts.
    """

    n: int
    k: int
    threshold: int
    colluding: int
    insecure: float
    incorrect: float

    @property
    def safe_threshold(self) -> int:
        """Lowest threshold that withstands an owner that lies."""
        return _safe_threshold(self.k, self.colluding)

    def neighbours(self, seed: int) -> list[tuple[int, ...]]:
        """Neighbours of each hospital 0 … n−1, in rising order; the same for the same seed."""
        key = np.random.SeedSequence([seed, _ORDER])
        circle = np.random.Generator(np.random.Philox(key)).permutation(self.n)
        if self.k == self.n - 1:
            return [tuple(j for j in range(self.n) if j != i) for i in range(self.n)]
        steps = [step for d in range(1, self.k // 2 + 1) for step in (d, -d)]
        neighbours: list[tuple[int, ...]] = [()] * self.n
        for at, i in enumerate(circle):
            neighbours[i] = tuple(sorted(int(circle[(at + step) % self.n]) for step in steps))
        return neighbours


@functools.lru_cache(maxsize=64)
def choose(n: int, settings: SecureAggregationConfig) -> Graph:
    """The sparsest graph that the settings allow for n hospitals.

    Raises:
      ConfigError: if there is none, for there are too few hospitals or too many bad ones.
    """
    colluders = max(1, math.floor(settings.colluders * n))
    dropouts = math.floor(settings.dropouts * n)
    risk, failure = 2.0**-settings.security_bits, 2.0**-settings.correctness_bits
    for k in (*range(2, n - 1, 2), n - 1):
        parted = 0.0 if k == n - 1 else _parted(n, k, colluders + dropouts)
        if parted > risk or k < 1:
            continue
        c, too_many = _bound(n, colluders, k, risk)
        d, too_few = _bound(n, dropouts, k, failure)
        least = _safe_threshold(k, c)
        most = k - d if dropouts else k + 1  # where all stay, everybody's own share is there too
        if most >= least:
            threshold = max(least, k - d)
            return Graph(n, k, threshold, c, max(parted, too_many), too_few)
    raise ConfigError(
        f"no {n} hospitals can sum securely with {colluders} of them colluding with the model "
        f"owner and {dropouts} dropping out; lower config.secure_aggregation.colluders or "
        "dropouts, or set its scheme to 'additive', for which all must stay"
    )


def _safe_threshold(k: int, colluding: int) -> int:
    """See the module's docstring."""
    return max((k + 1 + colluding) // 2 + 1, colluding + 2)


def exists(n: int, settings: SecureAggregationConfig) -> bool:
    """True if there is a graph for n hospitals, see `choose`."""
    try:
        choose(n, settings)
    except ConfigError:
        return False
    return True


def _bound(n: int, marked: int, k: int, risk: float) -> tuple[int, float]:
    """(the smallest c with n · P[Hyp(n−1, marked, k) > c] <= risk, that chance)."""
    marked = min(marked, n - 1)
    x = np.arange(max(0, k - (n - 1 - marked)), min(k, marked) + 1)
    chance = np.exp(_choices(marked, x) + _choices(n - 1 - marked, k - x) - _choices(n - 1, k))
    above = np.append(np.cumsum(chance[::-1])[::-1], 0.0)[1:]  # P[X > x]
    first = int(np.argmax(n * above <= risk))
    return int(x[first]), float(n * above[first])


def _choices(n: int, k: np.ndarray | int) -> np.ndarray:
    """log (n choose k)."""
    return gammaln(n + 1) - gammaln(np.add(k, 1)) - gammaln(np.subtract(n + 1, k))


def _parted(n: int, k: int, removed: int) -> float:
    """Bound on the chance that the graph falls apart without `removed` hospitals."""
    return math.comb(n, 2) * math.prod(max(0, removed - i) / (n - i) for i in range(k))
