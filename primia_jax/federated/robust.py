"""Averages that a few hospitals cannot pull where they want, for aggregation in the clear.

They look at every hospital's update, so they exclude secure aggregation. All hospitals count alike,
since one that lies about its update lies about its samples too.

- trimmed mean, median: coordinate by coordinate (D. Yin et al. 2018, definitions 1 and 2).
- Krum: the one update that has the closest neighbours (P. Blanchard et al. 2017, section 3).

Axis letters: n hospitals, p values.
"""

from collections.abc import Callable, Sequence

import numpy as np

from primia_jax.config import FederatedConfig
from primia_jax.errors import ConfigError

_CHUNK = 1 << 16  # values sorted at a time, for the sake of memory

Combine = Callable[[Sequence[np.ndarray]], np.ndarray]


def make(config: FederatedConfig) -> Combine | None:
    """What `config.robust` names: n vectors [p] -> [p] float64; None for the weighted mean.

    Raises:
      ConfigError: under secure aggregation, or if there are too few hospitals for as many bad ones.
    """
    if config.robust == "none":
        return None
    if config.mode == "federated_secure":
        raise ConfigError(
            f"config.federated.robust = '{config.robust}' looks at every hospital's update, which "
            "secure aggregation hides: take config.federated.mode = 'federated' or robust = 'none'"
        )
    n, bad = config.hospitals, config.bad_hospitals
    needed = 2 * bad + 3 if config.robust == "krum" else 2 * bad + 1
    if n < needed:
        raise ConfigError(
            f"config.federated.robust = '{config.robust}' with bad_hospitals = {bad} needs at "
            f"least {needed} hospitals; there are {n}"
        )
    if config.robust == "krum":
        return lambda vectors: krum(vectors, bad)
    if config.robust == "median":
        return median
    return lambda vectors: trimmed_mean(vectors, bad)


def trimmed_mean(vectors: Sequence[np.ndarray], bad: int) -> np.ndarray:
    """[p] float64: of each coordinate the mean without its `bad` largest and smallest values.

    Raises:
      ConfigError: if nothing would be left.
    """
    n = len(vectors)
    if n <= 2 * bad:
        raise ConfigError(f"{n} updates cannot lose {bad} on either side: lower bad_hospitals")
    return _by_chunks(vectors, lambda part: np.sort(part, axis=0)[bad : n - bad].mean(axis=0))


def median(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """[p] float64: of each coordinate the median."""
    return _by_chunks(vectors, lambda part: np.median(part, axis=0))


def krum(vectors: Sequence[np.ndarray], bad: int) -> np.ndarray:
    """[p] float64: the vector with the least summed squared distance to its n - bad - 2 nearest.

    Raises:
      ConfigError: if there are fewer than bad + 3 vectors.
    """
    n = len(vectors)
    if n < bad + 3:
        raise ConfigError(f"Krum with bad_hospitals = {bad} needs {bad + 3} updates; {n} came")
    # An update that is no number is far from all others, and from itself.
    squared = np.full((n, n), np.inf)
    for i in range(n):
        for j in range(i):
            d = np.asarray(vectors[i], np.float64) - np.asarray(vectors[j], np.float64)
            distance = float(d @ d)
            squared[i, j] = squared[j, i] = distance if np.isfinite(distance) else np.inf
    nearest = np.sort(squared, axis=1)[:, : n - bad - 2]
    return np.asarray(vectors[int(nearest.sum(axis=1).argmin())], np.float64)


def _by_chunks(
    vectors: Sequence[np.ndarray], combine: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    found = np.empty(len(vectors[0]))
    for start in range(0, len(found), _CHUNK):
        part = np.stack([np.asarray(v[start : start + _CHUNK], np.float64) for v in vectors])
        found[start : start + _CHUNK] = combine(part)
    return found
