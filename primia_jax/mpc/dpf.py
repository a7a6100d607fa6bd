"""Comparison by the prefix parity of a distributed point function: XOR shares of 1[α <= x].

A dealer knows α; two parties know x, both of m bits, and each holds a random root of its own and
the same correction words. Along the path of x they walk a tree of seeds; the leaves below answer
the last ν bits at once. The parties' nodes differ on the path of α, where they must, and on no
other: there the seeds are independent and the *t-bits* sum to 1, elsewhere both agree. So the t-bit
of a node is a share of "α lies below", and 1[α <= x] is the parity of the t-bits of all nodes left
of the path of x, and of one bit of the leaf, which the step function itself corrects.
(E. Boyle, N. Gilboa, Y. Ishai, "Function secret sharing: improvements and extensions", CCS 2016,
for the tree, its correction and the early end; the parity is read off along the way.)

A node is one PRG block (`mpc.prg`), with two children, or with four. Binary nodes read their
children's t-bits from a word of their own. Of four children, the 512 bits of a block leave to each
126 for its seed, one for its t-bit and one that is unused.

*Correction of four children.* Let Δ_j be the XOR of the parties' seeds of child j, and a the child
on the path of α. A correction d_j is XORed to child j by the party whose node has t-bit 1 (one of
them on the path, off it both or neither, which cancels). Needed: d_j = Δ_j for j != a; free: d_a.
Taking d_a as the XOR of the other three makes d_0 ^ d_1 ^ d_2 ^ d_3 = 0, so that d_0, d_1, d_2 are
sent. For any a they are an invertible linear map of the three Δ_j, j != a; a party knows its own
children, and those of the other are pseudo-random to it: the words are uniform and say nothing of
a, and child a of the other party, on which no word depends, stays a fresh seed. The t-bits' four
corrections, t_j of both ^ 1[j = a], fill the bits that seeds leave free in the words. Where m − ν
is odd, the root has two children.

Trap: a leaf that were its seed would, with the t-bit taken from it, give α away through the
correction word. It is expanded once more, under a role of its own.

How it compiles on a CPU (seen in the compiled HLO): a tree of up to five levels is one fusion, one
loop over the elements from roots to result bits, all seeds in registers; deeper trees are several
such loops of four levels, with one complex128 an element between them.

Axis letters: N elements, last, so that each word is contiguous; R words of correction.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ConfigError
from primia_jax.mpc import observation, prg, ring

_LEAF_BITS, _ARITIES, _ROUNDS = (7, 8, 9), (2, 4), (8, 12, 20)
_MAX_BITS, _MAX_TABLE_BITS = 63, 9
_NODE, _LEAF = 0, 3  # roles of PRG calls; a node's is raised by the bits of a child's number
# Loops of more blocks are beyond what LLVM vectorises (measured: seven or eight are not).
_FUSED_LEVELS, _SEGMENT = 5, 4


@dataclasses.dataclass(frozen=True)
class Params:
    """Parameters of a comparison tree.

    Attributes:
      m: bits that are compared, above ν and up to 63.
      nu: ν, bits that a leaf answers, 7 to 9.
      arity: children of a node, 2 or 4.
      rounds: of ChaCha, 8, 12 or 20.
    """

    m: int
    nu: int = 8
    arity: int = 2
    rounds: int = 12

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("nu", self.nu, _LEAF_BITS),
            ("arity", self.arity, _ARITIES),
            ("rounds", self.rounds, _ROUNDS),
        ):
            if value not in allowed:
                raise ConfigError(f"a comparison tree has {name} in {allowed}, not {value}")
        if not self.nu < self.m <= _MAX_BITS:
            raise ConfigError(
                f"a comparison tree with {self.nu}-bit leaves compares {self.nu + 1} to "
                f"{_MAX_BITS} bits, not {self.m}: compare fewer by a truth table"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of x that each level reads, from the root down."""
        bits = self.m - self.nu
        if self.arity == 2:
            return (1,) * bits
        return (1,) * (bits % 2) + (2,) * (bits // 2)

    @property
    def level_rows(self) -> int:
        """R, 32-bit words of the levels' corrections."""
        return sum(_rows(width) for width in self.widths)

    @property
    def leaf_words(self) -> int:
        """32-bit words of a leaf."""
        return 2**self.nu // 32


class Correction(NamedTuple):
    """The correction words of some elements, the same for both parties.

    Attributes:
      levels: uint32 [R, N], four words a level (twelve, with four children) from the root down.
        The t-bits' corrections are bits 0 and 1 of a level's first (and fifth) word.
      leaf: uint32 [2^ν / 32, N].
    """

    levels: Any
    leaf: Any


class Cost(NamedTuple):
    """Cost of one comparison.

    Attributes:
      key_bytes: of correction words.
      eval_calls: PRG blocks that a party computes.
      keygen_calls: PRG blocks that the dealer computes: those of both parties' paths, and again for
        every further four words that a level or the leaf is corrected by.
    """

    key_bytes: int
    eval_calls: int
    keygen_calls: int


class _Loop(NamedTuple):
    """Work of one compiled loop.

    Attributes:
      widths: bits that each of its levels reads.
      rounds: of ChaCha.
      packed: whether seeds travel packed.
      starts: whether it takes a root, and not what another loop left.
      leaf_bits: ν, if it ends at a leaf, else 0.
    """

    widths: tuple[int, ...]
    rounds: int
    packed: bool
    starts: bool = False
    leaf_bits: int = 0


def cost(params: Params) -> Cost:
    """The cost of one comparison."""
    levels = sum(2 * (_rows(width) // 4 + 1) for width in params.widths)
    return Cost(
        key_bytes=4 * (params.level_rows + params.leaf_words),
        eval_calls=len(params.widths) + 1,
        keygen_calls=levels + params.leaf_words // 2,
    )


def key_bytes(params: Params) -> int:
    """Bytes of correction words of one comparison."""
    return cost(params).key_bytes


# --- dealing and evaluating any number of elements


def keygen(
    alpha: Any,
    root0: Any,
    root1: Any,
    params: Params,
    domain: tuple[Any, Any],
    packed: bool | None = None,
) -> tuple[Correction, ...]:
    """The corrections that make two roots a comparison with α.

    Args:
      alpha: uint32 [N] (uint64 for m > 32), below 2^m.
      root0, root1: uint32 [4, N], uniform; consumed: never deal twice for the same roots.
      params: the tree's.
      domain: (gate, session), 32 and 64 bits; never the same with the same roots.
      packed: how seeds travel between loops; by default as the backend likes it.

    Returns:
      corrections, chunk by chunk: N is cut as `prg.chunk_sizes` says.

    Raises:
      ProtocolError: if shapes do not match.
    """
    words = prg.domain_words(domain)
    observation.dealt((root0, root1), words)
    with ring.x64():
        inputs = prg.tree_inputs(alpha, params.m, root0, root1)

        def block(_: int, values: Any, own: Any, other: Any) -> Correction:
            return keygen_block(values, own, other, params, words, packed)

        return tuple(prg.in_chunks(block, prg.chunk_sizes(inputs[0].shape[0]), *inputs))


def evaluate(
    party: int,
    root: Any,
    correction: Any,
    x: Any,
    params: Params,
    domain: tuple[Any, Any],
    packed: bool | None = None,
) -> Any:
    """A party's XOR share of 1[α <= x], uint8 [N].

    Args:
      party: 0 or 1.
      root: uint32 [4, N], the party's.
      correction: as `keygen` returned it; other sequences of arrays will do.
      x: uint32 [N] (uint64 for m > 32), below 2^m.
      params, domain: as in `keygen`.
      packed: may differ from `keygen`'s.

    Raises:
      ProtocolError: if shapes do not match.
    """
    words = prg.domain_words(domain)
    with ring.x64():
        pieces = [Correction(*map(jnp.asarray, piece)) for piece in correction]
        sizes = [piece.leaf.shape[1] for piece in pieces]
        x, root = prg.tree_inputs(x, params.m, root, sizes=sizes)

        def block(i: int, points: Any, own: Any) -> Any:
            filled = Correction(*(prg.chunk(array, 0, sizes[i]) for array in pieces[i]))
            return evaluate_block(party, own, filled, points, params, words, packed)

        shares = prg.in_chunks(block, sizes, x, root) or [jnp.zeros(0, jnp.uint8)]
        return shares[0] if len(shares) == 1 else jnp.concatenate(shares)


# --- one chunk: element-wise, hence free to be sharded over the elements. Within another jit these
# work too, but there XLA's CPU compiler makes one loop of everything, and takes minutes over more
# than five levels and over any keygen.


def evaluate_block(
    party: int,
    root: Any,
    correction: Correction,
    x: Any,
    params: Params,
    domain: Any,
    packed: bool | None = None,
) -> Any:
    """`evaluate` for one `Correction`; `domain` is `prg.domain_words`. Needs `ring.x64()`."""
    packed = prg.packs() if packed is None else packed
    state: Any = root
    row = level = 0
    bits, segments = params.m, _segments(params)
    for i, widths in enumerate(segments):
        last = i == len(segments) - 1
        loop = _Loop(widths, params.rounds, packed, i == 0, params.nu if last else 0)
        n_rows, bits = sum(map(_rows, widths)), bits - sum(widths)
        rows = correction.levels
        if len(segments) > 1:
            rows = rows[row : row + n_rows]
        leaf, below = (correction.leaf, 0) if last else (None, bits)
        digits, below = prg.narrow(x, params.m, below)
        # The last loop reads from ν bits above the lowest on, and these too.
        scalars = _scalars(party, level, bits if last else below)
        state = _walk(loop, state, rows, leaf, digits, scalars, domain)
        row, level = row + n_rows, level + len(widths)
    return state


def keygen_block(
    alpha: Any, root0: Any, root1: Any, params: Params, domain: Any, packed: bool | None = None
) -> Correction:
    """`keygen` for one chunk; `domain` is `prg.domain_words`. Needs `ring.x64()`."""
    packed = prg.packs() if packed is None else packed
    start = _Loop((), params.rounds, packed, starts=True)
    states = [
        _walk(start, root, None, None, None, _scalars(party, 0, 0), domain)
        for party, root in enumerate((root0, root1))
    ]
    bits, levels = params.m, []
    for level, width in enumerate(params.widths):
        loop, bits = _Loop((width,), params.rounds, packed), bits - width
        digits, below = prg.narrow(alpha, params.m, bits)
        scalars = _scalars(0, level, below)
        groups = range(_rows(width) // 4)
        parts = [_correct_level((loop, g), *states, digits, scalars, domain) for g in groups]
        rows = _stacked(None, parts)
        states = [_walk(loop, state, rows, None, digits, scalars, domain) for state in states]
        levels.append(rows)
    loop = _Loop((), params.rounds, packed, leaf_bits=params.nu)
    digits, below = prg.narrow(alpha, params.m, 0)
    scalars, groups = _scalars(0, len(levels), below), range(params.leaf_words // 4)
    leaf = [_correct_leaf((loop, g), *states, digits, scalars, domain) for g in groups]
    return Correction(jnp.concatenate(levels), _stacked(None, leaf))


def _segments(params: Params) -> list[tuple[int, ...]]:
    """The levels of each loop."""
    widths = params.widths
    if len(widths) <= _FUSED_LEVELS:
        return [widths]
    return [widths[i : i + _SEGMENT] for i in range(0, len(widths), _SEGMENT)]


def _scalars(party: int, level: int, bits: int) -> Any:
    """uint32 [3]: the party, the first level, and how many bits lie below the last one's."""
    return np.asarray([party, level, bits], np.uint32)


def _rows(width: int) -> int:
    """Correction words of a level that reads so many bits."""
    return 4 * (2**width - 1)


@prg.kernel
def _walk(loop: _Loop, state: Any, rows: Any, leaf: Any, x: Any, scalars: Any, domain: Any) -> Any:
    """Down the levels of a loop along the path of x; at its end, a result bit."""
    party, level, bits = scalars[0], scalars[1], scalars[2] + sum(loop.widths)
    if loop.starts:
        words = [(state[0] & prg.SEED_MASK) | party, *state[1:]]
    else:
        words = prg.unpack_words(state)
    row = 0
    for i, width in enumerate(loop.widths):
        bits = bits - width
        digit = _digit(x, bits, width)
        parts = [[rows[row + 4 * g + w] for w in range(4)] for g in range(2**width - 1)]
        # Through the packed form, which XLA's simplifier undoes: it keeps its graph of several
        # levels a chain, in which no value is computed twice.
        words = _descend(words, parts, digit, width, level + i, domain, loop.rounds)
        words = prg.unpack_words(jax.lax.optimization_barrier(prg.pack_words(words, loop.packed)))
        row += 4 * len(parts)
    if not loop.leaf_bits:
        return prg.pack_words(words, loop.packed)
    masks = jnp.uint32(0) - (words[0] & 1)
    block = _leaf_block(words, level + len(loop.widths), domain, loop.rounds)
    corrected = [v ^ (masks & leaf[j]) for j, v in enumerate(block[: 2**loop.leaf_bits // 32])]
    word = _choose(corrected, x >> 5)
    return (((word >> (x & 31)) ^ (words[0] >> 1)) & 1).astype(jnp.uint8)


def _digit(x: Any, bits: Any, width: int) -> Any:
    return (x >> bits) & (2**width - 1)


def _grow(words: Any, width: int, level: Any, domain: Any, rounds: int) -> tuple[Any, Any]:
    """The 2^width children: seeds, four words each, and t-bits."""
    seed = [words[0] & prg.SEED_MASK, *words[1:]]
    block = prg.tree_block(seed, prg.tree_domain(_NODE + width, level, domain), rounds)
    seeds = [[block[4 * j] & prg.SEED_MASK, *block[4 * j + 1 : 4 * j + 4]] for j in range(2**width)]
    if width == 1:
        return seeds, [block[8] & 1, (block[8] >> 1) & 1]
    return seeds, [block[4 * j] & 1 for j in range(4)]


def _leaf_block(words: Any, level: Any, domain: Any, rounds: int) -> list[Any]:
    seed = [words[0] & prg.SEED_MASK, *words[1:]]
    return prg.tree_block(seed, prg.tree_domain(_LEAF, level, domain), rounds)


def _descend(
    words: Any, parts: Any, digit: Any, width: int, level: Any, domain: Any, rounds: int
) -> list[Any]:
    """One level down: word 0 holds the t-bit in bit 0 and the parity so far in bit 1."""
    t, parity = words[0] & 1, (words[0] >> 1) & 1
    seeds, bits = _grow(words, width, level, domain, rounds)
    fixes = [(parts[j // 2][0] >> (j % 2)) & 1 for j in range(2**width)]
    bits = [bit ^ (t & fix) for bit, fix in zip(bits, fixes)]
    if width == 1:
        shifts = [parts[0], parts[0]]
    else:
        shifts = [*parts, [a ^ b ^ c for a, b, c in zip(*parts)]]
    left = [jnp.zeros_like(t)]
    for bit in bits[:-1]:
        left.append(left[-1] ^ bit)
    mask = jnp.uint32(0) - t
    following = [
        _choose([seed[w] for seed in seeds], digit)
        ^ (mask & _choose([shift[w] for shift in shifts], digit))
        for w in range(4)
    ]
    parity = parity ^ _choose(left, digit)
    low = _choose(bits, digit) | (parity << 1)
    return [(following[0] & prg.SEED_MASK) | low, *following[1:]]


def _choose(options: list[Any], index: Any) -> Any:
    """options[index mod 2^k] of 2^k options."""
    bit = 0
    while len(options) > 1:
        odd = ((index >> bit) & 1) == 1
        pairs = zip(options[::2], options[1::2])
        options = [even if even is other else jnp.where(odd, other, even) for even, other in pairs]
        bit += 1
    return options[0]


@prg.kernel
def _correct_level(
    settings: tuple[_Loop, int], state0: Any, state1: Any, alpha: Any, scalars: Any, domain: Any
) -> Any:
    """Four of the correction words of a level."""
    loop, group = settings
    (width,) = loop.widths
    digit = _digit(alpha, scalars[2], width)
    grown = [
        _grow(prg.unpack_words(state), width, scalars[1], domain, loop.rounds)
        for state in (state0, state1)
    ]
    (seeds0, bits0), (seeds1, bits1) = grown
    deltas = [[a ^ b for a, b in zip(*pair)] for pair in zip(seeds0, seeds1)]
    if width == 1:
        words = [_choose([right, left], digit) for left, right in zip(*deltas)]  # of the lost child
    else:
        others = [deltas[j] for j in range(4) if j != group]
        on_path = digit == group
        words = [jnp.where(on_path, a ^ b ^ c, own) for a, b, c, own in zip(*others, deltas[group])]
    for bit in range(2):
        child = 2 * group + bit
        if child < 2**width:
            fix = bits0[child] ^ bits1[child] ^ (digit == child).astype(jnp.uint32)
            words[0] = words[0] | (fix << bit)
    return prg.pack_words(words, loop.packed)


@prg.kernel
def _correct_leaf(
    settings: tuple[_Loop, int], state0: Any, state1: Any, alpha: Any, scalars: Any, domain: Any
) -> Any:
    """Four of the correction words of the leaf."""
    loop, group = settings
    blocks = [
        _leaf_block(prg.unpack_words(state), scalars[1], domain, loop.rounds)
        for state in (state0, state1)
    ]
    low = alpha & (2**loop.leaf_bits - 1)
    words = [
        blocks[0][j] ^ blocks[1][j] ^ _step_word(low, j) for j in range(4 * group, 4 * group + 4)
    ]
    return prg.pack_words(words, loop.packed)


@prg.kernel
def _stacked(_: None, parts: tuple[Any, ...]) -> Any:
    """Packed words -> uint32 [4 · parts, N]."""
    return jnp.stack([word for part in parts for word in prg.unpack_words(part)])


def _step_word(alpha: Any, j: int) -> Any:
    """Word j of the step function: bit i of it is 1[32 j + i >= α]."""
    first = jnp.clip(alpha.astype(jnp.int32) - 32 * j, 0, 32).astype(jnp.uint32)
    return jnp.where(first >= 32, jnp.uint32(0), jnp.uint32(0xFFFFFFFF) << (first & 31))


# --- truth tables, for comparisons of few bits


def table_words(m: int) -> int:
    """32-bit words of an m-bit comparison's truth table."""
    if not 1 <= m <= _MAX_TABLE_BITS:
        raise ConfigError(f"a truth table compares 1 to {_MAX_TABLE_BITS} bits, not {m}")
    return max(1, 2**m // 32)


@functools.partial(jax.jit, static_argnums=2)
def table_keygen(alpha: Any, words: Any, m: int) -> Any:
    """Party 1's truth table of 1[α <= x], masked by party 0's.

    Args:
      alpha: uint32 [N], below 2^m.
      words: uint32 [max(1, 2^m / 32), N], uniform; party 0's; a one-time pad: consumed.
      m: bits, 1 to 9.

    Returns:
      uint32 [max(1, 2^m / 32), N].
    """
    alpha = alpha.astype(jnp.uint32)
    return words ^ jnp.stack([_step_word(alpha, j) for j in range(table_words(m))])


@functools.partial(jax.jit, static_argnums=2)
def table_eval(words: Any, x: Any, m: int) -> Any:
    """A party's XOR share of 1[α <= x], uint8 [N]: bit x of its table, whose one use this is."""
    x = x.astype(jnp.uint32)
    word = _choose([words[j] for j in range(table_words(m))], x >> 5)
    return ((word >> (x & 31)) & 1).astype(jnp.uint8)
