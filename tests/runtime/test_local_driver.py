"""Virtual clocks: what latency and bandwidth do to the seconds that a run reports."""

import numpy as np
import pytest

from primia_jax.errors import ProtocolError
from primia_jax.runtime import Link, Receive, Send, run_local


def _sender(n, size=0):
    for _ in range(n):
        yield Send("receiver", np.zeros(size, np.uint8), "zeros")


def _receiver(n):
    for _ in range(n):
        yield Receive("sender")


def _ping(n):
    for _ in range(n):
        yield Send("pong", np.zeros(1))
        yield Receive("pong")


def _pong(n):
    for _ in range(n):
        yield Receive("ping")
        yield Send("ping", np.zeros(1))


def test_round_trips_cost_twice_the_latency():
    _, trace = run_local({"ping": _ping(5), "pong": _pong(5)}, Link(latency_s=1e6))
    assert trace.round_trips == 5
    assert trace.seconds == pytest.approx(1e7, rel=1e-4)  # beside which computing is nothing


def test_messages_queue_on_a_narrow_line_but_travel_together():
    link = Link(latency_s=1e8, bandwidth_bps=8e-6)  # a byte in a million seconds
    _, trace = run_local({"sender": _sender(3, 10), "receiver": _receiver(3)}, link)
    arrivals = [m.arrives_s for m in trace.messages]
    assert arrivals == pytest.approx([1.1e8, 1.2e8, 1.3e8], rel=1e-4)
    assert all(m.sent_s < 1e6 for m in trace.messages)  # the sender does not wait
    assert trace.bytes_sent == 30


def test_jitter_only_adds_and_is_reproducible():
    link = Link(latency_s=1.0, jitter_s=0.5, seed=3)
    delays = [link.delay_seconds(i) for i in range(100)]
    assert min(delays) >= 1.0 and len(set(delays)) == 100
    assert delays == [Link(1.0, 0.0, 0.5, 3).delay_seconds(i) for i in range(100)]


def test_unread_messages_are_an_error():
    with pytest.raises(ProtocolError, match="never received: sender to receiver"):
        run_local({"sender": _sender(2), "receiver": _receiver(1)})
