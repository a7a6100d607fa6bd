"""The sub-protocols of SecureNN: two servers hold shares, a third party assists.

S. Wagh, D. Gupta, N. Chandran, "SecureNN: 3-Party Secure Computation for Neural Network Training",
PoPETs 2019(3): products, share conversion, the most significant bit, ReLU and its derivative,
maxima. Semi-honest; one of the three may be corrupted.

Each sub-protocol is a generator function that all three parties run by `yield from`, each with its
own `Party`: the servers with their shares, uint64 [n], the assistant with None in their place. A
server gets its share of the result, the assistant gets None. Beside each stands its cost, for
one element and l = 64. L = 2^l; n_bits is l, which only tests make less than 64.

Rounds are one-way messages on the longest chain. The paper counts two for a product, of which one
is that of the triple. Triples wait for nothing, so that one round is left on the chain.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import observation, ring
from primia_jax.mpc.protocols.odd_ring import (
    checked,
    low,
    odd,
    odd_difference,
    odd_shares,
    odd_sum,
    odd_words,
    shares,
    wraps,
)
from primia_jax.mpc.protocols.parties import SERVERS, Cost, Party, SharedStream
from primia_jax.mpc.protocols.securenn_compare import (
    BITS_BYTES,
    CompareMasks,
    bit_shares,
    compare_masks,
    private_compare,
)
from primia_jax.runtime.party import Receive, Send, Steps

_WORD = 8  # bytes

Shape = tuple[int, ...]


def _zero(me: Party, shape: Shape, n_bits: int) -> np.ndarray:
    """A server's fresh share of zero over Z_L."""
    words = me.shared_with(1 - me.index).words(math.prod(shape)).reshape(shape)
    return low(words if me.index == 0 else -words, n_bits)


def _xor(me: Party, bit: np.ndarray, share: np.ndarray) -> np.ndarray:
    """A share of bit ⊕ secret before its reduction: bit of uint8 [n], known to both servers."""
    return np.where(bit != 0, np.uint64(me.index) - share, share)


# --- products


def product_cost(shapes: tuple[Shape, Shape, Shape]) -> Cost:
    """Cost of `multiply`, for the whole product, not an element."""
    x, y, z = (math.prod(shape) for shape in shapes)
    return Cost(1, _WORD * (2 * x + 2 * y + z))


MULTIPLY_COST = Cost(1, 5 * _WORD)  # element by element


def multiply(
    me: Party,
    apply: Callable[[Any, Any], Any],
    shapes: tuple[Shape, Shape, Shape],
    x: Any = None,
    y: Any = None,
    n_bits: int = 64,
) -> Steps:
    """A share of apply(x, y), a bilinear operation (algorithm 1; by element, algorithm 2).

    The assistant's triple (A, B, A∗B) is expanded from the seeds that it shares with each server,
    but for server 1's share of A∗B.

    Args:
      me: the party.
      apply: function of two uint64 arrays, in Z_L or above; a server calls it twice, the assistant
        once.
      shapes: of x, of y and of the result.
      x, y: a server's shares, uint64.
      n_bits: l.

    Returns:
      uint64, a server's share; None for the assistant.
    """
    x_shape, y_shape, z_shape = shapes

    def drawn(stream: SharedStream, *wanted: Shape) -> list[np.ndarray]:
        return [stream.words(math.prod(shape)).reshape(shape) for shape in wanted]

    def applied(first: Any, second: Any) -> np.ndarray:
        return ring.checked(np.asarray(apply(first, second)))

    if me.is_assistant:
        a0, b0, c0 = drawn(me.shared_with(0), *shapes)
        a1, b1 = drawn(me.shared_with(1), x_shape, y_shape)
        c1 = low(applied(low(a0 + a1, n_bits), low(b0 + b1, n_bits)) - c0, n_bits)
        yield Send(me.names[1], c1, "triple | masked by the dealer")
        return None
    x, y = ring.checked(np.asarray(x)), ring.checked(np.asarray(y))
    if (x.shape, y.shape) != (x_shape, y_shape):
        raise ProtocolError(f"shares of shapes {x_shape}, {y_shape} have {x.shape}, {y.shape}")
    a, b, *c = drawn(me.shared_with(2), *(shapes if me.index == 0 else shapes[:2]))
    e, f = low(x - a, n_bits), low(y - b, n_bits)
    yield Send(me.peer, (e, f), "factors | masked by the triple, shared")
    zero = _zero(me, z_shape, n_bits)
    c_share = c[0] if me.index == 0 else (yield Receive(me.assistant))
    their_e, their_f = yield Receive(me.peer)
    e, f = low(e + their_e, n_bits), low(f + their_f, n_bits)
    observation.opened("masked factors", lambda: (e, f))
    left = x if me.index == 0 else low(x - e, n_bits)  # server 1 takes e·f off
    return low(applied(left, f) + applied(e, y) + c_share + zero, n_bits)


