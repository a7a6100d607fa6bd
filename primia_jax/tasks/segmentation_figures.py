"""Figures of a segmentation's test: Dice of structures and sites, and overlays of three images.

Axis letters: n records, s image side, k structures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from primia_jax.evaluation.blocks import (
    Card,
    Cards,
    Cell,
    Figures,
    Section,
    Table,
    grey,
    score,
    tiles,
    with_interval,
)
from primia_jax.tasks.task import Evaluation

COLOURS = ((29, 91, 143), (198, 66, 46), (47, 125, 99), (134, 80, 143), (169, 138, 29))
_SHOWN_SIDE = 256  # at least: small images are enlarged so that outlines can be seen
_FILL = 0.30  # share of a colour in a predicted structure


def colour(structure: int) -> tuple[int, int, int]:
    """The colour of a structure other than the background, by its value in masks."""
    return COLOURS[(structure - 1) % len(COLOURS)]


def figures(class_names: Sequence[str], evaluation: Evaluation, errors: np.ndarray) -> Figures:
    """Content of the report on `evaluation`; `errors` [n] choose the images."""
    scores = evaluation.scores
    shown = (("dice", "Dice, mean of structures"), ("accuracy", "Pixel accuracy"))
    sections = [
        Section("performance", "Performance on the test images", [_dice(class_names, scores)]),
        Section("samples", "Sample predictions", [_overlays(class_names, evaluation, errors)]),
    ]
    return Figures(tiles(scores, shown), sections)


def _dice(class_names: Sequence[str], scores: Mapping[str, Any]) -> Table:
    """Dice of each structure and their mean: at all sites, and at each."""
    structures = class_names[1:]

    def row(name: str, of: Mapping[str, Any]) -> tuple[Cell, ...]:
        intervals = of["intervals"]
        by_class = (
            with_interval(of["dice_by_class"][c], intervals["dice_by_class"][c]) for c in structures
        )
        mean = with_interval(of["dice"], intervals["dice"])
        accuracy = with_interval(of["accuracy"], intervals["accuracy"])
        return Cell(name), Cell(f"{of['n']:,}"), *by_class, mean, accuracy

    rows = [row(site or "–", of) for site, of in scores["per_site"].items()]
    rows.append(row("all sites", scores))
    head = ("Site", "Images", *(f"Dice, {c}" for c in structures), "Dice, mean", "Pixel accuracy")
    note = (
        "Dice is 2·|predicted ∩ true| / (|predicted| + |true|) over all pixels of all images "
        "together; 1 is perfect. Intervals are 95 % percentile intervals of a bootstrap over the "
        "test images. They speak of this test set and this one trained model."
    )
    return Table(head, rows, note=note, anchor="sites")


def _overlays(class_names: Sequence[str], evaluation: Evaluation, errors: np.ndarray) -> Cards:
    """The best, the median and the worst image by its own Dice, each once."""
    data, order = evaluation.data, np.argsort(errors, kind="stable")
    chosen = {"worst": order[-1], "median": order[len(order) // 2], "best": order[0]}
    cards = {
        int(i): Card(
            overlay(data.images[i, :, :, 0], evaluation.predictions[i], _mask(evaluation, int(i))),
            data.names[i],
            str(data.sites[i]),
            ((f"{word} image, Dice", score(1 - float(errors[i]))),),
        )
        for word, i in chosen.items()
    }
    legend = [
        ("#{:02x}{:02x}{:02x}".format(*colour(i)), name)
        for i, name in enumerate(class_names[1:], 1)
    ]
    note = "Coloured: predicted structures. White lines: outlines of the true ones."
    return Cards("", list(cards.values())[::-1], note, legend)


def _mask(evaluation: Evaluation, i: int) -> np.ndarray:
    assert evaluation.data.masks is not None
    return np.asarray(evaluation.data.masks[i])


def overlay(image: np.ndarray, predicted: np.ndarray, true: np.ndarray | None = None) -> np.ndarray:
    """[t t 3] uint8, t ≥ s: an image with predicted structures coloured and true ones outlined.

    Args:
      image: [s s] uint8 or uint16.
      predicted: [s s] uint8 mask.
      true: [s s] uint8 mask; None for no outlines.
    """
    zoom = -(-_SHOWN_SIDE // image.shape[0]) if image.shape[0] < _SHOWN_SIDE else 1
    image, predicted = (a.repeat(zoom, 0).repeat(zoom, 1) for a in (grey(image), predicted))
    picture = np.repeat(image[..., None], 3, -1).astype(np.float64)
    for structure in range(1, int(predicted.max(initial=0)) + 1):
        inside = predicted == structure
        picture[inside] = (1 - _FILL) * picture[inside] + _FILL * np.array(colour(structure))
    if true is not None:
        true = true.repeat(zoom, 0).repeat(zoom, 1)
        edge = np.zeros(true.shape, bool)
        edge[1:] |= true[1:] != true[:-1]
        edge[:, 1:] |= true[:, 1:] != true[:, :-1]
        picture[edge] = 255
    return picture.round().astype(np.uint8)
