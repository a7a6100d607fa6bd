"""Private comparison: right for every value, and what the assistant sees."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from three_parties import EDGES, NAMES, SURE, check_cost, run, word, words

from primia_jax.errors import ProtocolError
from primia_jax.mpc.protocols import securenn_compare

P = securenn_compare.PRIME


def bits_of(values, n_bits):
    shifts = np.arange(n_bits, dtype=np.uint64)[:, None]
    return ((values >> shifts) & np.uint64(1)).astype(np.uint8)


def in_blocks(array):
    return tuple(array[:, a:b] for a, b in securenn_compare._blocks(array.shape[1]))


def compare(x, r, beta, n_bits=64, number=0, seed=0, same=False):
    """(β', messages as [l, n] of server 0 and 1, the bits' shares, trace)."""
    n = len(x)
    wide = (n_bits, 1 if same else n)
    first = np.broadcast_to(np.random.default_rng(seed).integers(0, P, wide), (n_bits, n))
    shares = [first.astype(np.uint8), ((bits_of(x, n_bits) - first) % P).astype(np.uint8)]
    arguments = [(in_blocks(share), r, beta, n, n_bits) for share in shares]
    arguments.append((None, None, None, n, n_bits))
    (no0, no1, found), trace, sent = run(securenn_compare.private_compare, arguments, number)
    assert no0 is None and no1 is None
    messages = [
        np.concatenate([leaf for sender, _, leaf in sent if sender == name], 1)
        for name in NAMES[:2]
    ]
    return found, messages, shares, trace


def sides(values, beta):
    return np.tile(values, 2), np.repeat(np.asarray(beta, np.uint8), len(values))


@pytest.mark.parametrize("n_bits", (2, 5, 6))
def test_all_comparisons_of_few_bits(n_bits):
    every = np.arange(2**n_bits, dtype=np.uint64)
    x, beta = sides(np.repeat(every, len(every)), [0, 1])
    r, _ = sides(np.tile(every, len(every)), [0, 1])
    found, messages, _, _ = compare(x, r, beta, n_bits)
    np.testing.assert_array_equal(found, (x > r) ^ beta)
    opened = messages[0].astype(int) + messages[1]
    assert (((opened % P) == 0).sum(0) == found).all(), "at most one zero, and only for 1"


def test_edges_of_64_bits():
    pairs = [(x, r) for x in EDGES for r in EDGES]
    pairs += [(x, x + d) for x in (5, 2**63 - 3, 2**40) for d in (-1, 0, 1)]
    x, beta = sides(words(x for x, _ in pairs), [0, 1])
    r, _ = sides(words(r for _, r in pairs), [0, 1])
    found, _, _, trace = compare(x, r, beta)
    np.testing.assert_array_equal(found, (x > r) ^ beta)
    check_cost(trace, securenn_compare.PRIVATE_COMPARE_COST, len(x))


@given(st.lists(st.tuples(word, word, st.integers(0, 1)), min_size=1, max_size=9))
def test_comparisons(cases):
    x, r = words(x for x, _, _ in cases), words(r for _, r, _ in cases)
    beta = np.asarray([b for _, _, b in cases], np.uint8)
    found, _, _, _ = compare(x, r, beta, number=1)
    np.testing.assert_array_equal(found, (x > r) ^ beta)


@functools.cache
def views(x, r, beta, n=20_000):
    """What the assistant gets in n comparisons of one x, r and β: both messages, and their sum."""
    case = np.full(n, x, np.uint64), np.full(n, r, np.uint64), np.full(n, beta, np.uint8)
    found, messages, _, _ = compare(*case)
    return found, messages, (messages[0].astype(int) + messages[1]) % P


# x > r at the highest, a middle and the lowest bit; not at all; and nothing above r
CASES = [(2**63, 5, 0), (2**40, 2**39, 0), (9, 8, 0), (8, 8, 0), (8, 8, 1), (3, 2**63, 0)]
CASES += [(7, 2**64 - 1, 1), (7, 2**64 - 1, 0)]


@pytest.mark.parametrize("case", CASES)
def test_the_assistant_sees_only_the_result(case):
    """At most one zero, anywhere alike; the rest uniform; each message alone uniform."""
    found, messages, opened = views(*case)
    zeros = opened == 0
    assert (zeros.sum(0) == found).all() and len(np.unique(found)) == 1
    if found[0]:
        assert stats.chisquare(zeros.sum(1)).pvalue > SURE
    counts = np.bincount(opened[~zeros], minlength=P)
    assert not counts[0] and stats.chisquare(counts[1:]).pvalue > SURE
    for position in (0, 31, 63):
        here = opened[position][~zeros[position]]
        assert stats.chisquare(np.bincount(here, minlength=P)[1:]).pvalue > SURE
    pairs = opened[:, ~zeros[:2].any(0)][:2] - 1  # neighbours do not depend on each other
    joint = np.bincount(pairs[0] * (P - 1) + pairs[1], minlength=(P - 1) ** 2)
    assert stats.chisquare(joint).pvalue > SURE
    for message in messages:
        assert stats.chisquare(np.bincount(message.ravel(), minlength=P)).pvalue > SURE


def read_r(x, messages, shares):
    """How many of the true r the assistant could confirm from the bits' shares that it dealt.

    A server's s_i·c_i has a common factor with the other's; the quotient is known for a guess of r.
    """
    n_bits, n = shares[0].shape
    r = np.full(n, 5, np.uint64)
    bit, x0, x1 = bits_of(r, n_bits).astype(int), shares[0].astype(int), shares[1].astype(int)
    c0, c1 = -x0, bit - x1 + 1
    w0, w1 = np.where(bit, -x0, x0), np.where(bit, 1 - x1, x1)
    above = [np.cumsum(w[::-1], 0)[::-1] - w for w in (w0, w1)]
    c0, c1 = (c0 + above[0]) % P, (c1 + above[1]) % P
    d0, d1 = (message.astype(int) for message in messages)
    fits = np.zeros(n, bool)
    for turn in range(n_bits):
        a, b = np.roll(c0, turn, 0), np.roll(c1, turn, 0)
        fits |= ((d0 * b - d1 * a) % P == 0).all(0)
    return fits.sum()


def without_zero_shares(original, me, n, n_bits=64):
    return [
        securenn_compare.CompareMasks(mask.s, np.zeros_like(mask.u), mask.rotation)
        for mask in original(me, n, n_bits)
    ]


def one_mask_for_all(original, me, n, n_bits=64):
    return [
        securenn_compare.CompareMasks(
            *(np.repeat(part[..., :1], part.shape[-1], -1) for part in (m.s, m.u, m.rotation))
        )
        for m in original(me, n, n_bits)
    ]


def inject(monkeypatch, fault):
    original = securenn_compare.compare_masks
    monkeypatch.setattr(securenn_compare, "compare_masks", functools.partial(fault, original))


def test_the_assistant_cannot_read_r_from_quotients(monkeypatch):
    """The reason for shares of zero in every comparison; without them, all of r is read."""
    n = 300
    x = np.random.default_rng(1).integers(0, 2**64, n, np.uint64)
    case = x, np.full(n, 5, np.uint64), np.zeros(n, np.uint8)
    _, messages, shares, _ = compare(*case)
    assert read_r(x, messages, shares) == 0
    inject(monkeypatch, without_zero_shares)
    _, messages, shares, _ = compare(*case)
    assert read_r(x, messages, shares) == n


def test_every_element_has_masks_of_its_own(monkeypatch):
    """Elements that are alike in everything are sent as different columns."""
    n = 3000
    case = np.full(n, 9, np.uint64), np.full(n, 8, np.uint64), np.zeros(n, np.uint8)

    def distinct():
        messages = compare(*case, same=True)[1]
        return [len(np.unique(message, axis=1).T) for message in messages]

    assert distinct() == [n, n]
    inject(monkeypatch, one_mask_for_all)
    assert max(distinct()) < n


def test_bits_that_are_not_in_blocks():
    case = np.zeros((64, 3), np.uint8), np.zeros(3, np.uint64), np.zeros(3, np.uint8), 3
    with pytest.raises(ProtocolError, match="not shared in their blocks"):
        run(securenn_compare.private_compare, [case, case, (None, None, None, 3)])
