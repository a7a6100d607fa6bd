"""SecureNN's sub-protocols: right for every value, at the published cost, and hiding everything."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from three_parties import EDGES, NAMES, SURE, check_cost, odd_shared, run, shared, word, words

from primia_jax.errors import ProtocolError
from primia_jax.mpc import bilinear
from primia_jax.mpc.plan import Product
from primia_jax.mpc.protocols import odd_ring, securenn_compare
from primia_jax.mpc.protocols import securenn_steps as steps
from primia_jax.mpc.protocols.parties import Cost

P = securenn_compare.PRIME


def on_shares(function, shares, n_bits=64, number=0):
    """(opened modulo L, trace, messages) of a sub-protocol of one input."""
    n = len(shares[0])
    arguments = [(share, n, n_bits) for share in (*shares, None)]
    (z0, z1, nothing), trace, sent = run(function, arguments, number)
    assert nothing is None and z0.dtype == z1.dtype == np.uint64
    return odd_ring.low(z0 + z1, n_bits), trace, sent


# --- share conversion


def check_conversion(a, shares, n_bits, number=0):
    n, top = len(a), 2**n_bits - 1
    arguments = [(share, n, n_bits) for share in (*shares, None)]
    (y0, y1, _), trace, _ = run(steps.share_convert, arguments, number)
    assert max(y0.max(), y1.max()) < top
    np.testing.assert_array_equal(odd_ring.odd_sum(y0, y1, n_bits), a)
    return trace


@pytest.mark.parametrize("n_bits", (3, 4))
def test_conversion_of_every_value_and_share(n_bits):
    """With some 40 masks r each, so that r = 0 and r - 1 = L - 1 are among them."""
    size = 2**n_bits
    a = np.tile(np.repeat(np.arange(size - 1, dtype=np.uint64), size), 40)
    first = np.tile(np.arange(size, dtype=np.uint64), 40 * (size - 1))
    check_conversion(a, shared(a, n_bits, first), n_bits)


@given(st.lists(st.tuples(word, word), min_size=1, max_size=9))
def test_conversion(cases):
    """Of any value but L - 1, the shares wrapping or not."""
    a = words(min(a, 2**64 - 2) for a, _ in cases)
    check_conversion(a, shared(a, first=words(first for _, first in cases)), 64, number=2)


def test_conversion_of_shares_that_wrap():
    a = words(e for e in EDGES if e != 2**64 - 1)
    for first in (a + np.uint64(1), a, np.full_like(a, 2**64 - 1), np.zeros_like(a)):
        trace = check_conversion(a, shared(a, first=first), 64)
        check_cost(trace, steps.SHARE_CONVERT_COST, len(a))


def test_msb_of_every_value_and_share():
    """In the odd ring of 5 bits."""
    top = 31
    a = np.tile(np.repeat(np.arange(top, dtype=np.uint64), top), 4)
    first = np.tile(np.arange(top, dtype=np.uint64), 4 * top)
    shares = first, odd_ring.odd_difference(a, first, 5)
    found, _, _ = on_shares(steps.compute_msb, shares, 5)
    np.testing.assert_array_equal(found, a >> np.uint64(4))


@given(st.lists(word, min_size=1, max_size=9), st.integers(0, 100))
def test_msb(values, seed):
    a = words(min(value, 2**64 - 2) for value in values)
    found, trace, _ = on_shares(steps.compute_msb, odd_shared(a, seed=seed), number=seed)
    np.testing.assert_array_equal(found, a >> np.uint64(63))
    check_cost(trace, steps.COMPUTE_MSB_COST, len(a))


# --- products


def opened_product(apply, x, y, shape):
    shapes = (x.shape, y.shape, shape)
    xs, ys = (shared(v.reshape(-1), seed=i) for i, v in enumerate((x, y)))
    arguments = [(apply, shapes, a.reshape(x.shape), b.reshape(y.shape)) for a, b in zip(xs, ys)]
    (z0, z1, nothing), trace, sent = run(steps.multiply, [*arguments, (apply, shapes)])
    assert nothing is None
    check_cost(trace, steps.product_cost(shapes))
    return z0 + z1, sent


def test_products_by_element():
    x, y = (words(v) for v in zip(*[(a, b) for a in EDGES for b in EDGES]))
    found, _ = opened_product(np.multiply, x, y, x.shape)
    np.testing.assert_array_equal(found, x * y)
    assert Cost(1, steps.product_cost(((1,),) * 3).n_bytes) == steps.MULTIPLY_COST


def test_products_of_matrices_through_exact_limbs():
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 2**64, shape, np.uint64) for shape in ((3, 5), (5, 2)))

    def matmul(a, b, kind):
        return jnp.matmul(a, b, preferred_element_type=kind)

    product = Product(matmul, 5, 1, 1)
    plan = bilinear.limb_plan(64, 64, 64, product)
    apply = jax.jit(lambda a, b: bilinear.multiply(product, a, b, plan))
    found, sent = opened_product(apply, x, y, (3, 2))
    np.testing.assert_array_equal(found, x @ y)
    to_server_1 = [leaf.shape for sender, to, leaf in sent if (sender, to) == NAMES[:0:-1]]
    assert to_server_1 == [(3, 2)], "of the triple, only one share is sent"


# --- ReLU and maxima

small = st.one_of(
    st.sampled_from([0, 1, -1, 2**62 - 1, -(2**62)]), st.integers(-(2**62), 2**62 - 1)
)


@pytest.mark.parametrize("function", (steps.drelu, steps.relu))
def test_every_value_of_six_bits(function):
    values = np.tile(np.arange(-16, 16), 30)
    wanted = values >= 0 if function is steps.drelu else np.maximum(values, 0)
    found, _, _ = on_shares(function, shared(values.astype(np.uint64), 6), 6)
    np.testing.assert_array_equal(found, wanted)


@given(st.lists(small, min_size=1, max_size=9), st.integers(0, 100))
def test_relu(values, seed):
    a = words(values)
    for function, wanted, cost in (
        (steps.drelu, [v >= 0 for v in values], steps.DRELU_COST),
        (steps.relu, [max(v, 0) for v in values], steps.RELU_COST),
    ):
        found, trace, _ = on_shares(function, shared(a, seed=seed), number=seed)
        np.testing.assert_array_equal(found, words(wanted))
        check_cost(trace, cost, len(a))


def test_published_costs():
    """Bits by the paper's formulas, a residue modulo 67 taking 8; rounds as the docstrings say."""
    log_p, word_bits = 8, 64
    formulas = {
        steps.SHARE_CONVERT_COST: (4, 4 * word_bits * log_p + 6 * word_bits),
        steps.COMPUTE_MSB_COST: (5, 4 * word_bits * log_p + 13 * word_bits),
        steps.DRELU_COST: (8, 8 * word_bits * log_p + 19 * word_bits),
        steps.RELU_COST: (9, 8 * word_bits * log_p + 24 * word_bits),
        steps.maximum_cost(2, with_index=True): (9, 8 * word_bits * log_p + 29 * word_bits),
        securenn_compare.PRIVATE_COMPARE_COST: (1, 2 * word_bits * log_p),
    }
    for cost, (rounds, bits) in formulas.items():
        assert (cost.rounds, 8 * cost.n_bytes) == (rounds, bits)
    assert steps.RELU_COST.n_bytes == 704


