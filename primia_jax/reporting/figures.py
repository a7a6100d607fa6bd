"""The plots of the report, as SVG images without any text of the user's.

Names of sites and classes stand in the legends that the page sets beside the plots: there they
wrap, can be searched, and are in the reader's own fonts. Every function returns a data URI.

Axis letters: n records, k classes, m bins.
"""

import base64
import contextlib
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from primia_jax.core.storage import replacing
from primia_jax.evaluation.metrics import ECE_BINS, reliability

INK, GRID, FAINT = "#2b3440", "#e3e7ec", "#aab4c0"
_COLOURS = ("#1d5b8f", "#c66a1e", "#2f7d63", "#86508f", "#a8383b", "#5f6b78", "#a98a1d", "#3b8fa6")
_SIZE = (4.6, 3.1)  # inches
STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.7,
    "svg.fonttype": "path",
    "svg.hashsalt": "primia_jax",  # the same run gives the same file, byte by byte
}

PICTURE_STYLE: Any = {  # of pictures on their own, whose names and titles are drawn
    **STYLE,
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # names are drawn as they are
    "legend.frameon": False,
    "legend.fontsize": 9,
    "ytick.minor.size": 0,
}


def colour(i: int) -> str:
    """The colour of the i-th site, class or curve."""
    return _COLOURS[i % len(_COLOURS)]


def curves(
    lines: Sequence[tuple[Sequence[float], Sequence[float], str]],
    ylabel: str,
    *,
    bold: bool = False,
    kept_round: int | None = None,
    unit_range: bool = False,
) -> str:
    """Curves over rounds, each (rounds, values, colour); NaN leaves a gap.

    Args:
      lines: the curves, drawn in order.
      ylabel: what the values are.
      bold: draws the last curve thicker than the others.
      kept_round: the round whose model was kept, marked by a vertical line.
      unit_range: the values are scores of at most 1, so the axis ends there.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        for i, (rounds, values, shade) in enumerate(lines):
            thick = bold and i == len(lines) - 1
            axes.plot(
                rounds,
                values,
                color=shade,
                linewidth=2.4 if thick else 1.5,
                marker="o" if len(rounds) <= 40 else None,
                markersize=3,
            )
        if kept_round is not None:
            axes.axvline(kept_round, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        if unit_range:
            axes.set_ylim(top=1.02)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("round")
        axes.set_ylabel(ylabel)
        return data_uri(figure)


def roc(labels: np.ndarray, probabilities: np.ndarray, shades: Mapping[int, str]) -> str:
    """ROC curves, one-vs-rest, of the classes in `shades` ({class: colour})."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure((4.6, 4.2))
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for c, shade in shades.items():
            false_positives, true_positives, _ = roc_curve(labels == c, probabilities[:, c])
            axes.plot(false_positives, true_positives, color=shade)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_xlabel("false positive rate (1 − specificity)")
        axes.set_ylabel("true positive rate (sensitivity)")
        return data_uri(figure)


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> str:
    """A reliability diagram with the number of predictions in every bin below it."""
    counts, confidence, accuracy = reliability(labels, probabilities)
    filled = counts > 0
    width = 1 / ECE_BINS
    centres = (np.arange(ECE_BINS) + 0.5) * width
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        upper, lower = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [3.4, 1], "hspace": 0.06}
        )
        upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        upper.bar(
            centres[filled],
            accuracy[filled],
            width * 0.92,
            color=_COLOURS[0],
            alpha=0.25,
            linewidth=0,
        )
        # The area of a dot is in proportion to its images, so that a bin of few looks it.
        sizes = np.maximum(8, 140 * counts[filled] / max(1, counts.max()))
        upper.scatter(confidence[filled], accuracy[filled], sizes, color=_COLOURS[0], clip_on=False)
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
        lower.bar(centres, counts, width * 0.92, color=FAINT, linewidth=0)
        lower.set(ylabel="images", xlabel="probability of the predicted class")
        lower.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(2, integer=True, prune="lower"))
        lower.grid(axis="x", visible=False)
        return data_uri(figure)


def _figure(size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


@contextlib.contextmanager
def picture(
    path: pathlib.Path, size: tuple[float, float], panels: int = 1, dpi: int = 160, **subplots: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A picture on its own, of panels side by side, which is saved where the block ends.

    Args:
      path: where to; its ending names the format.
      size: in inches.
      panels: how many.
      dpi: pixels an inch.
      **subplots: further arguments of `Figure.subplots`.

    Raises:
      StorageError: if it cannot be written.
    """
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, list(figure.subplots(1, panels, squeeze=False, **subplots)[0])
        save_picture(figure, path, dpi)


def save_picture(figure: Figure, path: pathlib.Path, dpi: int = 160) -> None:
    """Replaces the file `path` by a picture, whole or not at all; its ending names the format.

    Raises:
      StorageError: if it cannot be written.
    """
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix("."), dpi=dpi, facecolor="white")


def data_uri(figure: Figure) -> str:
    """`figure` as an SVG image that a page can hold."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
