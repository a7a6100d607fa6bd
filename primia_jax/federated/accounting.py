"""Cost of a sequence of noisy releases: ε by two accountants, and the noise that a budget buys.

A release is a Gaussian mechanism, perhaps on a Poisson sample of the records (Abadi et al. 2016).
Both accountants are dp-accounting's: privacy loss distributions (PLD; Koskela et al. 2020), which
are tight, and Rényi divergences (RDP; Mironov 2017, Mironov et al. 2019), a little looser and of
another kind, so that a fault in one would show against the other. Budgets are held by PLD. Above
ε = 20 or so RDP is far too large: its orders begin at 2.

Neighbouring relation: two sets of records are neighbours if one record of the one is replaced by a
blank that contributes nothing (`REPLACE_SPECIAL`: zero-out). The number of records is taken to be
known. The numbers are those of adding or removing one record.

Time and memory do not depend on ε. The grid of a privacy loss distribution is chosen by the losses
that occur (`_GRID`), first roughly, then finely, so that it has some 10^5 points at any noise. A
coarser grid only makes ε larger: discretisation is pessimistic (Doroshenko et al. 2022).
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import dp_accounting
import numpy as np
from dp_accounting import pld, rdp

RELATION = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
_TOLERANCE = 1e-3  # an ε that was to be met may fall short by so much, relative
_MOST_NOISE = 1e7
_GRID = 4e-5  # spacing of a loss distribution's grid over its largest loss, but for one in _TAIL
_TAIL = 1e-12
_ROUGH = 1 << 12  # points of the first, rough grid for the losses of a single step
_FINEST = 1 << 19  # points that they have at most
_REFINEMENTS = 8  # the grid gets finer by up to _FACTOR each time
_FACTOR = 64.0
_TAIL_DEVIATIONS = 10.0  # within which dp-accounting follows a normal distribution
# Rényi orders. Below 2 the series of sampled mechanisms may not converge, and they matter only for
# an ε far above any that protects.
_ORDERS = (*(2 + k / 10 for k in range(90)), *range(11, 64), 80, 96, 128, 192, 256, 512, 1024)


class Release(NamedTuple):
    """`steps` Gaussian mechanisms, each on a sample of its own."""

    noise_multiplier: float  # deviation of the noise over the L2 sensitivity
    sampling_rate: float = 1.0  # chance of each record to be in a step's sample
    steps: int = 1


class Epsilon(NamedTuple):
    """ε at one δ, by both accountants."""

    pld: float
    rdp: float


def epsilon(releases: Iterable[Release], delta: float) -> Epsilon:
    """ε of all `releases` together."""
    merged = _merged(releases)
    return Epsilon(_by_pld(merged, delta), _by_rdp(merged, delta))


def by_pld(releases: Iterable[Release], delta: float) -> float:
    """ε of all `releases` together, by the accountant that holds the budgets."""
    return _by_pld(_merged(releases), delta)


@functools.lru_cache(maxsize=64)
def find_noise(
    planned: tuple[Release, ...], target: float, delta: float, others: tuple[Release, ...] = ()
) -> float:
    """The least factor on the noise of `planned` that keeps its ε, with `others`, within `target`.

    Args:
      planned: releases whose noise multipliers are multiplied by the factor.
      target: ε by PLD.
      delta: δ.
      others: releases whose noise is given.

    Returns:
      The factor, with which ε is within 0.1 % of the target; infinity where `others` alone spend
      it.
    """

    def excess(accountant: Callable[..., float]) -> Callable[[float], float]:
        def of(factor: float) -> float:
            noised = [r._replace(noise_multiplier=factor * r.noise_multiplier) for r in planned]
            spent = accountant(_merged((*noised, *others)), delta)
            return math.log(max(spent, 1e-12) / target)

        return of

    if others and _by_pld(_merged(others), delta) >= target * (1 - _TOLERANCE):
        return math.inf
    rough = _least(excess(_by_rdp), 0.5, 1.0, 20 * _TOLERANCE)  # cheap, and a little too much
    if math.isinf(rough):
        rough = 1.0
    return _least(excess(_by_pld), 0.9 * rough, rough, _TOLERANCE)


def _least(excess: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """A point where a falling function is in [−tolerance, 0]; infinity if it is never negative.

    Args:
      excess: log(ε / target) of a factor on the noise.
      low: a guess below.
      high: a guess above.
      tolerance: of the function.
    """
    at: dict[float, float] = {}

    def value(factor: float) -> float:
        if factor not in at:
            at[factor] = excess(factor)
        return at[factor]

    while value(high) > 0:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            return math.inf
    while value(low) <= 0:
        low, high = low / 2, low
    # In logarithms, ε falls with the noise nearly on a line.
    while value(high) < -tolerance and high > low * (1 + tolerance / 8):
        share = (value(low) + tolerance / 2) / (value(low) - value(high))
        middle = low * (high / low) ** min(max(share, 0.05), 0.95)
        low, high = (middle, high) if value(middle) > 0 else (low, middle)
    return high


def _merged(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Equal mechanisms put together, in an order of their own: ε depends on neither."""
    steps: dict[tuple[float, float], int] = {}
    for release in releases:
        key = (release.noise_multiplier, release.sampling_rate)
        steps[key] = steps.get(key, 0) + release.steps
    return tuple(Release(*key, count) for key, count in sorted(steps.items()) if count)


def _event(releases: tuple[Release, ...]) -> Any:
    events = []
    for noise, rate, steps in releases:
        one = dp_accounting.GaussianDpEvent(noise)
        if rate < 1:
            one = dp_accounting.PoissonSampledDpEvent(rate, one)
        events.append(dp_accounting.SelfComposedDpEvent(one, steps))
    return dp_accounting.ComposedDpEvent(events)


def _rdp() -> Any:
    return rdp.RdpAccountant(orders=_ORDERS, neighboring_relation=RELATION)


def _pld(interval: float) -> Any:
    return pld.PLDAccountant(neighboring_relation=RELATION, value_discretization_interval=interval)


@functools.lru_cache(maxsize=256)
def _by_pld(releases: tuple[Release, ...], delta: float) -> float:
    if not releases:
        return 0.0
    event = _event(releases)
    span = max(_largest_loss(release.noise_multiplier) for release in releases)
    interval = _rounded(span * math.sqrt(max(r.steps for r in releases)) / _ROUGH)
    finest = span / _FINEST
    with np.errstate(over="ignore"):  # in masses far out, which count for nothing
        for _ in range(_REFINEMENTS):
            accountant = _pld(interval).compose(event)
            largest = float(accountant.get_epsilon(_TAIL))
            if math.isinf(largest):
                largest = float(accountant.get_epsilon(delta))
            wanted = _rounded(max(_GRID * largest, finest, interval / _FACTOR))
            if not wanted < interval:
                break
            interval = wanted
        return float(accountant.get_epsilon(delta))


def _largest_loss(noise_multiplier: float) -> float:
    """Largest privacy loss of one Gaussian mechanism, tails aside; sampling makes it smaller."""
    return _TAIL_DEVIATIONS / noise_multiplier + 0.5 / noise_multiplier**2


def _rounded(interval: float) -> float:
    """`interval` down to 10^-4 times a power of two, so that similar releases share a grid."""
    return 1e-4 * 2.0 ** math.floor(math.log2(interval / 1e-4))


@functools.lru_cache(maxsize=256)
def _by_rdp(releases: tuple[Release, ...], delta: float) -> float:
    return float(_rdp().compose(_event(releases)).get_epsilon(delta)) if releases else 0.0
