"""A mailbox gives each message once, in its place, and holds nothing of a failed run."""

import threading

import pytest

from primia_jax.errors import ClusterError, ProtocolError
from primia_jax.runtime.mailbox import Aborted, Delivery, Envelope, Mailbox


def _delivery(run=1, sender="alice", sequence=0, body="body"):
    envelope = Envelope(run, sender, "bob", sequence, 1, "", "", 0, 0.0, "clock")
    return Delivery(envelope, 0, body, 0.0)


def test_messages_are_taken_by_number_whatever_their_order_of_coming():
    mailbox = Mailbox()
    mailbox.begin(1)
    for sequence in (2, 0, 1):
        mailbox.put(_delivery(sequence=sequence, body=sequence))
    taken = [mailbox.take(1, "alice", i, 1.0) for i in range(3)]
    assert [(delivery.body, waited) for delivery, waited in taken] == [
        *((0, False), (1, False), (2, False))
    ]


def test_what_must_be_waited_for_says_so():
    mailbox = Mailbox()
    mailbox.begin(1)
    timer = threading.Timer(0.05, mailbox.put, [_delivery()])
    timer.start()
    delivery, waited = mailbox.take(1, "alice", 0, 60.0)
    timer.join()
    assert delivery.body == "body" and waited


def test_a_failed_runs_messages_are_dropped_early_and_late():
    mailbox = Mailbox()
    mailbox.begin(1)
    mailbox.put(_delivery(run=1))
    mailbox.put(_delivery(run=2, sequence=5))  # from a party that has begun the next run already
    mailbox.begin(2)
    mailbox.put(_delivery(run=1, sequence=1))
    assert mailbox.unread(1) == [] and mailbox.unread(2) == ["alice"] and mailbox.unread(2) == []


def test_two_claims_to_one_place_are_an_error():
    mailbox = Mailbox()
    mailbox.begin(1)
    mailbox.put(_delivery(body="true"))
    mailbox.put(_delivery(body="false"))
    with pytest.raises(ProtocolError, match="two messages from alice claim to be number 0"):
        mailbox.take(1, "alice", 0, 1.0)


def test_waiting_ends_by_an_abort_or_in_time():
    mailbox = Mailbox()
    mailbox.begin(1)
    with pytest.raises(ClusterError, match="no message from alice"):
        mailbox.take(1, "alice", 0, 0.01)
    mailbox.abort(1, "carol was lost")
    with pytest.raises(Aborted, match="carol was lost"):
        mailbox.take(1, "alice", 0, 60.0)
    mailbox.begin(2)
    mailbox.put(_delivery(run=2))
    assert mailbox.take(2, "alice", 0, 1.0)[0].body == "body"
