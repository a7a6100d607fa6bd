"""Traces: spans are put together rightly, and the tables and files made of them are complete."""

import json

import pytest

from primia_jax.runtime import MessageRecord, PartyTrace, Span, Trace
from primia_jax.runtime.trace import SpanRecorder


@pytest.fixture
def trace():
    """Alice asks in 2 s, bob answers in 3 s, each message travels 1 s."""
    return Trace(
        {
            "alice": PartyTrace(2.0, 7.0, 10, 1, 2),
            "bob": PartyTrace(3.0, 6.0, 20, 1, 1),
        },
        (
            MessageRecord("alice", "bob", "question", 10, 2.0, 3.0, "ask"),
            MessageRecord("bob", "alice", "", 20, 6.0, 7.0, "answer"),
        ),
        (Span("alice", "ask", 0.0, 2.0), Span("bob", "answer", 3.0, 3.0)),
    )


def test_computing_goes_on_in_one_span_until_a_wait_or_a_stage():
    recorder = SpanRecorder("alice")
    recorder.computed(0.0, 1.0)
    recorder.computed(1.0, 2.0)
    recorder.stage = "next"
    recorder.computed(2.0, 3.0)
    recorder.computed(3.5, 4.0)  # it waited
    recorder.computed(4.0, 4.0)  # nothing
    assert recorder.spans == [
        Span("alice", "", 0.0, 2.0),
        Span("alice", "next", 2.0, 1.0),
        Span("alice", "next", 3.5, 0.5),
    ]


def test_by_stage_counts_a_message_in_its_senders_stage(trace):
    assert trace.by_stage() == {
        "ask": {
            "alice": {"seconds": 2.0, "bytes_sent": 10, "bytes_received": 0, "messages": 1},
            "bob": {"seconds": 0.0, "bytes_sent": 0, "bytes_received": 10, "messages": 0},
        },
        "answer": {
            "alice": {"seconds": 0.0, "bytes_sent": 0, "bytes_received": 20, "messages": 0},
            "bob": {"seconds": 3.0, "bytes_sent": 20, "bytes_received": 0, "messages": 1},
        },
    }


def test_a_stage_in_which_only_messages_were_sent_is_there():
    record = MessageRecord("a", "b", "", 1, 0.0, 1.0, "sending")
    table = Trace({"a": PartyTrace(), "b": PartyTrace()}, (record,)).by_stage()
    assert table["sending"]["b"]["bytes_received"] == 1


def test_plain_data_survives_json(trace):
    found = json.loads(json.dumps(trace.to_json()))
    assert found["critical_path_seconds"] == 7.0 and found["compute_seconds"] == 5.0
    assert found["bytes_sent"] == 30 and found["messages"] == 2 and found["round_trips"] == 1.0
    assert found["stages"] == trace.by_stage()
    assert found["parties"]["bob"]["bytes_sent"] == 20


def test_the_chrome_trace_has_processes_spans_and_flows(trace):
    events = json.loads(json.dumps(trace.chrome_trace()))["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert sorted(processes.values()) == ["alice", "bob"]
    spans = [(processes[e["pid"]], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert spans == [("alice", "ask", 0.0, 2e6), ("bob", "answer", 3e6, 3e6)]
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys() and len(starts) == 2
    assert processes[starts[0]["pid"]] == "alice" and processes[ends[0]["pid"]] == "bob"
    assert (starts[0]["ts"], ends[0]["ts"]) == (2e6, 3e6)
    assert starts[0]["name"] == ends[0]["name"] == "question"
    assert starts[0]["args"] == {"bytes": 10, "label": "question", "stage": "ask"}


def test_an_empty_trace_is_no_error():
    empty = Trace({})
    assert empty.by_stage() == {} and empty.chrome_trace()["traceEvents"] == []
    assert empty.to_json()["critical_path_seconds"] == 0.0
