"""Comparison trees: right for every α and x, silent about α, and the same on every backend.

Correctness is held against `α <= x` and, word for word, against a second implementation in plain
Python (`tree_reference`). What would make keys unsafe (a leaf that is its seed, a bit of a word
that leans to one side for some α) is looked for by functions that are shown to find it.
"""

import itertools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tree_reference

from primia_jax.errors import ConfigError, ProtocolError
from primia_jax.mpc import dpf, prg, ring

VECTORS = pathlib.Path(__file__).parent / "vectors" / "dpf.json"
DOMAIN = (3, 2**40 + 5)
# A bound at 7 standard deviations is passed by chance once in 4e11 times.
SIGMAS = 7
SMALL = [(8, 7, 2), (10, 7, 4)]
OTHERS = [
    (m, nu, arity)
    for nu in (7, 8, 9)
    for arity in (2, 4)
    for m in range(nu + 1, 11)
    if (m, nu, arity) not in SMALL
]


def deep(*parameters):
    """A case that takes long to compile."""
    return pytest.param(*parameters, marks=pytest.mark.slow)


def params_of(m, nu, arity):
    return dpf.Params(m, nu, arity, 8)


def roots_of(n, seed=0):
    rng = np.random.Generator(np.random.Philox(seed))
    return [rng.integers(0, 2**32, (4, n), dtype=np.uint32) for _ in range(2)]


def both_shares(alpha, x, params, roots, domain=DOMAIN, packed=None):
    key = dpf.keygen(alpha, *roots, params, domain, packed)
    return [dpf.evaluate(b, roots[b], key, x, params, domain, packed) for b in (0, 1)]


def check_correct(alpha, x, shares):
    """That the shares open 1[α <= x]."""
    opened = np.asarray(shares[0]) ^ np.asarray(shares[1])
    wrong = np.flatnonzero(opened != (alpha <= x))
    assert not wrong.size, f"{wrong.size} wrong, the first for {alpha[wrong[0]], x[wrong[0]]}"


def check_unbiased(rows, structural_zeros=()):
    """That each bit of uint32 [R, N] is 1 in half of the N; but for (row, bit) that must be 0."""
    rows = np.asarray(rows)
    deviations = 2 * SIGMAS * np.sqrt(rows.shape[1] / 4)
    for row, bit in itertools.product(range(len(rows)), range(32)):
        ones = int(((rows[row] >> bit) & 1).sum())
        if (row, bit) in structural_zeros:
            assert ones == 0
        else:
            assert abs(2 * ones - rows.shape[1]) <= deviations, f"bit {bit} of word {row}: {ones}"


def unused_bits(params):
    """Bits 0 and 1 of the last of the three seeds of a level with four children."""
    row, found = 0, set()
    for width in params.widths:
        if width == 2:
            found |= {(row + 8, 0), (row + 8, 1)}
        row += 4 * (2**width - 1)
    return found


# --- right


