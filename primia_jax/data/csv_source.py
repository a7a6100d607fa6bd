"""A table of images: a CSV file with the columns path and label, and further ones if known.

path,label,patient,site,split
scans/0001.dcm,normal,p17,north,train
"""

import csv
import os
import pathlib
import re

from primia_jax.config.sections import DataConfig
from primia_jax.data import file_catalogue
from primia_jax.data.catalogue import Catalogue
from primia_jax.data.file_catalogue import Entry
from primia_jax.data.folders import SPLIT_NAMES
from primia_jax.errors import DataError

_REQUIRED = ("path", "label")
_OPTIONAL = ("patient", "site", "split")

Row = tuple[int, dict[str, str]]  # (line number in the file, column -> stripped value)


def open_csv(path: str, data: DataConfig, dicom_only: bool = False) -> Catalogue:
    """The catalogue of the images that the CSV file `path` lists.

    Columns: path (below the CSV's folder, or absolute), label (a name, or an integer from 0),
    optionally patient, site and split (train, val, test or empty); others are ignored. Classes are
    the label names in alphabetical order, or the integers. Without a patient the DICOM header
    tells, or else the image is its own patient; without a site column the DICOM institutions count.

    Raises:
      DataError: naming row and column of a missing, unknown or repeated value; as
        `file_catalogue.assemble`.
    """
    where = f"table {path}"
    rows = _rows(path, where)
    class_names, labels = _labels(rows, where)
    folder = pathlib.Path(path).parent
    entries, paths = [], []
    first_line: dict[str, int] = {}
    for (line, row), label in zip(rows, labels):
        file = os.path.normpath(folder / row["path"])
        if file in first_line:
            raise DataError(
                f"{where}, row {line}, column path: {row['path']} stands in row "
                f"{first_line[file]} already"
            )
        first_line[file] = line
        split = row.get("split", "").lower()
        if split and split not in SPLIT_NAMES:
            raise DataError(
                f"{where}, row {line}, column split: {row['split']!r} is none of train, "
                "validation, test or empty"
            )
        site = row.get("site")
        if site == "":
            raise DataError(f"{where}, row {line}, column site: empty; name a site in every row")
        split = SPLIT_NAMES.get(split, "")
        entries.append(Entry(row["path"], label, row.get("patient") or None, site, split))
        paths.append(file)
    decode = file_catalogue.FileDecoder(tuple(paths), dicom_only)
    return file_catalogue.assemble(entries, class_names, decode, data, where)


def _rows(path: str, where: str) -> list[Row]:
    """The rows below the header that are not blank."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the header.
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            _check_header(header, where)
            rows = []
            for values in reader:
                if not any(value.strip() for value in values):
                    continue
                if len(values) != len(header):
                    raise DataError(
                        f"{where}, row {reader.line_num}: {len(values)} values for "
                        f"{len(header)} columns"
                    )
                row = {name: value.strip() for name, value in zip(header, values)}
                for name in _REQUIRED:
                    if not row[name]:
                        raise DataError(f"{where}, row {reader.line_num}, column {name}: empty")
                rows.append((reader.line_num, row))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(
            f"{where}: {reason}; the path in config.data must be that of a CSV file"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not a text file in UTF-8 ({error.reason})") from error
    except csv.Error as error:
        raise DataError(f"{where}, row {reader.line_num}: not CSV ({error})") from error
    if not rows:
        raise DataError(f"{where}: no images found (no rows below the header)")
    return rows


def _check_header(header: list[str], where: str) -> None:
    known = [name for name in header if name in (*_REQUIRED, *_OPTIONAL)]
    missing = [name for name in _REQUIRED if name not in header]
    repeated = sorted({name for name in known if known.count(name) > 1})
    if missing:
        raise DataError(
            f"{where}, header: no column {' and no column '.join(missing)}; a header and commas "
            f"between columns are needed, found: {', '.join(header)[:80] or 'nothing'}"
        )
    if repeated:
        raise DataError(f"{where}, header: column {repeated[0]} stands there twice")


def _labels(rows: list[Row], where: str) -> tuple[tuple[str, ...], list[int]]:
    """Class names, and the label of each row."""
    values = [row["label"] for _, row in rows]
    numeric = [_is_integer(value) for value in values]
    if not any(numeric):
        names = sorted(set(values))
        return tuple(names), [names.index(value) for value in values]
    n_classes = len({int(v) for v, number in zip(values, numeric) if number})
    for (line, _), value, number in zip(rows, values, numeric):
        at = f"{where}, row {line}, column label: {value!r}"
        if not number:
            raise DataError(f"{at} is a name where other rows have integers")
        if not 0 <= int(value) < n_classes:
            raise DataError(
                f"{at} is out of range: {n_classes} different labels are used, so they must be "
                f"0 to {n_classes - 1}"
            )
    return tuple(str(k) for k in range(n_classes)), [int(value) for value in values]


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+", text) is not None
