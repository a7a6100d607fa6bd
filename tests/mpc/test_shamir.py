"""Shamir's sharing: any t shares open the secret, fewer are uniform whatever it is."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia_jax.errors import ProtocolError
from primia_jax.mpc import shamir
from primia_jax.mpc.shamir import GF16, Field

TINY = Field(2, 0b111)  # GF(4): 0, 1, x, x + 1


def product(a, b, field):
    """Long multiplication of polynomials over GF(2), then long division."""
    result = 0
    for i in range(field.bits):
        if b >> i & 1:
            result ^= a << i
    for i in reversed(range(field.bits, 2 * field.bits)):
        if result >> i & 1:
            result ^= field.polynomial << (i - field.bits)
    return result


@given(a=st.integers(0, 2**16 - 1), b=st.integers(0, 2**16 - 1))
def test_products_agree_with_long_multiplication(a, b):
    found = GF16.multiply(np.asarray([a], np.uint16), np.asarray([b], np.uint16))
    assert int(found[0]) == product(a, b, GF16)


def test_every_element_but_zero_is_a_power_of_x_and_has_an_inverse():
    elements = np.arange(1, 2**16, dtype=np.uint16)
    assert len(set(GF16._tables[0].tolist())) == 2**16 - 1
    np.testing.assert_array_equal(GF16.multiply(elements, GF16.inverse(elements)), 1)


def test_known_shares(monkeypatch):
    """Of the secret 0x1234 and the polynomial 0x1234 + 0x8001·x + 0x0003·x², by hand.

    At x = 1: the sum of the coefficients. At x = 2: 2·0x8001 = 0x10002 ^ 0x1100B = 0x1009, and
    4·3 = 0x000C.
    """
    # Horner's rule takes the highest coefficient first.
    coefficients = np.asarray([[[0x0003]], [[0x8001]]], np.uint16)
    monkeypatch.setattr(Field, "random", lambda *_: coefficients)
    shares = shamir.share_words(np.asarray([[0x1234]], np.uint16), np.asarray([1, 2, 3]), 3)
    assert shares[0, 0, 0] == 0x1234 ^ 0x8001 ^ 0x0003
    assert shares[1, 0, 0] == 0x1234 ^ 0x1009 ^ 0x000C
    assert shares[2, 0, 0] == 0x1234 ^ product(0x8001, 3, GF16) ^ product(3, 5, GF16)


@settings(max_examples=40)
@given(
    n=st.integers(1, 12),
    data=st.data(),
    secrets=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_threshold_of_shares_opens(n, data, secrets, seed):
    rng = np.random.default_rng(seed)
    threshold = data.draw(st.integers(1, n))
    points = rng.choice(np.arange(1, 2**16), n, replace=False)
    secret = rng.integers(0, 256, (secrets, 32), dtype=np.uint8)
    shares = shamir.share(secret, points, threshold)
    assert shares.shape == (n, secrets, 32) and shares.dtype == np.uint8
    chosen = rng.permutation(n)[: data.draw(st.integers(threshold, n))]
    np.testing.assert_array_equal(shamir.reconstruct(points[chosen], shares[chosen]), secret)


def test_every_set_of_three_of_six_opens_and_no_two_do():
    secret = np.frombuffer(bytes(range(32)), np.uint8)[None]
    points = np.arange(1, 7)
    shares = shamir.share(secret, points, 3)
    for chosen in map(list, itertools.combinations(range(6), 3)):
        np.testing.assert_array_equal(shamir.reconstruct(points[chosen], shares[chosen]), secret)
    for chosen in map(list, itertools.combinations(range(6), 2)):
        assert not np.array_equal(shamir.reconstruct(points[chosen], shares[chosen]), secret)


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_than_the_threshold_are_uniform_over_all_polynomials(threshold, monkeypatch):
    """All secrets and all coefficients over GF(4): every view of t - 1 shares is as frequent."""
    points = np.asarray([1, 2, 3])
    views = {}
    for secret in range(4):
        for coefficients in itertools.product(range(4), repeat=threshold - 1):
            drawn = np.asarray(coefficients, np.uint16)[:, None, None]
            monkeypatch.setattr(Field, "random", lambda *_, drawn=drawn: drawn)
            shares = shamir.share_words(np.asarray([[secret]], np.uint16), points, threshold, TINY)
            opened = shamir.reconstruct_words(points[:threshold], shares[:threshold], TINY)
            assert opened == secret
            for seen in itertools.combinations(range(3), threshold - 1):
                view = (seen, *(int(shares[i, 0, 0]) for i in seen))
                views.setdefault((secret, seen), []).append(view)
    for (_, seen), found in views.items():
        assert sorted(found) == [
            (seen, *values) for values in itertools.product(range(4), repeat=threshold - 1)
        ]


def test_shares_of_the_same_secret_are_fresh():
    secret = np.zeros((1, 32), np.uint8)
    first, second = (shamir.share(secret, np.asarray([1, 2]), 2) for _ in range(2))
    assert not np.any(np.all(first == second, axis=-1))


@pytest.mark.parametrize(
    ("points", "threshold"),
    [([0, 1], 2), ([1, 1], 2), ([1, 2**16], 2), ([1, 2], 3), ([1, 2], 0), ([], 1)],
)
def test_impossible_sharings_are_refused(points, threshold):
    with pytest.raises(ProtocolError):
        shamir.share(np.zeros((1, 32), np.uint8), np.asarray(points, np.int64), threshold)


def test_impossible_openings_are_refused():
    shares = np.zeros((2, 32), np.uint8)
    for points in ([1], [1, 1], [0, 1]):
        with pytest.raises(ProtocolError):
            shamir.reconstruct(np.asarray(points), shares)
