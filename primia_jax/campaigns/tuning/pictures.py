"""The pictures of a search: what was tried, what mattered, what good settings have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from primia_jax.campaigns.tuning.space import Dimension
from primia_jax.campaigns.tuning.study import best_of, learned
from primia_jax.reporting.figures import FAINT, GRID, INK, STYLE, colour, data_uri

_COMPLETE, _BEST, _BAD = colour(0), colour(1), colour(4)
_SHADES = matplotlib.colormaps["viridis_r"]  # the better, the darker
_ENDED = colour(5)


def history(trials: Sequence[FrozenTrial]) -> tuple[str, list[tuple[str, str]]]:
    """The MCC of each trial in the order of their begin, and the highest so far; with a legend."""
    complete = [(t.number, t.value) for t in trials if learned(t)]
    pruned = [
        (t.number, max(t.intermediate_values.values()))
        for t in trials
        if t.state is TrialState.PRUNED and t.intermediate_values
    ]
    lost = [t.number for t in trials if t.user_attrs.get("diverged") or _failed(t)]
    legend = [(_COMPLETE, "complete")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.2), layout="constrained")
        axes = figure.subplots()
        if complete:
            numbers, values = map(list, zip(*complete))
            axes.step(
                [*numbers, max(t.number for t in trials)],
                [*np.maximum.accumulate(values), max(values)],
                where="post", color=_BEST, linewidth=1.5,
            )  # fmt: skip
            axes.plot(numbers, values, "o", color=_COMPLETE, markersize=5)
            legend.append((_BEST, "highest so far"))
        if pruned:
            axes.plot(
                *zip(*pruned), "o", color=FAINT, markerfacecolor="white", markersize=5,
                linestyle="",
            )  # fmt: skip
            legend.append((FAINT, "pruned: highest until then"))
        if lost:
            bottom = axes.get_ylim()[0]
            axes.plot(lost, [bottom] * len(lost), "x", color=_BAD, markersize=6, clip_on=False)
            legend.append((_BAD, "diverged or failed"))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("trial")
        axes.set_ylabel("validation MCC")
        return data_uri(figure), legend


def by_round(trials: Sequence[FrozenTrial]) -> tuple[str, list[tuple[str, str]]]:
    """The MCC of every trial over its rounds, with a legend."""
    best = best_of(trials)
    legend = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.2), layout="constrained")
        axes = figure.subplots()
        groups = (
            (_COMPLETE, "complete", [t for t in trials if learned(t) and t is not best]),
            (_ENDED, "pruned, diverged or failed", [t for t in trials if not learned(t)]),
            (_BEST, "best", [best] if best else []),
        )
        for shade, name, members in groups:
            drawn = [t for t in members if t.intermediate_values]
            for trial in drawn:
                rounds, values = zip(*sorted(trial.intermediate_values.items()))
                axes.plot(
                    rounds, values, color=shade,
                    linewidth=2.4 if trial is best else 1.1,
                    alpha=0.5 if shade == _COMPLETE else 1.0,
                    linestyle=(0, (3, 2)) if shade == _ENDED else "-",
                )  # fmt: skip
                if trial is best or shade == _ENDED:
                    axes.plot(rounds[-1], values[-1], "o", color=shade, markersize=3.5)
            if drawn:
                legend.append((shade, name))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("round")
        axes.set_ylabel("validation MCC")
        return data_uri(figure), legend


def importances(shares: Mapping[str, float]) -> str:
    """Bars, the most important setting first."""
    names = list(shares)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 0.7 + 0.27 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(names)), list(shares.values()), color=_COMPLETE, height=0.66)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        axes.set_xlabel("share of the variance of the MCC")
        return data_uri(figure)


def parallel_coordinates(trials: Sequence[FrozenTrial], space: Sequence[Dimension]) -> str:
    """Each complete trial as a line through its settings, an axis each, the MCC at the top."""
    complete = sorted((t for t in trials if learned(t)), key=lambda t: (t.value, -t.number))
    values = np.array([t.value for t in complete], float)
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    heights = (values - low) / (high - low) if high > low else np.full(len(values), 1.0)
    places = [[_place(t.params[d.name], d) for d in space] for t in complete]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 1.0 + 0.5 * (len(space) + 1)), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        _axis(axes, 0, "validation MCC", f"{low:.3f}", f"{high:.3f}")
        for row, dimension in enumerate(space, 1):
            _axis(axes, row, dimension.name, *_ends(dimension))
            options = _options(dimension)
            for k, option in enumerate(options[1:-1], 1):
                axes.annotate(
                    _text(option), (k / (len(options) - 1), row), (0, -4),
                    textcoords="offset points", ha="center", va="top", fontsize=8, color=INK,
                )  # fmt: skip
        for i, (height, row_places) in enumerate(zip(heights, places)):
            last = i == len(complete) - 1
            axes.plot(
                [height, *row_places], range(len(space) + 1),
                color=_BEST if last else _SHADES(0.15 + 0.85 * height),
                linewidth=2.4 if last else 1.1, alpha=1.0 if last else 0.75,
                marker="o", markersize=3.2, clip_on=False, zorder=3 if last else 2,
            )  # fmt: skip
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(len(space) + 0.5, -0.4)
        return data_uri(figure)


def _axis(axes: Axes, row: int, name: str, low: str, high: str) -> None:
    axes.plot([0, 1], [row, row], color=GRID, linewidth=2, zorder=1)
    at: Any = {"textcoords": "offset points", "color": INK, "annotation_clip": False, "zorder": 4}
    at["path_effects"] = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    axes.annotate(name, (-0.02, row), (-6, 0), ha="right", va="center", fontsize=9, **at)
    axes.annotate(low, (0, row), (0, -4), ha="left", va="top", fontsize=8, **at)
    axes.annotate(high, (1, row), (0, -4), ha="right", va="top", fontsize=8, **at)


def _place(value: Any, dimension: Dimension) -> float:
    """Position of a value on its axis [0, 1]."""
    distribution: Any = dimension.distribution
    options = _options(dimension)
    if options:
        return options.index(value) / (len(options) - 1)
    scale = np.log if dimension.is_log else float
    low, high = scale(distribution.low), scale(distribution.high)
    return float((scale(value) - low) / (high - low))


def _ends(dimension: Dimension) -> tuple[str, str]:
    options, distribution = _options(dimension), dimension.distribution
    if options:
        return _text(options[0]), _text(options[-1])
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return _text(distribution.low), _text(distribution.high)


def _options(dimension: Dimension) -> Sequence[Any]:
    distribution = dimension.distribution
    return distribution.choices if isinstance(distribution, CategoricalDistribution) else ()


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _failed(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.FAIL
