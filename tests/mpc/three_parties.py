"""Runs three-party sub-protocols from shares, in one process, and records what is sent."""

from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from primia_jax.mpc import ring
from primia_jax.mpc.protocols import odd_ring
from primia_jax.mpc.protocols.parties import Party, SharedStream
from primia_jax.runtime.local_driver import run_local
from primia_jax.runtime.party import Send, receivers

NAMES = ("server 0", "server 1", "assistant")
SURE = 1e-9  # false alarms of tests on distributions, for each statistic
EDGES = [0, 1, 2, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
word = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**64 - 1))


def three_parties(number=0, of_servers=None):
    """Parties with fixed seeds: tests on distributions come out alike each time.

    What only the servers share may be that of another run than the rest.
    """

    def stream(a, b):
        servers_only = {a, b} == {0, 1} and of_servers is not None
        seed = np.full(32, 3 * min(a, b) + max(a, b), np.uint8)
        return SharedStream(seed, of_servers if servers_only else number)

    return [
        Party(i, NAMES, {j: stream(i, j) for j in range(3) if j != i}, stream(i, i))
        for i in range(3)
    ]


@ring.x64_steps
def watched(steps_, sent):
    """The steps of one party, writing down what it sends as (reader, array)."""
    message = None
    while True:
        try:
            event = steps_.send(message)
        except StopIteration as stop:
            return stop.value
        if isinstance(event, Send):
            leaves = jax.tree.leaves(event.message)
            sent += [(to, leaf) for to in receivers(event) for leaf in leaves]
        message = yield event


def run(function, arguments, number=0, of_servers=None):
    """Runs `function(me, *arguments[i])` for all; (results, trace, [(sender, reader, array)])."""
    sent: list[list[Any]] = [[] for _ in NAMES]
    programs = {
        name: watched(function(me, *given_), seen)
        for me, name, given_, seen in zip(three_parties(number, of_servers), NAMES, arguments, sent)
    }
    results, trace = run_local(programs)
    seen = [(name, to, leaf) for name, part in zip(NAMES, sent) for to, leaf in part]
    return [results[name] for name in NAMES], trace, seen


def words(values):
    return np.asarray([int(value) % 2**64 for value in values], np.uint64)


def shared(values, n_bits=64, first=None, seed=0):
    """Shares over Z_L; the first given, or at random."""
    if first is None:
        first = np.random.default_rng(seed).integers(0, 2**64, len(values), np.uint64)
    first = odd_ring.low(first, n_bits)
    return first, odd_ring.low(values - first, n_bits)


def odd_shared(values, n_bits=64, seed=0):
    top = 2**n_bits - 1
    first = np.random.default_rng(seed).integers(0, top, len(values), np.uint64)
    return first, odd_ring.odd_difference(values, first, n_bits)


def check_cost(trace, cost, n=1):
    assert trace.round_trips * 2 == cost.rounds
    assert trace.bytes_sent == cost.n_bytes * n
