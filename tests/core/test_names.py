"""Names from outside: what becomes of them as paths, on a screen and in a table."""

import csv
import io
import os
import pathlib
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primia_jax.core.names import (
    RESERVED_SITES,
    check_site_name,
    csv_cell,
    csv_text,
    printable,
    safe_file_name,
    user_path,
)
from primia_jax.errors import ConfigError, DataError

_ANY = st.text(st.characters(codec=None, categories=None), max_size=120) | st.binary(
    max_size=60
).map(os.fsdecode)


def _decoded(name: str) -> str:
    runs = re.findall(r"%u([0-9a-f]{4})|((?:%[0-9a-f]{2})+)|([^%]+)", name)
    return "".join(
        chr(int(surrogate, 16))
        if surrogate
        else bytes.fromhex(raw.replace("%", "")).decode() + plain
        for surrogate, raw, plain in runs
    )


@pytest.mark.parametrize("name", ["hospital_0", "site-3.b", "north", "7"])
def test_plain_names_stay(name):
    assert safe_file_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../elsewhere", "%2e.%2f..%2felsewhere"),
        ("/abs/olute", "%2fabs%2folute"),
        ("..", "%2e%2e"),
        (".", "%2e"),
        ("", "%"),
        ("-rf", "%2drf"),
        (".lock", "%2elock"),
        ("con", "%63on"),
        ("nul.txt", "%6eul.txt"),
        ("Radiology / ER", "%52adiology%20%2f%20%45%52"),
        ("50%", "50%25"),
        ("end.", "end%2e"),
        ("M\udcfcller", "%4d%udcfcller"),
    ],
)
def test_names_that_would_do_harm_are_escaped(text, name):
    assert safe_file_name(text) == name


@given(_ANY)
@example("\x00")
@example("~root")
@example("COM1")
def test_a_file_name_is_safe_and_can_be_decoded(text):
    name = safe_file_name(text)
    assert name == pathlib.PurePosixPath(name).name == pathlib.PureWindowsPath(name).name
    assert name not in (".", "..") and len(name) <= 200 and name.isascii() and name.isprintable()
    assert name == name.lower() and not name.startswith((".", "-", "~"))
    if "~" not in name:
        assert _decoded(name) == text


@given(_ANY, _ANY)
@example("North", "north")
@example("a" * 300, "a" * 299 + "b")
@example("ä", "a\u0308")
@example("%2e", ".")
@example("\udcc3\udca9", "é")
def test_different_texts_give_different_names_on_disks_that_ignore_case(first, second):
    if first != second:
        assert safe_file_name(first).casefold() != safe_file_name(second).casefold()


@pytest.mark.parametrize(
    "name", ["hospital_0", "Charité Berlin", "../etc", "Radiology / ER", "漢字"]
)
def test_a_hospital_may_have_a_name_that_is_no_file_name(name):
    assert check_site_name(name) == name


@pytest.mark.parametrize("name", [*sorted(RESERVED_SITES), "All", " driver ", "MODEL_OWNER"])
def test_reserved_names_are_refused(name):
    with pytest.raises(DataError, match="reserved"):
        check_site_name(name)


@pytest.mark.parametrize(
    "name", ["", "  ", "a\nb", "a\x1b[2Jb", "M\udcfcller", "x" * 201, "\u202ea"]
)
def test_a_refusal_of_a_hospitals_name_is_one_line_that_can_be_printed(name):
    with pytest.raises(DataError) as refusal:
        check_site_name(name, "table.csv, column site")
    message = str(refusal.value)
    assert message.isprintable() and "table.csv" in message and len(message) < 300


@given(_ANY)
def test_printable_text_is_one_line_of_utf8(text):
    shown = printable(text)
    assert shown.isprintable() and shown.encode("utf-8").decode() == shown


def test_printable_text_names_the_bytes():
    assert printable(os.fsdecode(b"M\xfcller.png")) == "M\\xfcller.png"
    assert printable("a\tb\n\u202e") == "a\\tb\\n\\u202e"
    assert printable("Müller\\a") == "Müller\\a"


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(1)", "  =1", "\t=1", "\r=1", "＝1", "'=1"]
)
def test_a_cell_is_no_formula(text):
    assert csv_cell(text).startswith(("'", "\\"))


@given(st.text(alphabet="a=+-@;' \"\t,", max_size=12))
@example('x;=HYPERLINK("http://example.org/?"&A1)')
@example('x;"=1+1')
def test_a_cell_is_no_formula_where_semicolons_or_tabs_separate(text):
    """As spreadsheets of many languages read it; and the text can be had back."""
    cell = csv_cell(text)
    line = io.StringIO()
    csv.writer(line).writerow(["first", cell])
    for delimiter in ",;\t":
        for row in csv.reader([line.getvalue()], delimiter=delimiter):
            assert not any(part.lstrip().startswith(tuple("=+-@")) for part in row)
    assert csv_text(cell) == printable(text)


def test_other_cells_stay():
    assert csv_cell("a=b; c.png") == "a=b; c.png"


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/films") == tmp_path / "films"
    assert user_path("films") == pathlib.Path.cwd() / "films"


@pytest.mark.parametrize("path", ["~nobody_of_this_name/films", "a\0b"])
def test_a_path_that_cannot_be_is_one_line(path):
    with pytest.raises(ConfigError):
        user_path(path)
