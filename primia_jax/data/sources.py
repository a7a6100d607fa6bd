"""The one door to images: whatever the kind of source, a catalogue comes out."""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from primia_jax.config.sections import DataConfig
from primia_jax.data import csv_source, folders, image_files
from primia_jax.data.catalogue import Catalogue
from primia_jax.data.image_files import ImageError
from primia_jax.errors import DataError


def open_catalogue(
    data: DataConfig,
    hospitals: int,
    seed: int,
    *,
    path: str | None = None,
    class_names: tuple[str, ...] = (),
) -> Catalogue:
    """Opens the source that `data.source` names; every image is checked before this returns.

    Args:
      data: the section of settings.
      hospitals: sites that the phantom generator is to imitate; other sources ignore it.
      seed: of the phantom generator; other sources ignore it.
      path: read this instead of `data.path` (the model owner's test set, or one hospital's path).
      class_names: the run's classes, of which the source may lack some; empty: `data.classes`, or
        else the classes found in the source, each of which must have an image.

    Raises:
      DataError: in one line what is missing or wrong; unreadable images are listed all at once.
    """
    if data.source == "phantom":
        from primia_jax.data import phantom  # needed by this source alone, as below

        films = phantom.catalogue(data.phantom, hospitals, seed)
        return films if data.masks else films.without_masks()
    if data.masks:
        raise DataError(
            f"config.data.masks: the source {data.source!r} has no masks; set it to False, or take "
            "config.data.source = 'phantom'"
        )
    path = os.path.expanduser(data.path if path is None else path)
    class_names = class_names or data.classes
    if "\0" in path:
        raise DataError(f"config.data.path = {path!r} has a NUL character; mend it")
    if not path:
        raise DataError(f"config.data.path is empty; the source '{data.source}' needs one")
    if "{site}" in path:
        raise DataError(f"config.data.path = {path!r}: {{site}} stands for one hospital's name")
    if data.source == "csv":
        return csv_source.open_csv(path, data, class_names=class_names)
    if data.source == "tfds":
        from primia_jax.data import tfds_builder

        return tfds_builder.open_prepared(path, data, class_names)
    if data.source == "dicom":
        table = _table_of(pathlib.Path(path))
        if table is not None:
            return csv_source.open_csv(str(table), data, True, class_names)
        return folders.open_folder(path, data, True, class_names)
    if data.source == "folder":
        return folders.open_folder(path, data, class_names=class_names)
    raise DataError(f"config.data.source = {data.source!r}: no such kind of source")


class NoUsableImages(DataError):
    """Inputs of which none can be used.

    Attributes:
      skipped: (name, reason) of each.
    """

    def __init__(self, path: str, skipped: list[tuple[str, str]]):
        name, reason = skipped[0]
        super().__init__(
            f"input {path}: {len(skipped)} of {len(skipped)} images cannot be used, "
            f"e.g. {name}: {reason}"
        )
        self.path, self.skipped = path, skipped

    def __reduce__(self) -> tuple:
        return NoUsableImages, (self.path, self.skipped)


class Inputs(NamedTuple):
    """Images without labels, n of them."""

    names: list[str]  # [n] below the folder, or the file's own name
    images: np.ndarray  # [n, s, s, 1] uint8, or uint16 if any image has 16 bits
    skipped: list[tuple[str, str]]  # (name, reason) of images that cannot be used
    remarks: tuple[str, ...]  # [n] doubts of the DICOM guard; empty where it has none
    sizes: list[tuple[int, int]]  # [n] rows and columns as stored


def predict_inputs(
    path: str, image_size: int
) -> tuple[list[str], np.ndarray, list[tuple[str, str]]]:
    """Names, images and skipped files of `read_inputs` under the default settings."""
    return read_inputs(path, image_size)[:3]


def read_inputs(path: str, image_size: int, data: DataConfig | None = None) -> Inputs:
    """Images without labels: one file, or every image below a folder, of any nesting.

    Args:
      path: an image or DICOM file, or a folder.
      image_size: s, the side of the squares.
      data: has the settings of the DICOM guard; the default ones if None.

    Raises:
      DataError: if nothing is there.
      NoUsableImages: if no image can be used.
    """
    root = pathlib.Path(os.path.expanduser(path))
    if root.is_dir():
        files = [file for file in image_files.walk(root) if image_files.is_candidate(file)]
        names = [file.relative_to(root).as_posix() for file in files]
    elif root.exists():
        files, names = [root], [root.name]
    else:
        raise DataError(f"input {path}: no such file or folder")
    if not files:
        raise DataError(f"input {path}: no images found")
    used, images, skipped, remarks = [], [], [], []
    sizes: list[tuple[int, int]] = []
    for file, name in zip(files, names):
        try:
            decoded = image_files.decode(image_files.read_bytes(file), file.suffix, data)
        except ImageError as error:
            skipped.append((name, str(error)))
            continue
        used.append(name)
        remarks.append("; ".join(decoded.remarks))
        sizes.append((decoded.pixels.shape[0], decoded.pixels.shape[1]))
        images.append(image_files.fit(decoded.pixels, image_size))
    if not images:
        raise NoUsableImages(path, skipped)
    return Inputs(used, image_files.stack(images), skipped, tuple(remarks), sizes)


def _table_of(path: pathlib.Path) -> pathlib.Path | None:
    """The table that labels DICOM files: `path` itself, or the only CSV file in that folder."""
    if path.is_file():
        return path
    tables = sorted(path.glob("*.csv")) if path.is_dir() else []
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise DataError(f"folder {path}: several tables ({names}); set config.data.path to one")
    return tables[0] if tables else None
