"""The gates of encrypted inference: ReLU with truncation, and truncation alone, on masked words.

For a gate with operand z in Z_2^n, both parties know y' = ((z + r) >> t) mod 2^k, r being the
dealer's mask, and each ends with a share of ŷ = y + ρ, y being max(z >> t, 0) or z >> t and ρ the
mask that the data owner chose for the result. With r' = (r >> t) mod 2^k, c the top bit of y' and
m = 2^k · (top bit of r'):

- truncation is local: y' − r' = z >> t modulo 2^k, rounded up with the probability of the dropped
  fraction (r's low bits are the coin), and never wrong by more than one unit;
- sign: z ≥ 0 is the XOR of the top bits of y' and r' and of 1[α ≤ x], α and x being the low bits
  of r' and y' but for the lowest s, the *slack*. Half of 2^s is taken off y' before, so that only a
  value within 2^(s-1) of zero may take the wrong sign: the closer to zero, the likelier;
- with d̂ = (z ≥ 0) ⊕ u opened, u a bit that nobody knows, ŷ_b = (b·d̂ + (1 − 2d̂)·[u]_b)·y' +
  [w_{d̂,c}]_b, the dealer having shared w_{d,c} = ρ − (d ⊕ u)·(r' − (1 − c)·m);
- truncation alone needs no comparison: 2^(k-2) is added first, so that the operand is positive and
  wraps exactly where r' has its top bit and y' has not; w_c = ρ − r' + (1 − c)·m − 2^(k-2);
- the *excess* is by how many multiples of 2^k the value z >> t differs from the one that the gate
  takes it for, 0 if and only if it lies in the gate's range. It is linear in what the gate dealt
  already: its shares cost no key (`excess_table`), and `mpc.range_check` adds them up.

The data owner is party 0, the model owner party 1. Everything that party 0 holds it expands from
its own seed; the dealer sends party 1 what is missing. A comparison of up to nine bits is a truth
table under a one-time mask, a wider one a distributed point function (`mpc.dpf`).

Axis letters: N elements of a gate, flattened.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.mpc import dpf, ring

TABLE_BITS = 9  # widest comparison that is a truth table
EXCESS_BITS = 8  # of the excess, at most


@dataclasses.dataclass(frozen=True)
class GateSpec:
    """Public description of a gate.

    Attributes:
      kind: 'relu' or 'rescale'.
      n_elements: N.
      ring_bits: n.
      truncated_bits: t.
      width: k.
      compared_bits: m.
      leaf_bits, arity, prg_rounds: of the tree, where m is too wide for a table.
    """

    kind: str
    n_elements: int
    ring_bits: int
    truncated_bits: int
    width: int
    compared_bits: int
    leaf_bits: int
    arity: int
    prg_rounds: int

    @property
    def compares(self) -> bool:
        """True if a sign is computed."""
        return self.kind == "relu"

    @property
    def slack_bits(self) -> int:
        """s: low bits that the comparison does not see."""
        return self.width - 1 - self.compared_bits

    @property
    def excess_bits(self) -> int:
        """g: low bits of the excess that the ring holds above the effective width, up to 8."""
        return max(0, min(EXCESS_BITS, self.ring_bits - self.truncated_bits - self.width))

    @property
    def has_table(self) -> bool:
        """True if the comparison is a truth table."""
        return self.compares and self.compared_bits <= TABLE_BITS

    @property
    def table_words(self) -> int:
        """32-bit words of one element's truth table."""
        return dpf.table_words(self.compared_bits)

    @property
    def select_words(self) -> int:
        """Ring words of one element's selection: u and w_{d,c}, or w_c."""
        return 5 if self.compares else 2

    @property
    def tree(self) -> dpf.Params:
        """The tree's parameters."""
        return dpf.Params(self.compared_bits, self.leaf_bits, self.arity, self.prg_rounds)

    def key_bytes(self) -> int:
        """Bytes that the dealer sends party 1."""
        select = self.select_words * ring.packed_bytes(self.ring_bits)
        table = 4 * self.table_words if self.has_table else 0
        return self.n_elements * (select + table) + self.tree_bytes()

    def tree_bytes(self) -> int:
        """Bytes of the tree's keys, which party 0 is sent too."""
        if not self.compares or self.has_table:
            return 0
        return self.n_elements * dpf.key_bytes(self.tree)


