"""The timeline is drawn from any trace, into any kind of file; its table adds up."""

import re

import pytest
from PIL import Image

from primia_jax.errors import StorageError
from primia_jax.reporting.timeline import plot_timeline, stage_table
from primia_jax.runtime import MessageRecord, PartyTrace, Span, Trace


def _trace(n_stages):
    spans, messages = [Span("client", "", 0.0, 1e-6)], []
    for i in range(n_stages):
        start, stage = 0.02 * i, f"layer {i}"
        spans += [Span("server", stage, start, 0.008), Span("client", stage, start + 0.01, 0.004)]
        messages += [
            MessageRecord("server", "client", "y", 4000, start + 0.008, start + 0.01, stage),
            MessageRecord("client", "server", "share", 0, start + 0.014, start + 0.02, stage),
        ]
    parties = {name: PartyTrace() for name in ("client", "server", "provider")}
    return Trace(parties, tuple(messages), tuple(spans))


@pytest.mark.parametrize("trace", [_trace(2), _trace(40), Trace({"only": PartyTrace()})])
def test_a_picture_is_drawn(trace, tmp_path):
    plot_timeline(trace, tmp_path / "timeline.png")
    with Image.open(tmp_path / "timeline.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 20)) > 3


def test_a_picture_is_vectors_if_its_name_says_so(tmp_path):
    plot_timeline(_trace(3), tmp_path / "timeline.svg")
    text = (tmp_path / "timeline.svg").read_text()
    assert len(re.findall(r"clip-path", text)) > 8  # spans and messages


def test_names_are_drawn_as_they_are(tmp_path):
    """Not as formulas: a dollar sign in a name is no error."""
    spans = (Span("a$b$", r"$\broken{$", 0.0, 1.0),)
    plot_timeline(Trace({"a$b$": PartyTrace()}, (), spans), tmp_path / "t.png")


def test_where_it_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"t\.png cannot be written"):
        plot_timeline(_trace(1), tmp_path / "file" / "t.png")


def test_the_table_adds_up():
    heads, rows = stage_table(_trace(3))
    assert heads == ["stage", "client, ms", "server, ms", "provider, ms", "messages", "bytes"]
    assert [row[0] for row in rows] == ["layer 0", "layer 1", "layer 2", "all"]
    assert rows[0][1:] == ["4.0", "8.0", "0.0", "2", "4.0 kB"]
    assert rows[-1][1:] == ["12.0", "24.0", "0.0", "6", "12 kB"]
