"""The one door: every kind of source opens, and unlabelled images can be read for prediction."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from image_sets import grey, save, save_dicom

from primia_jax.config.sections import DataConfig, PhantomConfig
from primia_jax.data import (
    assign_splits,
    image_files,
    load,
    open_catalogue,
    partition,
    predict_inputs,
)
from primia_jax.errors import DataError


def test_package_is_light():
    """Parties that need no pixels' libraries do not wait for them."""
    program = (
        "import sys, primia_jax.data\n"
        "heavy = {'jax', 'pydicom', 'tensorflow_datasets', 'tensorflow', 'scipy', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_phantom():
    """The bundled generator goes through splits, partition and loading like any other source."""
    config = DataConfig(phantom=PhantomConfig(n_train=24, n_test=6), image_size=16)
    catalogue = open_catalogue(config, 2, 7)
    splits = assign_splits(catalogue, 0.2, 0.2, 7)
    assert (splits == "test").sum() == 6
    parts = partition(catalogue, np.flatnonzero(splits != "test"), 2, config, 7, splits=splits)
    assert sum(map(len, parts)) == 24
    assert load(catalogue, parts[0][:2], 16).images.shape == (2, 16, 16, 1)


def test_kermany_end_to_end(kermany, folder_config):
    """A tree on disk becomes hospitals with training and validation images."""
    config = dataclasses.replace(folder_config, path=str(kermany(patients=8)), on_error="skip")
    catalogue = open_catalogue(config, 3, 0)
    splits = assign_splits(catalogue, 0.4, 0.2, 0)
    parts = partition(catalogue, np.flatnonzero(splits != "test"), 3, config, 0, splits=splits)
    data = load(catalogue, parts[1], 16)
    assert data.images.dtype == np.uint8 and len(set(data.labels)) == 3


def test_path_overrides_the_setting(kermany, folder_config):
    root = kermany()
    config = dataclasses.replace(folder_config, path=str(root / "nowhere"))
    assert len(open_catalogue(config, 1, 0, path=str(root / "test"))) == 12


@pytest.mark.parametrize("source", ["folder", "dicom", "csv", "tfds"])
def test_path_is_needed(source):
    with pytest.raises(DataError, match=r"config.data.path is empty"):
        open_catalogue(DataConfig(source=source), 1, 0)
    with pytest.raises(DataError, match="stands for one hospital's name"):
        open_catalogue(DataConfig(source=source, path="/data/{site}"), 1, 0)


def test_unknown_source():
    with pytest.raises(DataError, match="no such kind of source"):
        open_catalogue(DataConfig(source="zip", path="x"), 1, 0)


def test_predict_one_file(tmp_path):
    """An image, and a DICOM file without any suffix."""
    save(tmp_path / "a.png", grey(1))
    names, images, skipped = predict_inputs(str(tmp_path / "a.png"), 16)
    assert names == ["a.png"] and skipped == []
    np.testing.assert_array_equal(images[0, ..., 0], image_files.fit(grey(1), 16))
    save_dicom(tmp_path / "IM0001", np.arange(400, dtype=np.uint16).reshape(20, 20))
    names, images, _ = predict_inputs(str(tmp_path / "IM0001"), 16)
    assert names == ["IM0001"] and images.dtype == np.uint16 and images.shape == (1, 16, 16, 1)


def test_predict_folder(tmp_path):
    """Any nesting, mixed kinds and depths; broken files are reported beside the rest."""
    save(tmp_path / "x" / "y" / "a.png", np.full((9, 9), 255, np.uint8))
    save_dicom(tmp_path / "x" / "b", np.tile(np.uint16([4095, 0, 0]), (9, 3)))
    (tmp_path / "c.jpeg").write_bytes(b"broken")
    (tmp_path / "readme").write_text("no image")
    names, images, skipped = predict_inputs(str(tmp_path), 4)
    assert names == ["x/b", "x/y/a.png"]
    assert images.dtype == np.uint16 and (images[1] == 65535).all()
    assert skipped == [("c.jpeg", "not an image in a known format")]


def test_predict_mistakes(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        predict_inputs(str(tmp_path / "none"), 4)
    with pytest.raises(DataError, match="no images found"):
        predict_inputs(str(tmp_path), 4)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 of 1 images cannot be used"):
        predict_inputs(str(tmp_path), 4)
