"""Records of a round for an audit: the model owner's view, and the truth it must not see.

    workdir/checkpoints/recorded/round_000001.npz         at the model owner: the model that went
                                                          out, and what arrived
    workdir/sites/hospital_0/recorded/round_000001.npz    at the hospital: the images as its local
                                                          steps were given them
    workdir/sites/hospital_0/recorded/images.npz          all its training images, once

Under secure aggregation the owner's file holds the opened sum alone, since nothing else ever
arrives. The hospital's files are the truth that attacks are judged by; nothing of them is sent.

Axis letters: n images behind an update, t local steps, s side of the images, k classes, m training
images, p_j elements of the j-th leaf, c channels of all batch norms together.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from primia_jax.config import FederatedConfig
from primia_jax.core.arrays import read_archive
from primia_jax.core.storage import reason, replacing
from primia_jax.data import Dataset
from primia_jax.errors import StorageError
from primia_jax.federated.aggregation import Total
from primia_jax.federated.local_training import Statistics
from primia_jax.federated.variables import Vectors

FOLDER = "recorded"
_IMAGES = "images.npz"
SUM = "sum"  # stands for all hospitals where the owner opened their sum alone


class Arrival(NamedTuple):
    """Update from a hospital, or the weighted mean of the updates of all."""

    sender: str  # the hospital, or `SUM`
    hospitals: tuple[str, ...]  # that are in it
    vectors: Vectors  # the network
    weight: int  # training images behind it; with config.privacy.mode = client, hospitals


class OwnerView(NamedTuple):
    """Everything that the model owner saw of a round."""

    before: Vectors  # the model that went out
    arrivals: tuple[Arrival, ...]
    statistics: Statistics
    class_names: tuple[str, ...]


class Truth(NamedTuple):
    """Inputs of a hospital's local steps."""

    images: np.ndarray  # [n s s 1] float32 in [0, 1], augmented; in the order of the steps
    targets: np.ndarray  # [n … k] float32; one-hot, unless mixed up
    records: np.ndarray  # [n] int: which of its training images they come from
    sizes: np.ndarray  # [t] int: images of each step
    weight: int  # all of its training images


def wanted(config: FederatedConfig, number: int) -> bool:
    """True if round `number` is recorded."""
    return config.record_updates and (not config.record_rounds or number in config.record_rounds)


def owner_view(
    before: Vectors,
    total: Total,
    statistics: Statistics,
    class_names: Sequence[str],
    *,
    changes: bool = False,
) -> OwnerView:
    """The owner's view: each hospital's network where the total has parts, else their mean.

    Args:
      before: the model that went out.
      total: what the aggregation gave.
      statistics: of the pixels and classes.
      class_names: of the run.
      changes: whether the values are changes of the weights, without moments.
    """
    n = len(before.params)

    def arrival(
        sender: str, hospitals: tuple[str, ...], values: Sequence[Any], weight: int
    ) -> Arrival:
        if changes:
            params = tuple(w + change for w, change in zip(before.params, values, strict=True))
            vectors = Vectors(params, before.moments)
        else:
            vectors = Vectors(tuple(values[:n]), np.asarray(values[n]))
        return Arrival(sender, hospitals, vectors, int(weight))

    if total.parts:
        arrivals = tuple(
            arrival(name, (name,), part.values, part.weight)
            for name, part in zip(total.took_part, total.parts, strict=True)
        )
    else:
        arrivals = (arrival(SUM, total.took_part, total.mean(), total.weight),)
    return OwnerView(before, arrivals, statistics, tuple(class_names))


def write_view(folder: pathlib.Path, number: int, view: OwnerView) -> None:
    """Keeps what the owner saw in round `number` below its `folder` of checkpoints.

    Raises:
      StorageError: if it cannot be written.
    """
    arrays: dict[str, Any] = {
        "senders": np.asarray([one.sender for one in view.arrivals]),
        "weights": np.asarray([one.weight for one in view.arrivals], np.int64),
        "class_names": np.asarray(view.class_names),
        **{f"statistics/{name}": value for name, value in view.statistics._asdict().items()},
        **_named("before", view.before),
    }
    for i, one in enumerate(view.arrivals):
        arrays |= _named(f"arrival_{i}", one.vectors)
        arrays[f"arrival_{i}/hospitals"] = np.asarray(one.hospitals)
    _write(_file(folder, number), arrays)


def write_truth(folder: pathlib.Path, number: int, truth: Truth, images: Dataset) -> None:
    """Keeps what a hospital's steps were given in round `number` below its own `folder`.

    Raises:
      StorageError: if it cannot be written.
    """
    _write(_file(folder, number), truth._asdict())
    if not (folder / FOLDER / _IMAGES).exists():
        _write(folder / FOLDER / _IMAGES, {"images": images.images, "labels": images.labels})


def rounds(folder: pathlib.Path) -> list[int]:
    """The rounds recorded below a party's folder, ascending."""
    return sorted(int(path.stem.partition("_")[2]) for path in _files(folder))


def read_view(folder: pathlib.Path, number: int) -> OwnerView:
    """Reads the record that `write_view` wrote.

    Raises:
      CheckpointError: if it is missing or damaged.
    """
    archive = read_archive(_file(folder, number))
    arrivals = tuple(
        Arrival(
            str(sender),
            tuple(map(str, archive[f"arrival_{i}/hospitals"])),
            _vectors(archive, f"arrival_{i}"),
            int(weight),
        )
        for i, (sender, weight) in enumerate(zip(archive["senders"], archive["weights"]))
    )
    return OwnerView(
        _vectors(archive, "before"),
        arrivals,
        Statistics(*(archive[f"statistics/{name}"] for name in Statistics._fields)),
        tuple(map(str, archive["class_names"])),
    )


def read_truth(folder: pathlib.Path, number: int) -> Truth:
    """Reads the record that `write_truth` wrote of a round.

    Raises:
      CheckpointError: if it is missing or damaged.
    """
    archive = read_archive(_file(folder, number))
    return Truth(**{**archive, "weight": int(archive["weight"])})  # type: ignore[arg-type]


def read_images(folder: pathlib.Path) -> np.ndarray:
    """All training images [m s s 1] of the hospital whose folder it is, float32 in [0, 1].

    Raises:
      CheckpointError: if they are missing or damaged.
    """
    images = read_archive(folder / FOLDER / _IMAGES)["images"]
    return images.astype(np.float32) / np.iinfo(images.dtype).max


def _file(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / FOLDER / f"round_{number:06d}.npz"


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [p for p in (folder / FOLDER).glob("round_*.npz") if p.stem[6:].isdigit()]


def _named(prefix: str, vectors: Vectors) -> dict[str, np.ndarray]:
    """The vectors under names that `_vectors` knows; the leaves in order, as one."""
    sizes = np.asarray([len(vector) for vector in vectors.params], np.int64)
    return {
        f"{prefix}/params": np.concatenate(vectors.params),
        f"{prefix}/sizes": sizes,
        f"{prefix}/moments": vectors.moments,
    }


def _vectors(archive: Mapping[str, np.ndarray], prefix: str) -> Vectors:
    ends = np.cumsum(archive[f"{prefix}/sizes"])[:-1]
    return Vectors(tuple(np.split(archive[f"{prefix}/params"], ends)), archive[f"{prefix}/moments"])


def _write(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes all arrays or nothing."""
    try:
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)
    except StorageError as error:
        raise StorageError(
            f"{path} could not be written ({reason(error)}); free some space, or record fewer "
            "rounds (config.federated.record_rounds)"
        ) from error