def test_layers_of_several_blocks():
    """A size that takes blocks of both sizes, and one that is filled up."""
    n = 2 * (1 << 14) + (1 << 11) + 77
    assert len(list(securenn_compare._blocks(n))) == 4
    values = np.random.default_rng(3).integers(-(2**62), 2**62, n)
    found, trace, _ = on_shares(steps.relu, shared(values.view(np.uint64)))
    np.testing.assert_array_equal(found.view(np.int64), np.maximum(values, 0))
    check_cost(trace, steps.RELU_COST, n)


@pytest.mark.parametrize("with_index", (False, True))
@pytest.mark.parametrize("count", (1, 2, 4))
def test_maxima(count, with_index):
    """Ties are among them: the last column that holds the maximum counts."""
    n = 40
    columns = np.random.default_rng(count).integers(-3, 4, (count, n))
    columns[:, ::2] *= 2**59
    shares = [shared(column.astype(np.uint64), seed=i) for i, column in enumerate(columns)]
    arguments = [([pair[j] for pair in shares], n, count, with_index) for j in (0, 1)]
    (z0, z1, nothing), trace, _ = run(steps.maximum, [*arguments, (None, n, count, with_index)])
    assert nothing is None
    check_cost(trace, steps.maximum_cost(count, with_index), n)
    if with_index:
        last = count - 1 - columns[::-1].argmax(0)
        np.testing.assert_array_equal(z0[1] + z1[1], last)
        z0, z1 = z0[0], z1[0]
    np.testing.assert_array_equal((z0 + z1).view(np.int64), columns.max(0))


