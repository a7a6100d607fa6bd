"""Masked sums of small vectors in one process, for tests."""

import dataclasses
import functools

import numpy as np

from primia_jax.config import SecureAggregationConfig
from primia_jax.federated import sealing, secagg, secagg_graph
from primia_jax.federated.aggregation import OWNER, PROVIDER
from primia_jax.runtime import Receive, Send, run_local

SETTINGS = SecureAggregationConfig()
LENGTH = 6


def names_of(n):
    return tuple(f"h{i}" for i in range(n))


@functools.cache
def keys_of(n):
    """Every hospital's session keys for its neighbours."""
    hospitals = names_of(n)
    near = plan_of(n).neighbourhoods()
    parties = {
        name: sealing.exchange_keys(name, [hospitals[j] for j in near[i][1:]], PROVIDER)
        for i, name in enumerate(hospitals)
    }
    return run_local({**parties, PROVIDER: sealing.distribute_keys(hospitals)})[0]


@functools.cache
def plan_of(n):
    """By the default settings, where they have a graph; else all are neighbours, 1 colludes."""
    if secagg_graph.exists(n, SETTINGS):
        graph = secagg_graph.choose(n, SETTINGS)
    else:
        graph = secagg_graph.Graph(n, n - 1, (n + 1) // 2 + 1, 1, 0.0, 1.0)
    return secagg.Plan(names_of(n), OWNER, graph, 3, patience_s=60.0, deadline_s=60.0)


def inputs(n, seed=0, kind=np.uint64):
    rng = np.random.default_rng(seed)
    most = np.iinfo(kind).max
    return [rng.integers(0, most, LENGTH, dtype=kind, endpoint=True) for _ in range(n)]


def run(n, words, faults=(), tamper=None, optional=True, plan=None, keys=None, received=None):
    """(the owner's Sum, trace).

    `tamper(name, event)` may change what anybody sends; `received(name, count, message)` what
    anybody receives, as the message number `count`.
    """
    plan = plan or dataclasses.replace(plan_of(n), word_bits=8 * words[0].itemsize)
    parties = {
        name: secagg.contribute(plan, name, (keys or keys_of(n))[name], own.copy())
        for name, own in zip(plan.hospitals, words)
    }
    parties[OWNER] = secagg.collect(plan, len(words[0]))
    parties = {name: tampered(name, steps, tamper, received) for name, steps in parties.items()}
    results, trace = run_local(
        parties, optional=plan.hospitals if optional else (), faults=tuple(faults)
    )
    return results[OWNER], trace


def tampered(name, steps, tamper, received):
    message, count = None, 0
    while True:
        try:
            event = steps.send(message)
        except StopIteration as stop:
            return stop.value
        message = yield (tamper and tamper(name, event)) or event
        if received and isinstance(event, Receive):
            message, count = received(name, count, message), count + 1


def is_to_h1(name, event, label):
    return name == OWNER and isinstance(event, Send) and (event.to, event.label) == ("h1", label)
