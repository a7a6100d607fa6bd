"""Diagnoses of unlabelled images, and the table `predictions.csv` that holds them."""

import csv
import dataclasses
import io
import pathlib

import numpy as np

from primia_jax.core import names, storage
from primia_jax.errors import DataError

FILE, MASKS = "predictions.csv", "masks"  # what diagnoses leave in a folder
_FIRST, _LAST = ["file", "class"], ["in_range", "remarks"]  # one column a class stands between
_PREFIX = "p_"  # of the classes' columns
_FLAGS = {True: "yes", False: "no", None: ""}


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

    def flags(self) -> tuple[bool | None, ...]:
        """[n] `in_range`, with None where nothing is given."""
        return self.in_range or (None,) * len(self.names)

    def lines(self) -> list[str]:
        """One line an image, with what the table remarks on it."""
        remarks = self.remarks or ("",) * len(self.names)
        rows = zip(self.names, self.classes(), self.probabilities, self.flags(), remarks)
        lines = []
        for name, label, row, in_range, remark in rows:
            chances = "  ".join(f"{c} {p:.3f}" for c, p in zip(self.class_names, row))
            notes = f"   [{remark}]" if remark else "   [out of range]" if in_range is False else ""
            lines.append(f"{names.printable(name)}: {label}   ({chances}){notes}")
        return lines

    def write(self, path: pathlib.Path) -> None:
        """Replaces `path` by a CSV table, readable by its owner alone.

        Columns: file, class, a probability for each class (`p_CLASS`), in_range (yes, no, or empty
        where it has no meaning), remarks. A skipped file is a row without a class whose reason
        stands in the remarks.

        Raises:
          StorageError: if it cannot be written; the former file is still there.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = [names.csv_cell(f"{_PREFIX}{name}") for name in self.class_names]
        writer.writerow([*_FIRST, *columns, *_LAST])
        remarks = self.remarks or ("",) * len(self.names)
        rows = zip(self.names, self.classes(), self.probabilities, self.flags(), remarks)
        for name, label, row, flag, remark in rows:
            cells = [names.csv_cell(cell) for cell in (name, label, remark)]
            writer.writerow([*cells[:2], *(f"{p:.6f}" for p in row), _FLAGS[flag], cells[2]])
        for name, why in self.skipped:
            cells = [names.csv_cell(cell) for cell in (name, why)]
            writer.writerow([cells[0], *[""] * (len(columns) + 2), cells[1]])
        storage.write_text(path, text.getvalue())


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