# --- what is sent


def looks_uniform(array):
    array = np.asarray(array)
    if array.dtype == np.uint8:
        return stats.chisquare(np.bincount(array.ravel(), minlength=P)).pvalue > SURE
    columns = np.ascontiguousarray(array).view(np.uint8).reshape(-1, 8).T
    counts = [np.bincount(column, minlength=256) for column in columns]
    return all(stats.chisquare(count).pvalue > SURE for count in counts)


def check_messages(sent, n_messages):
    assert len(sent) == n_messages
    for sender, to, leaf in sent:
        assert looks_uniform(leaf), (sender, to, leaf.dtype)
    # Nobody sends two people the same, or the same again.
    whole = [np.ascontiguousarray(leaf).tobytes() for _, _, leaf in sent if leaf.dtype != np.uint8]
    assert len(set(whole)) == len(whole)


@pytest.mark.parametrize("value", (0, -1, 2**61 + 12345, -(2**62)))
def test_every_message_looks_alike_for_every_input(value):
    """Even with shares that are no secret: server 0's zero, server 1's the value itself."""
    n = 2048
    a = np.full(n, value).astype(np.uint64)
    _, _, sent = on_shares(steps.relu, (np.zeros(n, np.uint64), a))
    check_messages(sent, 2 + 4 + 2 + 2 + 6 + 2 + 2 + 2 + 5 + 5)


def test_results_are_shared_afresh():
    """By what only the servers know: the assistant's randomness alone does not tell the shares."""
    n = 4096
    nothing, shape = np.zeros(n, np.uint64), ((n,),) * 3
    cases: dict[Any, Any] = {
        f: [(s, n) for s in (nothing, nothing, None)] for f in (steps.drelu, steps.relu)
    }
    cases[steps.share_convert] = cases[steps.compute_msb] = cases[steps.relu]
    cases[steps.multiply] = [(np.multiply, shape, s, s) for s in (nothing, nothing, None)]
    for function, arguments in cases.items():
        pairs = [run(function, arguments, 0, of_servers)[0][:2] for of_servers in (0, 1)]
        for one, other in zip(*pairs):
            assert looks_uniform(one) and looks_uniform(one - other), function


# --- mistakes


@pytest.mark.parametrize(
    ("share", "message"),
    [(np.zeros(3, np.uint32), "uint64"), (np.zeros(2, np.uint64), "3 elements, at least one, has")],
)
def test_shares_of_another_kind(share, message):
    for function in (steps.share_convert, steps.compute_msb, steps.drelu, steps.relu):
        with pytest.raises(ProtocolError, match=message):
            run(function, [(share, 3), (share, 3), (None, 3)])


def test_shares_wider_than_the_ring():
    wide = np.full(3, 64, np.uint64)
    with pytest.raises(ProtocolError, match="wider than 6 bits"):
        run(steps.drelu, [(wide, 3, 6), (wide, 3, 6), (None, 3, 6)])


def test_products_of_other_shapes():
    x = np.zeros(3, np.uint64)
    with pytest.raises(ProtocolError, match=r"have \(3,\)"):
        run(steps.multiply, [(np.multiply, ((4,),) * 3, x, x)] * 2 + [(np.multiply, ((4,),) * 3)])


@pytest.mark.parametrize("columns", ([], [np.zeros(3, np.uint64)]))
def test_maxima_of_other_columns(columns):
    with pytest.raises(ProtocolError, match="needs as many"):
        run(steps.maximum, [(columns, 3, 2), (columns, 3, 2), (None, 3, 2)])


def test_no_elements():
    nothing = np.zeros(0, np.uint64)
    with pytest.raises(ProtocolError, match="at least one"):
        run(steps.relu, [(nothing, 0), (nothing, 0), (None, 0)])
