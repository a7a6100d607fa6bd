"""Distributed comparison function: additive shares of β·1[x < α] in Z_2^32 or Z_2^64.

The construction is figure 1 of E. Boyle et al., "Function Secret Sharing for Mixed-Mode and
Fixed-Point Secure Computation" (EUROCRYPT 2021), over all bits of the domain and with a payload in
the ring, as AriaNN compares (T. Ryffel et al., PoPETs 2022). Comments give its variables. A node is
one PRG block: two seeds, two t-bits, two ring elements; what ends the path is a block of its own
role, so that no seed is ever used as an output.

Compared with `mpc.dpf`, which answers a comparison of the same bits by a bit: every level carries a
ring element too, no leaf answers several bits, and XLA's CPU compiler computes every block twice,
once for the next seed and once for the ring element, as the two do not fit into one complex128.

Axis letters: N elements, last, so that each word is contiguous.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ConfigError, ProtocolError
from primia_jax.mpc import observation, prg, ring

_WORD_BITS, _ROUNDS, _MAX_BITS = (32, 64), (8, 12, 20), 64
_NODE, _END = 4, 5  # roles of PRG calls, others than those of `mpc.dpf`
_T_WORD, _VALUE_WORDS, _END_WORDS = 8, ((10, 11), (12, 13)), (0, 1)  # of a block


@dataclasses.dataclass(frozen=True)
class Params:
    """Parameters of a distributed comparison function.

    Attributes:
      m: bits that are compared, 1 to 64; one level of the tree each.
      word_bits: 32 or 64, of the ring's words.
      rounds: of ChaCha, 8, 12 or 20.
    """

    m: int
    word_bits: int = 64
    rounds: int = 12

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("word_bits", self.word_bits, _WORD_BITS),
            ("rounds", self.rounds, _ROUNDS),
        ):
            if value not in allowed:
                raise ConfigError(f"a comparison function has {name} in {allowed}, not {value}")
        if not 1 <= self.m <= _MAX_BITS:
            raise ConfigError(f"a comparison function compares 1 to {_MAX_BITS} bits, not {self.m}")


class Correction(NamedTuple):
    """The correction words of some elements, the same for both parties.

    Attributes:
      levels: uint32 [4 m, N], from the root down; the two t-bits' corrections are bits 0 and 1 of a
        level's first word.
      values: ring words [m + 1, N], of the levels and of the end of the path.
    """

    levels: Any
    values: Any


class Cost(NamedTuple):
    """Cost of one comparison.

    Attributes:
      key_bytes: of correction words.
      eval_calls: PRG blocks that a party computes, twice what the construction needs but for one.
      keygen_calls: PRG blocks that the dealer computes, four times as many but for two.
    """

    key_bytes: int
    eval_calls: int
    keygen_calls: int


class _Settings(NamedTuple):
    """Settings that compiled loops depend on."""

    word_bits: int
    rounds: int
    packed: bool


def cost(params: Params) -> Cost:
    """The cost of one comparison."""
    return Cost(
        key_bytes=16 * params.m + params.word_bits // 8 * (params.m + 1),
        eval_calls=2 * params.m + 1,
        keygen_calls=8 * params.m + 2,
    )


def keygen(
    alpha: Any,
    beta: Any,
    root0: Any,
    root1: Any,
    params: Params,
    domain: tuple[Any, Any],
    packed: bool | None = None,
) -> tuple[Correction, ...]:
    """The corrections that make two roots shares of β·1[x < α].

    Args:
      alpha: uint32 [N] (uint64 for m > 32), below 2^m.
      beta: ring words [N].
      root0, root1: uint32 [4, N], uniform; consumed: never deal twice for the same roots.
      params: of the function.
      domain: (gate, session), 32 and 64 bits; never the same with the same roots.
      packed: how seeds travel between loops; by default as the backend likes it.

    Returns:
      corrections, chunk by chunk: N is cut as `prg.chunk_sizes` says.

    Raises:
      ProtocolError: if shapes or the type of β do not match.
    """
    words = prg.domain_words(domain)
    observation.dealt((root0, root1), words)
    with ring.x64():
        alpha, root0, root1 = prg.tree_inputs(alpha, params.m, root0, root1)
        beta, kind = jnp.asarray(beta), ring.word_type(params.word_bits)
        if beta.dtype != kind or beta.shape != alpha.shape:
            raise ProtocolError(
                f"β is {np.dtype(kind)} {list(alpha.shape)}, not {beta.dtype} {list(beta.shape)}"
            )

        def block(_: int, values: Any, payload: Any, own: Any, other: Any) -> Correction:
            return keygen_block(values, payload, own, other, params, words, packed)

        sizes = prg.chunk_sizes(alpha.shape[0])
        return tuple(prg.in_chunks(block, sizes, alpha, beta, root0, root1))


def evaluate(
    party: int,
    root: Any,
    correction: Any,
    x: Any,
    params: Params,
    domain: tuple[Any, Any],
    packed: bool | None = None,
) -> Any:
    """A party's additive share of β·1[x < α], ring words [N].

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
        sizes = [piece.values.shape[1] for piece in pieces]
        x, root = prg.tree_inputs(x, params.m, root, sizes=sizes)

        def block(i: int, points: Any, own: Any) -> Any:
            filled = Correction(*(prg.chunk(array, 0, sizes[i]) for array in pieces[i]))
            return evaluate_block(party, own, filled, points, params, words, packed)

        shares = prg.in_chunks(block, sizes, x, root)
        return jnp.concatenate(shares or [jnp.zeros(0, ring.word_type(params.word_bits))])


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
    settings = _Settings(params.word_bits, params.rounds, packed)
    state = _start(settings, root, np.uint32(party))
    total = jnp.zeros_like(correction.values[0])
    for i in range(params.m):
        rows, bits = correction.levels[4 * i : 4 * i + 4], params.m - 1 - i
        digits, below = prg.narrow(x, params.m, bits)
        scalars = _scalars(i, below)
        total = _add_value(settings, total, state, correction.values[i], digits, scalars, domain)
        state = _descend(settings, state, rows, digits, scalars, domain)
    scalars = _scalars(params.m, 0)
    total = _add_end(settings, total, state, correction.values[params.m], scalars, domain)
    return -total if party else total