# --- from Z_L to Z_(L-1)

SHARE_CONVERT_COST = Cost(4, 4 * BITS_BYTES + 6 * _WORD)


def share_convert(me: Party, a: Any, n: int, n_bits: int = 64) -> Steps:
    """Shares over Z_L of a, which is not L - 1, become shares over Z_(L-1) (algorithm 4).

    The published comparison with r - 1 gives x > L - 1, which is false, for r = 0, where x >= r is
    true. Server 0 adds the 1 that is then missing.

    Args:
      me: the party.
      a: a server's share, uint64 [n].
      n: elements.
      n_bits: l.

    Returns:
      uint64 [n], a server's share; None for the assistant.
    """
    if me.is_assistant:
        return (yield from _assist_conversion(me, n, n_bits))
    opening = yield from _open(me, checked(a, n, n_bits), n_bits)
    return (yield from _convert(me, opening, n_bits))


@dataclasses.dataclass(frozen=True)
class _Opening:
    """State of a server once it has sent its share of x = a + r.

    Attributes:
      a: its share.
      r: uint64 [n].
      alpha: uint64 [n]: 1 where the shares of r wrapped.
      wrapped: uint64 [n]: 1 where the shares of a and r wrapped, β in the paper.
      flip: uint8 [n], η'' in the paper.
      masks: of the comparison.
    """

    a: np.ndarray
    r: np.ndarray
    alpha: np.ndarray
    wrapped: np.ndarray
    flip: np.ndarray
    masks: list[CompareMasks]


def _open(me: Party, a: np.ndarray, n_bits: int) -> Steps:
    """Lines 1 and 2, and what can be drawn before the assistant answers."""
    stream = me.shared_with(1 - me.index)
    r0, r1 = (low(stream.words(len(a)), n_bits) for _ in SERVERS)
    mine = r1 if me.index else r0
    yield Send(me.assistant, low(a + mine, n_bits), "value to convert | masked by r")
    r, alpha = low(r0 + r1, n_bits), wraps(r0, r1, n_bits)
    flip, masks = stream.residues((len(a),), 2), compare_masks(me, len(a), n_bits)
    return _Opening(a, r, alpha, wraps(a, mine, n_bits), flip, masks)


def _convert(me: Party, opening: _Opening, n_bits: int) -> Steps:
    """Lines 5 to 9."""
    a, r, flip = opening.a, opening.r, opening.flip
    zero = odd_words(me.shared_with(1 - me.index), len(a), n_bits)
    message = yield Receive(me.assistant)
    below = low(r - np.uint64(1), n_bits)
    bits = message["bits"]
    yield from private_compare(me, bits, below, flip, len(a), n_bits, opening.masks)
    share = yield Receive(me.assistant)  # of η'
    eta = np.where(flip != 0, odd_difference(np.uint64(me.index ^ 1), share, n_bits), share)
    y = odd_difference(odd(a, n_bits), eta, n_bits)
    y = odd_difference(y, message["delta"], n_bits)
    if me.index == 1:
        y = odd_difference(y, opening.wrapped, n_bits)
        return odd_difference(y, zero, n_bits)
    y = odd_difference(y, opening.wrapped + (r == 0), n_bits)
    y = odd_sum(y, opening.alpha + np.uint64(1), n_bits)
    return odd_sum(y, zero, n_bits)


