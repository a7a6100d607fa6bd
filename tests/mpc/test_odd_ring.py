"""Arithmetic of the odd ring Z_(L-1)."""

import numpy as np
import pytest
from scipy import stats
from three_parties import EDGES, SURE, words

from primia_jax.mpc.protocols import odd_ring
from primia_jax.mpc.protocols.parties import SharedStream


@pytest.mark.parametrize("n_bits", (3, 64))
def test_odd_ring(n_bits):
    top = 2**n_bits - 1
    values = range(top) if n_bits == 3 else [e % top for e in EDGES]
    a, b = (words(v) for v in zip(*[(a, b) for a in values for b in values]))
    total, less = odd_ring.odd_sum(a, b, n_bits), odd_ring.odd_difference(a, b, n_bits)
    assert list(map(int, total)) == [(int(x) + int(y)) % top for x, y in zip(a, b)]
    assert list(map(int, less)) == [(int(x) - int(y)) % top for x, y in zip(a, b)]


def test_odd_words_are_uniform():
    found = odd_ring.odd_words(SharedStream(np.zeros(32, np.uint8), 0), 70_000, 3)
    assert found.max() == 6
    assert stats.chisquare(np.bincount(found.astype(int))).pvalue > SURE