def keygen_block(
    alpha: Any,
    beta: Any,
    root0: Any,
    root1: Any,
    params: Params,
    domain: Any,
    packed: bool | None = None,
) -> Correction:
    """`keygen` for one chunk; `domain` is `prg.domain_words`. Needs `ring.x64()`."""
    packed = prg.packs() if packed is None else packed
    settings = _Settings(params.word_bits, params.rounds, packed)
    states = [_start(settings, root, np.uint32(party)) for party, root in enumerate((root0, root1))]
    levels, values, value = [], [], jnp.zeros_like(beta)
    for i in range(params.m):
        digits, below = prg.narrow(alpha, params.m, params.m - 1 - i)
        scalars = _scalars(i, below)
        rows = _stacked(None, _correct_seed(settings, *states, digits, scalars, domain))
        fix = _correct_value(settings, *states, value, beta, digits, scalars, domain)
        value = _next_value(settings, *states, value, fix, digits, scalars, domain)
        states = [_descend(settings, state, rows, digits, scalars, domain) for state in states]
        levels.append(rows)
        values.append(fix)
    scalars = _scalars(params.m, 0)
    values.append(_correct_end(settings, *states, value, scalars, domain))
    return Correction(jnp.concatenate(levels), jnp.stack(values))


def _scalars(level: int, bits: int) -> Any:
    """uint32 [2]: the level, and how many bits lie below its own."""
    return np.asarray([level, bits], np.uint32)


@prg.kernel
def _start(settings: _Settings, root: Any, party: Any) -> Any:
    return prg.pack_words([(root[0] & prg.SEED_MASK) | party, *root[1:]], settings.packed)


@prg.kernel
def _stacked(_: None, state: Any) -> Any:
    return jnp.stack(prg.unpack_words(state))


class _Node(NamedTuple):
    """Left and right child, by bit: seeds, t-bits, ring elements; and the node's own t-bit."""

    seeds: list[list[Any]]
    bits: list[Any]
    values: list[Any]
    t: Any


def _block(settings: _Settings, words: list[Any], role: int, level: Any, domain: Any) -> list[Any]:
    seed = [words[0] & prg.SEED_MASK, *words[1:]]
    return prg.tree_block(seed, prg.tree_domain(role, level, domain), settings.rounds)


def _ring_word(settings: _Settings, block: list[Any], places: tuple[int, int]) -> Any:
    low, high = (block[place] for place in places)
    if settings.word_bits == 32:
        return low
    return low.astype(jnp.uint64) | (high.astype(jnp.uint64) << jnp.uint64(32))


def _grow(settings: _Settings, state: Any, level: Any, domain: Any) -> _Node:
    words = prg.unpack_words(state)
    block = _block(settings, words, _NODE, level, domain)
    seeds = [[block[4 * j] & prg.SEED_MASK, *block[4 * j + 1 : 4 * j + 4]] for j in range(2)]
    values = [_ring_word(settings, block, places) for places in _VALUE_WORDS]
    return _Node(seeds, [(block[_T_WORD] >> j) & 1 for j in range(2)], values, words[0] & 1)


def _right(x: Any, scalars: Any) -> Any:
    """True if the path turns right."""
    return ((x >> scalars[1]) & 1) == 1


def _signed(t: Any, value: Any) -> Any:
    """(-1)^t · value."""
    return jnp.where(t == 1, -value, value)


