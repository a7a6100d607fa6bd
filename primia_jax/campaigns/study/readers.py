"""Human readings: a CSV file with the columns image, reader and label, a line a reading."""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from primia_jax.core.storage import check_regular
from primia_jax.errors import DataError

COLUMNS = ("image", "reader", "label")
_MAX_BYTES = 1 << 28  # of a table of readings
_LISTED = 5  # of what is wrong
UNREAD = -1


class Reader(NamedTuple):
    """One person's readings of Test Set 1."""

    name: str
    ratings: np.ndarray  # [n] the class named for each image; UNREAD where there is none

    @property
    def read(self) -> np.ndarray:
        """[n] whether the image was read."""
        return self.ratings != UNREAD


def read_readings(
    path: str, images: Sequence[str], class_names: Sequence[str], least: int = 2
) -> tuple[Reader, ...]:
    """The readers of a file, in the order in which they first appear.

    A reader need not have read every image.

    Args:
      path: the CSV file; further columns are ignored.
      images: [n] the names of Test Set 1.
      class_names: [k] the names that labels may have, case ignored.
      least: readers that there must be.

    Raises:
      DataError: naming a column that is missing; listing images that are not in the set, labels
        that are no class, readings given twice; or if there are fewer than `least` readers.
    """
    place = {name: i for i, name in enumerate(images)}
    classes = {name.lower(): c for c, name in enumerate(class_names)}
    ratings: dict[str, np.ndarray] = {}
    spelt: dict[str, str] = {}  # each reader's name in small letters -> as first written
    other_spelling: list[str] = []
    images_unknown: list[str] = []
    labels_unknown: list[str] = []
    empty: list[str] = []
    twice: list[str] = []
    for line, (image, reader, label) in _rows(path):
        if not reader:
            empty.append(f"line {line}")
            continue
        first = spelt.setdefault(reader.casefold(), reader)
        if reader != first:
            other_spelling.append(f"{reader!r} and {first!r} (line {line})")
        mine = ratings.setdefault(first, np.full(len(place), UNREAD))
        if image not in place:
            images_unknown.append(f"{image!r} (line {line})")
        elif label.lower() not in classes:
            labels_unknown.append(f"{label!r} (line {line})")
        elif mine[place[image]] != UNREAD:
            twice.append(f"{image!r} by {reader} (line {line})")
        else:
            mine[place[image]] = classes[label.lower()]
    wrong = []
    if empty:
        wrong.append(f"no reader is named in {_listed(empty)}")
    if other_spelling:
        wrong.append(f"one reader spelt in two ways: {_listed(other_spelling)}")
    if images_unknown:
        wrong.append(
            f"{_number(images_unknown, 'image')} not in Test Set 1: {_listed(images_unknown)} "
            f"(its images are named like {images[0]!r})"
        )
    if labels_unknown:
        wrong.append(
            f"{_number(labels_unknown, 'label')} unknown: {_listed(labels_unknown)} (allowed are "
            f"{', '.join(class_names)})"
        )
    if twice:
        wrong.append(
            f"{_number(twice, 'reading')} given before: {_listed(twice)} (keep one for each image "
            "and reader)"
        )
    if wrong:
        raise DataError(f"readings {path}: {'; '.join(wrong)}")
    if len(ratings) < least:
        alone = (
            "; config.study.min_readers=1 goes without agreement between readers"
            if len(ratings) == 1
            else ""
        )
        raise DataError(
            f"readings {path}: {_number(list(ratings), 'reader')} found, and agreement between "
            f"readers (Cohen's kappa) needs at least {least}{alone}"
        )
    return tuple(Reader(name, mine) for name, mine in ratings.items())


def _rows(path: str) -> list[tuple[int, tuple[str, ...]]]:
    """The three columns of each line with its number; blank lines are left out."""
    try:
        if os.path.exists(path):
            check_regular(pathlib.Path(path), _MAX_BYTES)
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # not UTF-8, or no path at all
        reason = (error.strerror if isinstance(error, OSError) else "") or "it is not a UTF-8 text"
        raise DataError(
            f"readings {path} cannot be read: {reason}; set config.study.readers to a CSV file "
            f"with the columns {','.join(COLUMNS)}"
        ) from error
    if text.startswith("sep="):  # a line that some spreadsheets put first
        text = text.partition("\n")[2]
    first, *_ = text.splitlines() or [""]
    semicolons = first.count(";") > first.count(",")  # as some spreadsheets write it
    lines = csv.reader(text.splitlines(), delimiter=";" if semicolons else ",")
    try:
        heads = [head.strip().lower() for head in next(lines, [])]
        missing = [name for name in COLUMNS if name not in heads]
        if missing:
            columns = ", ".join(head for head in heads if head) or "none"
            raise DataError(
                f"readings {path}: no column {' and '.join(missing)} (found: {columns}); the first "
                f"line must name {','.join(COLUMNS)}"
            )
        double = [name for name in COLUMNS if heads.count(name) > 1]
        if double:
            raise DataError(f"readings {path}: there are two columns {double[0]}; keep one")
        at = [heads.index(name) for name in COLUMNS]
        rows = []
        for row in lines:
            if any(value.strip() for value in row):
                padded = row + [""] * (len(heads) - len(row))
                rows.append((lines.line_num, tuple(padded[i].strip() for i in at)))
    except csv.Error as error:
        raise DataError(f"readings {path}, line {lines.line_num}: {error}") from error
    return rows


def _number(names: Sequence[str], noun: str) -> str:
    many = "" if len(names) == 1 else "s"
    verb = "" if noun == "reader" else " is" if len(names) == 1 else " are"
    return f"{len(names)} {noun}{many}{verb}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
