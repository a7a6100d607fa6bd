"""Figures of a classifier's test: scores, confusion matrix, curves, sites and sample images.

Axis letters: n records, k classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from primia_jax.data import Dataset
from primia_jax.evaluation.blocks import (
    Bar,
    Block,
    Card,
    Cards,
    Cell,
    Curves,
    Figures,
    Section,
    Table,
    grey,
    interval,
    score,
    tiles,
    with_interval,
)
from primia_jax.tasks.task import Evaluation

_SAMPLES = 12  # images shown: half of them misclassified, if there are so many
_SCORES = (
    ("mcc", "Matthews correlation (MCC)", "1 is perfect, 0 no better than chance"),
    ("accuracy", "Accuracy", "share of images that are classified correctly"),
    ("kappa", "Cohen's κ", "agreement with the truth beyond chance"),
    ("roc_auc", "ROC AUC", "one-vs-rest, weighted by class counts"),
    ("brier", "Brier score", "squared error of the probabilities, 0 to 2; lower is better"),
    ("ece", "Calibration error (ECE)", "15 bins of the top probability; lower is better"),
)
_TILES = ("mcc", "accuracy", "roc_auc")
_BY_CLASS = ("sensitivity", "specificity", "roc_auc_by_class")
_BY_SITE = {"accuracy": "Accuracy", "mcc": "MCC", "kappa": "κ", "roc_auc": "AUC",
            "brier": "Brier", "ece": "ECE"}  # fmt: skip
_INTERVALS = (
    "Intervals are 95 % percentile intervals of a bootstrap over the test images, stratified by "
    "class. They speak of this test set and this one trained model; another training run may "
    "differ by more. An interval without width, where all images of a class or none are correct, "
    "does not mean certainty."
)


def figures(class_names: Sequence[str], evaluation: Evaluation) -> Figures:
    """Content of the report on `evaluation`."""
    scores = evaluation.scores
    blocks: list[Block] = [_scores(scores), _classes(class_names, scores)]
    blocks.append(_confusion(class_names, scores["confusion"]))
    sections = [Section("performance", "Performance on the test images", blocks)]
    auc = scores["roc_auc_by_class"]
    names = [
        name if auc.get(name) is None else f"{name} (AUC {auc[name]:.3f})" for name in class_names
    ]
    curves = Curves(np.asarray(evaluation.data.labels), np.asarray(evaluation.predictions), names)
    sections.append(Section("curves", "", [curves]))
    if scores["per_site"]:
        sections.append(Section("sites", "Performance by site", [_sites(scores["per_site"])]))
    sections.append(Section("samples", "Sample predictions", _samples(class_names, evaluation)))
    shown = [(key, name) for key, name, _ in _SCORES if key in _TILES]
    return Figures(tiles(scores, shown), sections)


def _scores(scores: Mapping[str, Any]) -> Table:
    rows = [
        (Cell(name), Cell(score(scores[key])), Cell(interval(scores["intervals"].get(key))),
         Cell(meaning))
        for key, name, meaning in _SCORES
    ]  # fmt: skip
    return Table(("Score", "Value", "95 % interval", "Meaning"), rows, remark=True)


def _classes(class_names: Sequence[str], scores: Mapping[str, Any]) -> Table:
    """Sensitivity, specificity and AUC of every class, each with its interval."""
    rows = []
    for name, counts in zip(class_names, scores["confusion"]):
        cells = [
            with_interval(scores[key].get(name), (scores["intervals"].get(key) or {}).get(name))
            for key in _BY_CLASS
        ]
        rows.append((Cell(name), Cell(f"{sum(counts):,}"), *cells))
    head = ("Class", "Images", "Sensitivity", "Specificity", "AUC against the rest")
    return Table(head, rows, "By class", _INTERVALS)


def _confusion(class_names: Sequence[str], matrix: Sequence[Sequence[int]]) -> Table:
    rows = []
    for c, counts in enumerate(matrix):
        total = max(1, sum(counts))
        cells = [
            Cell(str(count), f"{100 * count / total:.0f} %", count / total, j == c)
            for j, count in enumerate(counts)
        ]
        rows.append((Cell(class_names[c]), *cells))
    note = "Percentages are of the row, that is of the images of a true class."
    return Table(
        ("true", *class_names), rows, "Confusion matrix", note, "confusion", over="predicted"
    )


def _sites(per_site: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        (Cell(site or "–"), Cell(f"{row['n']:,}"), *(Cell(score(row[key])) for key in _BY_SITE))
        for site, row in per_site.items()
    ]
    note = (
        "The AUC is not defined (–) at a site whose test images lack one of the classes. ECE grows "
        "as a set shrinks; do not compare it between sites of different size."
    )
    return Table(("Site", "Images", *_BY_SITE.values()), rows, note=note)


def _samples(class_names: Sequence[str], evaluation: Evaluation) -> list[Block]:
    """A few of the images: half of them misclassified, if there are so many."""
    data, predicted = evaluation.data, evaluation.predictions.argmax(1)
    wrong = _spread(np.flatnonzero(predicted != data.labels), data, predicted, _SAMPLES // 2)
    right = _spread(
        np.flatnonzero(predicted == data.labels), data, predicted, _SAMPLES - len(wrong)
    )
    note = "Bars are the predicted probabilities; the bar of the true class is blue."
    groups = ((wrong, "Classified incorrectly", ""), (right, "Classified correctly", note))

    def card(i: int) -> Card:
        true = class_names[data.labels[i]]
        return Card(
            grey(data.images[i, :, :, 0]),
            data.names[i],
            str(data.sites[i]),
            (("true", true), ("predicted", class_names[predicted[i]])),
            [Bar(c, float(p), c == true) for c, p in zip(class_names, evaluation.predictions[i])],
        )

    return [Cards(title, [card(i) for i in group], note) for group, title, note in groups if group]


def _spread(records: np.ndarray, data: Dataset, predicted: np.ndarray, count: int) -> list[int]:
    """At most `count` of `records`, by turns from each kind of error and each site.

    The kinds are the pairs (true class, predicted class), the commonest first; within a kind the
    sites come by turns. So the images shown are of many kinds and sites, not the first ones of one.
    """
    kinds: dict[tuple[int, int], dict[str, list[int]]] = {}
    for i in records:
        kind = (int(data.labels[i]), int(predicted[i]))
        kinds.setdefault(kind, {}).setdefault(str(data.sites[i]), []).append(int(i))
    ordered = sorted(kinds.values(), key=lambda sites: -sum(map(len, sites.values())))
    queues = [_by_turns(list(sites.values())) for sites in ordered]
    return _by_turns(queues)[:count]


def _by_turns(queues: Sequence[Sequence[int]]) -> list[int]:
    """The first of each queue, then the second of each, and so on."""
    longest = max(map(len, queues), default=0)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
