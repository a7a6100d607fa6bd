"""Epochs: fresh at every start, whoever's randomness fails; the seeds of no two are related."""

import os

import numpy as np
import pytest

from primia_jax.errors import ProtocolError
from primia_jax.mpc import prg
from primia_jax.mpc.ledger import Ledger
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER, PARTIES, epochs
from primia_jax.runtime.local_driver import run_local


def agreed(ledgers=None, made=None, resumed=False):
    """What each party agrees on."""
    ledgers = ledgers or {party: Ledger(None) for party in PARTIES}
    made = made or {}
    steps = {
        party: epochs.agree(party, ledgers[party], made.get(party, 0), resumed) for party in PARTIES
    }
    results = run_local(steps)[0]
    assert len(set(results.values())) == 1
    return results[DATA_OWNER]


@pytest.mark.parametrize("honest", range(3))
def test_fresh_bytes_of_one_party_are_enough(honest, monkeypatch):
    """Of two parties the system gives the same bytes again and again, as a cloned machine may."""
    real, count = os.urandom, [0]

    def urandom(n):
        count[0] += 1
        return real(n) if (count[0] - 1) % 3 == honest else bytes(n)

    monkeypatch.setattr(epochs.os, "urandom", urandom)
    assert len({agreed()[0].id for _ in range(5)}) == 5


def test_seeds_of_two_epochs_or_two_roots_have_nothing_in_common():
    roots = [np.arange(32, dtype=np.uint8), np.arange(1, 33, dtype=np.uint8)]
    seeds = [agreed()[0].seed(root) for root in roots for _ in range(2)]
    streams = [prg.expand(seed, 1000) for seed in [*seeds, *roots]]
    assert len(np.unique(np.concatenate(streams))) == 6000


def test_derivation_is_hkdf():
    """RFC 5869's second step, by its definition."""
    import hashlib
    import hmac

    root, purpose = np.arange(32, dtype=np.uint8), b"a purpose"
    expected = hmac.new(root.tobytes(), purpose + b"\x01", hashlib.sha256).digest()
    assert prg.derived(root, purpose).tobytes() == expected


def test_without_an_epoch_nothing_is_expanded():
    with pytest.raises(ProtocolError, match="run the set-up first"):
        epochs.Epoch(b"").seed(np.zeros(32, np.uint8))


@pytest.mark.parametrize("owner", (DATA_OWNER, MODEL_OWNER))
def test_what_one_owner_used_is_used_for_both(owner):
    ledgers = {party: Ledger(None) for party in PARTIES}
    ledgers[owner].burn(4)
    ledgers[CRYPTO_PROVIDER].burn(8)  # dealt
    epoch, used = agreed(ledgers, made={DATA_OWNER: 7})
    assert (epoch.next_number, used) == (9, 5)


def test_ledgers_that_remember_different_starts_leave_no_key_of_before(tmp_path):
    ledgers = {party: Ledger(tmp_path / party / "ledger", "ab12") for party in PARTIES}
    agreed(ledgers)
    ledgers[CRYPTO_PROVIDER].burn(8)
    for resumed in (False, True):
        assert agreed(ledgers, resumed=resumed)[1] == 0
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"\xff")):
        damage(tmp_path / DATA_OWNER / "epoch")
        assert agreed(ledgers, resumed=True)[1] == 9
