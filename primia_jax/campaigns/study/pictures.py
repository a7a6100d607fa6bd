"""The pictures of a study: scores by mode, ROC curves with readers in them, the equivalence.

Axis letters: n images, k classes, s seeds.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from primia_jax.campaigns.study.judging import MODES, Rater
from primia_jax.campaigns.study.sets import TEST_1, TITLES, ImageSet
from primia_jax.reporting.figures import FAINT, GRID, INK, PICTURE_STYLE, colour, save_picture

_COLOURS = {mode: colour(i) for i, mode in enumerate(MODES)}
_MARKS = "D^vPXs*"  # of readers


def draw_all(
    folder: pathlib.Path,
    results: Mapping[str, Any],
    sets: Sequence[ImageSet],
    raters: Sequence[Rater],
    class_names: Sequence[str],
) -> dict[str, pathlib.Path]:
    """Draws every picture; returns their paths by name.

    Raises:
      StorageError: if they cannot be written.
    """
    paths = {name: folder / f"study_{name}.png" for name in ("mcc", "roc", "equivalence")}
    first = next(each for each in sets if each.key == TEST_1)
    with matplotlib.rc_context(PICTURE_STYLE):
        save_picture(_scores(results), paths["mcc"])
        save_picture(_roc(first, raters, class_names), paths["roc"])
        save_picture(_equivalence(results), paths["equivalence"])
    return paths


def _scores(results: Mapping[str, Any]) -> Figure:
    """MCC with interval of every rater, a panel a set; small dots are single trainings."""
    raters = results["table_1a"]["raters"]
    panels_of = list(results["sets"])
    figure = Figure(figsize=(3.1 * len(panels_of) + 1.6, 0.9 + 0.38 * len(raters)),
                    layout="constrained")  # fmt: skip
    panels = figure.subplots(1, len(panels_of), squeeze=False, sharex=True, sharey=True)[0]
    for axes, key in zip(panels, panels_of):
        for row, rater in enumerate(raters):
            mcc = (rater["sets"].get(key) or {}).get("mcc")
            if not mcc or mcc["mean"] is None:
                continue
            shade = _COLOURS.get(rater["key"], INK)
            axes.plot([mcc["low"], mcc["high"]], [row, row], color=shade, linewidth=2.2)
            axes.plot(mcc["mean"], row, "o", color=shade, markersize=7)
            if len(mcc["by_seed"]) > 1:
                dots = mcc["by_seed"]
                axes.plot(dots, [row + 0.24] * len(dots), ".", color=shade, markersize=4)
        axes.set_title(f"{TITLES[key]} (n = {results['sets'][key]['n']})", loc="left")
        axes.set_xlabel("MCC")
        axes.xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_yticks(range(len(raters)), [rater["title"] for rater in raters])
    panels[0].set_ylim(len(raters) - 0.5, -0.5)
    return figure


def _roc(image_set: ImageSet, raters: Sequence[Rater], class_names: Sequence[str]) -> Figure:
    """A panel a class: thin lines are single trainings; a reader is a point."""
    k = len(class_names)
    figure = Figure(figsize=(max(4.2, 2.9 * k), 3.6), layout="constrained")
    panels = figure.subplots(1, k, squeeze=False, sharex=True, sharey=True)[0]
    here = [rater for rater in raters if image_set.key in rater.probabilities]
    marks = iter(_MARKS * len(here))
    handles = []
    drawn = {rater.key: next(marks) for rater in here if rater.kind == "reader"}
    for rater in here:
        shade = _COLOURS.get(rater.key, INK)
        mark = drawn.get(rater.key)
        handles.append(
            Line2D([], [], color=shade, marker=mark, linestyle="" if mark else "-",
                   label=rater.title)
        )  # fmt: skip
        read = rater.read(image_set.key)
        for axes, c in zip(panels, range(k)):
            truth = image_set.labels[read] == c
            if truth.all() or not truth.any():
                continue
            for rows in rater.probabilities[image_set.key][:, read]:
                if mark:
                    named = rows.argmax(1) == c
                    axes.plot(named[~truth].mean(), named[truth].mean(), mark, color=shade)
                else:
                    false, true, _ = roc_curve(truth, rows[:, c])
                    axes.plot(false, true, color=shade, linewidth=1.2, alpha=0.8)
    for axes, name in zip(panels, class_names):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_title(name, loc="left")
        axes.set_xlabel("1 − specificity")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    panels[0].set_ylabel("sensitivity")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    return figure


def _equivalence(results: Mapping[str, Any]) -> Figure:
    """The interval of the difference on every set, over the band of the margin."""
    judged = results["equivalence"]
    figure = Figure(figsize=(7.2, 1.2 + 0.42 * len(judged)), layout="constrained")
    axes = figure.subplots()
    margin = next(iter(judged.values()))["margin"]
    axes.axvspan(-margin, margin, color=GRID, alpha=0.8)
    axes.axvline(0, color=FAINT, linewidth=1)
    largest = margin
    for row, each in enumerate(judged.values()):
        difference = each["difference"]
        if difference["low"] is None:
            continue
        axes.plot([difference["low"], difference["high"]], [row, row], color=INK, linewidth=2.2)
        axes.plot(difference["mean"], row, "o", color=INK, markersize=7)
        largest = max(largest, -difference["low"], difference["high"])
    axes.set_xlim(-1.15 * largest, 1.15 * largest)
    axes.set_ylim(len(judged) - 0.5, -0.5)
    axes.set_yticks(range(len(judged)), [TITLES[key] for key in judged])
    axes.set_xlabel(f"difference in MCC, secure less local (grey: margin of ±{margin:g})")
    return figure