def exhaustive(m, nu, arity):
    alpha, x = (a.ravel().astype(np.uint32) for a in np.meshgrid(*[np.arange(2**m)] * 2))
    filling = max(1, 2**18 // len(alpha))  # one compiled shape
    alpha, x = np.tile(alpha, filling), np.tile(x, filling)
    check_correct(alpha, x, both_shares(alpha, x, params_of(m, nu, arity), roots_of(len(alpha))))


@pytest.mark.parametrize(("m", "nu", "arity"), SMALL)
def test_every_alpha_and_x(m, nu, arity):
    exhaustive(m, nu, arity)


@pytest.mark.slow
@pytest.mark.parametrize(("m", "nu", "arity"), OTHERS)
def test_every_alpha_and_x_of_all_small_trees(m, nu, arity):
    exhaustive(m, nu, arity)


def edges(m, n=3000, seed=1):
    """Random α and x with all the pairs that are near each other or an end."""
    rng, top = np.random.default_rng(seed), 2**m - 1
    alpha = rng.integers(0, 2**m, n, dtype=np.uint64)
    x = rng.integers(0, 2**m, n, dtype=np.uint64)
    third = n // 6
    x[:third] = alpha[:third]
    x[third : 2 * third] = (alpha[third : 2 * third] + np.uint64(1)) & np.uint64(top)
    x[2 * third : 3 * third] = (alpha[2 * third : 3 * third] - np.uint64(1)) & np.uint64(top)
    ends = np.asarray([0, 1, top - 1, top], np.uint64)
    pairs = np.stack([a.ravel() for a in np.meshgrid(ends, ends)])
    alpha[-16:], x[-16:] = pairs
    alpha[-30:-20], x[-20:-16] = np.resize(ends, 10), ends
    return alpha, x


def test_edges_of_a_deep_tree():
    alpha, x = edges(31)
    check_correct(alpha, x, both_shares(alpha, x, params_of(31, 8, 2), roots_of(len(x))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "nu", "arity"), [*itertools.product((12, 15, 19, 31, 32, 33, 63), (7, 8, 9), (2, 4))]
)
def test_edges_of_all_deep_trees(m, nu, arity):
    alpha, x = edges(m)
    check_correct(alpha, x, both_shares(alpha, x, params_of(m, nu, arity), roots_of(len(x))))


def python_column(array, i):
    return [int(word) for word in np.asarray(array)[:, i]]


@pytest.mark.parametrize(("m", "nu", "arity"), [(10, 7, 4), (31, 8, 2), deep(63, 8, 4)])
def test_word_for_word_as_the_reference(m, nu, arity):
    params, n = params_of(m, nu, arity), 12
    alpha, x = (values[-n:] for values in edges(m))
    roots = roots_of(n)
    (key,) = dpf.keygen(alpha, *roots, params, DOMAIN)
    shares = [dpf.evaluate(b, roots[b], [key], x, params, DOMAIN) for b in (0, 1)]
    for i in range(n):
        own = [python_column(root, i) for root in roots]
        levels, leaf = tree_reference.dpf_keygen(int(alpha[i]), *own, params, DOMAIN)
        assert python_column(key.levels, i) == levels
        assert python_column(key.leaf, i) == leaf
        for b in (0, 1):
            expected = tree_reference.dpf_evaluate(
                b, own[b], levels, leaf, int(x[i]), params, DOMAIN
            )
            assert int(shares[b][i]) == expected


def frozen_case(m, nu, arity, rounds):
    """What the file holds of one set of parameters: hexadecimal, eight digits a word."""
    params = dpf.Params(m, nu, arity, rounds)
    alpha, x = (values[-18:-14] for values in edges(m))
    roots = [
        prg.expand(np.arange(32, dtype=np.uint8), 8, party).view("<u4").reshape(4, 4)
        for party in (0, 1)
    ]
    (key,) = dpf.keygen(alpha, *roots, params, DOMAIN)
    shares = [dpf.evaluate(b, roots[b], [key], x, params, DOMAIN) for b in (0, 1)]
    words = np.concatenate([np.asarray(key.levels), np.asarray(key.leaf)])
    return {
        "alpha": [int(a) for a in alpha],
        "x": [int(value) for value in x],
        "correction": ["".join(f"{word:08x}" for word in column) for column in words.T],
        "shares": [[int(bit) for bit in share] for share in shares],
    }


@pytest.mark.parametrize("name", ["10-7-4-8", "31-8-2-8", deep("63-8-4-8")])
def test_frozen_keys(name):
    """Keys of these parameters are the same for ever, on any backend."""
    assert frozen_case(*map(int, name.split("-"))) == json.loads(VECTORS.read_text())[name]


@pytest.mark.parametrize(("m", "nu", "arity"), [(8, 7, 2), deep(10, 7, 4), deep(12, 9, 2)])
def test_packing_changes_nothing(m, nu, arity):
    """Seeds travel as complex128 on a CPU, as four words elsewhere."""
    params, (alpha, x), roots = params_of(m, nu, arity), edges(m, 300), roots_of(300)
    packed, plain = (dpf.keygen(alpha, *roots, params, DOMAIN, packs) for packs in (True, False))
    jax.tree.map(np.testing.assert_array_equal, packed, plain)
    shares = [
        dpf.evaluate(1, roots[1], packed, x, params, DOMAIN, packs) for packs in (True, False)
    ]
    np.testing.assert_array_equal(*shares)


def test_many_chunks_and_plain_sequences_of_arrays():
    """Keys come back from a disk as tuples of NumPy arrays; the last chunk is not full."""
    params, n = params_of(10, 7, 4), 2 * 4096 + 77
    alpha, x = edges(10, n)
    roots = roots_of(n)
    key = dpf.keygen(alpha, *roots, params, DOMAIN)
    assert [piece.leaf.shape[1] for piece in key] == [4096, 4096, 77]
    stored = [tuple(np.asarray(array) for array in piece) for piece in key]
    shares = [dpf.evaluate(b, roots[b].reshape(-1), stored, x, params, DOMAIN) for b in (0, 1)]
    check_correct(alpha, x, shares)


def test_it_runs_within_jit():
    params, (alpha, x), roots = params_of(8, 7, 2), edges(8, 300), roots_of(300)
    key = dpf.keygen(alpha, *roots, params, DOMAIN)

    def opened(roots, key, x, words):
        shares = [dpf.evaluate_block(b, roots[b], key, x, params, words) for b in (0, 1)]
        return shares[0] ^ shares[1]

    with ring.x64():
        x = x.astype(np.uint32)
        result = jax.jit(opened)(roots, key[0], x, prg.domain_words(DOMAIN))
    np.testing.assert_array_equal(result, alpha <= x)


def test_nothing_to_compare():
    params, empty = params_of(10, 8, 2), np.zeros(0, np.uint32)
    key = dpf.keygen(empty, *roots_of(0), params, DOMAIN)
    assert key == ()
    assert dpf.evaluate(0, roots_of(0)[0], key, empty, params, DOMAIN).shape == (0,)


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from primia_jax.mpc import dpf, prg, ring
params, n, words = dpf.Params(10, 7, 4, 8), 1 << 12, prg.domain_words((1, 2))
rng = np.random.default_rng(0)
alpha, x = rng.integers(0, 2**10, (2, n), dtype=np.uint32)
roots = rng.integers(0, 2**32, (2, 4, n), dtype=np.uint32)
mesh = jax.make_mesh((8,), ("n",))
def spread(array):
    axes = (None,) * (array.ndim - 1)
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes, "n")))
with ring.x64():
    key = dpf.keygen_block(alpha, *roots, params, words)
    sharded = jax.tree.map(spread, key)
    shares = []
    for b in (0, 1):
        share = dpf.evaluate_block(b, spread(roots[b]), sharded, spread(x), params, words)
        assert len(share.sharding.device_set) == 8 and not share.sharding.is_fully_replicated
        shares.append(np.asarray(share))
    loop = dpf._Loop(params.widths, 8, True, True, params.nu)
    arguments = (spread(roots[0]), *sharded, spread(x), np.zeros(3, np.uint32), words)
    text = dpf._walk.compiled().lower(loop, *arguments).compile().as_text()
