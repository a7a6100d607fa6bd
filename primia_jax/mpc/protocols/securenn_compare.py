"""Private comparison (SecureNN, algorithm 3), and shares of bits modulo 67 that it works on.

S. Wagh, D. Gupta, N. Chandran, "SecureNN: 3-Party Secure Computation for Neural Network Training",
PoPETs 2019(3). The servers share the bits of x and both know r; the assistant learns whether
x > r, hidden by a bit β of theirs.

**One deviation.** As published, the servers send s_i·c_i, where their shares of c_i follow from r
and from their shares of x's bits. Both multiply by the same s_i, so the quotient of what they send
does not depend on it. In SecureNN it is the assistant that dealt those shares: it could try
either value of each bit of r, read all of r from the quotients, and with it the secret. So the
random u_i, which the paper has for r = L - 1 alone, are drawn from the whole of Z_p here and
added as shares of zero to every c_i. The quotients are then uniform; messages and rounds stay.

Axis letters: n elements, l bits.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from primia_jax.errors import ProtocolError
from primia_jax.mpc import observation
from primia_jax.mpc.protocols.odd_ring import checked, low
from primia_jax.mpc.protocols.parties import Cost, Party, SharedStream
from primia_jax.runtime.party import Receive, Send, Steps

PRIME = 67  # above l + 2, which no sum of a comparison reaches
BITS_BYTES = 64  # of a server's shares of a word's bits
_BLOCKS = (1 << 14, 1 << 11)  # elements that the kernels are compiled for
_OFFSET = PRIME * PRIME  # further than unreduced sums fall below zero

Blocks = tuple[np.ndarray, ...]  # uint8 [l, n_k] each, of consecutive elements: see `_blocks`


@dataclasses.dataclass(frozen=True)
class CompareMasks:
    """Masks that hide one block of a comparison from the assistant.

    Attributes:
      s: uint8 [l, n], factors from 1 to p - 1.
      u: uint8 [l, n], shares of zero.
      rotation: uint8 [n], below l.
    """

    s: np.ndarray
    u: np.ndarray
    rotation: np.ndarray


def compare_masks(me: Party, n: int, n_bits: int = 64) -> list[CompareMasks]:
    """The masks of one comparison, for a server to draw while it waits."""
    stream = me.shared_with(1 - me.index)
    masks = []
    for start, stop in _blocks(n):
        size = stop - start
        s = stream.residues((n_bits, size), PRIME - 1)
        s += 1
        u = stream.residues((n_bits, size), PRIME)
        masks.append(CompareMasks(s, u, stream.residues((size,), n_bits)))
    return masks


PRIVATE_COMPARE_COST = Cost(1, 2 * BITS_BYTES)


def private_compare(
    me: Party,
    bits: Any,
    r: Any,
    beta: Any,
    n: int,
    n_bits: int = 64,
    masks: Sequence[CompareMasks] | None = None,
) -> Steps:
    """The assistant learns β ⊕ (x > r), and nothing else (algorithm 3).

    Of the c_i at most one is zero, at the highest bit in which x and r (or r + 1) differ; the
    others are uniform and independent on 1 .. p - 1 once multiplied by s_i. So all that an order
    can tell is where the zero stands, and a uniform rotation of the positions hides that as well
    as a permutation.

    Args:
      me: the party.
      bits: a server's shares modulo p of the bits of x, the lowest first, in blocks.
      r: uint64 [n], known to both servers.
      beta: uint8 [n], a random bit known to both servers.
      n: elements.
      n_bits: l.
      masks: of `compare_masks`, if drawn already.

    Returns:
      uint64 [n] for the assistant; None for a server.
    """
    if me.is_assistant:
        first = yield Receive(me.names[0])
        second = yield Receive(me.names[1])
        results = np.concatenate([_any_zero_block(d0, d1) for d0, d1 in zip(first, second)])
        observation.opened("comparison's result", lambda: results)
        observation.opened("comparison's residues", lambda: _upper_halves(first, second))
        return results.astype(np.uint64)
    r = checked(r, n, n_bits)
    if [np.shape(part) for part in bits] != [(n_bits, b - a) for a, b in _blocks(n)]:
        raise ProtocolError(f"the {n_bits} bits of {n} elements are not shared in their blocks")
    masks = compare_masks(me, n, n_bits) if masks is None else masks
    bound = low(r + beta, n_bits)  # x > r, or else r + 1 > x
    flags = (beta | (bound < r) << 1).astype(np.uint8)  # bit 1: nothing exceeds r
    sent = []
    for (start, stop), shares, mask in zip(_blocks(n), bits, masks):
        arrays = (shares, mask.s, mask.u, flags[start:stop], mask.rotation)
        sent.append(_compare_block(me.index, n_bits, bound[start:stop], arrays))
    yield Send(me.assistant, tuple(sent), "comparison | masked by u, modulo 67")
    return None


def _blocks(n: int) -> Iterator[tuple[int, int]]:
    """Bounds of the blocks of n elements: sizes of `_BLOCKS`, and the rest."""
    start = 0
    for size in _BLOCKS:
        while n - start >= size:
            yield start, start + size
            start += size
    if start < n:
        yield start, n


def _padded(array: np.ndarray) -> np.ndarray:
    """Elements (last axis) filled up with zeros to a size that the kernels are compiled for."""
    n = array.shape[-1]
    if n in _BLOCKS:
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, _BLOCKS[-1] - n)])


def _word_bytes(words: np.ndarray) -> np.ndarray:
    """uint64 [n] -> uint8 [n, 8], the lowest byte first."""
    return _padded(words).astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)


def _compare_block(
    party: int, n_bits: int, bound: np.ndarray, arrays: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Message of a server for one block, uint8 [l, n]."""
    message = _compare(party, n_bits, _word_bytes(bound), *map(_padded, arrays))
    return np.ascontiguousarray(np.asarray(message)[:, : len(bound)])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compare(
    party: int, n_bits: int, bound: Any, shares: Any, s: Any, u: Any, flags: Any, rotation: Any
) -> Any:
    """s_i·(c_i + share of zero), rotated; from the highest bit down, beside the sum of w above.

    c_i = ±(bit of the bound − bit of x) + 1 + Σ w, with w the exclusive or of the two bits.
    """
    by_byte = bound.T
    sign = 1 - 2 * (flags & 1).astype(jnp.int16)
    never = flags > 1

    def row(array: Any, i: Any) -> Any:
        return lax.dynamic_index_in_dim(array, i, keepdims=False)

    def step(above: Any, i: Any) -> tuple[Any, Any]:
        x = row(shares, i).astype(jnp.int16)
        bit = (row(by_byte, i // 8) >> (i % 8).astype(jnp.uint8)) & 1
        c = above + party + sign * (party * bit.astype(jnp.int16) - x)
        c = jnp.where(never, (1 - party) * (i != 0).astype(jnp.int16), c)
        zero = row(u, i).astype(jnp.int16)
        c = c + zero if party == 0 else c - zero
        c = (c + jnp.int16(_OFFSET)).astype(jnp.uint16) % jnp.uint16(PRIME)
        d = c * row(s, i).astype(jnp.uint16) % jnp.uint16(PRIME)
        return above + jnp.where(bit != 0, party - x, x), d.astype(jnp.uint8)

    start = jnp.zeros(flags.shape, jnp.int16)
    _, d = lax.scan(step, start, jnp.arange(n_bits, dtype=jnp.int32), reverse=True)
    for k in range((n_bits - 1).bit_length()):
        d = _roll_where((rotation >> k) & 1, d, 1 << k)
    return d


def _roll_where(bit: Any, d: Any, shift: int) -> Any:
    """Columns of d [l, n] rolled down by `shift` where bit [n] is 1.

    The two pieces are computed before they are put together: XLA's loops over a concatenation are
    slow, and without barriers each roll would compute the one before it twice.
    """
    mask = 0 - bit
    head = d[:shift] ^ ((d[:shift] ^ d[-shift:]) & mask)
    tail = d[shift:] ^ ((d[shift:] ^ d[:-shift]) & mask)
    return lax.optimization_barrier(jnp.concatenate(lax.optimization_barrier([head, tail])))


def _upper_halves(first: Blocks, second: Blocks) -> list[np.ndarray]:
    """uint8 [l, n_k] each: 1 where the assistant's residue is above 33 (half of all but 0 are)."""
    totals = [(np.add(d0, d1, dtype=np.uint16)) % PRIME for d0, d1 in zip(first, second)]
    return [(total > PRIME // 2).astype(np.uint8) for total in totals]


def _any_zero_block(d0: np.ndarray, d1: np.ndarray) -> np.ndarray:
    """uint8 [n]: 1 where a column of d0 + d1, of residues [l, n], has a zero."""
    return np.asarray(_any_zero(_padded(d0), _padded(d1)))[: d0.shape[1]]


@jax.jit
def _any_zero(d0: Any, d1: Any) -> Any:
    total = d0 + d1
    return ((total == 0) | (total == PRIME)).any(0).astype(jnp.uint8)


def bit_shares(stream: SharedStream, words: np.ndarray, n_bits: int) -> tuple[Blocks, Blocks]:
    """Shares modulo p of the bits of words [n], the lowest first, for both servers."""
    firsts, seconds = [], []
    for start, stop in _blocks(len(words)):
        first = stream.residues((n_bits, stop - start), PRIME)
        second = _complement(n_bits, _word_bytes(words[start:stop]), _padded(first))
        firsts.append(first)
        seconds.append(np.ascontiguousarray(np.asarray(second)[:, : stop - start]))
    return tuple(firsts), tuple(seconds)


@functools.partial(jax.jit, static_argnums=0)
def _complement(n_bits: int, words: Any, first: Any) -> Any:
    """bit - first modulo p."""
    shifts = jnp.arange(8, dtype=jnp.uint8)[None, :, None]
    bits = ((words.T[:, None, :] >> shifts) & 1).reshape(64, -1)[:n_bits]
    return jnp.where(first > bits, bits + jnp.uint8(PRIME) - first, bits - first)
