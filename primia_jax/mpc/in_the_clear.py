"""A circuit of `fss` without any secret: the same integers, rounding included."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from primia_jax.mpc import bilinear, ring
from primia_jax.mpc.circuit import Circuit, check_image
from primia_jax.mpc.linear import Evaluator


def fixed_point_values(
    circuit: Circuit, params: Any, images: Any, known: dict[Any, Any] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Runs a circuit in the clear on its own integers.

    Args:
      circuit: the network.
      params: its parameters.
      images: float [n ...].
      known: signed integers of some gates' results, taken instead of computing them.

    Returns:
      what each gate puts out, signed integers; and the outputs as reals.
    """
    images = check_image(circuit, images)
    n_bits, results = circuit.n_bits, []
    with ring.x64():
        weights = dict(
            zip(circuit.products, circuit.weight_words(circuit.quantised_weights(params)))
        )
        constants = circuit.constant_words(params)
        word = ring.word_type(n_bits)
        pixels = np.round(images.astype(np.float64) * circuit.scaling.image).astype(np.int64)
        sources = {circuit.plan.image: jnp.asarray(pixels.astype(np.uint64).astype(word))}
        products: dict[Any, Any] = {}
        outputs = []
        for segment, added in zip(circuit.segments, constants):
            by_node = dict(zip(segment.constants, added))

            def multiply(node: Any, unit: float, x: Any) -> Any:
                plan = circuit.mask_plan((node, unit))
                return bilinear.multiply(node.product, x, jnp.asarray(weights[node, unit]), plan)

            def constant(node: Any, unit: float, by_node: Any = by_node) -> Any:
                return jnp.broadcast_to(by_node[node, unit], node.shape)

            evaluator = Evaluator(n_bits, circuit.units, sources, multiply, constant, products)
            for i, (node, unit) in enumerate(segment.values):
                value = ring.signed(circuit.sum_of(evaluator.value(node, unit), node), n_bits)
                if not segment.gates:
                    outputs.append(np.asarray(value, np.float64) / unit)
                    continue
                gate = segment.gates[i]
                dropped = circuit.specs[gate].truncated_bits
                value = (value + ((1 << dropped) >> 1)) >> dropped  # to the nearest
                if gate.kind == "relu":
                    value = jnp.maximum(value, 0)
                if known and gate in known:
                    value = jnp.asarray(known[gate])
                results.append(np.asarray(value))
                sources[gate.out] = value.astype(word)
            products.update(evaluator.products)
    return results, outputs