@prg.kernel
def _descend(settings: _Settings, state: Any, rows: Any, x: Any, scalars: Any, domain: Any) -> Any:
    """The child on the path of x, corrected: s ^ t·s_CW, and its t-bit in bit 0 of word 0."""
    node, right = _grow(settings, state, scalars[0], domain), _right(x, scalars)
    mask = jnp.uint32(0) - node.t
    seed = [jnp.where(right, b, a) ^ (mask & rows[w]) for w, (a, b) in enumerate(zip(*node.seeds))]
    bits = [bit ^ (node.t & (rows[0] >> j)) for j, bit in enumerate(node.bits)]
    bit = jnp.where(right, bits[1], bits[0]) & 1
    return prg.pack_words([(seed[0] & prg.SEED_MASK) | bit, *seed[1:]], settings.packed)


@prg.kernel
def _add_value(
    settings: _Settings, total: Any, state: Any, fix: Any, x: Any, scalars: Any, domain: Any
) -> Any:
    """V + v^x + t·V_CW; the party's sign comes last."""
    node = _grow(settings, state, scalars[0], domain)
    value = jnp.where(_right(x, scalars), node.values[1], node.values[0])
    return total + value + jnp.where(node.t == 1, fix, jnp.zeros_like(fix))


@prg.kernel
def _add_end(
    settings: _Settings, total: Any, state: Any, fix: Any, scalars: Any, domain: Any
) -> Any:
    t, value = _end(settings, state, scalars, domain)
    return total + value + jnp.where(t == 1, fix, jnp.zeros_like(fix))


def _end(settings: _Settings, state: Any, scalars: Any, domain: Any) -> tuple[Any, Any]:
    """The t-bit at the end of a path, and the ring element that its seed expands to."""
    words = prg.unpack_words(state)
    block = _block(settings, words, _END, scalars[0], domain)
    return words[0] & 1, _ring_word(settings, block, _END_WORDS)


def _pair(settings: _Settings, state0: Any, state1: Any, scalars: Any, domain: Any) -> Any:
    return [_grow(settings, state, scalars[0], domain) for state in (state0, state1)]


@prg.kernel
def _correct_seed(
    settings: _Settings, state0: Any, state1: Any, alpha: Any, scalars: Any, domain: Any
) -> Any:
    """s_CW = s_0^Lose ^ s_1^Lose, with t_CW^L and t_CW^R in the bits that a seed leaves free."""
    (node0, node1), right = _pair(settings, state0, state1, scalars, domain), _right(alpha, scalars)
    deltas = [[a ^ b for a, b in zip(*pair)] for pair in zip(node0.seeds, node1.seeds)]
    words = [jnp.where(right, left, other) for left, other in zip(*deltas)]
    bit = right.astype(jnp.uint32)
    fixes = [node0.bits[0] ^ node1.bits[0] ^ bit ^ 1, node0.bits[1] ^ node1.bits[1] ^ bit]
    return prg.pack_words([words[0] | fixes[0] | (fixes[1] << 1), *words[1:]], settings.packed)


@prg.kernel
def _correct_value(
    settings: _Settings,
    state0: Any,
    state1: Any,
    value: Any,
    beta: Any,
    alpha: Any,
    scalars: Any,
    domain: Any,
) -> Any:
    """V_CW = (-1)^t_1 · (v_1^Lose − v_0^Lose − V_α + β·[Lose = L])."""
    (node0, node1), right = _pair(settings, state0, state1, scalars, domain), _right(alpha, scalars)
    lost = [jnp.where(right, node.values[0], node.values[1]) for node in (node0, node1)]
    gain = jnp.where(right, beta, jnp.zeros_like(beta))
    return _signed(node1.t, lost[1] - lost[0] - value + gain)


@prg.kernel
def _next_value(
    settings: _Settings,
    state0: Any,
    state1: Any,
    value: Any,
    fix: Any,
    alpha: Any,
    scalars: Any,
    domain: Any,
) -> Any:
    """V_α − v_1^Keep + v_0^Keep + (-1)^t_1 · V_CW."""
    (node0, node1), right = _pair(settings, state0, state1, scalars, domain), _right(alpha, scalars)
    kept = [jnp.where(right, node.values[1], node.values[0]) for node in (node0, node1)]
    return value - kept[1] + kept[0] + _signed(node1.t, fix)


@prg.kernel
def _correct_end(
    settings: _Settings, state0: Any, state1: Any, value: Any, scalars: Any, domain: Any
) -> Any:
    """CW^(m+1) = (-1)^t_1 · (end of s_1 − end of s_0 − V_α)."""
    (_, end0), (t1, end1) = (_end(settings, state, scalars, domain) for state in (state0, state1))
    return _signed(t1, end1 - end0 - value)
