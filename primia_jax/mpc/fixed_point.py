"""Real numbers as ring elements: v stands as round(v · 2^f) modulo 2^n, n 64 or 32.

In 64 bits rounding is to the nearest: it errs by at most 2^-(f+1) on n·v, a sum of N by N times
that, and float64 by at most 2^-52 · Σ n|v|. In 32 bits, where f is small, it is up or down by
chance, with n·v as its mean: changes smaller than the grid would else be lost round after round. It
errs by less than 2^-f. A sum is exact in the ring as long as its magnitude
stays below 2^(n-1), which is proven before anything is encoded, not hoped for.
"""

import math
from typing import Any

from primia_jax.errors import ConfigError
from primia_jax.mpc import ring


def prove_no_overflow(
    frac_bits: int, clip: float, n_parties: int, max_weight: int, n_bits: int = ring.N_BITS
) -> None:
    """Shows that a sum of weighted values fits Z_2^n, whatever the values within the clip.

    With |v_i| <= clip and integer weights 0 <= n_i <= max_weight,
    |Σ n_i v_i 2^f + rounding| <= N · (max_weight · clip · 2^f + 1) < 2^(n-1); nor may Σ n_i itself
    reach that.

    Raises:
      ConfigError: where this does not hold, with the numbers and the f that would fit.
    """

    def largest(frac_bits: int) -> float:
        return n_parties * (max_weight * max(clip * 2.0**frac_bits, 1.0) + 1.0)

    limit = 2.0 ** (n_bits - 1)
    if largest(frac_bits) < limit:
        return
    fitting = [f for f in range(1, frac_bits) if largest(f) < limit]
    raise ConfigError(
        f"the secure sum could overflow: {n_parties} hospitals × {max_weight} samples × clip "
        f"{clip:g} × 2^{frac_bits} = 2^{math.log2(largest(frac_bits)):.1f}, and 2^{n_bits - 1} is "
        "the limit; lower config.secure_aggregation.frac_bits"
        + (f" (to {fitting[-1]})" if fitting else "")
        + ", clip or max_samples"
        + ", or raise word_bits to 64" * (n_bits < ring.N_BITS)
    )


def encode(
    values: Any, weight: Any, frac_bits: int, n_bits: int = ring.N_BITS, dither: Any = None
) -> Any:
    """round(weight · v · 2^f) as ring elements.

    Args:
      values: float [n]; must lie within the clip for which overflow was excluded.
      weight: integer scalar below 2^29, so that weight · v is exact for float32 values.
      frac_bits: f.
      n_bits: of a word.
      dither: uint16 [n], uniform: rounds up where the fraction is beyond it. None: to the nearest.

    Returns:
      uint64 or uint32 [n], of NumPy or of JAX as `values` are; of JAX to be called inside
      `ring.x64()`.
    """
    xp = values.__array_namespace__()
    scaled = values.astype(xp.float64) * (weight * 2.0**frac_bits)
    if dither is None:
        scaled = xp.round(scaled)
    else:  # by half a step more, so that neither a whole number nor the mean is moved
        scaled = xp.floor(scaled + (dither * 2.0**-16 + 2.0**-17))
    return ring.from_signed(scaled.astype(f"int{n_bits}"))


def decode(words: Any, frac_bits: int) -> Any:
    """uint64 or uint32 [n] -> float64 [n], the inverse of `encode` up to rounding."""
    return ring.to_signed(words, 8 * words.dtype.itemsize) * 2.0**-frac_bits


def sum_error(n_parties: int, frac_bits: int, n_bits: int = ring.N_BITS) -> float:
    """Largest error of a sum of `n_parties` encoded values, float64's own rounding apart."""
    return n_parties * 2.0 ** -(frac_bits + (n_bits == ring.N_BITS))
