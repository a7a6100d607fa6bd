"""The Kermany tree as a TFDS data set: written and read back without TensorFlow, bit for bit."""

import dataclasses
import pickle
import sys

import numpy as np
import pytest
from image_sets import grey, save

from primia_jax.data import load, open_catalogue, tfds_builder
from primia_jax.errors import DataError


def opened(config, path, source="tfds"):
    return open_catalogue(dataclasses.replace(config, source=source, path=str(path)), 1, 0)


def test_round_trip(kermany, folder_config, tmp_path):
    """Names, labels, patients, splits, digests and pixels are those of the folder."""
    root = kermany()
    written = tfds_builder.prepare(str(root), str(tmp_path / "sets"))
    assert list(written.glob("*.array_record*"))
    folder = opened(folder_config, root, "folder")
    for path in (tmp_path / "sets", written):
        prepared = opened(folder_config, path)
        order = np.argsort(prepared.names)[np.argsort(np.argsort(folder.names))]
        assert tuple(prepared.names[i] for i in order) == folder.names
        assert prepared.class_names == folder.class_names
        for field in ("labels", "patients", "splits", "digests"):
            mine = np.asarray(getattr(prepared, field))[order]
            np.testing.assert_array_equal(mine, np.asarray(getattr(folder, field)))
        expected = load(folder, np.arange(len(folder)), 20).images
        np.testing.assert_array_equal(load(prepared, order, 20).images, expected)
        copy = pickle.loads(pickle.dumps(prepared))
        np.testing.assert_array_equal(load(copy, order, 20).images, expected)
    assert "tensorflow" not in sys.modules


def test_free_splits(kermany, folder_config, tmp_path):
    """A tree without train and test stays free."""
    tfds_builder.prepare(str(kermany() / "train"), str(tmp_path / "sets"))
    assert opened(folder_config, tmp_path / "sets").splits is None


def test_not_prepared(folder_config, tmp_path):
    """The message is the command to run."""
    with pytest.raises(DataError, match=r"not prepared; run: python -m primia_jax\.data\.tfds_b"):
        opened(folder_config, tmp_path)


def test_damaged_set(kermany, folder_config, tmp_path):
    written = tfds_builder.prepare(str(kermany()), str(tmp_path / "sets"))
    for file in written.glob("*train.array_record*"):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read") as caught:
        opened(folder_config, tmp_path / "sets")
    assert len(str(caught.value).splitlines()) == 1


def test_prepare_mistakes(kermany, tmp_path, capsys):
    """One line and the exit code of a data mistake; a broken image is found before writing."""
    target = str(tmp_path / "sets")
    assert tfds_builder.main([str(tmp_path / "none"), target]) == DataError.exit_code
    assert "no such folder" in capsys.readouterr().err
    save(tmp_path / "other" / "a" / "1.png", grey(1))
    save(tmp_path / "other" / "b" / "2.png", grey(2))
    with pytest.raises(DataError, match="not the Kermany layout"):
        tfds_builder.prepare(str(tmp_path / "other"), target)
    root = kermany()
    (root / "train" / "NORMAL" / "IM-9999-0001.jpeg").write_bytes(b"x")
    with pytest.raises(DataError, match="1 of 25 images cannot be used"):
        tfds_builder.prepare(str(root), target)
    assert tfds_builder.main([str(root / "test"), target]) == 0
