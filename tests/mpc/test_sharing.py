"""Additive sharing: any sum comes out, and no share says anything about the secret."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from primia_jax.mpc import prg, sharing

words = st.sampled_from([np.uint32, np.uint64])
secrets = words.flatmap(lambda kind: hnp.arrays(kind, st.integers(1, 40)))


@given(secrets, st.integers(1, 6))
def test_shares_add_up_to_the_secret(secret, n_others):
    seeds = [prg.new_seed() for _ in range(n_others)]
    own = sharing.own_share(secret.copy(), seeds)
    others = [prg.expand(seed, len(secret), words=secret.dtype) for seed in seeds]
    opened = sharing.reconstruct([own, *others])
    assert opened.dtype == secret.dtype
    np.testing.assert_array_equal(opened, secret)


@given(st.integers(2, 5), st.integers(1, 20), st.integers(0, 2**32 - 1), words)
def test_sums_of_shares_open_the_sum_of_secrets(n, length, seed, kind):
    """What the hospitals do together, without the messages."""
    rng = np.random.default_rng(seed)
    secrets = rng.integers(0, np.iinfo(kind).max, (n, length), dtype=kind, endpoint=True)
    seeds = [[prg.new_seed() for _ in range(n)] for _ in range(n)]
    totals = []
    for i in range(n):
        own = sharing.own_share(secrets[i].copy(), [seeds[i][j] for j in range(n) if j != i])
        received = [seeds[j][i] for j in range(n) if j != i]
        totals.append(sharing.sum_of_shares(own, received))
        dealt = [seeds[i][j] for j in range(n) if j != i]
        at_once = sharing.own_share(secrets[i].copy(), dealt, received)
        np.testing.assert_array_equal(at_once, totals[-1])
    expected = secrets.sum(axis=0, dtype=kind)
    np.testing.assert_array_equal(sharing.reconstruct(totals), expected)


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_the_dealer_s_own_share_is_uniform(kind):
    """Chi-square over the top and the bottom byte, for a secret that is far from uniform."""
    secret = np.zeros(1 << 16, kind)
    share = sharing.own_share(secret.copy(), [prg.new_seed()])
    for shift in (0, 8 * secret.itemsize - 8):
        counts = np.bincount((share >> kind(shift)).astype(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_reconstruction_leaves_the_shares_alone():
    shares = [np.arange(5, dtype=np.uint64), np.ones(5, np.uint64)]
    copies = [share.copy() for share in shares]
    sharing.reconstruct(shares)
    np.testing.assert_array_equal(shares, copies)
