"""Costs are counted from shapes alone, and agree with a real run."""

import jax
import jax.numpy as jnp

from primia_jax.runtime import Receive, Send, Stage, count, run_local


def _client(x):
    yield Stage("asking")
    yield Send("server", jnp.sin(x))
    return (yield Receive("server"))


def _server():
    x = yield Receive("client")
    yield Send("client", {"sum": x.sum(), "twice": 2 * x})


def _parties(x):
    return {"client": _client(x), "server": _server()}


def test_counting_agrees_with_running():
    shape = jax.ShapeDtypeStruct((1000, 3), jnp.float32)
    counted = count(_parties, shape)
    _, trace = run_local(_parties(jnp.ones((1000, 3))))
    assert counted.bytes_sent == trace.bytes_sent == 2 * 12000 + 4
    assert counted.round_trips == trace.round_trips == 1
    assert counted.by_stage()["asking"]["server"]["bytes_received"] == 12000
    assert len(counted.messages) == 2  # a stage is none


def test_counting_computes_nothing():
    """A trillion elements would not fit in memory."""
    assert count(_parties, jax.ShapeDtypeStruct((10**12,), jnp.float32)).bytes_sent > 10**12
