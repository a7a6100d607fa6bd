"""Timeline of a run of several parties: a picture of lanes and messages, and a table."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from primia_jax.reporting.console import format_bytes
from primia_jax.reporting.figures import FAINT, GRID, INK, colour, save_picture
from primia_jax.runtime import MessageRecord, Span, Trace

_HALF = 0.24  # of a lane's bar
_WIDTH = 11.0  # inches
_LABEL_GAP = 0.022  # least distance of two stage names, in widths of the picture
_CHARACTER = 0.0072  # width of one in a bar, in widths of the picture
_SHOWN_S = 5e-5  # less rounds to 0.0 ms
_STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # names are drawn as they are
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "primia_jax",
}


def plot_timeline(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Draws every party's spans in a lane of its own, and every message as a line between lanes.

    A line starts when its message is sent and ends, in an arrow head, when it arrives; the larger
    the message, the thicker the line. Colours tell stages apart, whose names stand above; where
    there is no room for all of them, some are left out.

    Args:
      trace: of a run; one that was only counted has times without meaning.
      path: of the picture; its ending says which kind (.svg, .png, .pdf).

    Raises:
      StorageError: if the file cannot be written.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 1.3 + 0.95 * len(trace.parties)), layout="constrained")
        _draw(figure.subplots(), trace)
        save_picture(figure, Path(path))


def stage_table(trace: Trace) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table: each stage's computing by party, its messages and their bytes.

    The last row holds the sums. What came before the first stage is left out if it is next to
    nothing.
    """
    heads = ["stage", *(f"{party}, ms" for party in trace.parties), "messages", "bytes"]
    rows: list[list[str]] = []
    sums = [0.0] * len(trace.parties)
    total_messages = total_bytes = 0
    for stage, shares in trace.by_stage().items():
        seconds = [share["seconds"] for share in shares.values()]
        messages = sum(share["messages"] for share in shares.values())
        n_bytes = sum(share["bytes_sent"] for share in shares.values())
        if stage or messages or max(seconds) >= _SHOWN_S:
            rows.append(_row(stage or "(unnamed)", seconds, messages, n_bytes))
        sums = [a + b for a, b in zip(sums, seconds)]
        total_messages, total_bytes = total_messages + messages, total_bytes + n_bytes
    rows.append(_row("all", sums, total_messages, total_bytes))
    return heads, rows


def _row(name: str, seconds: Sequence[float], messages: int, n_bytes: int) -> list[str]:
    return [name, *(f"{1e3 * s:.1f}" for s in seconds), str(messages), format_bytes(n_bytes)]


def _draw(axes: Axes, trace: Trace) -> None:
    parties = list(trace.parties)
    heights = {party: len(parties) - 1 - i for i, party in enumerate(parties)}  # first on top
    ends = [span.end_s for span in trace.spans] + [m.arrives_s for m in trace.messages]
    width_ms = 1e3 * max(ends, default=0.0) or 1.0
    named = [stage for stage in trace.by_stage() if stage]
    shades = {"": FAINT, **{stage: colour(i) for i, stage in enumerate(named)}}

    for height in heights.values():
        axes.axhline(height, color=GRID, linewidth=1, zorder=0)
    for span in trace.spans:
        height, start, length = heights[span.party], 1e3 * span.start_s, 1e3 * span.seconds
        axes.broken_barh(
            [(start, length)], (height - _HALF, 2 * _HALF), facecolors=shades[span.stage], zorder=2
        )
        if len(span.stage) * _CHARACTER * width_ms < length:
            axes.text(
                start + length / 2, height, span.stage,
                ha="center", va="center", color="white", fontsize=8, zorder=3,
            )  # fmt: skip
    _draw_messages(axes, trace.messages, heights, shades)
    _name_stages(axes, trace, shades, width_ms, len(parties) - 1 + _HALF)

    axes.set_xlim(-0.005 * width_ms, 1.005 * width_ms)
    axes.set_ylim(-0.5, len(parties) - 0.5)
    axes.set_yticks([heights[party] for party in parties], parties)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("milliseconds")


def _draw_messages(
    axes: Axes, messages: Sequence[MessageRecord], heights: dict[str, int], shades: dict[str, str]
) -> None:
    if not messages:
        return
    largest = max(message.n_bytes for message in messages) or 1
    lines, widths, colours = [], [], []
    for message in messages:
        start, end = heights[message.sender], heights[message.receiver]
        up = 1 if end > start else -1
        tip = (1e3 * message.arrives_s, end - up * _HALF)
        lines.append([(1e3 * message.sent_s, start + up * _HALF), tip])
        widths.append(0.6 + 1.6 * message.n_bytes / largest)
        colours.append(shades[message.stage])
        axes.plot(*tip, marker="^" if up > 0 else "v", markersize=3.5, color=colours[-1], zorder=4)
    axes.add_collection(
        LineCollection(lines, linewidths=widths, colors=colours, alpha=0.75, zorder=1)
    )


def _name_stages(
    axes: Axes, trace: Trace, shades: dict[str, str], width_ms: float, top: float
) -> None:
    """Writes each stage's name above where its longest span begins."""
    longest: dict[str, Span] = {}
    for span in trace.spans:
        if span.stage not in longest or span.seconds > longest[span.stage].seconds:
            longest[span.stage] = span
    free = -1.0
    for stage, span in sorted(longest.items(), key=lambda item: item[1].start_s):
        begin = 1e3 * span.start_s
        if stage and begin >= free:
            axes.annotate(
                stage, (begin, top), xytext=(0, 4), textcoords="offset points",
                rotation=40, ha="left", va="bottom", fontsize=8, color=shades[stage],
                annotation_clip=False,
            )  # fmt: skip
            free = begin + _LABEL_GAP * width_ms
