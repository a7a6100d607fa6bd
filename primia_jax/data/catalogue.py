"""Catalogue of records that every source of images becomes, and the arrays read from it.

Axis letters: n records, s image side, c channels.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from primia_jax.data.decoded import Fitted

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Everything known of a set of images except their pixels."""

    names: tuple[str, ...]  # [n] unique: a path below the source's root, or an identifier
    labels: np.ndarray  # [n] int32, index into class_names
    patients: np.ndarray  # [n] str; SITE/PATIENT where the source names sites
    sites: np.ndarray | None  # [n] str; None where the source names no sites
    splits: np.ndarray | None  # [n] str: "train" | "validation" | "test" | "" (free)
    class_names: tuple[str, ...]
    read: Callable[[int, int], Fitted]  # (record, s) -> its image
    digests: tuple[str, ...]  # [n] equal exactly where the stored images are identical
    skipped: tuple[tuple[str, str], ...] = ()  # (name, reason) of files left out
    remarks: tuple[str, ...] = ()  # assumptions about the source that a user should check
    # (record, s) -> [s, s] uint8, index into `structures`; None where there are no masks
    read_mask: Callable[[int, int], np.ndarray] | None = None
    structures: tuple[str, ...] = ()  # names of a mask's values, background first

    def __len__(self) -> int:
        return len(self.names)

    def without_masks(self) -> "Catalogue":
        """The same records, whose masks are not read."""
        return dataclasses.replace(self, read_mask=None, structures=())


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images in memory with their labels. Grey values are stored as the source has them."""

    images: np.ndarray  # [n, s, s, 1] uint8 or uint16; the dtype's range is black to white
    labels: np.ndarray  # [n] int32
    names: tuple[str, ...]
    patients: np.ndarray  # [n] str
    sites: np.ndarray  # [n] str
    class_names: tuple[str, ...]
    masks: np.ndarray | None = None  # [n, s, s] uint8, index into `structures`
    structures: tuple[str, ...] = ()
    padding: np.ndarray | None = None  # [n, s, s] bool: pixels outside the picture, if any are

    def __len__(self) -> int:
        return len(self.labels)

    def class_counts(self) -> np.ndarray:
        """[k] int64: records of each class."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    def in_16_bits(self) -> "Dataset":
        """The same grey levels as uint16, whatever the depth of the images."""
        if self.images.dtype == np.uint16:
            return self
        return dataclasses.replace(self, images=self.images.astype(np.uint16) * 257)

    def take(self, indices: np.ndarray) -> "Dataset":
        """The records at `indices`, in that order."""
        return dataclasses.replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            names=tuple(self.names[i] for i in indices),
            patients=self.patients[indices],
            sites=self.sites[indices],
            masks=None if self.masks is None else self.masks[indices],
            padding=None if self.padding is None else self.padding[indices],
        )


def load(catalogue: Catalogue, indices: np.ndarray, image_size: int, threads: int = 2) -> Dataset:
    """Reads the records at `indices`, with masks if there are any; mixed depths become uint16."""
    indices = np.asarray(indices, dtype=np.int64)
    masks: np.ndarray | None = None
    with ThreadPoolExecutor(threads) as pool:
        images = list(pool.map(lambda i: catalogue.read(int(i), image_size), indices))
        if (read_mask := catalogue.read_mask) is not None:
            masks = np.zeros((len(indices), image_size, image_size), np.uint8)
            masks[:] = list(pool.map(lambda i: read_mask(int(i), image_size), indices))
    deep = any(image.pixels.dtype == np.uint16 for image in images)
    stacked = np.zeros((len(images), image_size, image_size, 1), np.uint16 if deep else np.uint8)
    for row, image in zip(stacked, images):
        widen = deep and image.pixels.dtype == np.uint8
        row[..., 0] = image.pixels.astype(np.uint16) * 257 if widen else image.pixels
    padding = None
    if any(image.padding is not None for image in images):
        padding = np.zeros(stacked.shape[:-1], bool)
        for mask, image in zip(padding, images):
            if image.padding is not None:
                mask[...] = image.padding
    sites = catalogue.sites
    return Dataset(
        images=stacked,
        labels=catalogue.labels[indices].astype(np.int32),
        names=tuple(catalogue.names[i] for i in indices),
        patients=catalogue.patients[indices],
        sites=sites[indices] if sites is not None else np.full(len(indices), "", dtype="<U1"),
        class_names=catalogue.class_names,
        masks=masks,
        structures=catalogue.structures,
        padding=padding,
    )


def digest(content: bytes) -> str:
    """The fingerprint by which identical images are recognised."""
    return hashlib.sha256(content).hexdigest()
