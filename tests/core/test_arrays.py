"""Files of arrays come back, and what cannot be read or written is one line."""

import resource

import numpy as np
import pytest

from primia_jax.core import arrays, storage
from primia_jax.errors import CheckpointError, StorageError

TREE = {"a": np.arange(1000.0), "b": np.zeros(0, np.int64)}


def test_tensors_come_back_with_their_facts(tmp_path):
    arrays.write_tensors(tmp_path / "file", TREE, {"about": "x"})
    found, facts = arrays.read_tensors(tmp_path / "file")
    assert facts == {"about": "x"} and found.keys() == TREE.keys()
    np.testing.assert_array_equal(found["a"], TREE["a"])


@pytest.fixture
def small_files():
    """No file may have more than 4000 bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_limit_of_files_is_one_line_and_the_former_file_stays(tmp_path, small_files):
    path = tmp_path / "file"
    path.write_text("former")
    with (
        pytest.raises(StorageError, match=r"file cannot be written \(") as error,
        storage.replacing(path) as partial,
    ):
        arrays.write_tensors(partial, TREE)
    assert "\n" not in str(error.value) and path.read_text() == "former"


@pytest.mark.parametrize("read", [arrays.read_tensors, arrays.read_archive])
@pytest.mark.parametrize("keep", [0, 4, 100, 500, -1])
def test_damaged_files_are_one_line(tmp_path, read, keep):
    path = tmp_path / "file"
    with pytest.raises(CheckpointError, match="No such file"):
        read(path)
    if read is arrays.read_tensors:
        arrays.write_tensors(path, TREE)
    else:
        with open(path, "wb") as file:
            np.savez_compressed(file, **TREE)
    for content in (path.read_bytes()[:keep], b"PK\3\4 no archive", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"file cannot be read \(") as error:
            read(path)
        assert "\n" not in str(error.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="a folder, not a regular file"):
        read(path)
