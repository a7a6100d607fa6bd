"""Tables of images: every column is understood, and every mistake is named by row and column."""

import dataclasses
import os

import numpy as np
import pytest
from image_sets import grey, save, save_dicom, write_csv

from primia_jax.config import DataConfig
from primia_jax.data import open_catalogue
from primia_jax.errors import DataError


@pytest.fixture
def table(tmp_path, folder_config):
    """Makes images a.png to f.png and a table of `rows`, and opens it."""

    def opened(header, rows, **changes):
        for i, name in enumerate("abcdef"):
            save(tmp_path / "scans" / f"{name}.png", grey(i))
        path = write_csv(tmp_path / "table.csv", header, rows)
        config = dataclasses.replace(folder_config, source="csv", path=str(path), **changes)
        return open_catalogue(config, 1, 0)

    return opened


def test_all_columns(table):
    catalogue = table(
        ["Label", "path", "comment", "patient", "split", "site"],
        [
            ["sick", "scans/a.png", "x", "p1", "train", "north"],
            ["well", " scans/b.png ", "", "p1", "val", "south"],
            ["sick", "scans/c.png", "", "", "", "north"],
            [],
            ["well", "scans/../scans/d.png", "y,z", "p2", "TEST", "south"],
        ],
    )
    assert catalogue.class_names == ("sick", "well")
    assert catalogue.labels.tolist() == [0, 1, 0, 1]
    assert catalogue.sites.tolist() == ["north", "south", "north", "south"]
    assert catalogue.splits.tolist() == ["train", "validation", "", "test"]
    assert len(set(catalogue.patients)) == 4  # p1 of the north is another person than p1 elsewhere


