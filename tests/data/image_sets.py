"""Makers of small data sets on disk and in memory, for the tests of primia_jax.data."""

import csv
import dataclasses
import pathlib

import numpy as np
import pydicom
from PIL import Image

from primia_jax.config.sections import DataConfig
from primia_jax.data.catalogue import Catalogue
from primia_jax.data.decoded import Fitted

KERMANY_FILES = {
    "NORMAL": "IM-{:04d}-0001.jpeg",
    "PNEUMONIA/bacteria": "person{}_bacteria_1.jpeg",
    "PNEUMONIA/virus": "person{}_virus_1.jpeg",
}


def grey(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    """[height, width] uint8: a picture that no other seed gives."""
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.integers(0, 256, (height, width), dtype=np.uint8)


def save(path: pathlib.Path, pixels: np.ndarray, **options) -> pathlib.Path:
    """Writes `pixels` in the format of the suffix of `path`, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_dicom(path: pathlib.Path, pixels: np.ndarray, **attributes) -> pathlib.Path:
    """Writes [h, w] uint16 `pixels` as a chest radiograph in DICOM.

    `attributes` replace or (if None) remove defaults.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path)])
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.ascontiguousarray(pixels, "<u2").tobytes()
    dataset.PatientID = "4711"
    for name, value in attributes.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_csv(path: pathlib.Path, header: list[str], rows: list[list[str]]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def catalogue(
    labels,
    patients,
    *,
    sites=None,
    splits=None,
    digests=None,
) -> Catalogue:
    """A catalogue in memory whose images are blank."""
    labels = np.asarray(labels, np.int32)
    n = len(labels)
    return Catalogue(
        names=tuple(f"image{i}" for i in range(n)),
        labels=labels,
        patients=np.asarray(patients, dtype=str),
        sites=None if sites is None else np.asarray(sites, dtype=str),
        splits=None if splits is None else np.asarray(splits, dtype=str),
        class_names=tuple(f"class{k}" for k in range(int(labels.max()) + 1)),
        read=lambda record, side: Fitted(np.zeros((side, side), np.uint8)),
        digests=tuple(digests) if digests is not None else tuple(f"d{i}" for i in range(n)),
    )


def with_rule(rule: str, **settings) -> DataConfig:
    return dataclasses.replace(DataConfig(), partition=rule, **settings)
