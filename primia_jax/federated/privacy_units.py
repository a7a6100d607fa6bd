"""Units of privacy: the images that a hospital's guarantee protects together.

A unit is one image, or all images that a hospital has of one patient (`config.privacy.unit`). It is
drawn, clipped and accounted for as a whole. Sources that name no patients make each image a patient
of its own; both units are then the same.

Axis letters: n images, u units, d values of an image.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from primia_jax.config import PrivacyConfig
from primia_jax.data import Dataset
from primia_jax.federated import discrete_noise
from primia_jax.federated.privacy_ledger import IMAGE, PATIENT
from primia_jax.mpc import prg


@dataclasses.dataclass(frozen=True)
class Units:
    """A division of n images into units."""

    kind: str  # IMAGE or PATIENT
    members: tuple[np.ndarray, ...]  # [u] of int: each unit's images, ascending
    most_images: int  # of a unit in one step

    def __len__(self) -> int:
        return len(self.members)

    @property
    def n_images(self) -> int:
        """Images of all units."""
        return sum(map(len, self.members))

    def means(self, values: np.ndarray) -> np.ndarray:
        """[u d] float64: the mean of `values` [n d] over each unit's images.

        A mean is no longer than the longest of its terms: where each image's values have a norm
        of at most c, so have each unit's, however many images it has.
        """
        order = np.concatenate(self.members)
        starts = np.cumsum([0, *map(len, self.members)])[:-1]
        sums = np.add.reduceat(np.asarray(values, np.float64)[order], starts, axis=0)
        return sums / np.asarray([len(own) for own in self.members])[:, None]


def units_of(config: PrivacyConfig, data: Dataset) -> Units:
    """The units of `data` under `config.unit`, in the order of their first images."""
    if config.unit == IMAGE:
        return Units(IMAGE, tuple(np.arange(len(data))[:, None]), 1)
    of_patient: dict[str, list[int]] = {}
    for image, patient in enumerate(data.patients):
        of_patient.setdefault(str(patient), []).append(image)
    members = tuple(np.asarray(images) for images in of_patient.values())
    return Units(PATIENT, members, config.images_per_patient)


class Sample(NamedTuple):
    """Units and keys that a private step draws, all but the noise; they never leave the hospital.

    Every unit is in it with the same chance, independently. Which of a unit's images are taken, and
    the key of an image's augmentation, do not depend on who else is in it.
    """

    images: tuple[np.ndarray, ...]  # of each drawn unit, int, at most `Units.most_images`
    keys: np.ndarray  # uint32 [n 2]: of the augmentation of each image, drawn or not

    def __len__(self) -> int:
        return len(self.images)


def draw(units: Units, rate: float) -> Sample:
    """A Poisson sample of `units` at `rate`, with ChaCha20 under fresh keys of the system.

    Every image has 64 bits of a key of its own for its augmentation, and 64 bits by which a unit's
    images are ranked where it has more than `most_images`: the least ones are taken. Both are made
    for all images, before it is known which ones are drawn. So an image's presence leaves all
    others' contributions as they are, and the sum over a sample is a sum of independent terms, one
    a unit, as the accountants take it to be. Fresh secret keys make this hold for images that are
    added or removed as well, which would shift the places of the others.

    `jax.random` only expands a key into an augmentation's parameters. Augmentation hides nothing,
    so that its generator need not be a cryptographic one; its keys must not repeat or depend on
    others, and come from one that is.
    """
    chosen = discrete_noise.poisson_sample(prg.new_seed(), len(units), rate)
    words = prg.expand(prg.new_seed(), 2 * units.n_images).reshape(-1, 2)
    images = tuple(taken(units.members[unit], words[:, 1], units.most_images) for unit in chosen)
    return Sample(images, np.ascontiguousarray(words[:, 0]).view(np.uint32).reshape(-1, 2))


def taken(images: np.ndarray, ranks: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of a unit's `images`, those of the least `ranks` [n]; ascending."""
    if len(images) <= most:
        return images
    return np.sort(images[np.argsort(ranks[images], kind="stable")[:most]])
