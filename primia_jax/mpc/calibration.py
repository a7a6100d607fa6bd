"""A network on its model owner's own images: ranges of its layers, and how exact it is encrypted.

Both are computed in the clear by the model owner, by one compiled program.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ConfigError
from primia_jax.mpc import rounding
from primia_jax.mpc.circuit import Circuit
from primia_jax.mpc.linear import RealValues, real_values
from primia_jax.mpc.plan import Plan
from primia_jax.mpc.scaling import Ranges
from primia_jax.mpc.units import natural_unit

COMPARED_IMAGES = 16
TOLERATED = 0.02  # difference of an output, over the outputs' root mean square


class PrecisionWarning(UserWarning):
    """The network's encrypted results differ from its own on the calibration images."""


def plan_ranges(plan: Plan, params: Any, images: np.ndarray) -> Ranges:
    """The largest magnitudes of a plan's layers and their root mean squares on images [m ...].

    Args:
      plan: of as many images at a time as shall be computed together, at most m.
      params: the parameters.
      images: float32.

    Raises:
      ConfigError: if images or weights are not finite.
    """
    size, exact = plan.image.shape[0], rounding.Rounding.none(plan)
    starts = [min(start, len(images) - size) for start in range(0, len(images), size)]
    observed = []
    for at in starts:
        reached, squares, _ = _observation(plan)(params, images[at : at + size], exact)
        observed.append(jax.tree.map(float, (reached, squares)))
    reached = jax.tree.map(lambda *each: float(np.max(each)), *(r for r, _ in observed))
    image, values = reached
    squares = np.mean([squares for _, squares in observed], axis=0) if values.gates else ()
    if not all(map(math.isfinite, (image, *values.gates, *values.products, *values.outputs))):
        raise ConfigError("layers' values are not finite: an image or a weight is NaN or infinite")
    spreads = tuple(math.sqrt(square) for square in squares)
    return Ranges(
        image, tuple(values.gates), spreads, tuple(values.products), tuple(values.outputs)
    )


@functools.lru_cache(maxsize=8)
def _observation(plan: Plan) -> Callable[[Any, Any, Any], Any]:
    """Jitted (params, images, rounding) -> largest magnitudes, gates' mean squares, outputs."""

    @jax.jit
    def observe(params: Any, batch: Any, steps: Any) -> Any:
        values: RealValues = real_values(plan, params, batch, steps)
        reached = jax.tree.map(lambda z: jnp.abs(z).max(), (batch, values))
        return reached, [jnp.mean(jnp.square(z)) for z in values.gates], values.outputs

    return observe


class Difference(NamedTuple):
    """Distance of the encrypted results from the network's own.

    Attributes:
      relative: largest difference of an output, over the outputs' root mean square.
      changed: images whose class is another.
      images: that were compared.
    """

    relative: float
    changed: int
    images: int

    def __str__(self) -> str:
        return (
            f"encrypted, outputs differ from the network's by up to {self.relative:.1%} of their "
            f"root mean square, and the class of {self.changed} of {self.images} calibration "
            "images changes: set config.mpc.ring_bits = 64 and a lower config.mpc.sign_tolerance, "
            "or scale the channels of each layer alike"
        )


def difference(circuit: Circuit, plan: Plan, params: Any, images: np.ndarray) -> Difference:
    """Compares the fixed-point network with the network on floats.

    Rounding of image, weights and gates is imitated (`mpc.rounding`), and random signs close to 0,
    each with its probability in the protocol. The noise of the outputs is left out: it has a bound.

    Args:
      circuit: the network as it runs encrypted.
      plan: the same network, for as many images at a time as shall be computed together.
      params: the parameters.
      images: float32 [m ...], evenly chosen from if there are many.
    """
    size = plan.image.shape[0]
    count = min(len(images), max(size, COMPARED_IMAGES // size * size)) // size * size
    chosen = images[np.linspace(0, len(images) - 1, count).astype(int)]
    exact, fixed = rounding.Rounding.none(plan), rounding_of(circuit)
    pairs = []
    for start in range(0, count, size):
        batch = chosen[start : start + size]
        pairs.append([_observation(plan)(params, batch, r)[2] for r in (exact, fixed)])
    worst, changed = 0.0, np.zeros(count, bool)
    for wanted, rounded in zip(*(map(np.concatenate, zip(*outputs)) for outputs in zip(*pairs))):
        spread = math.sqrt(np.square(wanted, dtype=np.float64).mean())
        error = float(np.abs(rounded - wanted).max(initial=0.0))
        worst = max(worst, error / spread if spread else 0.0)
        if wanted.ndim > 1 and wanted.shape[-1] > 1:
            classes = wanted.argmax(-1) != rounded.argmax(-1)
            changed |= classes.reshape(count, -1).any(1)
    return Difference(worst, int(changed.sum()), count)


def rounding_of(circuit: Circuit) -> rounding.Rounding:
    """The steps to which a circuit rounds."""
    weights: dict[Any, tuple[float, float]] = {}
    for product in circuit.products:
        node, unit = product
        step = natural_unit(node.operand, circuit.units) / unit
        most = 2.0 ** (circuit.weight_bits(product) - 1) - 1
        if node not in weights or step > weights[node][0]:
            weights[node] = (step, most)
    gates = []
    for scale in circuit.scaling.gates:
        window = 2.0**scale.slack_bits / scale.out_unit if scale.slack_bits else 0.0
        gates.append((1 / scale.out_unit if scale.truncated_bits else 0.0, window))
    ordered = tuple(weights[node] for node in circuit.plan.products())
    return rounding.Rounding(1 / circuit.scaling.image, ordered, tuple(gates))


def remarks(circuit: Any, plan: Plan, ranges: Ranges, params: Any, images: np.ndarray) -> list[str]:
    """The lines that warn a model owner of results that would be wrong or coarse.

    They depend on weights and images, and are for the model owner alone.

    Args:
      circuit: the network as it runs encrypted; only one of fixed point is compared with floats.
      plan, params, images: as in `difference`.
      ranges: of the circuit.
    """
    lines = [f"values will overflow in layer {overflow}" for overflow in circuit.overflows(ranges)]
    lines += circuit.coarse_products(ranges, params)
    if isinstance(circuit, Circuit):
        measured = difference(circuit, plan, params, images)
        if measured.relative > TOLERATED or measured.changed:
            lines.append(str(measured))
    return lines
