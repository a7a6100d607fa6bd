"""Averages that a few hospitals cannot pull where they want, for aggregation in the clear.

They look at every hospital's update, so they exclude secure aggregation. All hospitals count alike,
since one that lies about its update lies about its samples too.

- trimmed mean, median: coordinate by coordinate (D. Yin et al. 2018, definitions 1 and 2).
- Krum: the one update that has the closest neighbours (P. Blanchard et al. 2017, section 3).

Against f bad ones they need 2f + 1 updates, Krum 2f + 3. A run that could come to a round with
fewer is refused before it begins, and so is such a round.

Axis letters: n hospitals, p values.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from primia_jax.config import FederatedConfig
from primia_jax.errors import ConfigError

_CHUNK = 1 << 16  # values sorted at a time, for the sake of memory

Combine = Callable[[Sequence[np.ndarray]], np.ndarray]


def make(config: FederatedConfig) -> Combine | None:
    """Makes the rule that `config.robust` names: n vectors [p] -> [p] float64; None for the mean.

    Raises:
      ConfigError: under secure aggregation, or if a round of the run could have too few updates for
        as many bad ones.
    """
    if config.robust == "none":
        return None
    if config.mode == "federated_secure":
        raise ConfigError(
            f"config.federated.robust = '{config.robust}' looks at every hospital's update, which "
            "secure aggregation hides: take config.federated.mode = 'federated' or robust = 'none'"
        )
    needed, fewest = _needed(config.robust, config.bad_hospitals), _fewest(config)
    if fewest < needed:
        raise ConfigError(
            f"config.federated.robust = '{config.robust}' with bad_hospitals = "
            f"{config.bad_hospitals} needs {needed} updates in every round, and a round may have "
            f"{fewest}: config.federated has hospitals = {config.hospitals}, quorum = "
            f"{config.quorum:g}, participation = {config.participation:g} ({config.sampling}), "
            f"early_stopping.enabled = {config.early_stopping.enabled}; change these, or lower "
            "bad_hospitals"
        )
    kinds = {"trimmed_mean": trimmed_mean, "median": median, "krum": krum}
    return functools.partial(kinds[config.robust], bad=config.bad_hospitals)


def _needed(kind: str, bad: int) -> int:
    return 2 * bad + (3 if kind == "krum" else 1)


def _fewest(config: FederatedConfig) -> int:
    """Updates that a round may have to do with: of those drawn from a bare quorum.

    What is drawn by chance may be a single one, and one that goes on may be left where others stop.
    """
    present = max(1, math.ceil(config.quorum * config.hospitals))
    drawn_by_chance = config.participation < 1 and config.sampling == "poisson"
    if drawn_by_chance or config.early_stopping.enabled:
        return 1
    return max(1, round(config.participation * present))


def _check(kind: str, n: int, bad: int) -> None:
    if n < _needed(kind, bad):
        raise ConfigError(
            f"config.federated.robust = '{kind}' with bad_hospitals = {bad} needs "
            f"{_needed(kind, bad)} updates; {n} came"
        )


def trimmed_mean(vectors: Sequence[np.ndarray], bad: int) -> np.ndarray:
    """[p] float64: of each coordinate the mean without its `bad` largest and smallest values.

    Raises:
      ConfigError: if there are fewer than 2·bad + 1 vectors.
    """
    n = len(vectors)
    _check("trimmed_mean", n, bad)
    return _by_chunks(vectors, lambda part: np.sort(part, axis=0)[bad : n - bad].mean(axis=0))


def median(vectors: Sequence[np.ndarray], bad: int) -> np.ndarray:
    """[p] float64: of each coordinate the median.

    Raises:
      ConfigError: if there are fewer than 2·bad + 1 vectors.
    """
    _check("median", len(vectors), bad)
    return _by_chunks(vectors, lambda part: np.median(part, axis=0))


def krum(vectors: Sequence[np.ndarray], bad: int) -> np.ndarray:
    """[p] float64: the vector with the least summed squared distance to its n - bad - 2 nearest.

    Raises:
      ConfigError: if there are fewer than 2·bad + 3 vectors.
    """
    n = len(vectors)
    _check("krum", n, bad)
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
    combined = np.empty(len(vectors[0]))
    for start in range(0, len(combined), _CHUNK):
        part = np.stack([np.asarray(v[start : start + _CHUNK], np.float64) for v in vectors])
        combined[start : start + _CHUNK] = combine(part)
    return combined
