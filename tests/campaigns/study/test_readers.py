"""Protects readings: a mistake in the file is told in one line before anything is trained."""

import numpy as np
import pytest

from primia_jax.campaigns.study.readers import UNREAD, read_readings
from primia_jax.errors import DataError

IMAGES = ("a.png", "b.png", "c.png")
CLASSES = ("normal", "bacterial", "viral")


def _read(tmp_path, text, least=2):
    path = tmp_path / "readings.csv"
    path.write_text(text, encoding="utf-8")
    return read_readings(str(path), IMAGES, CLASSES, least)


GOOD = "image,reader,label\na.png,X,normal\nb.png,X,VIRAL\na.png,Y,bacterial\n"


def test_readings_in_any_order_with_further_columns(tmp_path):
    text = "Label, when ,reader,image\nviral,1,X,c.png\n\nnormal,2,X,a.png\nviral,3,Y,a.png\n"
    first, second = _read(tmp_path, text)
    assert first.name == "X" and second.name == "Y"
    np.testing.assert_array_equal(first.ratings, [0, UNREAD, 2])
    np.testing.assert_array_equal(second.read, [True, False, False])


@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_what_spreadsheets_write(tmp_path, mark):
    """A byte-order mark, semicolons, the end of lines of Windows."""
    text = mark + GOOD.replace(",", ";").replace("\n", "\r\n")
    assert [reader.name for reader in _read(tmp_path, text)] == ["X", "Y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD + "d.png,X,normal\ne.png,Y,viral\n",
            r"2 images are not in Test Set 1: 'd.png' \(lin",
        ),
        (
            GOOD + "c.png,X,bactrial\n",
            r"1 label is unknown: 'bactrial' \(line 5\) \(allowed are nor",
        ),
        (GOOD + "c.png,X\n", r"1 label is unknown: '' \(line 5\)"),
        (GOOD + "a.png,X,viral\n", r"1 reading is given before: 'a.png' by X \(line 5\)"),
        (GOOD + "a.png,,viral\n", "no reader is named in line 5"),
        (
            GOOD + "d.png,X,normal\nc.png,X,bactrial\na.png,X,viral\n",
            r"1 image is not in .*; 1 label is unknown: .*; 1 reading is given before",
        ),
        (GOOD + "c.png,x,viral\n", r"one reader spelt in two ways: 'x' and 'X' \(line 5\)"),
        ("image,reader,label,label\n", "there are two columns label"),
        ("image,label\na.png,viral\n", r"no column reader \(found: image, label\)"),
        ("", r"no column image and reader and label \(found: none\)"),
        ("image,reader,label\n", "0 readers found, and agreement between"),
        ("image,reader,label\na.png,X,viral\n", "1 reader found, .* config.study.min_readers=1"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        _read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_one_reader_where_one_is_asked_for(tmp_path):
    assert len(_read(tmp_path, "image,reader,label\na.png,X,viral\n", least=1)) == 1


def test_a_long_list_of_mistakes_is_cut(tmp_path):
    text = GOOD + "".join(f"{i}.png,X,normal\n" for i in range(9))
    with pytest.raises(DataError, match="and 4 more"):
        _read(tmp_path, text)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_readings(str(tmp_path / "none.csv"), IMAGES, CLASSES)
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff")
    with pytest.raises(DataError, match="not a UTF-8 text"):
        read_readings(str(tmp_path / "picture.csv"), IMAGES, CLASSES)