assert not [w for w in ("all-reduce", "all-gather", "all-to-all", "permute(") if w in text]
assert (shares[0] ^ shares[1] == (alpha <= x)).all()
print("fine")
"""


def test_elements_may_be_spread_over_devices():
    """Eight devices share the elements, and have nothing to tell each other."""
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


# --- silent


@pytest.mark.parametrize(("m", "nu", "arity"), [(8, 7, 2), (10, 7, 4)])
def test_correction_words_are_unbiased_for_every_alpha(m, nu, arity):
    params, n = params_of(m, nu, arity), 2**18
    for alpha in (0, 2**m - 1, 2 ** (m - 1) + 3):
        keys = dpf.keygen(np.full(n, alpha, np.uint32), *roots_of(n, alpha), params, DOMAIN)
        check_unbiased(keys[0].levels, unused_bits(params))
        check_unbiased(keys[0].leaf)


@pytest.mark.parametrize(("m", "nu", "arity"), [(8, 7, 2), (10, 7, 4)])
def test_each_share_alone_is_a_fair_coin(m, nu, arity):
    params, n = params_of(m, nu, arity), 2**18
    for alpha, x in ((0, 0), (2**m - 1, 0), (77, 78), (78, 77)):
        alphas, points = (np.full(n, value, np.uint32) for value in (alpha, x))
        for share in both_shares(alphas, points, params, roots_of(n, alpha + 1)):
            assert abs(2 * int(np.asarray(share).sum()) - n) <= 2 * SIGMAS * np.sqrt(n / 4)


@pytest.mark.parametrize("width", [1, 2])
def test_siblings_differ(width):
    seed = [jnp.asarray(word) for word in roots_of(1000)[0]]
    seeds, bits = dpf._grow(seed, width, jnp.uint32(0), prg.domain_words(DOMAIN), 8)
    for a, b in itertools.combinations(range(2**width), 2):
        assert np.any([np.asarray(x != y) for x, y in zip(seeds[a], seeds[b])], axis=0).all()
        agree = np.mean([np.asarray(~(x ^ y)) >> 7 & 1 for x, y in zip(seeds[a], seeds[b])])
        assert abs(agree - 0.5) < SIGMAS / 2 / np.sqrt(4000)
        assert 0.3 < np.mean(np.asarray(bits[a] == bits[b])) < 0.7


@pytest.mark.parametrize("other", [(4, DOMAIN[1]), (3, DOMAIN[1] + 1), (3, DOMAIN[1] + 2**32)])
def test_another_gate_or_session_has_other_keys(other):
    params, (alpha, x), roots = params_of(10, 7, 4), edges(10, 300), roots_of(300)
    (a,), (b,) = (dpf.keygen(alpha, *roots, params, domain) for domain in (DOMAIN, other))
    for one, two in zip(a, b):
        changed = np.unpackbits((np.asarray(one) ^ np.asarray(two)).view(np.uint8)).mean()
        assert abs(changed - 0.5) < 0.02
    mixed = [
        dpf.evaluate(party, roots[party], [a], x, params, domain)
        for party, domain in enumerate((DOMAIN, other))
    ]
    with pytest.raises(AssertionError):
        check_correct(alpha, x, mixed)


def test_an_uncorrected_t_bit_is_noticed(monkeypatch):
    """The checks above do find what they look for: here, wrong results."""
    grow = dpf._grow

    def careless(words, *rest):
        seeds, bits = grow(words, *rest)
        # As if no party ever corrected a t-bit: undo what _descend is about to do.
        return seeds, [bit ^ (words[0] & 1) for bit in bits]

    params, roots = params_of(8, 7, 2), roots_of(300)
    alpha, x = (values.astype(np.uint32) for values in edges(8, 300))
    words = prg.domain_words(DOMAIN)
    with ring.x64(), jax.disable_jit():
        key = dpf.keygen_block(alpha, *roots, params, words)
        good = [dpf.evaluate_block(b, roots[b], key, x, params, words) for b in (0, 1)]
        monkeypatch.setattr(dpf, "_grow", careless)
        bad = [dpf.evaluate_block(b, roots[b], key, x, params, words) for b in (0, 1)]
    check_correct(alpha, x, good)
    with pytest.raises(AssertionError, match="wrong"):
        check_correct(alpha, x, bad)


def test_a_leaf_that_is_its_seed_is_noticed(monkeypatch):
    """The trap: comparisons stay right, yet the correction word tells α."""

    def unhashed(words, *_):
        return [words[0] & ~np.uint32(2), *words[1:]] * 4  # but for the parity so far

    params, n, words = params_of(8, 7, 2), 3000, prg.domain_words(DOMAIN)
    alpha, x, roots = np.full(n, 100, np.uint32), np.arange(n, dtype=np.uint32) % 256, roots_of(n)
    with ring.x64(), jax.disable_jit():
        good = dpf.keygen_block(alpha, *roots, params, words)
        monkeypatch.setattr(dpf, "_leaf_block", unhashed)
        bad = dpf.keygen_block(alpha, *roots, params, words)
        shares = [dpf.evaluate_block(b, roots[b], bad, x, params, words) for b in (0, 1)]
    check_correct(alpha, x, shares)
    check_unbiased(good.leaf)
    with pytest.raises(AssertionError, match="bit 0 of word 0"):
        check_unbiased(bad.leaf)


# --- what it costs, what is refused


@pytest.mark.parametrize(
    ("m", "nu", "arity"), [(10, 7, 2), (10, 7, 4), (12, 8, 4), (12, 9, 2), deep(63, 7, 4)]
)
def test_costs_are_as_declared(m, nu, arity, monkeypatch):
    calls, block = [], prg.tree_block
    monkeypatch.setattr(prg, "tree_block", lambda *a: calls.append(1) or block(*a))
    params, n, words = params_of(m, nu, arity), 5, prg.domain_words(DOMAIN)
    kind = np.uint32 if m <= 32 else np.uint64
    values = jax.ShapeDtypeStruct((n,), kind)
    root = jax.ShapeDtypeStruct((4, n), np.uint32)
    with ring.x64():
        key = jax.eval_shape(
            lambda a, r0, r1: dpf.keygen_block(a, r0, r1, params, words), values, root, root
        )
        keygen_calls = len(calls)
        jax.eval_shape(
            lambda r, k, x: dpf.evaluate_block(0, r, k, x, params, words), root, key, values
        )
    cost = dpf.cost(params)
    assert sum(4 * array.size for array in key) == n * cost.key_bytes == n * dpf.key_bytes(params)
    assert (keygen_calls, len(calls) - keygen_calls) == (cost.keygen_calls, cost.eval_calls)


@pytest.mark.parametrize(
    ("nu", "arity", "sizes", "calls"),
    [
        (7, 2, (96, 144, 208, 400, 912), (6, 9, 13, 25, 57)),
        (9, 2, (112, 160, 224, 416, 928), (4, 7, 11, 23, 55)),
        (9, 4, (128, 208, 304, 592, 1360), (3, 4, 6, 12, 28)),
    ],
)
def test_key_sizes(nu, arity, sizes, calls):
    """Of comparisons of words of 13, 16, 20, 32 and 64 bits."""
    costs = [dpf.cost(dpf.Params(m, nu, arity)) for m in (12, 15, 19, 31, 63)]
    assert tuple(cost.key_bytes for cost in costs) == sizes
    assert tuple(cost.eval_calls for cost in costs) == calls


@pytest.mark.parametrize(
    "wrong", [{"m": 8}, {"m": 64}, {"nu": 6}, {"nu": 10}, {"arity": 3}, {"rounds": 10}]
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ConfigError) as error:
        dpf.Params(**{"m": 12, "nu": 8, "arity": 2, "rounds": 12, **wrong})
    assert "\n" not in str(error.value)


def test_keys_of_other_numbers_of_elements_are_refused():
    params, (alpha, x), roots = params_of(8, 7, 2), edges(8, 300), roots_of(300)
    key = dpf.keygen(alpha, *roots, params, DOMAIN)
    with pytest.raises(ProtocolError, match="299 values"):
        dpf.evaluate(0, roots[0], key, x[1:], params, DOMAIN)
    with pytest.raises(ProtocolError, match="300 values"):
        dpf.evaluate(0, roots[0], key[:0], x, params, DOMAIN)
    with pytest.raises(ProtocolError, match="299 values"):
        dpf.keygen(alpha[1:], *roots, params, DOMAIN)


# --- truth tables


@pytest.mark.parametrize("m", range(1, 10))
def test_tables_for_every_alpha_and_x(m):
    alpha, x = (a.ravel().astype(np.uint32) for a in np.meshgrid(*[np.arange(2**m)] * 2))
    rng = np.random.default_rng(m)
    own = rng.integers(0, 2**32, (dpf.table_words(m), len(alpha)), dtype=np.uint32)
    other = dpf.table_keygen(alpha, own, m)
    assert other.shape == own.shape and other.dtype == jnp.uint32
    check_correct(alpha, x, [dpf.table_eval(words, x, m) for words in (own, other)])


def test_tables_are_unbiased_for_every_alpha():
    rng, n = np.random.default_rng(0), 2**16
    for alpha in (0, 5, 31):
        own = rng.integers(0, 2**32, (1, n), dtype=np.uint32)
        check_unbiased(dpf.table_keygen(np.full(n, alpha, np.uint32), own, 5))


@pytest.mark.parametrize("m", [0, 10])
def test_tables_of_impossible_widths_are_refused(m):
    with pytest.raises(ConfigError, match="truth table"):
        dpf.table_words(m)
