"""What a party wrote it reads again to the bit, or is told why not; failed writes leave nothing."""

import errno
import json
import os
import stat

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from primia_jax.errors import CheckpointError, StorageError
from primia_jax.federated import checkpoints

TREE = {
    "params": {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(2, 3).T},
    "moments": [np.arange(6, dtype=np.uint32).reshape(2, 3).T, (), np.zeros((0, 3))],
    "count": np.int32(3),
    "seen": np.asarray([True, False]),
    "half": np.full(3, 1.5, ml_dtypes.bfloat16),
}


@pytest.fixture
def folder(tmp_path):
    checkpoints.save(tmp_path, 1, {"state": TREE, "nothing": {}}, {"fact": 1}, ())
    return tmp_path


def test_every_kind_of_array_comes_back(folder):
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), TREE)
    found = checkpoints.restore(folder, 1, "state", template)
    assert jax.tree.structure(found) == jax.tree.structure(TREE)
    for here, there in zip(jax.tree.leaves(found), jax.tree.leaves(TREE)):
        assert here.dtype == there.dtype
        np.testing.assert_array_equal(here, there)
    assert checkpoints.restore(folder, 1, "nothing", {}) == {}
    assert checkpoints.about(folder, 1) == {"fact": 1}


@pytest.mark.parametrize(
    ("template", "words"),
    (
        ({**TREE, "more": np.ones(2)}, r"more is missing there, not float64\[2\]"),
        ({k: TREE[k] for k in TREE if k != "count"}, r"count is int32\[\] there, not missing"),
        ({**TREE, "count": np.int64(3)}, r"count is int32\[\] there, not int64\[\]"),
        ({**TREE, "seen": np.asarray([True])}, r"seen is bool\[2\] there, not bool\[1\]"),
    ),
    ids=("missing", "too many", "type", "shape"),
)
def test_another_structure_is_refused_by_name(folder, template, words):
    with pytest.raises(CheckpointError, match=words):
        checkpoints.restore(folder, 1, "state", template)


@pytest.mark.parametrize("keep", (0, 4, 100, -1))
def test_a_file_cut_short_is_refused(folder, keep):
    file = folder / "round_000001" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"state.safetensors cannot be read"):
        checkpoints.restore(folder, 1, "state", TREE)


def test_what_is_not_there_is_refused(folder):
    with pytest.raises(CheckpointError, match="no checkpoint of round 2"):
        checkpoints.restore(folder, 2, "state", TREE)
    with pytest.raises(CheckpointError, match="other"):
        checkpoints.restore(folder, 1, "other", TREE)


def test_a_full_disk_leaves_the_earlier_rounds(folder, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"round 2 could not be written.*No space left"):
        checkpoints.save(folder, 2, {"state": TREE}, {}, (1,))
    assert [path.name for path in folder.iterdir()] == ["round_000001"]
    checkpoints.restore(folder, 1, "state", TREE)


def test_what_will_not_fit_is_not_begun(folder, monkeypatch):
    usage = checkpoints.shutil.disk_usage(folder)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"MB are needed and 0\.0 free"):
        checkpoints.save(folder, 2, {"state": TREE}, {}, (1,))
    assert [path.name for path in folder.iterdir()] == ["round_000001"]


def test_a_round_written_again_replaces_what_a_crash_left(folder):
    (folder / ".round_000001.partial").mkdir()
    (folder / ".round_000001.partial" / "half").write_text("")
    checkpoints.save(folder, 1, {"state": {"x": np.ones(2)}}, {}, ())
    np.testing.assert_array_equal(
        checkpoints.restore(folder, 1, "state", {"x": np.zeros(2)})["x"], np.ones(2)
    )
    assert [path.name for path in folder.iterdir()] == ["round_000001"]


def test_only_the_rounds_that_are_kept_stay(folder):
    for number in (2, 3, 4):
        checkpoints.save(folder, number, {"state": TREE}, {}, (number - 1, 1))
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["round_000001", "round_000003", "round_000004"]


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("dtype", (np.float32, ml_dtypes.bfloat16))
def test_values_that_are_not_finite_are_refused(tmp_path, value, dtype):
    tree = {"params": {"kernel": np.asarray([1, value], dtype)}}
    checkpoints.save(tmp_path, 1, {"state": tree}, {}, ())
    with pytest.raises(CheckpointError, match=r"params/kernel holds values that are not finite"):
        checkpoints.restore(tmp_path, 1, "state", tree)


@pytest.mark.parametrize(
    "content",
    (
        {"fact": 1},
        [],
        {"format": "primia_jax checkpoint", "version": 1, "facts": {}},
        {"format": "primia_jax checkpoint", "version": 2, "facts": None},
        {"format": "other", "version": 2, "facts": {}},
    ),
)
def test_another_version_of_the_format_is_refused(folder, content):
    (folder / "round_000001" / "about.json").write_text(json.dumps(content))
    for read in (
        lambda: checkpoints.about(folder, 1),
        lambda: checkpoints.restore(folder, 1, "state", TREE),
    ):
        with pytest.raises(CheckpointError, match=r"of another version|is no JSON object") as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    (
        "",
        "[]",
        "3",
        '{"round": "1"}',
        '{"round": 1, "best": 1}',
        '{"round": -1}',
        '{"round": true}',
    ),
)
def test_a_damaged_commit_is_refused(folder, content):
    (folder / checkpoints.LATEST).write_text(content)
    with pytest.raises(CheckpointError) as error:
        checkpoints.latest(folder)
    assert "\n" not in str(error.value) and checkpoints.LATEST in str(error.value)


def test_files_are_for_their_owner_alone(tmp_path):
    former = os.umask(0o002)
    try:
        folder = checkpoints.site_folder(tmp_path, "hospital_0")
        checkpoints.save(folder, 1, {"state": TREE}, {}, ())
        checkpoints.commit(folder, checkpoints.Progress(1, 1))
    finally:
        os.umask(former)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_dir()}
    assert modes == {0o700}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o600}


@pytest.mark.parametrize("name", ("../../victim", "/abs", "..", "", "a/b", "North"))
def test_a_hospitals_folder_lies_beside_the_others_whatever_its_name(tmp_path, name):
    folder = checkpoints.site_folder(tmp_path, name)
    assert folder.resolve().parent == (tmp_path / "sites").resolve()
    assert folder.name.casefold() != checkpoints.site_folder(tmp_path, "north").name


def test_folders_of_other_names_are_left_alone(folder):
    (folder / "round_first").mkdir()
    checkpoints.save(folder, 2, {"state": TREE}, {}, ())
    checkpoints.drop_after(folder, 1)
    assert checkpoints.newest(folder, 5) == 0 and (folder / "round_first").exists()
