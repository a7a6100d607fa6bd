"""Words that the parties of `fss` expand from their seeds: each once, under a nonce of its own.

A nonce is made of a purpose, the number of a gate, source, value or product within its circuit, and
the key's number. The seeds are those of one epoch (`mpc.protocols.epochs`); those of the matrices B
are derived once for the session.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import devices, observation, prg, range_check, ring
from primia_jax.mpc.circuit import Circuit
from primia_jax.mpc.gates import Streams
from primia_jax.mpc.plan import Source

# What a stream of a seed is for; with the gate's number and the key's it makes the nonce.
RHO, E, R, SELECT, SIGN, COMPARE, MATRIX, NOISE, CHECK, CHECK_MASK, MIX = range(11)
_MATRICES = b"primia_jax matrices 1"


def stream(
    seed: Any, purpose: int, index: int, number: int, n_words: int, kind: Any = np.uint32
) -> Any:
    """Words [n_words] that `seed` gives for one purpose, gate and key number, once and for all."""
    if not (0 <= purpose < 1 << 8 and 0 <= index < 1 << 24 and 0 <= number < 1 << 64):
        raise ProtocolError(f"no nonce is left for purpose {purpose}, value {index}, key {number}")
    nonce = purpose | index << 8 | number << 32
    width = np.dtype(kind).itemsize
    words = prg.expand(seed, -(-n_words * width // 8), nonce)
    if isinstance(words, np.ndarray):
        words = words.view(kind)[:n_words]
    else:
        words = jax.lax.bitcast_convert_type(words, kind).reshape(-1)[:n_words]
    observation.drawn(words)
    return words


def source_mask(circuit: Circuit, seed: Any, number: int, source: Source, use: str) -> Any:
    """ρ of the image or of what a gate puts out, words of its shape.

    Args:
      circuit: the network.
      seed: the data owner's.
      number: of the key.
      source: the image or what a gate puts out.
      use: what it is drawn for: once for each linear map, and once to hide the source.
    """
    n_words = int(np.prod(source.shape, dtype=np.int64))
    index = circuit.source_index[source]
    with observation.using((RHO, index, number), use):
        words = stream(seed, RHO, index, number, n_words, ring.word_type(circuit.n_bits))
    return jnp.asarray(words.reshape(source.shape))


def value_mask(
    circuit: Circuit, seed: Any, purpose: int, number: int, level: int, position: int
) -> Any:
    """e or r of one value of a segment, words [N]."""
    segment = circuit.segments[level]
    n_words = circuit.sizes(segment)[position]
    kind = ring.word_type(circuit.n_bits)
    index = circuit.first_value[level] + position
    return jnp.asarray(stream(seed, purpose, index, number, n_words, kind))


def party_streams(circuit: Circuit, seed: Any, party: int, gate: Any, number: int) -> Streams:
    """Streams that a party expands for one gate."""
    spec, index = circuit.specs[gate], circuit.index[gate]
    n, kind = spec.n_elements, ring.word_type(circuit.n_bits)
    select = sign = compare = None
    if party == 0:
        words = stream(seed, SELECT, index, number, spec.select_words * n, kind)
        select = devices.spread(jnp.asarray(words.reshape(spec.select_words, n)))
    if spec.compares:
        sign = jnp.asarray(stream(seed, SIGN, index, number, -(-n // 8), np.uint8))
        if party == 0 and spec.has_table:
            words = stream(seed, COMPARE, index, number, spec.table_words * n)
            compare = devices.spread(jnp.asarray(words.reshape(spec.table_words, n)))
        elif not spec.has_table:
            words = stream(seed, COMPARE, index, number, 4 * n)
            compare = devices.spread(jnp.asarray(words.reshape(4, n)))
    return Streams(select, sign, compare)


def output_noise(circuit: Circuit, seed: Any, number: int, position: int) -> Any:
    """Noise of an output below its `config.mpc.output_bits`, words [N]; the dealer's own.

    The sum of three uniform numbers of τ-1, τ-2 and τ-2 bits, in [-2^(τ-1), 2^(τ-1)): it thins out
    towards its ends, so that the extremes of many runs tell no more than their mean. The τ-1 low
    bits of the noisy output are uniform whatever it is. Below τ = 4 it is one uniform number.
    """
    bits = circuit.scaling.noise_bits[position]
    level = len(circuit.segments) - 1
    n_words = circuit.sizes(circuit.segments[level])[position]
    kind = ring.word_type(circuit.n_bits)
    index = circuit.first_value[level] + position
    words = jnp.asarray(stream(seed, NOISE, index, number, 3 * n_words, kind)).reshape(3, -1)
    word = words.dtype.type
    if not bits:
        return words[0] * word(0)
    widths = (bits, 0, 0) if bits < 4 else (bits - 1, bits - 2, bits - 2)
    limits = jnp.asarray([(1 << width) - 1 for width in widths], words.dtype)
    total = (words & limits[:, None]).sum(axis=0, dtype=words.dtype)
    return total - word((1 << bits) >> 1)


def hidden_bits(noise_bits: int) -> int:
    """Low bits of an output that noise of τ = `noise_bits` makes uniform; see `output_noise`."""
    return noise_bits if noise_bits < 4 else noise_bits - 1


def check_seed(seed: Any, number: int) -> np.ndarray:
    """Seed of the coefficients of a run's range checks, uint8 [32], from the data owner's seed."""
    return np.asarray(stream(seed, CHECK, 0, number, prg.SEED_BYTES, np.uint8))


def check_coefficients(seed: Any) -> Any:
    """Coefficients A of a run's range checks, uint8 [`range_check.COEFFICIENTS`].

    Args:
      seed: `check_seed`.
    """
    return jnp.asarray(stream(seed, CHECK, 0, 0, range_check.COEFFICIENTS, np.uint8))


def check_masks(circuit: Circuit, seed: Any, number: int) -> Any:
    """μ and ω of each checked gate, uint8 [2 gates SUMS], from the data owner's seed."""
    shape = (2, len(circuit.checked_gates), range_check.SUMS)
    words = stream(seed, CHECK_MASK, 0, number, math.prod(shape), np.uint8)
    return jnp.asarray(words.reshape(shape))


def check_matrices(circuit: Circuit, seed: Any, number: int) -> Any:
    """K of each checked gate, uint8 [gates SUMS²], from the model owner's seed."""
    shape = (len(circuit.checked_gates), range_check.SUMS**2)
    return jnp.asarray(stream(seed, MIX, 0, number, math.prod(shape), np.uint8).reshape(shape))


def domain(circuit: Circuit, gate: Any, number: int) -> Any:
    """Domain that separates a gate's tree from all other trees of a session's seeds."""
    return (circuit.index[gate], number)


def matrices(circuit: Circuit, root: Any) -> list[Any]:
    """B of each product, words, from the root of the model owner's seeds."""
    kind = ring.word_type(circuit.n_bits)
    seed = prg.derived(root, _MATRICES)
    expanded = []
    for i, (node, _) in enumerate(circuit.products):
        n_words = int(np.prod(node.weight.shape, dtype=np.int64))
        words = stream(seed, MATRIX, i, 0, n_words, kind)
        expanded.append(jnp.asarray(words.reshape(node.weight.shape)))
    return expanded
