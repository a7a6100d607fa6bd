"""The comparison function of the AriaNN baseline: right everywhere, and silent about α and β.

Held against `β · [x < α]` and, word for word, against `tree_reference`. The faults that would
matter are injected, to show that the checks find them.
"""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
import tree_reference
from scipy import stats

from primia_jax.errors import ConfigError, ProtocolError
from primia_jax.mpc import dcf, prg, ring

VECTORS = pathlib.Path(__file__).parent / "vectors" / "dcf.json"
DOMAIN = (3, 2**40 + 5)
SIGMAS = 7  # passed by chance once in 4e11 times


def deep(*parameters):
    """A case that takes long to compile or to run."""
    return pytest.param(*parameters, marks=pytest.mark.slow)


def params_of(m, word_bits):
    return dcf.Params(m, word_bits, 8)


def inputs(m, word_bits, n, seed=0):
    """α and x with all the pairs that are near each other or an end, β, and roots."""
    rng, top = np.random.Generator(np.random.Philox(seed)), np.uint64(2**m - 1)
    alpha, x = rng.integers(0, int(top), (2, n), dtype=np.uint64, endpoint=True)
    third = n // 6
    x[:third] = alpha[:third]
    x[third : 2 * third] = (alpha[third : 2 * third] + np.uint64(1)) & top
    x[2 * third : 3 * third] = (alpha[2 * third : 3 * third] - np.uint64(1)) & top
    ends = np.asarray([0, top], np.uint64)
    pairs = np.stack([a.ravel() for a in np.meshgrid(ends, ends)])
    alpha[-4:], x[-4:] = pairs
    kind = ring.word_type(word_bits)
    beta = rng.integers(0, 2**word_bits, n, dtype=kind)
    return alpha, x, beta, list(rng.integers(0, 2**32, (2, 4, n), dtype=np.uint32))


def both_shares(alpha, x, beta, roots, params, packed=None):
    key = dcf.keygen(alpha, beta, *roots, params, DOMAIN, packed)
    return [dcf.evaluate(b, roots[b], key, x, params, DOMAIN, packed) for b in (0, 1)]


def check_correct(alpha, x, beta, shares):
    """That the shares add up to β · [x < α]."""
    total = np.asarray(shares[0]) + np.asarray(shares[1])
    assert total.dtype == beta.dtype
    wrong = np.flatnonzero(total != beta * (x < alpha))
    assert not wrong.size, f"{wrong.size} wrong, the first for {alpha[wrong[0]], x[wrong[0]]}"


def check_unbiased(rows):
    """That each bit of words [R, N] is 1 in half of the N."""
    rows = np.asarray(rows)
    allowed = 2 * SIGMAS * np.sqrt(rows.shape[1] / 4)
    for row, bit in itertools.product(range(len(rows)), range(8 * rows.itemsize)):
        ones = int(((rows[row] >> rows.dtype.type(bit)) & rows.dtype.type(1)).sum())
        assert abs(2 * ones - rows.shape[1]) <= allowed, f"bit {bit} of word {row}: {ones}"


# --- right


@pytest.mark.parametrize(("m", "word_bits"), [(1, 64), (6, 64), (6, 32), deep(9, 64)])
def test_every_alpha_and_x(m, word_bits):
    alpha, x = (a.ravel().astype(np.uint32) for a in np.meshgrid(*[np.arange(2**m)] * 2))
    _, _, beta, roots = inputs(m, word_bits, max(len(alpha), 4))
    beta, roots = beta[: len(alpha)], [root[:, : len(alpha)] for root in roots]
    check_correct(alpha, x, beta, both_shares(alpha, x, beta, roots, params_of(m, word_bits)))


@pytest.mark.parametrize(("m", "word_bits"), [(31, 32), (64, 64), deep(32, 64), deep(63, 32)])
def test_edges(m, word_bits):
    alpha, x, beta, roots = inputs(m, word_bits, 3000)
    check_correct(alpha, x, beta, both_shares(alpha, x, beta, roots, params_of(m, word_bits)))


def column(array, i):
    return [int(word) for word in np.asarray(array)[:, i]]


@pytest.mark.parametrize(("m", "word_bits"), [(6, 64), (33, 32)])
def test_word_for_word_as_the_reference(m, word_bits):
    params = params_of(m, word_bits)
    alpha, x, beta, roots = inputs(m, word_bits, 12)
    (key,) = dcf.keygen(alpha, beta, *roots, params, DOMAIN)
    shares = [dcf.evaluate(b, roots[b], [key], x, params, DOMAIN) for b in (0, 1)]
    for i in range(12):
        own = [column(root, i) for root in roots]
        levels, values = tree_reference.dcf_keygen(
            int(alpha[i]), int(beta[i]), *own, params, DOMAIN
        )
        assert column(key.levels, i) == levels
        assert column(key.values, i) == values
        for b in (0, 1):
            assert int(shares[b][i]) == tree_reference.dcf_evaluate(
                b, own[b], levels, values, int(x[i]), params, DOMAIN
            )