def test_a_patient_number_counts_within_its_site(table):
    header = ["path", "label", "patient", "site"]
    rows = [
        [f"scans/{n}.png", "xy"[i % 2], f"p{i % 2}", "ns"[i // 3]] for i, n in enumerate("abcdef")
    ]
    patients = table(header, rows).patients
    assert len(set(patients)) == 4 and patients[0] == patients[2] == "n/p0"
    assert set(table(header[:3], [row[:3] for row in rows]).patients) == {"p0", "p1"}


def test_patients_that_differ_in_case_are_remarked_on(table):
    """Without their names, which a report would show."""
    rows = [[f"scans/{n}.png", "xy"[i % 2], ["P1", "p1"][i % 2]] for i, n in enumerate("abcdef")]
    (remark,) = table(["path", "label", "patient"], rows).remarks
    assert "differ only in case or spaces" in remark and "1" not in remark.rpartition(".csv")[2]


def test_patients_that_differ_in_leading_zeros_are_remarked_on(table):
    rows = [
        [f"scans/{n}.png", "xy"[i % 2], ["001", "1", "p10"][i % 3]] for i, n in enumerate("abc")
    ]
    (remark,) = table(["path", "label", "patient"], rows).remarks
    assert "differ only in leading zeros" in remark
    rows[0][2] = "100"
    assert table(["path", "label", "patient"], rows).remarks == ()


@pytest.mark.parametrize("column", ["patient", "site"])
@pytest.mark.parametrize(("name", "problem"), [("file:x", "begins with"), ("p\0q", "has control")])
def test_a_name_that_could_be_taken_for_another_is_refused(table, column, name, problem):
    """`file:` marks images without a patient, which are left out of comparisons of patients."""
    rows = [[f"scans/{n}.png", "xy"[i % 2], name] for i, n in enumerate("abcdef")]
    with pytest.raises(DataError, match=f"scans/a.png: its {column} {problem}") as caught:
        table(["path", "label", column], rows)
    assert name not in str(caught.value)


def test_a_column_that_is_not_missing_may_have_a_namesake(table):
    rows = [["scans/a.png", "x", "train", "1"], ["scans/b.png", "y", "test", "2"]]
    assert table(["path", "label", "split", "splits"], rows).splits.tolist() == ["train", "test"]
    assert table(["path", "label", "age", "side"], rows).splits is None


def test_declared_classes(table):
    """Labels are the declared names, or integers in their order; some may not occur."""
    declared = ("normal", "bacterial", "viral")
    by_name = [["scans/a.png", "viral"], ["scans/b.png", "normal"]]
    by_number = [["scans/a.png", "2"], ["scans/b.png", "0"]]
    for rows in (by_name, by_number):
        catalogue = table(["path", "label"], rows, classes=declared)
        assert catalogue.class_names == declared and catalogue.labels.tolist() == [2, 0]
    with pytest.raises(DataError, match=r"row 3, column label: 'covid' is none of the run's class"):
        table(["path", "label"], [by_name[0], ["scans/b.png", "covid"]], classes=declared)
    with pytest.raises(DataError, match=r"row 2, column label: '2' .* config\.data\.classes"):
        table(["path", "label"], by_number)


def test_integer_labels_and_absolute_paths(table, tmp_path):
    rows = [[str(tmp_path / "scans" / f"{n}.png"), str(i % 3)] for i, n in enumerate("abcdef")]
    catalogue = table(["path", "label"], rows)
    assert catalogue.class_names == ("0", "1", "2")
    assert catalogue.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert catalogue.sites is None and catalogue.splits is None


def test_byte_order_mark(tmp_path, folder_config):
    """Spreadsheet programs write one before the header."""
    save(tmp_path / "a.png", grey(1))
    save(tmp_path / "b.png", grey(2))
    (tmp_path / "t.csv").write_text("\ufeffpath,label\r\na.png,x\r\nb.png,y\r\n", "utf-8")
    config = dataclasses.replace(folder_config, source="csv", path=str(tmp_path / "t.csv"))
    assert open_catalogue(config, 1, 0).class_names == ("x", "y")


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["path", "class"], [["scans/a.png", "x"]], "header: no column label.*found: path, class"),
        (["path;label"], [["scans/a.png;x"]], "no column path and no column label"),
        (["path", "label", "path"], [], "column path stands there twice"),
        (["path", "label"], [], "no images found"),
        (["path", "label"], [["scans/a.png"]], "row 2: 1 values for 2 columns"),
        (["path", "label"], [["scans/a.png", "x"], ["", "y"]], "row 3, column path: empty"),
        (["path", "label"], [["scans/a.png", " "]], "row 2, column label: empty"),
        (
            ["path", "label"],
            [["scans/a.png", "x"], ["scans/b.png", "y"], ["scans/../scans/a.png", "x"]],
            "row 4, column path: .* stands in row 2 already",
        ),
        (
            ["path", "label"],
            [["scans/a.png", "0"], ["scans/b.png", "1"], ["scans/c.png", "7"]],
            "row 4, column label: '7' is out of range: the table uses 3 classes, .* be 0 to 2;",
        ),
        (
            ["path", "label"],
            [["scans/a.png", "0"], ["scans/b.png", "-1"]],
            "row 3, column label: '-1' is out of range",
        ),
        (
            ["path", "label"],
            [["scans/a.png", "0"], ["scans/b.png", "--1"]],
            "row 3, column label: '--1' is a name",
        ),
        (
            ["path", "label"],
            [["scans/a.png", "0"], ["scans/b.png", "sick"]],
            "row 3, column label: 'sick' is a name where other rows have integers",
        ),
        (["path", "label"], [["scans/a.png", "x"], ["scans/b.png", "x"]], "only one class .x."),
        (
            ["path", "label", "split"],
            [["scans/a.png", "x", "trian"], ["scans/b.png", "y", ""]],
            "row 2, column split: 'trian' is none of",
        ),
        (
            ["path", "label", "site"],
            [["scans/a.png", "x", "n"], ["scans/b.png", "y", ""]],
            "row 3, column site: empty",
        ),
        (
            ["path", "label"],
            [["scans/a.png", "viral"], ["scans/b.png", "x"], ["scans/c.png", "Viral"]],
            r"'viral' \(row 2\) and 'Viral' \(row 4\) differ only in case or spaces",
        ),
        (
            ["path", "label", "site"],
            [["scans/a.png", "x", "St. Mary"], ["scans/b.png", "y", "St.Mary"]],
            "sites 'St. Mary' and 'St.Mary' differ only in case or spaces",
        ),
        (
            ["path", "label", "patient", "splitt"],
            [["scans/a.png", "x", "p", "train"], ["scans/b.png", "y", "q", "test"]],
            "header: unknown column 'splitt'; did you mean split",
        ),
        (
            ["path", "label", "Patient_ID"],
            [["scans/a.png", "x", "p"], ["scans/b.png", "y", "q"]],
            "header: unknown column 'patient_id'; did you mean patient",
        ),
        (
            ["path", "label"],
            [["scans/a.png", "x"], ["scans/b.png", "NaN"]],
            "row 3, column label: 'NaN' reads like a missing value",
        ),
        (
            ["path", "label", "patient"],
            [["scans/a.png", "x", "nan"], ["scans/b.png", "y", "p"]],
            "row 2, column patient: 'nan' reads like a missing value",
        ),
        (
            ["path", "label", "patient"],
            [["scans/a.png", "x", "NA"], ["scans/b.png", "y", "p"]],
            "row 2, column patient: 'NA' reads like a missing value",
        ),
        (
            ["path", "label"],
            [["scans/a.png", "Zu\u0308"], ["scans/b.png", "x"], ["scans/c.png", "Z\u00fc"]],
            r"\(row 2\) and .* \(row 4\) differ only in case or spaces",
        ),
        (
            ["path", "label"],
            [["scans/a.png", "b"], ["scans/b.png", "b\u200b"]],
            r"\(row 2\) and .* \(row 3\) differ only in case or spaces",
        ),
        (
            ["path", "label"],
            [["scans/a.png", "a\nb"], ["scans/b.png", "c"]],
            r"class 'a\\nb' has letters that are not shown",
        ),
        (
            ["path", "label"],
            [["scans/a.png", "1" * 5000], ["scans/b.png", "0"]],
            "is a name where other rows have integers",
        ),
    ],
)
def test_mistakes(table, header, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        table(header, rows)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_images_are_listed(table):
    rows = [["scans/a.png", "x"], ["scans/b.png", "y"], ["scans/z.png", "x"], ["scans", "y"]]
    with pytest.raises(DataError) as caught:
        table(["path", "label"], rows)
    text = str(caught.value)
    assert "2 of 4" in text and "scans/z.png: no such file" in text and "scans: is a dir" in text
    assert len(table(["path", "label"], rows, on_error="skip")) == 2


def test_unreadable_tables(tmp_path, folder_config):
    def error(path):
        config = dataclasses.replace(folder_config, source="csv", path=str(path))
        with pytest.raises(DataError) as caught:
            open_catalogue(config, 1, 0)
        return str(caught.value)

    assert "no such file" in error(tmp_path / "none.csv")
    assert "folder" in error(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    assert "UTF-8" in error(tmp_path / "bytes.csv")
    (tmp_path / "quote.csv").write_text('path,label\n"a.png,1\n')
    assert "not CSV" in error(tmp_path / "quote.csv")
    (tmp_path / "empty.csv").touch()
    assert "found: nothing" in error(tmp_path / "empty.csv")


def test_table_beside_dicom_files(tmp_path, folder_config):
    """The source `dicom` finds the only table in its folder; the header names patients."""
    ramp = np.arange(400, dtype=np.uint16).reshape(20, 20)
    for i in range(4):
        save_dicom(tmp_path / f"{i}", ramp + i, PatientID=f"P{i % 2}", InstitutionName=f"I{i % 2}")
    rows = [[str(i), "xy"[i // 2]] for i in range(4)]
    write_csv(tmp_path / "labels.csv", ["path", "label"], rows)
    config = dataclasses.replace(folder_config, source="dicom", path=str(tmp_path))
    catalogue = open_catalogue(config, 1, 0)
    assert catalogue.labels.tolist() == [0, 0, 1, 1]
    assert len(set(catalogue.patients)) == 2 and catalogue.sites.tolist() == ["I0", "I1"] * 2
    write_csv(tmp_path / "sites.csv", ["path", "label", "site"], [[*r, "north"] for r in rows])
    with pytest.raises(DataError, match=r"several tables \(labels.csv, sites.csv\)"):
        open_catalogue(config, 1, 0)
    config = dataclasses.replace(config, path=str(tmp_path / "sites.csv"))
    assert open_catalogue(config, 1, 0).sites.tolist() == ["north"] * 4


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_table_is_a_regular_file(tmp_path, kind):
    path = tmp_path / "t.csv"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(DataError, match=kind):
        open_catalogue(DataConfig(source="csv", path=str(path)), 1, 0)
