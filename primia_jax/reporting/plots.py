"""Plots of a run: its curves, with the legends that the page sets beside them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from primia_jax.evaluation.blocks import Curves
from primia_jax.evaluation.record import RunRecord, score
from primia_jax.reporting import figures
from primia_jax.reporting.console import ALL

_CURVES_BY_SITE = 10  # with more sites, only their mean is coloured


def of_curves(curves: Curves) -> dict[str, Any]:
    """The ROC and calibration plots, with the legend of the former."""
    labels, probabilities, names = curves
    present = set(np.unique(labels).tolist())
    # With two classes the second curve is the mirror image of the first.
    shown = [1] if len(names) == 2 else range(len(names))
    shades = {c: figures.colour(c) for c in shown if c in present and len(present) > 1}
    return {
        "roc": figures.roc(labels, probabilities, shades) if shades else None,
        "roc_legend": [(shade, names[c]) for c, shade in shades.items()],
        "calibration": figures.calibration(labels, probabilities),
    }


def of_training(run: RunRecord) -> list[dict[str, Any]]:
    """Losses by site and validation scores by round, each where something is known."""
    plots = []
    for key, title in (
        ("loss", "Training loss"),
        ("validation_loss", "Validation loss"),
        ("validation_accuracy", "Validation accuracy by site"),
    ):
        lines, legend = _site_curves(run, key)
        if lines:
            unit = key == "validation_accuracy"
            loss = run.loss_name if key == "validation_loss" else "loss"
            label = "accuracy" if unit else loss
            mean_only = len(lines) > _CURVES_BY_SITE
            image = figures.curves(lines, label, bold=mean_only, unit_range=unit)
            plots.append({"title": title, "image": image, "legend": legend})
    summaries = [line for line in _numbered(run) if line.get("site") == ALL]
    kept = [line["round"] for line in summaries if line.get("best")]
    lines, legend = [], []
    curves = (
        (next((score(line).name for line in summaries), ""), lambda line: score(line).value),
        ("accuracy", lambda line: (line.get("validation") or {}).get("accuracy")),
    )
    for i, (name, value_of) in enumerate(curves):
        points = [(line["round"], value_of(line)) for line in summaries]
        known = [(r, value) for r, value in points if value is not None]
        if known:
            lines.append((*zip(*known), figures.colour(i)))
            legend.append((figures.colour(i), name))
    if lines:
        if kept:
            legend.append((figures.INK, f"kept model: round {kept[-1]}"))
        image = figures.curves(
            lines, "score", kept_round=kept[-1] if kept else None, unit_range=True
        )
        title = "Validation over all sites"
        plots.append({"title": title, "image": image, "legend": legend})
    return plots


def _site_curves(run: RunRecord, key: str) -> tuple[list[Any], list[tuple[str, str]]]:
    """Curves of `key` by site with their legend; of many sites the mean is added as the last."""
    values: dict[str, list[tuple[int, float]]] = {}
    for line in _numbered(run):
        value = line.get(key)
        if line.get("site") != ALL and value is not None and np.isfinite(value):
            values.setdefault(str(line.get("site")), []).append((line["round"], value))
    if len(values) <= _CURVES_BY_SITE:
        lines = [(*zip(*points), figures.colour(i)) for i, points in enumerate(values.values())]
        return lines, [(figures.colour(i), site) for i, site in enumerate(values)]
    lines = [(*zip(*points), figures.GRID) for points in values.values()]
    by_round: dict[int, list[float]] = {}
    for points in values.values():
        for r, value in points:
            by_round.setdefault(r, []).append(value)
    means = [(r, float(np.mean(by_round[r]))) for r in sorted(by_round)]
    lines.append((*zip(*means), figures.colour(0)))
    return lines, [(figures.FAINT, "each site"), (figures.colour(0), "mean of the sites")]


def _numbered(run: RunRecord) -> list[Mapping[str, Any]]:
    """The lines of rounds.jsonl that say which round they are of."""
    return [line for line in run.rounds if line.get("round") is not None]