def frozen_case(m, word_bits, rounds):
    """What the file holds of one set of parameters."""
    params = dcf.Params(m, word_bits, rounds)
    alpha, x = np.asarray([0, 5, 2**m - 1, 9], np.uint64), np.asarray([0, 4, 0, 9], np.uint64)
    beta = np.asarray([1, 2, 2**word_bits - 1, 3], ring.word_type(word_bits))
    roots = [
        prg.expand(np.arange(32, dtype=np.uint8), 8, party).view("<u4").reshape(4, 4)
        for party in (0, 1)
    ]
    (key,) = dcf.keygen(alpha, beta, *roots, params, DOMAIN)
    shares = [dcf.evaluate(b, roots[b], [key], x, params, DOMAIN) for b in (0, 1)]
    return {
        "levels": ["".join(f"{word:08x}" for word in row) for row in np.asarray(key.levels).T],
        "values": [[int(word) for word in row] for row in np.asarray(key.values).T],
        "shares": [[int(word) for word in share] for share in shares],
    }


@pytest.mark.parametrize("name", ["6-64-8", "6-32-8"])
def test_frozen_keys(name):
    """Keys of these parameters are the same for ever, on any backend."""
    assert frozen_case(*map(int, name.split("-"))) == json.loads(VECTORS.read_text())[name]


def test_packing_changes_nothing():
    params = params_of(6, 64)
    alpha, x, beta, roots = inputs(6, 64, 300)
    packed, plain = (
        dcf.keygen(alpha, beta, *roots, params, DOMAIN, packs) for packs in (True, False)
    )
    jax.tree.map(np.testing.assert_array_equal, packed, plain)
    shares = [dcf.evaluate(1, roots[1], packed, x, params, DOMAIN, packs) for packs in (1, 0)]
    np.testing.assert_array_equal(*shares)


def test_many_chunks_and_plain_sequences_of_arrays():
    params, n = params_of(6, 64), 4096 + 77
    alpha, x, beta, roots = inputs(6, 64, n)
    key = dcf.keygen(alpha, beta, *roots, params, DOMAIN)
    assert [piece.values.shape[1] for piece in key] == [4096, 77]
    stored = [tuple(np.asarray(array) for array in piece) for piece in key]
    shares = [dcf.evaluate(b, roots[b], stored, x, params, DOMAIN) for b in (0, 1)]
    check_correct(alpha, x, beta, shares)


# --- silent


@pytest.mark.parametrize("alpha", [0, 63, 37])
def test_correction_words_are_unbiased_for_every_alpha(alpha):
    """Whatever β is: here 1, far from uniform."""
    params, n = params_of(6, 64), 2**15
    _, _, _, roots = inputs(6, 64, n, alpha)
    key = dcf.keygen(np.full(n, alpha, np.uint32), np.ones(n, np.uint64), *roots, params, DOMAIN)
    check_unbiased(key[0].levels)
    check_unbiased(key[0].values)


@pytest.mark.parametrize(("alpha", "x"), [(37, 36), (37, 37), (0, 63)])
def test_each_share_alone_is_uniform(alpha, x):
    """Chi-square over the lowest and the highest byte."""
    params, n = params_of(6, 64), 2**15
    _, _, _, roots = inputs(6, 64, n, 100 + alpha)
    alphas, points = (np.full(n, value, np.uint32) for value in (alpha, x))
    for share in both_shares(alphas, points, np.ones(n, np.uint64), roots, params):
        for shift in (0, 56):
            counts = np.bincount(
                (np.asarray(share) >> np.uint64(shift)).astype(np.uint8), minlength=256
            )
            assert stats.chisquare(counts).pvalue > 1e-9


def test_another_gate_or_session_has_other_keys():
    params = params_of(6, 64)
    alpha, _, beta, roots = inputs(6, 64, 300)
    (key,) = dcf.keygen(alpha, beta, *roots, params, DOMAIN)
    for domain in ((4, DOMAIN[1]), (3, DOMAIN[1] + 1), (3, DOMAIN[1] + 2**32)):
        (other,) = dcf.keygen(alpha, beta, *roots, params, domain)
        for a, b in zip(key, other):
            changed = np.unpackbits((np.asarray(a) ^ np.asarray(b)).view(np.uint8)).mean()
            assert abs(changed - 0.5) < 0.03


