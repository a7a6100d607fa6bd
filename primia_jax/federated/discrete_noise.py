"""Noise and samples that protect: whole numbers, drawn with ChaCha20 under fresh keys.

Noise is drawn and added as integers, in units of a grid on which the protected values lie. A float
has its own gaps at every magnitude, and a Gaussian computed in floats leaves traces in the low bits
of a sum that tell what was summed (Mironov 2012). An integer sum has no such bits.

- `rounded_gaussian`: rint(σ·z) with z from the polar method in float64. Fast, for DP-SGD, where
  each step takes one for every weight. If z were exactly normal, adding the rounded noise to a
  point of the grid would be the Gaussian mechanism followed by rounding. z is exact but for
  float64's rounding of some 2^-52: see docs/privacy.md for what that can cost.
- `discrete_gaussian`: exactly P(x) ∝ exp(−x² / 2σ²) over all integers, no float's error left
  (Canonne, Kamath and Steinke 2020 define it and prove what it gives).
- `poisson_sample`: every record with the same chance, independently.

Seeds are 32 bytes of the operating system (`prg.new_seed`), each used once. Tests give fixed ones.

Axis letters: n integers or records.
"""

import decimal
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import prg

LARGEST_SCALE = 2.0**45  # of noise in units, so that no integer or product overflows
_TAIL = 10  # deviations that rounded noise is given room for; beyond lie 2^-76 of it
_PROPOSALS = 1 << 15  # at a time: they stay in the processor's cache
_MARGIN = 2.0**-40  # relative; float64 computes an acceptance probability far more exactly


def rounded_gaussian(seed: np.ndarray, n: int, deviation: float) -> np.ndarray:
    """int32 [n]: rint(`deviation` · z), z independent and normal (Marsaglia's polar method).

    Raises:
      ProtocolError: if the integers could leave 32 bits.
    """
    if not 0 <= deviation * _TAIL < 2**31:
        raise ProtocolError(f"noise of {deviation:g} units does not fit 32 bits")
    noise = np.empty(n, np.int32)
    done = 0
    for words in _pieces(seed):
        x, y = (words.view(np.int64) * 2.0**-63).reshape(2, -1)  # in [-1, 1)
        square = x * x
        square += y * y
        inside = np.flatnonzero((square < 1) & (square > 0))
        square = square[inside]
        factor = np.log(square)
        factor /= square
        factor *= -2 * deviation**2
        np.sqrt(factor, out=factor)
        for half in (x, y):
            part = half[inside][: n - done]
            part *= factor[: len(part)]
            np.rint(part, out=part)
            noise[done : done + len(part)] = part
            done += len(part)
        if done == n:
            return noise
    raise AssertionError("a stream has no end")


def _pieces(seed: np.ndarray) -> Iterator[np.ndarray]:
    """uint64 words without end, in pieces of an even number; each piece overwrites the last."""
    nonce = 0
    while True:
        yield from prg.chunks(seed, 1 << 20, nonce)
        nonce += 1


class _Words:
    """The words of a ChaCha20 stream, one after the other."""

    def __init__(self, seed: np.ndarray) -> None:
        self._seed, self._nonce = seed, 0

    def take(self, count: int) -> np.ndarray:
        """uint64 [count], never given before."""
        words = prg.expand(self._seed, count, self._nonce)
        self._nonce += 1
        return words


