"""One actor's shell without Ray, over a wire that the tests can tamper with."""

import os
import types

import numpy as np
import pytest

from primia_jax.errors import ProtocolError
from primia_jax.runtime import Link, Receive, Send, Stage
from primia_jax.runtime.link import Line
from primia_jax.runtime.ray_party import Mail, PartyShell, _Host

NAMES = ("alice", "bob")


class Wire:
    """Stands between two actors; keeps what alice sends to bob, to be delivered by `deliver`."""

    def __init__(self, sealed=True):
        self.actors = {name: PartyShell(name, 5.0, sealed) for name in NAMES}
        self.caught = []
        for actor in self.actors.values():
            actor.peers = {name: Mail(self._handle(), {actor.name: b""}) for name in NAMES}
        if sealed:
            hellos = {name: actor.hello() for name, actor in self.actors.items()}
            signatures = {name: actor.sign(hellos) for name, actor in self.actors.items()}
            for actor in self.actors.values():
                actor.agree(signatures)

    def _handle(self):
        catch = types.SimpleNamespace(remote=lambda _, *message: self.caught.append(message[:3]))
        return types.SimpleNamespace(deliver=catch)

    def deliver(self, *messages):
        for message in messages:
            self.actors["bob"].deliver(*message)

    def run(self, name, program, run=1, link=Link()):  # noqa: B008
        return self.actors[name].run(run, program, NAMES, link)


def _alice(state):
    yield Stage("greeting")
    yield Send("bob", {"x": np.arange(3)}, "one")
    yield Send("bob", {"x": np.arange(4)}, "two")
    return state, None


def _bob(state):
    first = yield Receive("alice")
    second = yield Receive("alice")
    return state, (len(first["x"]), len(second["x"]))


def _flipped(envelope, number, body):
    changed = body.copy()
    changed[0] ^= 1
    return envelope, number, changed


def _cut(envelope, number, body):
    return envelope, number, body[:-1]


def _relabelled(envelope, number, body):
    return envelope._replace(label="three"), number, body


def _deeper(envelope, number, body):
    return envelope._replace(depth=7), number, body


def _resized(envelope, number, body):
    return envelope._replace(n_bytes=1), number, body


def _renumbered(envelope, number, body):
    return envelope, number + 1, body


@pytest.mark.parametrize("sealed", [True, False])
def test_messages_arrive_whatever_their_order(sealed):
    wire = Wire(sealed)
    wire.run("alice", _alice)
    one, two = wire.caught
    wire.deliver(two, one)
    result = wire.run("bob", _bob)
    assert result.report == (3, 4)
    assert [(m.label, m.n_bytes, m.stage) for m in result.received] == [
        *(("one", 24, "greeting"), ("two", 32, "greeting"))
    ]


@pytest.mark.parametrize("tamper", [_flipped, _cut, _relabelled, _deeper, _resized, _renumbered])
def test_a_tampered_frame_names_its_link(tamper):
    wire = Wire()
    wire.run("alice", _alice)
    one, two = wire.caught
    wire.deliver(tamper(*one), two)
    with pytest.raises(ProtocolError, match="alice to bob: a frame is not authentic") as caught:
        wire.run("bob", _bob)
    assert "\n" not in str(caught.value)


def test_frames_that_changed_places_are_refused():
    wire = Wire()
    wire.run("alice", _alice)
    (envelope_one, *one), (envelope_two, *two) = wire.caught
    wire.deliver((envelope_one, *two), (envelope_two, *one))
    with pytest.raises(ProtocolError, match="alice to bob"):
        wire.run("bob", _bob)


def test_a_replayed_frame_is_refused_in_the_same_run_and_in_the_next():
    wire = Wire()
    wire.run("alice", _alice)
    one, two = wire.caught
    wire.deliver(one, two, one)
    with pytest.raises(ProtocolError, match="two messages from alice"):
        wire.run("bob", _bob)
    wire.deliver(*(((m[0]._replace(run=2)), *m[1:]) for m in (one, two)))
    with pytest.raises(ProtocolError, match="alice to bob"):
        wire.run("bob", _bob, run=2)


def test_left_over_messages_of_a_failed_run_do_not_spoil_the_next():
    wire = Wire()
    wire.run("alice", _alice)
    wire.deliver(_cut(*wire.caught[0]), wire.caught[1])
    with pytest.raises(ProtocolError):
        wire.run("bob", _bob)
    wire.caught.clear()
    wire.run("alice", _alice, run=2)
    wire.deliver(*wire.caught)
    assert wire.run("bob", _bob, run=2).report == (3, 4)


def test_unread_messages_name_their_sender():
    wire = Wire()
    wire.run("alice", _alice)
    wire.deliver(*wire.caught)
    with pytest.raises(ProtocolError, match=r"bob left messages unread .* from alice"):
        wire.run("bob", _one_only)


def _one_only(state):
    yield Receive("alice")
    return state, None


def test_the_sender_of_another_machine_is_timed_by_the_receivers_clock():
    """The other machine's clock is a million years ahead, or behind."""
    for offset in (3e13, -3e13):
        wire = Wire()
        wire.run("alice", _alice)
        for envelope, *frame in wire.caught:
            moved = envelope._replace(clock="elsewhere", sent_s=envelope.sent_s + offset)
            wire.deliver((moved, *frame))
        result = wire.run("bob", _bob, link=Link(latency_s=0.05))
        for record in result.received:
            assert record.arrives_s == record.sent_s + 0.05
        assert result.trace.seconds < 1e6


def test_messages_queue_on_the_injected_line():
    """Two messages of 24 and 32 bytes at 8,000 bits/s: one goes on the line after the other."""
    wire, link = Wire(), Link(latency_s=0.01, bandwidth_bps=8e3)
    wire.run("alice", _alice)
    wire.deliver(*wire.caught)
    received = wire.run("bob", _bob, link=link).received
    line = Line(link, "alice", "bob")
    due = [line.arrival(m.sent_s, m.n_bytes) for m in received]
    assert all(m.arrives_s >= d for d, m in zip(due, received))
    assert received[1].arrives_s - received[0].sent_s >= 0.066 - 1e-9


def test_an_actor_makes_files_for_its_owner_alone():
    former = os.umask(0)
    try:
        _Host(NAMES, 5.0, False, b"")
        assert os.umask(0) == 0o077
    finally:
        os.umask(former)
