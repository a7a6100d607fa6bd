"""Range checks: the data owner learns for each layer if a value left its range; nobody else does.

Each gate gives its two parties shares of every element's *excess* x (`gates.excess_share`), which
is 0 modulo 2^g exactly where the value lies in the gate's range. A layer is in range if x is 0
everywhere. That is tested by random linear sums, which the parties form of their shares alone:

- A, public to the parties and fresh for each run, maps x [N] to `SUMS` words of Z_256;
- the data owner sends `A x_0 + μ`, μ being its own mask;
- the model owner answers with `K (A x_1 + A x_0 + μ) + σ`, K being a matrix of its own;
- the dealer, who knows all masks, gave it `σ = ω − K (μ + A ⌊r⌋)`, ω being the data owner's and
  ⌊r⌋ the bits of the gate's mask that the shares contain;
- the data owner subtracts ω and holds `K A x`: all zeros in range.

*Detection.* Let 2^v be the largest power of two that divides all of x, v < g. A level of A, or K,
makes the sums of a part of x that has this v uniform multiples of 2^v. With probability 2^-SUMS
they are all multiples of 2^(v+1), with 2^-(2·SUMS) of 2^(v+2), and so on. All have to be 0 at the
end for x to be missed: with at most seven levels and K the probability is below 8 · 2^-SUMS, and
below 36 · 2^-(2·SUMS) for g - v = 2. A value just outside its range has x = ±1 and v = 0. False
alarms do not exist.

*Secrecy*, of honest parties. The model owner sees words under μ and ω, uniform whatever x is. The
data owner sees 0 in range. Out of range it sees K A x, uniform among the multiples of 2^v: the flag
and v, nothing else. The dealer sees nothing online. The data owner is trusted to choose A without
regard to its image.

The sums run as float32 products of integers, exact: 256 · 255² < 2^24.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

SUMS = 32  # of each layer
FAN_IN = 256  # words that one level adds up
_MOST_LEVELS = 10  # for any layer that memory holds
COEFFICIENTS = _MOST_LEVELS * FAN_IN * SUMS  # bytes of A


@jax.jit
def compress(values: Any, coefficients: Any) -> Any:
    """A · values modulo 256.

    Args:
      values: uint8 [N].
      coefficients: uint8 [COEFFICIENTS], uniform.

    Returns:
      uint8 [SUMS].
    """
    levels = coefficients.reshape(_MOST_LEVELS, FAN_IN, SUMS)
    level = 0
    while level == 0 or values.shape[0] > SUMS:
        missing = -values.shape[0] % FAN_IN
        rows = jnp.pad(values, (0, missing)).reshape(-1, FAN_IN).astype(jnp.float32)
        weights = levels[level].astype(jnp.float32)
        sums = jnp.matmul(rows, weights, precision=lax.Precision.HIGHEST)
        values = sums.astype(jnp.int32).astype(jnp.uint8).reshape(-1)
        level += 1
    return values


def _mixed(matrix: Any, words: Any) -> Any:
    """K · words modulo 256, K as uint8 [SUMS²]."""
    return (matrix.reshape(SUMS, SUMS) * words).sum(1, dtype=jnp.uint8)


@jax.jit
def correction(mask: Any, out_mask: Any, matrix: Any, of_mask: Any) -> Any:
    """σ = ω − K (μ + A ⌊r⌋), the dealer's.

    Args:
      mask, out_mask: μ and ω, uint8 [SUMS].
      matrix: K, uint8 [SUMS²].
      of_mask: A ⌊r⌋, uint8 [SUMS].
    """
    return out_mask - _mixed(matrix, mask + of_mask)


@jax.jit
def answer(own: Any, other: Any, matrix: Any, sigma: Any) -> Any:
    """K (A x_1 + A x_0 + μ) + σ, the model owner's."""
    return _mixed(matrix, own + other) + sigma
