"""All parties of a run together: starts them, runs the programs, keeps what they leave behind.

This is the operator's view: it hands out programs and reads reports, but no data, model or key
passes through it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from primia_jax.config import ExperimentConfig
from primia_jax.data import DataPlan, SiteData
from primia_jax.errors import DataError
from primia_jax.federated import crypto_provider, hospital, model_owner
from primia_jax.federated.aggregation import OWNER, PROVIDER
from primia_jax.runtime import Driver, Locally, Trace


def party_makers(config: ExperimentConfig, plan: DataPlan) -> dict[str, Callable[[], Any]]:
    """What makes each party's state, in that party's own process; it can be pickled."""
    names = tuple(site.site for site in plan.sites)
    makers: dict[str, Callable[[], Any]] = {
        site.site: functools.partial(_make_hospital, config, names, i, site, plan.class_names)
        for i, site in enumerate(plan.sites)
    }
    makers[OWNER] = functools.partial(model_owner.make_owner, config, names, plan.class_names)
    if config.federated.mode == "federated_secure":
        makers[PROVIDER] = functools.partial(crypto_provider.CryptoProvider, names)
    return makers


def _make_hospital(
    config: ExperimentConfig,
    names: tuple[str, ...],
    index: int,
    site: SiteData,
    class_names: tuple[str, ...],
) -> hospital.Hospital:
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
    return hospital.make_hospital(config, names, index, train, validation)


@dataclasses.dataclass(frozen=True)
class Federation:
    """The parties of one run under one driver."""

    driver: Driver
    config: ExperimentConfig
    hospitals: tuple[str, ...]
    workdir: pathlib.Path

    @property
    def owner_folder(self) -> pathlib.Path:
        """Where the model owner keeps its checkpoints."""
        return self.workdir / "checkpoints"

    def _site_folder(self, name: str) -> pathlib.Path:
        return self.workdir / "sites" / name

    def set_up(self, after_round: int = 0) -> tuple[dict[str, Any], Trace]:
        """Keys, statistics and the first model; or the state after a complete round."""
        if after_round:
            restore = functools.partial(
                model_owner.restore, folder=self.owner_folder, number=after_round
            )
            self.driver.run({OWNER: Locally(restore)})
        programs: dict[str, Any] = dict.fromkeys(self.hospitals, hospital.set_up)
        programs[OWNER] = model_owner.set_up
        if self.config.federated.mode == "federated_secure":
            programs[PROVIDER] = crypto_provider.set_up
        reports, trace = self.driver.run(programs)
        if after_round:
            self.driver.run(self._at_sites(hospital.restore, after_round))
        return reports, trace

    def train_round(self, number: int) -> tuple[dict[str, Any], Trace]:
        """One round of training, aggregation and validation."""
        programs: dict[str, Any] = {
            name: functools.partial(hospital.train_round, number=number) for name in self.hospitals
        }
        programs[OWNER] = functools.partial(model_owner.train_round, number=number)
        return self.driver.run(programs)

    def save(self, number: int) -> None:
        """Every party writes its state after round `number`; `commit` then makes it count.

        Raises:
          StorageError: if one cannot; the round before stays complete.
        """
        programs = self._at_sites(hospital.save, number)
        save = functools.partial(model_owner.save, folder=self.owner_folder, number=number)
        self.driver.run({**programs, OWNER: Locally(save)})

    def _at_sites(self, function: Callable[..., Any], number: int) -> Mapping[str, Any]:
        return {
            name: Locally(
                functools.partial(function, folder=self._site_folder(name), number=number)
            )
            for name in self.hospitals
        }