class Streams(NamedTuple):
    """Words that a party expands from its seed for one gate, uniform and its own.

    Attributes:
      select: ring words [select_words N]; party 0 only, else None.
      sign: uint8 [ceil(N / 8)]: its share of the bit that hides the sign; None without comparison.
      compare: uint32 [table_words N] (party 0), or the tree's root [4 N], or None.
    """

    select: Any
    sign: Any
    compare: Any


@functools.partial(jax.jit, static_argnums=0)
def _deal_select(gate: GateSpec, r: Any, rho: Any, hidden: Any, select: Any) -> Any:
    """Party 1's shares of u and w_{d,c} (or w_c), packed."""
    word = rho.dtype.type
    r_cut = cut(gate, r)
    wrap = (r_cut >> word(gate.width - 1)) << word(gate.width) if _wraps(gate) else word(0) * r_cut
    if not gate.compares:
        w = [rho - r_cut + (word(1 - c) * wrap) - word(1 << (gate.width - 2)) for c in (0, 1)]
        return _pack(gate, jnp.stack(w) - select)
    u = hidden.astype(rho.dtype)
    w = [rho - (u ^ word(d)) * (r_cut - word(1 - c) * wrap) for d in (0, 1) for c in (0, 1)]
    return _pack(gate, jnp.stack([u, *w]) - select)


def _wraps(gate: GateSpec) -> bool:
    """True if 2^k is not 0 in the ring."""
    return gate.width < gate.ring_bits


def cut(gate: GateSpec, words: Any) -> Any:
    """(words >> t) mod 2^k."""
    word = words.dtype.type
    return (ring.low_bits(words, gate.ring_bits) >> word(gate.truncated_bits)) & word(
        (1 << gate.width) - 1
    )


def masked_operand(gate: GateSpec, z_masked: Any) -> Any:
    """y' of z + r, the words that the model owner sends."""
    return cut(gate, _shifted(gate, z_masked))


def _shifted(gate: GateSpec, z_masked: Any) -> Any:
    if gate.compares:
        return z_masked
    return z_masked + z_masked.dtype.type(1 << (gate.width - 2 + gate.truncated_bits))


def top_of_mask(gate: GateSpec, r: Any) -> Any:
    """The g bits of r above those that `cut` keeps, uint8 [N]."""
    words = ring.low_bits(r, gate.ring_bits) >> r.dtype.type(gate.truncated_bits + gate.width)
    return words.astype(jnp.uint8) & np.uint8((1 << gate.excess_bits) - 1)


def top_of_operand(gate: GateSpec, z_masked: Any) -> Any:
    """The g bits of z + r above those of y', uint8 [N]; the model owner keeps them to itself."""
    return top_of_mask(gate, _shifted(gate, z_masked))


def _compared(gate: GateSpec, y: Any) -> Any:
    """The m bits of r', or of y' centred, that are compared."""
    word = y.dtype.type
    low = (y & word((1 << (gate.width - 1)) - 1)) >> word(gate.slack_bits)
    return low.astype(jnp.uint32) if gate.compared_bits <= 32 else low


def _centred(gate: GateSpec, y: Any) -> Any:
    """y' − 2^(s-1) modulo 2^k."""
    word = y.dtype.type
    half = (1 << gate.slack_bits) >> 1
    return (y - word(half)) & word((1 << gate.width) - 1)


def _top(gate: GateSpec, y: Any) -> Any:
    """uint8 [N], the top bit."""
    return (y >> y.dtype.type(gate.width - 1)).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnums=0)
def _alpha_and_hidden(gate: GateSpec, r: Any, sign0: Any, sign1: Any) -> tuple[Any, Any]:
    """α, and u = (top bit of r') ⊕ the parties' sign shares."""
    r_cut = cut(gate, r)
    count = gate.n_elements
    hidden = _top(gate, r_cut) ^ ring.unpack_bits(sign0, count) ^ ring.unpack_bits(sign1, count)
    return _compared(gate, r_cut), hidden


