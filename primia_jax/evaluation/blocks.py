"""Blocks of a report as plain values: tasks fill them, `reporting` makes pages of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Tile(NamedTuple):
    """One figure at the top of the page."""

    name: str
    value: str
    note: str


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
      text: what it says.
      note: a smaller second line.
      share: 0 to 1, how strongly it is coloured.
      right: True for the colour of what is correct.
    """

    text: str
    note: str = ""
    share: float = 0.0
    right: bool = True


class Table(NamedTuple):
    """A table; the first column names its rows.

    Attributes:
      head: names of the columns.
      rows: their cells.
      title: a heading.
      note: a remark below.
      anchor: id within the page.
      over: a heading over all columns but the first, of a matrix.
      remark: True if the last column is text.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""
    anchor: str = ""
    over: str = ""
    remark: bool = False


class Curves(NamedTuple):
    """ROC and calibration of class probabilities.

    Attributes:
      labels: [n] int.
      probabilities: [n k].
      names: [k] of the classes, with what the legend says of each.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    names: Sequence[str]


class Bar(NamedTuple):
    """A share of 0 to 1; a marked one stands out."""

    name: str
    share: float
    marked: bool = False


class Card(NamedTuple):
    """One image with what was predicted.

    Attributes:
      image: [s s] or [s s 3] uint8.
      name: of its record.
      site: where it comes from.
      facts: (word, value), such as ("true", "viral").
      bars: shares.
    """

    image: np.ndarray
    name: str
    site: str
    facts: Sequence[tuple[str, str]]
    bars: Sequence[Bar] = ()


class Cards(NamedTuple):
    """Images side by side.

    Attributes:
      title: a heading.
      cards: the images.
      note: a remark below.
      legend: (colour as #rrggbb, name).
    """

    title: str
    cards: Sequence[Card]
    note: str = ""
    legend: Sequence[tuple[str, str]] = ()


Block = Table | Curves | Cards


class Section(NamedTuple):
    """A part of the page under a heading."""

    anchor: str
    title: str
    blocks: Sequence[Block]


class Figures(NamedTuple):
    """Content of a report on a test."""

    tiles: Sequence[Tile]
    sections: Sequence[Section]


def score(value: float | None, digits: int = 3) -> str:
    """A score, or a dash where it is not defined."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """An interval, or a dash where it is not defined."""
    return "–" if bounds is None else f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


def with_interval(value: float | None, bounds: Sequence[float] | None) -> Cell:
    """A score over its interval."""
    return Cell(score(value), interval(bounds) if bounds else "")


def tiles(scores: Mapping[str, Any], shown: Iterable[tuple[str, str]]) -> list[Tile]:
    """Tiles of the scores `shown`, (key, name) each, and one of the number of test images."""
    bounds = scores["intervals"]
    made = [
        Tile(name, score(scores[key], 2), f"95 % interval {interval(bounds.get(key), 2)}")
        for key, name in shown
    ]
    held_out = "held out from training and model selection"
    return [*made, Tile("Test images", f"{scores['n']:,}", held_out)]


def grey(images: np.ndarray) -> np.ndarray:
    """[…] uint8 of stored grey levels (uint8 or uint16)."""
    return (images >> 8 if images.dtype == np.uint16 else images).astype(np.uint8)
