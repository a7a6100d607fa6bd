"""Exact products in Z_2^n on hardware that multiplies floats or small integers.

Integer convolutions are 40 to 100 times slower than those of floats on a CPU, and accelerators have
units for bytes and bfloat16. So both operands are cut into *limbs*, signed digits small enough
that no sum of their products is ever rounded; the products of limbs are shifted and added in the
ring. A `LimbPlan` carries the proof of its exactness as a check that raises.

With digits in [-2^(b-1), 2^(b-1)), a sum of K products is at most K · 2^(bx-1) · 2^(bw-1), which
must not pass what the accumulator holds exactly: 2^53 (float64), 2^31 (int32), 2^24 (float32).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from primia_jax.errors import ProtocolError
from primia_jax.mpc import ring
from primia_jax.mpc.plan import Product


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """A multiply-and-add unit.

    Attributes:
      operand: type of the limbs.
      accumulator: type of the sums.
      operand_bits: largest b such that digits in [-2^(b-1), 2^(b-1)) are exact in `operand`.
      accumulator_bits: integers of up to this magnitude are exact in `accumulator`, as a log2.
    """

    operand: Any
    accumulator: Any
    operand_bits: int
    accumulator_bits: int


FLOAT64 = Arithmetic(jnp.float64, jnp.float64, 53, 53)
INT8 = Arithmetic(jnp.int8, jnp.int32, 8, 30)
BFLOAT16 = Arithmetic(jnp.bfloat16, jnp.float32, 8, 24)
_FASTEST = {"cpu": FLOAT64, "gpu": INT8, "cuda": INT8, "rocm": INT8, "tpu": BFLOAT16}


def arithmetic(backend: str | None = None) -> Arithmetic:
    """The fastest unit of `backend` (by default JAX's own)."""
    return _FASTEST.get(backend or jax.default_backend(), FLOAT64)


@dataclasses.dataclass(frozen=True)
class LimbPlan:
    """Plan to multiply operands of `x_bits` and `w_bits` exactly modulo 2^n.

    Attributes:
      unit: the multiply-and-add unit.
      ring_bits: n.
      x_limbs, x_limb_bits: number and width of the digits of the secret.
      w_limbs, w_limb_bits: of the weight.
      parts: pieces that the sum is split into.
      depth: products summed in one piece.
    """

    unit: Arithmetic
    ring_bits: int
    x_limbs: int
    x_limb_bits: int
    w_limbs: int
    w_limb_bits: int
    parts: int
    depth: int

    def __post_init__(self) -> None:
        """Raises ProtocolError unless no sum of limb products can be rounded."""
        reached = math.log2(self.depth) + self.x_limb_bits + self.w_limb_bits - 2
        if reached > self.unit.accumulator_bits or self.unit.operand_bits < max(
            self.x_limb_bits, self.w_limb_bits
        ):
            raise ProtocolError(
                f"limbs of {self.x_limb_bits} and {self.w_limb_bits} bits summed {self.depth} "
                f"times reach 2^{reached:.1f}; {jnp.dtype(self.unit.accumulator)} is exact to "
                f"2^{self.unit.accumulator_bits}"
            )

    @property
    def products(self) -> int:
        """Limb products that do not vanish modulo 2^n."""
        return sum(len(pairs) for pairs in self.pairs().values())

    def pairs(self) -> dict[int, list[tuple[int, int]]]:
        """shift -> pairs (limb of x, limb of w); shifts of n and more vanish."""
        by_shift: dict[int, list[tuple[int, int]]] = {}
        for i in range(self.x_limbs):
            for j in range(self.w_limbs):
                shift = i * self.x_limb_bits + j * self.w_limb_bits
                if shift < self.ring_bits:
                    by_shift.setdefault(shift, []).append((i, j))
        return by_shift


def limb_plan(
    ring_bits: int, x_bits: int, w_bits: int, product: Product, unit: Arithmetic | None = None
) -> LimbPlan:
    """The plan with the fewest limb products, then the fewest pieces.

    Args:
      ring_bits: n.
      x_bits: signed width of the secret, at most n.
      w_bits: signed width of the weight, at most n.
      product: says how many products are summed, and whether the sum can be split.
      unit: by default the fastest of the backend.

    Raises:
      ProtocolError: if there is none.
    """
    unit = unit or arithmetic()
    plans = []
    for x_limbs in range(1, 9):
        for w_limbs in range(1, 9):
            x_limb = _limb_bits(x_bits, x_limbs, ring_bits)
            w_limb = _limb_bits(w_bits, w_limbs, ring_bits)
            room = unit.accumulator_bits - x_limb - w_limb + 2
            if max(x_limb, w_limb) > unit.operand_bits or room < 0:
                continue
            depth = min(product.depth, 2**room)
            parts = -(-product.depth // depth)
            if parts > 1 and product.split is None:
                continue
            plan = LimbPlan(unit, ring_bits, x_limbs, x_limb, w_limbs, w_limb, parts, depth)
            plans.append(plan)
    if not plans:
        raise ProtocolError(
            f"no exact product of {x_bits} by {w_bits} bits summed {product.depth} times"
        )
    return min(
        plans, key=lambda plan: (plan.products * (plan.parts > 1), plan.products, plan.parts)
    )


def _limb_bits(bits: int, n_limbs: int, ring_bits: int) -> int:
    """Width of the digits. What the highest of several digits carries over vanishes only in the
    full ring; a narrower value needs one bit more."""
    if n_limbs > 1 and bits < ring_bits:
        bits += 1
    return -(-bits // n_limbs)


def digits(values: Any, n_limbs: int, limb_bits: int, unit: Arithmetic) -> list[Any]:
    """Signed integers -> digits d_i in [-2^(b-1), 2^(b-1)) with Σ d_i 2^(b i) ≡ values mod 2^(b l).

    A single limb is taken as it is.
    """
    if n_limbs == 1:
        return [values.astype(unit.operand)]
    limbs = []
    width = 8 * values.dtype.itemsize
    for _ in range(n_limbs):
        spare = width - limb_bits
        digit = (values << spare) >> spare
        limbs.append(digit.astype(unit.operand))
        values = (values - digit) >> limb_bits
    return limbs


def multiply(product: Product, x: Any, w: Any, plan: LimbPlan) -> Any:
    """product(x, w) in Z_2^n.

    Args:
      product: the bilinear operation.
      x: words, taken modulo 2^n.
      w: signed integers of at most `w_bits` bits, or words; or the digits of one as a list.
      plan: for the widths of both.

    Returns:
      words.
    """
    word = ring.word_type(plan.ring_bits)
    xs = digits(ring.signed(x, plan.ring_bits), plan.x_limbs, plan.x_limb_bits, plan.unit)
    ws = w if isinstance(w, list) else weight_digits(w, plan)
    total: Any = None
    for shift, pairs in plan.pairs().items():
        for i, j in pairs:
            part = _apply(product, xs[i], ws[j], plan).astype(word) << word(shift)
            total = part if total is None else total + part
    return total


def weight_digits(w: Any, plan: LimbPlan) -> list[Any]:
    """The digits of a weight, to be kept where it is used often."""
    if jnp.issubdtype(w.dtype, jnp.unsignedinteger):
        w = ring.signed(w, plan.ring_bits)
    return digits(w, plan.w_limbs, plan.w_limb_bits, plan.unit)


def _apply(product: Product, x: Any, w: Any, plan: LimbPlan) -> Any:
    """One limb product as int64, exact."""
    pieces = [(x, w)] if plan.parts == 1 else product.split(x, w, plan.parts)  # type: ignore[misc]
    total: Any = None
    for x_part, w_part in pieces:
        part = product.apply(x_part, w_part, plan.unit.accumulator).astype(jnp.int64)
        total = part if total is None else total + part
    return total