def deal(
    gate: GateSpec, r: Any, rho: Any, party0: Streams, party1: Streams, domain: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dealer's work for one gate.

    Args:
      gate: the gate.
      r: words [N], the mask of the operand; fresh, of the dealer's.
      rho: words [N], the mask of the result; known to party 0.
      party0, party1: what the parties expand; consumed.
      domain: tells this tree's PRG calls from all others (`mpc.dpf`).

    Returns:
      what to send the parties: to party 1 `select`, its packed shares of u and w, and `compare`,
      its table or the tree's corrections; to party 0 only the latter corrections.
    """
    if not gate.compares:
        return {}, {"select": _deal_select(gate, r, rho, None, party0.select)}
    alpha, hidden = _alpha_and_hidden(gate, r, party0.sign, party1.sign)
    select = _deal_select(gate, r, rho, hidden, party0.select)
    if gate.has_table:
        table = dpf.table_keygen(alpha, party0.compare, gate.compared_bits)
        return {}, {"select": select, "compare": table}
    dealt = dpf.keygen(alpha, party0.compare, party1.compare, gate.tree, domain)
    correction = tuple(tuple(piece) for piece in dealt)
    return {"compare": correction}, {"select": select, "compare": correction}


def _pack(gate: GateSpec, words: Any) -> Any:
    return ring.pack(words.reshape(-1), gate.ring_bits)


def _words(gate: GateSpec, packed: Any) -> Any:
    """y' [N] from what travels; within the program that reads it, since a pass of its own costs."""
    return ring.unpack(packed, gate.width).astype(ring.word_type(gate.ring_bits))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _table_share(gate: GateSpec, party: int, packed: Any, sign: Any, compare: Any) -> Any:
    y = _words(gate, packed)
    bit = dpf.table_eval(compare, _compared(gate, _centred(gate, y)), gate.compared_bits)
    return _with_sign(gate, party, packed, sign, bit)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _with_sign(gate: GateSpec, party: int, packed: Any, sign: Any, bit: Any) -> Any:
    y = _words(gate, packed)
    bit = bit.astype(jnp.uint8) ^ ring.unpack_bits(sign, gate.n_elements)
    if party == 1:
        bit = bit ^ _top(gate, _centred(gate, y))
    return ring.pack_bits(bit)


@functools.partial(jax.jit, static_argnums=0)
def _tree_input(gate: GateSpec, packed: Any) -> Any:
    return _compared(gate, _centred(gate, _words(gate, packed)))


def sign_share(
    gate: GateSpec, party: int, packed: Any, own: Streams, compare: Any, domain: Any
) -> Any:
    """A share of d̂ = (z ≥ 0) ⊕ u, packed uint8 [ceil(N / 8)].

    Args:
      gate: the gate.
      party: 0 or 1.
      packed: y' of all elements, packed as the model owner sends it.
      own: what the party expands.
      compare: of the party's key, see `deal`; None for party 0's table, which is its own.
      domain: as in `deal`.
    """
    if gate.has_table:
        table = own.compare if party == 0 else compare
        return _table_share(gate, party, packed, own.sign, table)
    bit = dpf.evaluate(party, own.compare, compare, _tree_input(gate, packed), gate.tree, domain)
    return _with_sign(gate, party, packed, own.sign, bit)


@functools.partial(jax.jit, static_argnums=(0, 1))
def out_share(gate: GateSpec, party: int, packed: Any, select: Any, own: Any, other: Any) -> Any:
    """The party's share of ŷ, words [N].

    Args:
      gate: the gate.
      party: 0 or 1.
      packed: as in `sign_share`.
      select: the party's shares of u and w: words [select_words N], or packed as they came.
      own, other: packed shares of d̂; None where nothing was compared.
    """
    y = _words(gate, packed)
    word = y.dtype.type
    if select.ndim == 1:
        select = ring.unpack(select, gate.ring_bits).reshape(gate.select_words, gate.n_elements)
    top = (y >> word(gate.width - 1)) != 0
    if not gate.compares:
        w = jnp.where(top, select[1], select[0])
        return w + y if party == 1 else w
    positive = ring.unpack_bits(own ^ other, gate.n_elements) != 0
    u = select[0]
    factor = jnp.where(positive, word(party) - u, u)
    w = jnp.where(
        positive, jnp.where(top, select[4], select[3]), jnp.where(top, select[2], select[1])
    )
    return factor * y + w


@functools.partial(jax.jit, static_argnums=(0, 1))
def excess_table(gate: GateSpec, party: int, select: Any) -> Any:
    """The party's shares of each element's excess, by what is opened later; uint32 [N].

    With a' = y' − 2^(s-1) and c its top bit, D = (z ≥ 0) and r_k the top bit of r', the excess is
    (a' >> k) − (r >> (t + k)) − (1 − c)·D·r_k + c·(1 − D)·(1 − r_k): what the gate takes the value
    for has these bits 0. D = d̂ ⊕ u, and w_{d,0} − w_{d,1} = (d ⊕ u)·m is a share of D·r_k·2^k for
    d = d̂ and of (1 − D)·r_k·2^k for d = 1 − d̂. A sharing of a multiple of 2^k is divided exactly:
    one party rounds its share down, the other up. Byte 2 d̂ + c of a word (c, without comparison)
    is the share of the last two terms. It needs no image, so that it is made beforehand.

    Args:
      gate: the gate.
      party: 0 or 1.
      select: as in `out_share`.
    """
    n_bits = gate.ring_bits
    if select.ndim == 1:
        select = ring.unpack(select, n_bits).reshape(gate.select_words, gate.n_elements)
    word = select.dtype.type

    def divided(share: Any) -> Any:
        signed = share if party == 1 else -share
        quotient = ring.low_bits(signed, n_bits) >> word(gate.width)
        return quotient if party == 1 else -quotient

    if not gate.compares:
        shares = [-divided(select[0] - select[1]), jnp.zeros_like(select[0])]
    else:
        u, here, there = select[0], divided(select[1] - select[2]), divided(select[3] - select[4])
        shares = [-here, word(party) - u - there, -there, u - here]  # 1 − D is u where d̂ = 1
    return functools.reduce(
        jnp.bitwise_or,
        (_scaled(gate, share).astype(jnp.uint32) << 8 * i for i, share in enumerate(shares)),
    )


def _scaled(gate: GateSpec, excess: Any) -> Any:
    """2^(8-g) · excess modulo 2^8."""
    return excess.astype(jnp.uint8) << np.uint8(EXCESS_BITS - gate.excess_bits)


def excess_share(
    gate: GateSpec, party: int, y: Any, top: Any, table: Any, own: Any, other: Any
) -> Any:
    """The party's share of 2^(8-g) · (excess + `top_of_mask`) modulo 2^8, uint8 [N].

    Args:
      gate: the gate.
      party: 0 or 1.
      y: words [N], y'.
      top: `top_of_operand`, of party 1; None for party 0.
      table: `excess_table` of the party.
      own, other: as in `out_share`.
    """
    if gate.compares:
        above = _top(gate, _centred(gate, y)) | ring.unpack_bits(own ^ other, gate.n_elements) << 1
    else:
        above = _top(gate, y)
    share = (table >> (above.astype(jnp.uint32) << 3)).astype(jnp.uint8)
    if party == 0:
        return share
    if gate.compares:  # the centring borrows from the bits above
        top = top - (y < y.dtype.type((1 << gate.slack_bits) >> 1)).astype(jnp.uint8)
    return share + _scaled(gate, top)


@functools.partial(jax.jit, static_argnums=(0, 1))
def packed_out_share(
    gate: GateSpec, party: int, packed: Any, select: Any, own: Any, other: Any
) -> Any:
    """`out_share`, packed for its way."""
    return ring.pack(out_share(gate, party, packed, select, own, other), gate.ring_bits)
