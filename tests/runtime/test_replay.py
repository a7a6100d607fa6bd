"""A recorded run, judged under other links: the same run, and what latency and bandwidth may do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primia_jax.errors import ProtocolError
from primia_jax.runtime import Action, Link, Receive, Send, Stage, Trace, replay, run_local

PARTIES = ("a", "b", "c")
LINKS = (
    Link(),
    Link(latency_s=0.01),
    Link(latency_s=0.1, bandwidth_bps=1e6),
    Link(bandwidth_bps=1e4),
    Link(latency_s=0.02, bandwidth_bps=1e5, jitter_s=0.3, seed=7),
)


@jax.jit
def _work(x):
    return jnp.sin(x @ x)


def _client(n):
    x = jnp.ones((50, 50))
    for i in range(n):
        yield Stage(f"layer {i}")
        x = _work(x)
        yield Send(("server", "helper"), {"x": x}, "both")
        yield Send("server", np.zeros(100 * i, np.uint8), "padding")
        x = (yield Receive("server"))["y"]
    return x


def _server(n):
    yield Stage("serving")
    for _ in range(n):
        message = yield Receive("client")
        yield Receive("client")
        hint = yield Receive("helper")
        yield Send("client", {"y": _work(message["x"] + hint)})


def _helper(n):
    for _ in range(n):
        message = yield Receive("client")
        yield Send("server", message["x"].sum(), "hint")


def _recorded(link):
    return run_local({"client": _client(4), "server": _server(4), "helper": _helper(4)}, link)[1]


@pytest.mark.parametrize("link", LINKS, ids=str)
def test_under_its_own_link_a_run_is_given_back_to_the_bit(link):
    trace = _recorded(link)
    again = replay(trace.recording, link)
    assert again == trace  # parties, messages and spans, with all their times
    assert again.recording == trace.recording
    assert list(again.parties) == list(trace.parties)
    assert again.to_json() == trace.to_json()


def test_from_any_link_to_any_other_and_back():
    trace = _recorded(LINKS[0])
    for link in LINKS:
        there = replay(trace.recording, link)
        assert replay(there.recording, LINKS[0]) == trace
        assert there.bytes_sent == trace.bytes_sent
        assert there.round_trips == trace.round_trips == 6  # to helper, server, client: 3 a layer
        assert there.compute_seconds == trace.compute_seconds


def test_a_replay_takes_seconds_that_can_be_told_beforehand():
    def ping(n):
        for _ in range(n):
            yield Send("pong", np.zeros(125, np.uint8))
            yield Receive("pong")

    def pong(n):
        for _ in range(n):
            yield Receive("ping")
            yield Send("ping", np.zeros(250, np.uint8))

    _, trace = run_local({"ping": ping(5), "pong": pong(5)})
    slow = replay(trace.recording, Link(latency_s=3.0, bandwidth_bps=1000.0))
    assert slow.seconds == pytest.approx(trace.seconds + 5 * (1 + 2 + 2 * 3.0), abs=1e-3)


def test_without_a_recording_there_is_nothing_to_replay():
    with pytest.raises(ProtocolError, match="nothing to replay"):
        replay(Trace({}).recording, Link())


def test_recordings_do_not_make_equal_traces_differ():
    """A trace is compared by what it tells, also with one that was never recorded."""
    trace = _recorded(LINKS[1])
    assert trace == dataclasses.replace(trace, recording=())
    assert "recording" not in repr(trace)


@st.composite
def recordings(draw):
    """Any run of three parties in which what is received was sent, in an order of the drawing."""
    seconds = st.floats(0, 10, allow_subnormal=False)
    actions = [Action(party, draw(seconds), "stage", label="start") for party in PARTIES]
    under_way: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 30))):
        if under_way and draw(st.booleans()):
            sender, receiver = under_way.pop(draw(st.integers(0, len(under_way) - 1)))
            actions.append(Action(receiver, draw(seconds), "receive", (sender,)))
        else:
            sender = draw(st.sampled_from(PARTIES))
            others = draw(
                st.lists(st.sampled_from([p for p in PARTIES if p != sender]), min_size=1,
                         unique=True)
            )  # fmt: skip
            size = draw(st.integers(0, 10**6))
            actions.append(Action(sender, draw(seconds), "send", tuple(others), "m", size))
            under_way += [(sender, to) for to in others]
    actions += [Action(to, 0.0, "receive", (sender,)) for sender, to in under_way]
    return [*actions, *(Action(party, draw(seconds), "end") for party in PARTIES)]


latencies, bandwidths = st.floats(0, 5), st.floats(1e4, 1e9)


@given(recordings(), latencies, latencies, bandwidths, bandwidths)
def test_slower_links_are_never_faster(recording, one, other, narrow, wide):
    low, high = sorted((one, other))
    narrow, wide = sorted((narrow, wide))

    def seconds(latency, bandwidth):
        return replay(recording, Link(latency, bandwidth)).seconds

    assert seconds(low, wide) <= seconds(high, wide)
    assert seconds(low, wide) <= seconds(low, narrow)
    assert seconds(low, 0.0) <= seconds(low, wide)


@given(recordings(), latencies, bandwidths)
def test_latency_adds_no_more_than_its_round_trips(recording, latency, bandwidth):
    """And bandwidth no more than all bytes one after another."""
    here, there = replay(recording, Link()), replay(recording, Link(latency, bandwidth))
    assert here.round_trips == there.round_trips
    assert here.compute_seconds == there.compute_seconds >= here.seconds / len(PARTIES) - 1e-9
    near = replay(recording, Link(0.0, bandwidth)).seconds
    assert there.seconds <= near + 2 * here.round_trips * latency + 1e-6
    assert near <= here.seconds + 8 * here.bytes_sent / bandwidth + 1e-6
    assert here.seconds <= sum(action.seconds for action in recording) + 1e-9


@given(recordings(), st.integers(0, len(LINKS) - 1))
def test_replays_of_replays_are_replays(recording, i):
    trace = replay(recording, LINKS[i])
    assert replay(trace.recording, LINKS[i]) == trace
