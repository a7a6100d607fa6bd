"""Real numbers as ring elements: v stands as round(v · 2^f) modulo 2^64.

Rounding errs by at most 2^-(f+1) on n·v; a sum of N encoded values by at most N · 2^-(f+1), and by
float64's own rounding, at most 2^-52 · Σ n|v|. In the ring a sum is exact
in the ring as long as its magnitude stays below 2^63, which is proven before anything is
encoded, not hoped for.
"""

import math
from typing import Any

from primia_jax.errors import ConfigError
from primia_jax.mpc import ring


def prove_no_overflow(frac_bits: int, clip: float, n_parties: int, max_weight: int) -> None:
    """Shows that a sum of weighted values fits the ring, whatever the values within the clip.

    With |v_i| <= clip and integer weights 0 <= n_i <= max_weight,
    |Σ n_i v_i 2^f + rounding| <= N · (max_weight · clip · 2^f + 1/2) < 2^63.

    Raises:
      ConfigError: where this does not hold, with the numbers.
    """
    bound = n_parties * (max_weight * clip * 2.0**frac_bits + 0.5)
    if not bound < ring.HALF:
        raise ConfigError(
            f"the secure sum could overflow: {n_parties} hospitals × {max_weight} samples × clip "
            f"{clip:g} × 2^{frac_bits} = 2^{math.log2(bound):.1f}, and 2^63 is the limit; lower "
            "config.secure_aggregation.frac_bits, clip or max_samples"
        )


def encode(values: Any, weight: Any, frac_bits: int) -> Any:
    """round(weight · v · 2^f) as ring elements.

    Args:
      values: float [n]; must lie within the clip for which overflow was excluded.
      weight: integer scalar below 2^29, so that weight · v is exact for float32 values.
      frac_bits: f.

    Returns:
      uint64 [n], of NumPy or of JAX as `values` are; of JAX to be called inside `ring.x64()`.
    """
    xp = values.__array_namespace__()
    scaled = xp.round(values.astype(xp.float64) * (weight * 2.0**frac_bits))
    return ring.from_signed(scaled.astype(xp.int64))


def decode(words: Any, frac_bits: int) -> Any:
    """uint64 [n] -> float64 [n], the inverse of `encode` up to rounding."""
    return ring.to_signed(words) * 2.0**-frac_bits


def sum_error(n_parties: int, frac_bits: int) -> float:
    """Largest error of a sum of `n_parties` encoded values, float64's own rounding apart."""
    return n_parties * 2.0 ** -(frac_bits + 1)
