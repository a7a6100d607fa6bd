"""Fixtures for the tests of primia_jax.data; the makers of data are in image_sets.py."""

import pathlib
from collections.abc import Callable

import pytest
from image_sets import KERMANY_FILES, grey, save

from primia_jax.config.sections import DataConfig


@pytest.fixture
def kermany(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Makes a Kermany tree: `patients` of each class in each split, one image each."""

    def make(
        splits: tuple[str, ...] = ("train", "test"), patients: int = 4, nested: str = ""
    ) -> pathlib.Path:
        root = tmp_path / "kermany"
        seed = 0
        for split in splits:
            for kind, pattern in KERMANY_FILES.items():
                for number in range(1, patients + 1):
                    seed += 1
                    folder = root / nested / split / kind.split("/")[0]
                    save(folder / pattern.format(number), grey(seed))
        return root

    return make


@pytest.fixture
def folder_config() -> DataConfig:
    return DataConfig(source="folder", image_size=16, partition="iid")