def test_an_uncorrected_t_bit_is_noticed(monkeypatch):
    grow = dcf._grow

    def careless(*arguments):
        node = grow(*arguments)
        return node._replace(bits=[bit ^ node.t for bit in node.bits])

    params, words = params_of(3, 64), prg.domain_words(DOMAIN)
    alpha, x, beta, roots = inputs(3, 64, 300)
    alpha, x = alpha.astype(np.uint32), x.astype(np.uint32)
    with ring.x64(), jax.disable_jit():
        key = dcf.keygen_block(alpha, beta, *roots, params, words)
        good = [dcf.evaluate_block(b, roots[b], key, x, params, words) for b in (0, 1)]
        monkeypatch.setattr(dcf, "_grow", careless)
        bad = [dcf.evaluate_block(b, roots[b], key, x, params, words) for b in (0, 1)]
    check_correct(alpha, x, beta, good)
    with pytest.raises(AssertionError, match="wrong"):
        check_correct(alpha, x, beta, bad)


def test_an_end_that_is_its_seed_is_noticed(monkeypatch):
    """With t in its lowest bit, the seed as an output gives away the lowest bit of V_α."""

    def unhashed(settings, words, role, level, domain):
        return words * 4 if role == dcf._END else block(settings, words, role, level, domain)

    block, params, n = dcf._block, params_of(1, 64), 3000
    words, (_, _, _, roots) = prg.domain_words(DOMAIN), inputs(1, 64, n)
    alpha, x = np.zeros(n, np.uint32), np.arange(n, dtype=np.uint32) % 2
    beta = np.ones(n, np.uint64)
    with ring.x64(), jax.disable_jit():
        good = dcf.keygen_block(alpha, beta, *roots, params, words)
        monkeypatch.setattr(dcf, "_block", unhashed)
        bad = dcf.keygen_block(alpha, beta, *roots, params, words)
        shares = [dcf.evaluate_block(b, roots[b], bad, x, params, words) for b in (0, 1)]
    check_correct(alpha, x, beta, shares)
    for key, safe in ((good, True), (bad, False)):
        known = value_before_the_end(key, roots, params, words) ^ np.asarray(key.values[-1])
        biased = abs(2 * int((known & 1).sum()) - n) > 2 * SIGMAS * np.sqrt(n / 4)
        assert biased != safe


def value_before_the_end(key, roots, params, words):
    """V_α of α = 0: what the parties' shares at x = 0 add up to before their ends."""
    x, scalars = np.zeros(roots[0].shape[1], np.uint32), dcf._scalars(0, 0)
    settings, zero = dcf._Settings(64, params.rounds, True), np.zeros(len(x), np.uint64)
    shares = []
    with ring.x64(), jax.disable_jit():
        for b in (0, 1):
            state = dcf._start(settings, roots[b], np.uint32(b))
            shares.append(dcf._add_value(settings, zero, state, key.values[0], x, scalars, words))
    return np.asarray(shares[0]) - np.asarray(shares[1])


# --- what it costs, what is refused


@pytest.mark.parametrize(("m", "word_bits"), [(4, 32), (6, 64)])
def test_costs_are_as_declared(m, word_bits, monkeypatch):
    calls, block = [], prg.tree_block
    monkeypatch.setattr(prg, "tree_block", lambda *a: calls.append(1) or block(*a))
    params, n, words = params_of(m, word_bits), 5, prg.domain_words(DOMAIN)
    values, root = jax.ShapeDtypeStruct((n,), np.uint32), jax.ShapeDtypeStruct((4, n), np.uint32)
    beta = jax.ShapeDtypeStruct((n,), ring.word_type(word_bits))
    with ring.x64():
        key = jax.eval_shape(
            lambda *a: dcf.keygen_block(*a, params, words), values, beta, root, root
        )
        keygen_calls = len(calls)
        jax.eval_shape(
            lambda r, k, x: dcf.evaluate_block(0, r, k, x, params, words), root, key, values
        )
    cost = dcf.cost(params)
    assert sum(array.size * array.dtype.itemsize for array in key) == n * cost.key_bytes
    assert (keygen_calls, len(calls) - keygen_calls) == (cost.keygen_calls, cost.eval_calls)


@pytest.mark.parametrize("wrong", [{"m": 0}, {"m": 65}, {"word_bits": 16}, {"rounds": 10}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ConfigError) as error:
        dcf.Params(**{"m": 12, "word_bits": 64, "rounds": 12, **wrong})
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused():
    params = params_of(6, 64)
    alpha, x, beta, roots = inputs(6, 64, 300)
    with pytest.raises(ProtocolError, match="β is uint64"):
        dcf.keygen(alpha, beta.astype(np.uint32), *roots, params, DOMAIN)
    with pytest.raises(ProtocolError, match="299 values"):
        dcf.keygen(alpha[1:], beta, *roots, params, DOMAIN)
    key = dcf.keygen(alpha, beta, *roots, params, DOMAIN)
    with pytest.raises(ProtocolError, match="299 values"):
        dcf.evaluate(0, roots[0], key, x[1:], params, DOMAIN)