def discrete_gaussian(seed: np.ndarray, n: int, variance: float) -> np.ndarray:
    """int64 [n]: independent, each x with probability exactly ∝ exp(−x² / (2·`variance`)).

    By rejection. A candidate ±(u + t·v), u uniform below t and v geometric with ratio 1/2, is taken
    with probability 2^v · exp(−x² / 2σ²), which is at most 1 for t² ≥ 2σ² ln 2; the chance of it is
    decided by comparing 64 random bits with the probability in float64, and where that is too close
    to tell (one time in 2^40), with as many further bits and digits as it takes.

    Args:
      seed: uint8 [32], consumed.
      n: how many.
      variance: σ² of the continuous Gaussian; taken as the exact number that the float stands for.

    Raises:
      ProtocolError: if integers could overflow.
    """
    if not (variance >= 0 and variance <= LARGEST_SCALE**2):
        raise ProtocolError(f"noise of variance {variance:g} is beyond what 64 bits hold")
    if variance == 0:
        return np.zeros(n, np.int64)
    width = _proposal_width(variance)
    words, integers, done = _Words(seed), np.empty(n, np.int64), 0
    while done < n:
        part = _accepted(words, min(_PROPOSALS, 4 * (n - done) + 16), width, variance)
        part = part[: n - done]
        integers[done : done + len(part)] = part
        done += len(part)
    return integers


def _proposal_width(variance: float) -> int:
    """The least t with t² ≥ 2σ² ln 2."""
    bound = Fraction(variance) * Fraction(13862943612, 10**10)  # 2 ln 2, rounded up
    width = max(1, math.isqrt(math.ceil(bound)))
    return width if width * width >= bound else width + 1


def _accepted(words: _Words, count: int, width: int, variance: float) -> np.ndarray:
    """int64 [at most count]: what `count` candidates give."""
    t = np.uint64(width)
    uniform, coins, chance = words.take(3 * count).reshape(3, count)
    limit = (2**64 // width) * width  # below it, remainders are uniform
    fair = uniform < np.uint64(limit) if limit < 2**64 else np.ones(count, bool)
    negative = (coins & np.uint64(1)).astype(bool)
    coins = coins >> np.uint64(1)
    # Zeros below the lowest one: v of them with probability 2^-(v+1). (All 63 zero: 64, rejected.)
    runs = np.bitwise_count((coins & (~coins + np.uint64(1))) - np.uint64(1))
    size = (uniform % t).astype(np.int64) + width * runs.astype(np.int64)
    fair &= ~(negative & (size == 0))  # or zero would come twice
    real = size.astype(np.float64)
    probability = np.exp(runs * math.log(2) - real * real / (2 * variance))
    drawn = chance.astype(np.float64)
    taken = fair & ((drawn + 1) * 2.0**-64 <= probability * (1 - _MARGIN))
    open_ = fair & ~taken & (drawn * 2.0**-64 < probability * (1 + _MARGIN))
    for i in np.flatnonzero(open_):
        taken[i] = _below(int(chance[i]), int(size[i]), int(runs[i]), Fraction(variance), words)
    signed = np.where(negative, -size, size)
    return signed[taken]


def _below(drawn: int, size: int, runs: int, variance: Fraction, words: Any) -> bool:
    """True if a uniform number that begins with the 64 bits `drawn` is below the probability."""
    bits = 64
    while True:
        with decimal.localcontext() as context:
            context.prec = 30 + bits  # decimal digits, more than three for each bit's one
            exponent = Fraction(size * size) / (2 * variance)
            power = (
                -decimal.Decimal(exponent.numerator) / decimal.Decimal(exponent.denominator)
            ).exp()
            error = power * decimal.Decimal(10) ** -(20 + bits)
            scaled = power * decimal.Decimal(2) ** (runs + bits)
            slack = error * decimal.Decimal(2) ** (runs + bits)
            if drawn + 1 <= scaled - slack:
                return True
            if drawn >= scaled + slack:
                return False
        drawn = (drawn << 64) | int(words.take(1)[0])
        bits += 64


def poisson_sample(seed: np.ndarray, n: int, rate: float) -> np.ndarray:
    """int64 [m]: which of n records are drawn, each with chance `rate`, independently."""
    if rate >= 1:
        return np.arange(n)
    threshold = np.uint64(int(Fraction(rate) * 2**64))  # never more than the rate
    return np.flatnonzero(prg.expand(seed, n) < threshold)