def _assist_conversion(me: Party, n: int, n_bits: int) -> Steps:
    stream = me.private()
    first = yield Receive(me.names[0])
    second = yield Receive(me.names[1])
    x, delta = low(first + second, n_bits), wraps(first, second, n_bits)
    deltas, bits = odd_shares(stream, delta, n_bits), bit_shares(stream, x, n_bits)
    for j in SERVERS:
        message = {"bits": bits[j], "delta": deltas[j]}
        yield Send(me.names[j], message, "bits and wrap | masked by the dealer, modulo 67")
    del bits
    eta = yield from private_compare(me, None, None, None, n, n_bits)
    for j, share in zip(SERVERS, odd_shares(stream, eta, n_bits)):
        yield Send(me.names[j], share, "comparison's result | masked by the dealer")
    return None


# --- the most significant bit

COMPUTE_MSB_COST = Cost(5, 4 * BITS_BYTES + 13 * _WORD)


def compute_msb(me: Party, a: Any, n: int, n_bits: int = 64) -> Steps:
    """Shares over Z_(L-1) of a become shares over Z_L of its most significant bit (algorithm 5).

    That bit is the lowest one of 2a, as L - 1 is odd.
    """
    yield from _deal_mask(me, n, n_bits)
    message = None if me.is_assistant else (yield Receive(me.assistant))
    return (yield from _msb(me, a, message, n, n_bits))


def _deal_mask(me: Party, n: int, n_bits: int) -> Steps:
    """Line 1: the assistant's x, which waits for nothing."""
    if not me.is_assistant:
        return
    stream = me.private()
    x = odd_words(stream, n, n_bits)
    xs, bits = odd_shares(stream, x, n_bits), bit_shares(stream, x, n_bits)
    lowest = shares(stream, x & np.uint64(1), n_bits)
    for j in SERVERS:
        message = {"x": xs[j], "bits": bits[j], "lowest": lowest[j]}
        yield Send(me.names[j], message, "mask and bits | masked by the dealer, modulo 67")


def _msb(me: Party, a: Any, message: Any, n: int, n_bits: int) -> Steps:
    """Lines 2 to 9."""
    shapes = ((n,), (n,), (n,))
    if me.is_assistant:
        comparison = yield from private_compare(me, None, None, None, n, n_bits)
        for j, share in zip(SERVERS, shares(me.private(), comparison, n_bits)):
            yield Send(me.names[j], share, "comparison's result | masked by the dealer")
        return (yield from multiply(me, np.multiply, shapes, n_bits=n_bits))
    a, stream = checked(a, n, n_bits), me.shared_with(1 - me.index)
    mine = odd_sum(odd_sum(a, a, n_bits), message["x"], n_bits)
    yield Send(me.peer, mine, "2a | masked by x, shared")
    masks = compare_masks(me, n, n_bits)
    beta = stream.residues((n,), 2)
    r = odd_sum(mine, (yield Receive(me.peer)), n_bits)
    observation.opened("masked double", lambda: r)
    yield from private_compare(me, message["bits"], r, beta, n, n_bits, masks)
    del masks
    delta = low(_xor(me, r & np.uint64(1), message["lowest"]), n_bits)
    gamma = low(_xor(me, beta, (yield Receive(me.assistant))), n_bits)
    both = yield from multiply(me, np.multiply, shapes, gamma, delta, n_bits)
    return low(gamma + delta - both - both + _zero(me, (n,), n_bits), n_bits)


