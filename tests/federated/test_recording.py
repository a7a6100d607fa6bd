"""That recordings hold what was really seen and given, and nothing that must not be there."""

import numpy as np
import pytest

from primia_jax.config import FederatedConfig
from primia_jax.errors import CheckpointError, StorageError
from primia_jax.federated import recording
from primia_jax.federated.aggregation import Contribution, Total
from primia_jax.federated.local_training import Statistics
from primia_jax.federated.variables import Vectors

BEFORE = Vectors((np.zeros(3, np.float32), np.ones(2, np.float32)), np.zeros(4))
STATISTICS = Statistics(np.float32(0.5), np.float32(0.25), np.ones(2, np.float32))
VALUES = (np.arange(3.0), np.arange(2.0), np.arange(4.0))


def seen(total):
    return recording.owner_view(BEFORE, total, STATISTICS, ("healthy", "ill"))


def test_which_rounds_are_recorded():
    assert not recording.wanted(FederatedConfig(record_rounds=(1,)), 1)
    assert recording.wanted(FederatedConfig(record_updates=True), 7)
    some = FederatedConfig(record_updates=True, record_rounds=(2, 5))
    assert [r for r in range(1, 7) if recording.wanted(some, r)] == [2, 5]


def test_parts_are_kept_where_the_owner_sees_them(tmp_path):
    parts = tuple(Contribution(tuple(v + i for v in VALUES), 2 + i, np.zeros(1)) for i in range(2))
    total = Total(
        tuple(2 * v + 3 * (v + 1) for v in VALUES), 5, np.zeros(1, np.int64), parts, ("b", "c")
    )
    recording.write_view(tmp_path, 12, seen(total))
    assert recording.rounds(tmp_path) == [12]
    found = recording.read_view(tmp_path, 12)
    assert [(one.sender, one.weight) for one in found.arrivals] == [("b", 2), ("c", 3)]
    for got, value in zip(found.arrivals[1].vectors.params, VALUES):
        np.testing.assert_array_equal(got, value + 1)
    np.testing.assert_array_equal(found.arrivals[1].vectors.moments, VALUES[2] + 1)
    assert found.class_names == ("healthy", "ill")
    assert found.statistics.std == np.float32(0.25)
    for got, value in zip(found.before.params, BEFORE.params, strict=True):
        np.testing.assert_array_equal(got, value)


def test_of_a_sum_only_the_mean_is_known():
    there = ("a", "c")
    total = Total(tuple(5 * v for v in VALUES), 5, np.zeros(1, np.int64), (), there, there)
    (one,) = seen(total).arrivals
    assert (one.sender, one.hospitals, one.weight) == (recording.SUM, there, 5)
    np.testing.assert_array_equal(one.vectors.params[0], VALUES[0])


def test_what_is_damaged_or_cannot_be_written_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"round_000001\.npz cannot be read"):
        recording.read_view(tmp_path, 1)
    file = tmp_path / "recorded" / "round_000001.npz"
    file.parent.mkdir()
    file.write_bytes(b"PK not really")
    with pytest.raises(CheckpointError, match="cannot be read"):
        recording.read_truth(tmp_path, 1)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "recorded").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"config\.federated\.record_rounds"):
        recording.write_view(tmp_path / "taken", 1, seen(Total(VALUES, 1, np.zeros(1))))


def test_changes_are_added_to_the_model_that_went_out():
    total = Total(tuple(2 * v for v in VALUES[:2]), 2, np.zeros(0), (), ("a", "b"))
    found = recording.owner_view(BEFORE, total, STATISTICS, ("healthy", "ill"), changes=True)
    np.testing.assert_array_equal(found.arrivals[0].vectors.params[1], 1 + VALUES[1])
    np.testing.assert_array_equal(found.arrivals[0].vectors.moments, BEFORE.moments)


def test_a_truth_without_images_is_kept(tmp_path):
    empty = recording.Truth(np.zeros((0, 8, 8, 1)), np.zeros((0, 2)), np.zeros(0), np.zeros(1), 7)
    recording._write(tmp_path / "recorded" / "round_000003.npz", empty._asdict())
    found = recording.read_truth(tmp_path, 3)
    assert found.images.shape == (0, 8, 8, 1) and found.sizes.tolist() == [0] and found.weight == 7
