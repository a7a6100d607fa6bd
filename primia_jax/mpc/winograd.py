"""Exact convolutions with 3×3 kernels by minimal filtering, F(2×2, 3×3), on words of a ring.

    Y = Aᵀ [Σ_c (G g_c Gᵀ) ⊙ (Bᵀ d_c B)] A

for each tile of 2×2 outputs Y, its 4×4 inputs d_c of channel c and the kernel g_c: 16 products a
channel instead of 36. (A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks",
CVPR 2016.) G has halves in two rows; here these are doubled, so that every number is whole, and
what results is 4 Y.

Exactness: |Bᵀ d B| is at most 4 · max |d|, so that no sum of products is rounded in float64 if
4 · 2^(n-1) · Σ_c |G g_c Gᵀ| is at most 2^53 for each output channel and position. `kernel` checks
that for the actual weights. 4 Y is summed in int64, which wraps; its low n + 2 bits are right,
hence Y modulo 2^n.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from primia_jax.mpc import bilinear, ring
from primia_jax.mpc.plan import Product

_G = np.asarray([[1, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 1]], np.float64)  # twice the inner rows
_DOUBLED = np.asarray([2, 1, 1, 2], np.float64)  # brings all four rows to the same factor
_GROWTH_BITS = 2  # of Bᵀ d B above d


class Kernel(NamedTuple):
    """A transformed 3×3 kernel.

    Attributes:
      positions: float64 [outputs, inputs], whole numbers, of each of the 16 positions in a tile.
    """

    positions: tuple[Any, ...]


def kernel(product: Product, w: np.ndarray, plan: bilinear.LimbPlan) -> Kernel | None:
    """The transformed weights; None if the direct product is to be taken.

    Args:
      product: the operation.
      w: signed integers, the weights.
      plan: of the direct product.
    """
    one_product = plan.unit is bilinear.FLOAT64 and plan.x_limbs == plan.w_limbs == 1
    if product.pads_3x3 is None or not one_product or not _pays(*w.shape[2:]):
        return None
    positions = np.kron(_G, _G) @ w.astype(np.float64).reshape(9, -1)
    positions = positions.reshape(16, *w.shape[2:])
    if not is_exact(positions, plan):
        return None
    factors = np.kron(_DOUBLED, _DOUBLED)  # powers of two round nothing
    return Kernel(tuple(jnp.asarray(f * u.T) for f, u in zip(factors, positions)))


def _pays(inputs: int, outputs: int) -> bool:
    """True if it takes less time than XLA's own product (measured on CPUs with 512-bit vectors).

    With few channels the transforms take longer than the products that they save. XLA's convolution
    is as fast but for 64 outputs, which it computes on one core, and for the small images that many
    channels mean.
    """
    return min(inputs, outputs) >= 64 and (outputs == 64 or min(inputs, outputs) > 256)


def is_exact(positions: np.ndarray, plan: bilinear.LimbPlan) -> bool:
    """True if no sum of products with words can be rounded; positions [16, inputs, outputs]."""
    largest = int(np.abs(positions).sum(1).max(initial=0))
    return largest << (plan.ring_bits - 1 + _GROWTH_BITS) <= 1 << plan.unit.accumulator_bits


def multiply(product: Product, x: Any, w: Kernel, n_bits: int) -> Any:
    """product(x, w) in Z_2^n, n at most 32.

    Args:
      product: a convolution with `pads_3x3`.
      x: words uint32 [n h w inputs].
      w: the transformed kernel.
      n_bits: of the ring.

    Returns:
      words [n h w outputs].
    """
    (top, bottom), (left, right) = product.pads_3x3  # type: ignore[misc]
    n, height, width, channels = x.shape
    rows, columns = height + top + bottom - 2, width + left + right - 2
    down, across = -(-rows // 2), -(-columns // 2)  # tiles
    filled = (bottom + rows % 2, right + columns % 2)
    signed = ring.signed(x, n_bits).astype(jnp.float64)
    signed = jnp.pad(signed, ((0, 0), (top, filled[0]), (left, filled[1]), (0, 0)))
    signed = lax.optimization_barrier(signed)  # read by all 16 positions
    tiles = [
        [signed[:, i : i + 2 * down - 1 : 2, j : j + 2 * across - 1 : 2] for j in range(4)]
        for i in range(4)
    ]
    # Kept apart from the reshaping: loops over rows and columns need no division.
    transformed = lax.optimization_barrier(_both(_inputs, tiles))
    sums = [
        _product(v.reshape(-1, channels), u).astype(jnp.int64)
        for v, u in zip(itertools.chain(*transformed), w.positions)
    ]
    # In two steps, or each loop would read nine sums.
    halves = lax.optimization_barrier([_outputs(sums[4 * i : 4 * i + 4]) for i in range(4)])
    fourfold = zip(*[_outputs(column) for column in zip(*halves)])
    outputs = lax.optimization_barrier(
        [[(y >> np.int64(2)).astype(jnp.uint32) for y in row] for row in fourfold]
    )
    cells = [[y.reshape(n, down, across, -1) for y in row] for row in outputs]
    joined = jnp.stack([jnp.stack(row, 3) for row in cells], 2)  # n down 2 across 2 outputs
    return joined.reshape(n, 2 * down, 2 * across, -1)[:, :rows, :columns]


def _product(v: Any, u: Any) -> jax.Array:
    """v uᵀ, without rounding."""
    return lax.dot_general(v, u, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def _inputs(d: Sequence[jax.Array]) -> list[jax.Array]:
    """Bᵀ d."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _outputs(m: Sequence[jax.Array]) -> list[jax.Array]:
    """Aᵀ m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _both(transform: Any, grid: Sequence[Sequence[jax.Array]]) -> list[list[jax.Array]]:
    """A transform along both axes of a grid."""
    columns = [transform(column) for column in zip(*grid)]
    return [list(transform(row)) for row in zip(*columns)]
