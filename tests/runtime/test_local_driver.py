"""Virtual clocks: what latency and bandwidth do to the seconds that a run reports."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from primia_jax.errors import ProtocolError
from primia_jax.runtime import (
    Link,
    LocalDriver,
    Locally,
    Receive,
    Send,
    Stage,
    local_driver,
    run_local,
)


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


def test_every_line_has_jitter_of_its_own():
    link = Link(jitter_s=0.5)
    there, back = (link.delay_seconds(0, line) for line in (("a", "b"), ("b", "a")))
    assert there != back and there == link.delay_seconds(0, ("a", "b"))


def test_unread_messages_are_an_error():
    with pytest.raises(ProtocolError, match="never received: sender to receiver"):
        run_local({"sender": _sender(2), "receiver": _receiver(1)})


@jax.jit
def _heavy(x):
    for _ in range(40):
        x = x @ x / 500.0
    return x


def _keeps_heavy_work(x):
    yield Stage("heavy")
    kept = _heavy(x)  # dispatched, and running while this party waits
    yield Receive("light")
    return kept


def _light():
    yield Stage("light")
    yield Send("heavy", np.zeros(1))
    return jnp.zeros(3) + 1


@pytest.mark.parametrize("names", [("heavy", "light"), ("light", "heavy")])
def test_asynchronous_work_is_charged_to_whom_it_belongs(names):
    """Forty products of 500 x 500 matrices against one addition: some hundred times the work."""
    x = jnp.ones((500, 500))
    jax.block_until_ready((_heavy(x), jnp.zeros(3) + 1))
    makers = {"heavy": lambda: _keeps_heavy_work(x), "light": _light}
    results, trace = run_local({name: makers[name]() for name in names})
    heavy, light = trace.parties["heavy"], trace.parties["light"]
    assert heavy.compute_seconds > 2 * light.compute_seconds
    spent = trace.by_stage()
    assert spent["heavy"]["heavy"]["seconds"] > 0.5 * heavy.compute_seconds
    assert results["heavy"].is_ready()


def test_work_begun_before_the_run_is_nobodys():
    x = jnp.ones((500, 500))
    jax.block_until_ready((_heavy(x), jnp.zeros(3) + 1))
    begun = _heavy(x)
    run_local({"heavy": _asks(), "light": _light()})
    assert begun.is_ready()


def _asks():
    yield Receive("light")


def test_messages_are_handed_over():
    """Not copied: what arrives is what was sent."""
    message = {"x": np.zeros(3), "y": jnp.ones(2)}

    def sender():
        yield Send("receiver", message)

    def receiver():
        return (yield Receive("sender"))

    results, _ = run_local({"sender": sender(), "receiver": receiver()})
    assert results["receiver"] is message


class _Clock:
    """Time that passes only when a party says so, or a millionth of a second at a time."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 2.0**-20
        return self.now


def _clocked():
    yield Stage("one")
    yield Send("pong", np.zeros(1))
    yield Stage("two")
    yield Receive("pong")  # a wait
    yield Receive("pong")  # and another
    yield Receive("pong")  # none: it came while the second was dealt with
    yield Stage("three")


def _answers(clock):
    yield Receive("ping")
    yield Send("ping", np.zeros(1))
    clock.now += 1.0
    yield Send("ping", np.zeros(1))
    yield Send("ping", np.zeros(1))


def test_spans_end_at_waits_and_stages_only(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(local_driver, "time", clock)
    parties = {"ping": _clocked(), "pong": _answers(clock)}
    _, trace = run_local(parties, Link(latency_s=1e6))
    spans = [span for span in trace.spans if span.party == "ping"]
    assert [s.stage for s in spans] == ["", "one", "two", "two", "two", "three"]
    waited = [s.start_s for s in spans if s.start_s > 1e6]
    assert waited[:2] == [trace.messages[1].arrives_s, trace.messages[2].arrives_s]
    for before, after in itertools.pairwise(spans):
        assert after.start_s >= before.end_s
    total = sum(span.seconds for span in spans)
    assert total == pytest.approx(trace.parties["ping"].compute_seconds, abs=1e-6)


def test_computing_without_waits_is_one_span():
    _, trace = run_local({"sender": _sender(5), "receiver": _receiver(5)})
    assert [span.party for span in trace.spans].count("sender") == 1


def test_other_links_join_the_same_states():
    driver = LocalDriver({"sender": lambda: 1})
    slow = driver.with_link(Link(latency_s=1.0))
    slow.run({"sender": Locally(lambda state: (state + 1, None))})
    assert driver.states == slow.states == {"sender": 2}


def test_an_error_says_whose_program_raised_it():
    def broken():
        yield Stage("dividing")
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        run_local({"ping": broken()})
    assert caught.value.__notes__ == ["raised in the program of party 'ping'"]
