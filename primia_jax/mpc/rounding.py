"""Errors of fixed point, imitated on floats: far cheaper than the integers themselves.

What chance decides in the protocol (a sign close to 0, a dropped bit) is decided by a fixed pattern
here. It protects nothing and is no part of a protocol.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from primia_jax.mpc.plan import Plan

_GOLDEN = np.uint32(2654435769)  # 2^32 over the golden ratio: multiples spread evenly


class Rounding(NamedTuple):
    """Steps to which a plan's values are rounded; a step of 0 leaves them as they are.

    Attributes:
      image: step of the image.
      weights: of each private product, the least step, and how many steps a weight takes.
      gates: of each gate, the step of its result, and the width of the interval around 0 in which
        its sign is random.
    """

    image: float
    weights: tuple[tuple[float, float], ...]
    gates: tuple[tuple[float, float], ...]

    @classmethod
    def none(cls, plan: Plan) -> "Rounding":
        """Leaves all values of a plan as they are."""
        return cls(0.0, ((0.0, 1.0),) * len(plan.products()), ((0.0, 0.0),) * len(plan.gates))


def to_steps(values: Any, step: Any, offset: Any = 0.5) -> Any:
    """Rounds to multiples of a step, to the nearest or by an offset in [0, 1)."""
    divisor = jnp.where(step > 0, step, 1.0).astype(values.dtype)
    return jnp.where(step > 0, jnp.floor(values / divisor + offset) * divisor, values)


def weights(weight: Any, steps: tuple[Any, Any], channel_axis: int | None) -> Any:
    """Rounds weights as `linear.quantised` does: in channels of large ones, to multiples of 2^s.

    Args:
      weight: float [...].
      steps: of the product, see `Rounding`.
      channel_axis: of the channels; None if all share one step.
    """
    least, most = steps
    others = tuple(i for i in range(weight.ndim) if i != channel_axis)
    largest = jnp.abs(weight).max(others, keepdims=True, initial=0.0)
    taken = largest / (jnp.where(least > 0, least, 1.0) * most)
    shift = jnp.ceil(jnp.log2(jnp.maximum(taken, 1.0)))
    return to_steps(weight, (least * jnp.exp2(shift)).astype(weight.dtype))


def gate(operand: Any, is_relu: bool, steps: tuple[Any, Any]) -> Any:
    """Evaluates a gate on values that it rounds, with signs that may be wrong close to 0.

    Args:
      operand: float [...].
      is_relu: True for a ReLU; other gates pass their operand on.
      steps: of the gate, see `Rounding`.
    """
    step, window = steps
    offset = _offsets(operand.shape, operand.dtype)
    rounded = to_steps(operand, step, offset)
    if not is_relu:
        return rounded
    positive = jnp.where(window > 0, operand >= (offset - 0.5) * window, operand > 0)
    return jnp.where(positive, rounded, 0).astype(operand.dtype)


def _offsets(shape: Sequence[int], dtype: Any) -> Any:
    """Numbers in [0, 1), spread evenly and always the same."""
    products = jnp.arange(math.prod(shape), dtype=jnp.uint32) * _GOLDEN
    return ((products >> 8).astype(dtype) / 2**24).reshape(shape)
