"""The table of diagnoses: what it holds, who can read it, and what a spreadsheet makes of it."""

import csv
import stat

import numpy as np
import pytest

import primia_jax
from primia_jax.errors import DataError
from primia_jax.predictions import FILE, Predictions

PREDICTIONS = Predictions(
    names=["a.png", "=cmd|' /C calc'!A0.png"],
    probabilities=np.asarray([[0.25, 0.75], [1.0, 0.0]], np.float32),
    class_names=("NORMAL", "PNEUMONIA"),
    skipped=[("broken\nname.png", "-no image")],
    in_range=(True, False),
    remarks=("", "modality CT"),
)


def test_every_file_is_a_row_with_its_flag_and_remark(tmp_path):
    PREDICTIONS.write(tmp_path / FILE)
    with open(tmp_path / FILE, newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["file", "class", "p_NORMAL", "p_PNEUMONIA", "in_range", "remarks"]
    assert rows == [
        ["a.png", "PNEUMONIA", "0.250000", "0.750000", "yes", ""],
        ["'=cmd|' /C calc'!A0.png", "NORMAL", "1.000000", "0.000000", "no", "modality CT"],
        ["broken\\nname.png", "", "", "", "", "'-no image"],
    ]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_the_table_can_be_read_back(tmp_path):
    PREDICTIONS.write(tmp_path / FILE)
    read = primia_jax.read_predictions(tmp_path)
    assert read.names == PREDICTIONS.names and read.class_names == PREDICTIONS.class_names
    assert read.skipped == [("broken\\nname.png", "-no image")]
    assert read.in_range == (True, False) and read.remarks == ("", "modality CT")
    np.testing.assert_array_equal(read.probabilities, PREDICTIONS.probabilities)


def test_a_table_without_any_diagnosis_can_be_read(tmp_path):
    nothing = Predictions([], np.zeros((0, 2), np.float32), ("a", "b"), [("x", "no image")])
    nothing.write(tmp_path / FILE)
    read = primia_jax.read_predictions(tmp_path)
    assert read.probabilities.shape == (0, 2) and read.skipped == [("x", "no image")]


@pytest.mark.parametrize("text", ("", "a,b\n", "file,class,p_a,in_range,remarks\nx,a,many,,\n"))
def test_another_table_is_refused_in_one_line(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError, match=r"predictions\.csv is no table of predictions") as caught:
        primia_jax.read_predictions(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        primia_jax.read_predictions(tmp_path / "nothing")
