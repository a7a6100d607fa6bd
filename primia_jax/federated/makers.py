"""Makers of the parties' states: each runs in its party's own process, where its data are."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

from primia_jax import tasks
from primia_jax.config import ExperimentConfig
from primia_jax.core.storage import private_folder, write_text
from primia_jax.data import DataPlan, Dataset, SiteData
from primia_jax.data.file_catalogue import UnusableImages
from primia_jax.errors import DataError
from primia_jax.federated import checkpoints, crypto_provider, hospital_state, model_owner
from primia_jax.federated.aggregation import OWNER, PROVIDER

ERRORS = "errors.txt"  # in a hospital's own folder: why its images cannot be used


def party_makers(
    config: ExperimentConfig, plan: DataPlan, workdir: pathlib.Path | None = None
) -> dict[str, Callable[[], Any]]:
    """Makers of each party's state, called in that party's own process; they can be pickled.

    Args:
      config: of the experiment.
      plan: who holds which images.
      workdir: where a hospital whose own images cannot be used writes why, below its own folder.
    """
    names = tuple(site.site for site in plan.sites)
    makers: dict[str, Callable[[], Any]] = {
        site.site: functools.partial(
            _make_hospital, config, names, i, site, plan.class_names, workdir
        )
        for i, site in enumerate(plan.sites)
    }
    class_names = tasks.classes(config, plan)
    makers[OWNER] = functools.partial(model_owner.make_owner, config, names, class_names)
    if config.federated.mode == "federated_secure":
        makers[PROVIDER] = functools.partial(crypto_provider.CryptoProvider, names)
    return makers


def _make_hospital(
    config: ExperimentConfig,
    names: tuple[str, ...],
    index: int,
    site: SiteData,
    class_names: tuple[str, ...],
    workdir: pathlib.Path | None,
) -> hospital_state.Hospital:
    """Reads a hospital's images.

    Raises:
      DataError: if they cannot be used. Where the hospital reads its own path, the error has no
        names of files: they stand in `ERRORS` in the hospital's own folder.
    """
    try:
        train, validation = _load(site, class_names)
    except (DataError, OSError) as error:
        if site.catalogue is not None:  # the operator has read the same files
            raise
        raise _kept_here(site, error, workdir) from None
    if config.privacy.mode == "record":
        # One image of 16 bits would have all others stored, and rounded, in 16 bits.
        train, validation = train.in_16_bits(), validation.in_16_bits()
    return hospital_state.make_hospital(config, names, index, train, validation)


def _load(site: SiteData, class_names: tuple[str, ...]) -> tuple[Dataset, Dataset]:
    """Training and validation images, if their classes are those of the run."""
    train, validation = site.load()
    for data in (train, validation):
        if data.class_names != class_names:
            raise DataError(
                f"{site.site} has classes {', '.join(data.class_names)}; the run has "
                f"{', '.join(class_names)}"
            )
        if len(data) and not 0 <= data.labels.min() <= data.labels.max() < len(class_names):
            raise DataError(
                f"{site.site} has a label outside 0…{len(class_names) - 1}: "
                f"{data.names[int(data.labels.argmax())]}"
            )
    return train, validation


def _kept_here(site: SiteData, error: Exception, workdir: pathlib.Path | None) -> DataError:
    """Writes `error` into the hospital's own folder; returns what others may know of it."""
    name, path_there = site.site, pathlib.Path(site.own_path()).expanduser()
    counts = ""
    if isinstance(error, UnusableImages):
        counts = f" ({error.count} of {error.total}{' are ' + error.kind if error.kind else ''})"
    elif not path_there.exists():  # the operator named it
        counts = (
            f" (no such file or folder: {path_there}; {{site}} in config.data.path stands for "
            "hospital_0, hospital_1, …)"
        )
    where = ""
    if workdir is not None:
        path = private_folder(checkpoints.site_folder(workdir, name)) / ERRORS
        write_text(path, f"{error}\n")
        where = f"; the reason and the files stand in {path} on its machine"
    return DataError(f"{name}: its images cannot be used{counts}{where}")
