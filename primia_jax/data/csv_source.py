"""A table of images: a CSV file with the columns path and label, and further ones if known.

path,label,patient,site,split
scans/0001.dcm,normal,p17,north,train
"""

import csv
import difflib
import os
import pathlib
import re

from primia_jax.config.sections import DataConfig
from primia_jax.core.storage import check_regular
from primia_jax.data import file_catalogue, spelling
from primia_jax.data.catalogue import Catalogue
from primia_jax.data.file_catalogue import Entry
from primia_jax.data.folders import SPLIT_NAMES
from primia_jax.errors import DataError

_REQUIRED = ("path", "label")
_MAX_BYTES = 1 << 30  # of a table
_OPTIONAL = ("patient", "site", "split")
_ALIKE = 0.8  # likeness of names (`difflib`) from which a column counts as misspelt

Row = tuple[int, dict[str, str]]  # (line number in the file, column -> stripped value)


def open_csv(
    path: str,
    data: DataConfig,
    dicom_only: bool = False,
    class_names: tuple[str, ...] = (),
) -> Catalogue:
    """The catalogue of the images that the CSV file `path` lists.

    Columns: path (below the CSV's folder, or absolute), label (a name, or an integer from 0),
    optionally patient, site and split (train, val, test or empty); others are ignored, except one
    that is called almost like a column that is missing ("splitt"), which is refused. Classes are
    the label names in alphabetical order, or the integers. Without a patient the DICOM header
    tells, or else the image is its own patient; without a site column the DICOM institutions count.
    Where `class_names` are given, a table may lack some of them, and an integer label counts in
    their order.

    Raises:
      DataError: naming row and column of a missing, unknown or repeated value; as
        `file_catalogue.assemble`.
    """
    where = f"table {path}"
    rows = _rows(path, where)
    declared = bool(class_names)
    class_names, labels = _labels(rows, where, class_names)
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
    decode = file_catalogue.FileDecoder(tuple(paths), data, dicom_only)
    return file_catalogue.assemble(entries, class_names, decode, data, where, declared=declared)


def _rows(path: str, where: str) -> list[Row]:
    """The rows below the header that are not blank."""
    if os.path.exists(path):
        check_regular(pathlib.Path(path), _MAX_BYTES)
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
                for name in ("label", *_OPTIONAL):
                    if spelling.is_missing_marker(row.get(name, "")):
                        raise DataError(
                            f"{where}, row {reader.line_num}, column {name}: {row[name]!r} reads "
                            "like a missing value; leave the cell empty if it is unknown, or write "
                            "another word if it is a name"
                        )
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
    absent = [name for name in _OPTIONAL if name not in header]
    for name in header:
        near = difflib.get_close_matches(name, absent, n=1, cutoff=_ALIKE)
        if near and name not in known:
            raise DataError(
                f"{where}, header: unknown column {name[:80]!r}; did you mean {near[0]}? Rename it "
                "to that, or to something unlike it if it is another thing"
            )


def _labels(
    rows: list[Row], where: str, class_names: tuple[str, ...]
) -> tuple[tuple[str, ...], list[int]]:
    """Class names, and the label of each row; `class_names` where the run declares them."""
    values = [row["label"] for _, row in rows]
    numeric = [_is_integer(value) for value in values]
    if not any(numeric) or set(values) <= set(class_names):
        names = class_names or tuple(sorted(set(values)))
        for (line, _), value in zip(rows, values):
            if value not in names:
                raise DataError(
                    f"{where}, row {line}, column label: {value!r} is none of the run's classes "
                    f"({', '.join(names)}); mend it, or name all classes in config.data.classes"
                )
        _check_alike(rows, values, where)
        return names, [names.index(value) for value in values]
    n_classes = len(class_names or {int(v) for v, number in zip(values, numeric) if number})
    for (line, _), value, number in zip(rows, values, numeric):
        at = f"{where}, row {line}, column label: {value!r}"
        if not number:
            raise DataError(f"{at} is a name where other rows have integers")
        if not 0 <= int(value) < n_classes:
            has = "the run has" if class_names else "the table uses"
            raise DataError(
                f"{at} is out of range: {has} {n_classes} classes, so labels must be 0 to "
                f"{n_classes - 1}; a table that lacks a class needs config.data.classes"
            )
    names = class_names or tuple(str(k) for k in range(n_classes))
    return names, [int(value) for value in values]


def _check_alike(rows: list[Row], values: list[str], where: str) -> None:
    """DataError naming the rows of two labels that differ only in case or spaces."""
    pair = spelling.alike(values)
    if pair:
        first, second = (rows[values.index(value)][0] for value in pair)
        raise DataError(
            f"{where}, column label: {pair[0]!r} (row {first}) and {pair[1]!r} (row {second}) "
            "differ only in case or spaces; write them alike, or rename one"
        )


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,9}", text) is not None