# --- ReLU

DRELU_COST = Cost(8, SHARE_CONVERT_COST.n_bytes + COMPUTE_MSB_COST.n_bytes)
RELU_COST = Cost(9, DRELU_COST.n_bytes + MULTIPLY_COST.n_bytes)


def drelu(me: Party, a: Any, n: int, n_bits: int = 64) -> Steps:
    """Shares of 1 where a >= 0, else of 0 (algorithm 6), for -L/4 <= a < L/4.

    The sign is read from 2a, which is even and so never L - 1.
    """
    yield from _deal_mask(me, n, n_bits)
    if me.is_assistant:
        yield from _assist_conversion(me, n, n_bits)
        return (yield from _msb(me, None, None, n, n_bits))
    a = checked(a, n, n_bits)
    opening = yield from _open(me, low(a + a, n_bits), n_bits)
    message = yield Receive(me.assistant)
    converted = yield from _convert(me, opening, n_bits)
    del opening  # with the masks
    msb = yield from _msb(me, converted, message, n, n_bits)
    return low(np.uint64(me.index) - msb + _zero(me, (n,), n_bits), n_bits)


def relu(me: Party, a: Any, n: int, n_bits: int = 64) -> Steps:
    """Shares of max(a, 0) (algorithm 7), for a in the range of `drelu`.

    The paper counts ten rounds: one more than lie on the chain, as its product counts two.
    """
    positive = yield from drelu(me, a, n, n_bits)
    return (yield from multiply(me, np.multiply, ((n,), (n,), (n,)), a, positive, n_bits))


# --- maxima


def maximum_cost(n_columns: int, with_index: bool = False) -> Cost:
    """Cost of `maximum`, for one maximum; published with the index."""
    one = DRELU_COST.n_bytes + (2 if with_index else 1) * MULTIPLY_COST.n_bytes
    return Cost(9 * (n_columns - 1), one * (n_columns - 1))


def maximum(
    me: Party,
    columns: Sequence[Any] | None,
    n: int,
    n_columns: int,
    with_index: bool = False,
    n_bits: int = 64,
) -> Steps:
    """Shares of the element-wise maximum of columns, compared one after the other (max-pooling).

    Args:
      me: the party.
      columns: a server's shares, uint64 [n] each, whose differences lie in the range of `drelu`.
      n: elements of a column.
      n_columns: how many columns there are.
      with_index: whether the number of the last column that holds the maximum is wanted too, which
        training needs.
      n_bits: l.

    Returns:
      a server's share, uint64 [n], or the pair of it and the index's share; None for the assistant.
    """
    if me.is_assistant:
        columns = [None] * n_columns
    elif columns is None or len(columns) != n_columns or not n_columns:
        raise ProtocolError(f"a maximum of {n_columns} columns needs as many, and at least one")
    rows = 2 if with_index else 1
    shape = (rows, n)
    best = None if me.is_assistant else _candidate(me, columns[0], 0, rows, n, n_bits)
    for i in range(1, n_columns):
        if me.is_assistant:
            yield from drelu(me, None, n, n_bits)
            yield from multiply(me, np.multiply, (shape, shape, shape), n_bits=n_bits)
            continue
        step = low(_candidate(me, columns[i], i, rows, n, n_bits) - best, n_bits)
        above = yield from drelu(me, step[0], n, n_bits)
        factors = np.broadcast_to(above, shape)
        gain = yield from multiply(me, np.multiply, (shape,) * 3, step, factors, n_bits)
        best = low(best + gain, n_bits)
    if best is None:
        return None
    return (best[0], best[1]) if with_index else best[0]


def _candidate(me: Party, column: Any, i: int, rows: int, n: int, n_bits: int) -> np.ndarray:
    """A server's shares of a column and, in a second row, of its number."""
    number = np.full(n, i if me.index == 0 else 0, np.uint64)
    return np.stack([checked(column, n, n_bits), number][:rows])
