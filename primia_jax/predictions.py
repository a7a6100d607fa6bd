"""Diagnoses of unlabelled images, and the table `predictions.csv` that holds them."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from primia_jax.core import names, storage
from primia_jax.errors import DataError

FILE, MASKS = "predictions.csv", "masks"  # what diagnoses leave in a folder
_FIRST, _LAST = ["file", "class"], ["in_range", "remarks"]  # one column a class stands between
_PREFIX = "p_"  # of the classes' columns
_FLAGS = {True: "yes", False: "no", None: ""}


class Row(NamedTuple):
    """A diagnosed image in a table.

    Attributes:
      name: of its file.
      answer: its class, or the file of its mask.
      shares: [k] probability or share of each class.
      in_range: as in `Predictions`.
      remark: a note on the image; or empty.
    """

    name: str
    answer: str
    shares: np.ndarray
    in_range: bool | None
    remark: str

    def line(self, text: str) -> str:
        """`text` on the image, with the file's name and the remark, for people."""
        notes = "   [out of range]" if self.in_range is False else ""
        notes = f"   [{self.remark}]" if self.remark else notes
        return f"{names.printable(self.name)}: {text}{notes}"


def shares_text(class_names: Sequence[str], shares: Iterable[float]) -> str:
    """Classes with their shares, for people."""
    return "  ".join(f"{name} {share:.3f}" for name, share in zip(class_names, shares))


def write_table(
    path: pathlib.Path,
    answer: str,
    columns: Iterable[str],
    rows: Iterable[Row],
    skipped: Iterable[tuple[str, str]],
) -> None:
    """Replaces `path` by a CSV table of diagnoses, readable by its owner alone.

    Args:
      path: of the table.
      answer: name of the column of answers.
      columns: [k] names of the columns of shares.
      rows: of the images.
      skipped: files that could not be read, with reasons; each is a row without an answer, and its
        reason stands in the remarks.

    Raises:
      StorageError: if it cannot be written; the former file is still there.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["file", answer, *map(names.csv_cell, columns), *_LAST]
    writer.writerow(head)
    for row in rows:
        cells = [names.csv_cell(cell) for cell in (row.name, row.answer, row.remark)]
        numbers = (f"{share:.6f}" for share in row.shares)
        writer.writerow([*cells[:2], *numbers, _FLAGS[row.in_range], cells[2]])
    for name, why in skipped:
        empty = [""] * (len(head) - 2)
        writer.writerow([names.csv_cell(name), *empty, names.csv_cell(why)])
    storage.write_text(path, text.getvalue())


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Diagnoses of n images in k classes.

    Attributes:
      names: [n] of the files.
      probabilities: [n k].
      class_names: [k].
      skipped: files that could not be read, with reasons.
      in_range: [n] True if every value of the encrypted computation stayed in the range that the
        network was calibrated for, False if the diagnosis may be wrong for that reason, None where
        nothing is computed in a bounded range; or empty, for None throughout.
      remarks: [n] notes on the images, for instance of the DICOM guard; or empty.
    """

    names: list[str]
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    skipped: list[tuple[str, str]]
    in_range: tuple[bool | None, ...] = ()
    remarks: tuple[str, ...] = ()

    def classes(self) -> list[str]:
        """[n] the most probable class of each image."""
        return [self.class_names[i] for i in self.probabilities.argmax(1)]

    def rows(self) -> list[Row]:
        """[n] rows of the table."""
        n = len(self.names)
        flags, remarks = self.in_range or (None,) * n, self.remarks or ("",) * n
        return list(map(Row, self.names, self.classes(), self.probabilities, flags, remarks))

    def lines(self) -> list[str]:
        """One line an image, with what the table remarks on it."""
        return [
            row.line(f"{row.answer}   ({shares_text(self.class_names, row.shares)})")
            for row in self.rows()
        ]

    def write(self, path: pathlib.Path) -> None:
        """Replaces `path` by a CSV table, readable by its owner alone.

        Columns: file, class, a probability for each class (`p_CLASS`), in_range (yes, no, or empty
        where it has no meaning), remarks.

        Raises:
          StorageError: if it cannot be written; the former file is still there.
        """
        columns = [f"{_PREFIX}{name}" for name in self.class_names]
        write_table(path, _FIRST[1], columns, self.rows(), self.skipped)


def read_predictions(folder: str | pathlib.Path) -> Predictions:
    """The predictions.csv in `folder`, e.g. the data owner's after an encrypted diagnosis.

    Raises:
      DataError: if there is none, or it is no such table.
    """
    path = names.user_path(folder) / FILE
    storage.check_regular(path)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        if head[:2] != _FIRST or head[-2:] != _LAST or any(len(r) != len(head) for r in rows):
            raise ValueError(f"expected the columns {', '.join(_FIRST)}, …, {', '.join(_LAST)}")
        known = {text: flag for flag, text in _FLAGS.items()}
        diagnosed = [row for row in rows if row[1]]
        return Predictions(
            names=[names.csv_text(row[0]) for row in diagnosed],
            probabilities=np.asarray([row[2:-2] for row in diagnosed], np.float32).reshape(
                len(diagnosed), len(head) - 4
            ),
            class_names=tuple(names.csv_text(name).removeprefix(_PREFIX) for name in head[2:-2]),
            skipped=[
                (names.csv_text(row[0]), names.csv_text(row[-1])) for row in rows if not row[1]
            ],
            in_range=tuple(known[row[-2]] for row in diagnosed),
            remarks=tuple(names.csv_text(row[-1]) for row in diagnosed),
        )
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(
            f"{path} is no table of predictions ({storage.reason(error)}); diagnose anew"
        ) from error
