"""The files of a run: config.json, rounds.jsonl, metrics.json, tensorboard/ and their order."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tensorboardX import SummaryWriter

from primia_jax.config import ExperimentConfig, from_config_dict, to_plain
from primia_jax.core.storage import (
    append_lines,
    make_folder,
    move_aside,
    private_file,
    private_folder,
    read_json,
    storing,
    write_json,
    write_text,
)
from primia_jax.data import DataPlan, patient_digests
from primia_jax.errors import CheckpointError, ConfigError, DataError, StorageError
from primia_jax.evaluation.record import ROUNDS, read_rounds
from primia_jax.federated import checkpoints, credentials
from primia_jax.federated.aggregation import PROVIDER
from primia_jax.federated.checkpoints import Progress

CONFIG = "config.json"
EXPORTS = {"safetensors": "model.safetensors", "orbax": "model_orbax"}  # by kind
_OWN = (
    "config.json", "metrics.json", "rounds.jsonl", "timing.json", "report.html",
    "evaluation.json", "predictions.csv", "masks", "tensorboard", "checkpoints", "sites", "films",
    "data.json", "encrypted.json", "trace.json", "trace.png", "status.json", "mlflow.json",
    "audit.json", "audit.html", "audit", "study.db", "search.json", "trials", "best_config.py",
    credentials.IDENTITIES, PROVIDER, "data_owner", *EXPORTS.values(),
)  # fmt: skip
_LISTED = 20  # files that a refusal names
_FREE = credentials.FREE_SECTIONS  # that a resumed run may change


def recorded_config(folder: pathlib.Path) -> ExperimentConfig:
    """The configuration of the run in `folder`, without its section `audit`.

    Raises:
      CheckpointError: if config.json is missing, or is none of a run.
    """
    path = folder / CONFIG
    stored = read_json(path)
    try:
        own = {key: value for key, value in stored.items() if key != "audit"}
        return from_config_dict(ExperimentConfig, own)
    except ConfigError as error:
        raise CheckpointError(f"{path} is not of a run that can be read: {error}") from error


def check_begun(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Refuses to resume where nothing was begun.

    Args:
      folder: the workdir.
      names: files and folders of which a run that was begun has at least one.

    Raises:
      CheckpointError: if there is none of them.
    """
    if not any((folder / name).exists() for name in names):
        raise CheckpointError(
            f"--resume: there is no run to resume in {folder}; leave --resume out to begin one, or "
            "name the folder of a run by --workdir"
        )


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Paths of the files that a run makes."""

    path: pathlib.Path

    @property
    def checkpoints(self) -> pathlib.Path:
        """The model owner's checkpoints."""
        return self.path / "checkpoints"

    def begin(self, config: ExperimentConfig, plan: DataPlan) -> None:
        """Makes the folder; an earlier run in it is moved to `previous/N`, never overwritten.

        Raises:
          StorageError: if it cannot be made or written.
        """
        with storing(f"workdir {self.path} cannot be used"):
            make_folder(self.path)
        move_aside(self.path, _OWN)
        data = {
            "fingerprint": plan.fingerprint,
            "used": sorted(plan.used),
            "used_patients": sorted(plan.used_patients),
            "used_numbers": sorted(plan.used_numbers),
            "compared": sorted(plan.compared),
        }
        write_json(self.path / "data.json", data)
        write_json(self.path / CONFIG, to_plain(config))  # last: with it a run can be resumed

    def check_unseen(self, plan: DataPlan) -> str:
        """Refuses test images that this run trained or validated on, or whose patients it did.

        Returns:
          a warning where hospitals read images of their own, which cannot be compared here; or "".

        Raises:
          DataError: listing the images, or counting those whose patients were trained on.
        """
        data = self._data()
        digests = [plan.test_catalogue.digests[i] for i in plan.test]
        reused = set(data["used"]) & set(digests)
        if reused:
            names = [plan.test_catalogue.names[i] for i in plan.test]
            leaked = [name for name, digest in zip(names, digests) if digest in reused]
            lines = [
                f"{len(leaked)} of {len(digests)} test images were used in training the model in "
                f"{self.path}; evaluate with the training's config.data, config.seed and files, or "
                "name other images by config.data.test_path. They are:",
                *(f"  {name}" for name in leaked[:_LISTED]),
            ]
            if len(leaked) > _LISTED:
                lines.append(f"  and {len(leaked) - _LISTED} more")
            raise DataError("\n".join(lines))
        # A number without a site can be that of any site.
        numbers, trained = data.get("used_numbers", ()), data.get("used_patients", ())
        sites_differ = plan.test_catalogue.sites is None or set(numbers) == set(trained)
        patients = patient_digests(plan.test_catalogue, plan.test, bare=sites_differ)
        known = patients.intersection(numbers if sites_differ else trained)
        if known:
            raise DataError(
                f"{len(known)} of {len(patients)} test patients have other images among those "
                f"that the model in {self.path} was trained on; name a test set of other patients "
                "by config.data.test_path"
            )
        unknown = set(digests) - set(data.get("compared", ()))
        if data["used"] or not unknown:
            return ""
        return (
            f"the hospitals of the run in {self.path} read images of their own: "
            f"{len(unknown)} of {len(digests)} test images were never compared with them, and no "
            "patients were; make sure that none of them was trained on"
        )

    def resume(self, config: ExperimentConfig, plan: DataPlan) -> Progress:
        """Reads the progress of the run in the folder; drops the logs of later rounds.

        Where no round was completed the run begins anew.

        Raises:
          CheckpointError: if no run was begun in the folder.
          ConfigError: if the run was begun with other settings, naming them.
          DataError: if the images or their split are no longer the same.
        """
        check_begun(self.path, (CONFIG,))
        self.check_same(config, plan)
        if not (self.checkpoints / checkpoints.LATEST).exists():
            self._keep_rounds(())
            return Progress()
        progress = checkpoints.latest(self.checkpoints)
        lines = [line for line in self.rounds() if line["round"] <= progress.round]
        self._keep_rounds(lines)
        return progress

    def check_same(self, config: ExperimentConfig, plan: DataPlan) -> None:
        """Checks that the run in the folder was begun with these settings and images.

        Raises:
          ConfigError: naming the settings that are others.
          DataError: if the images or their split are no longer the same.
        """
        stored = read_json(self.path / CONFIG)
        changed = sorted(differences(stored, to_plain(config)))
        if changed:
            raise ConfigError(
                f"--resume: the run in {self.path} was begun with other settings: "
                f"{'; '.join(changed[:5])}; use the same ones or another --workdir"
            )
        if self._data()["fingerprint"] != plan.fingerprint:
            raise DataError(
                f"--resume: the images are no longer those that the run in {self.path} was begun "
                "with, and test images could be trained on; restore them or begin in another "
                "--workdir"
            )

    def rounds(self) -> list[dict[str, Any]]:
        """The lines of rounds.jsonl; see `read_rounds`."""
        return read_rounds(self.path / ROUNDS)

    def append_rounds(self, lines: Iterable[dict[str, Any]]) -> None:
        """Adds lines to rounds.jsonl, on disk before this returns.

        Raises:
          StorageError: if they cannot be written.
        """
        append_lines(self.path / ROUNDS, map(json.dumps, lines))

    def _keep_rounds(self, lines: Iterable[dict[str, Any]]) -> None:
        """Replaces rounds.jsonl."""
        write_text(self.path / ROUNDS, "".join(json.dumps(line) + "\n" for line in lines))

    def _data(self) -> Mapping[str, Any]:
        """Contents of data.json.

        Raises:
          CheckpointError: if it is missing or damaged.
        """
        return read_json(self.path / "data.json", ["fingerprint", "used"])

    @contextlib.contextmanager
    def tensorboard(self, first_round: int) -> Iterator[SummaryWriter]:
        """A writer of TensorBoard events; what it has of `first_round` and later is superseded."""
        folder = private_folder(self.path / "tensorboard")
        with storing(f"{folder} cannot be written"):
            writer = SummaryWriter(str(folder), purge_step=first_round)
        for path in folder.glob("events.*"):
            private_file(path)
        try:
            yield writer
        finally:
            with contextlib.suppress(OSError):  # every round was flushed before
                writer.close()


def write_scalars(writer: SummaryWriter, lines: Iterable[dict[str, Any]]) -> None:
    """Writes every number of a round's lines, by name and site.

    Raises:
      StorageError: if they cannot be written.
    """
    try:
        for line in lines:
            for key, value in numbers(line):
                writer.add_scalar(f"{key}/{line['site']}", value, line["round"])
        writer.flush()
    except OSError as error:
        raise StorageError(f"tensorboard/ cannot be written: {error}") from error


def numbers(line: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Every number in a line of rounds.jsonl, those of the validation too, with its name."""
    validation = line.get("validation") or {}
    for key, value in {**line, **{f"validation_{k}": v for k, v in validation.items()}}.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key != "round":
            yield key, value


def differences(stored: Any, current: Any, path: str = "") -> Iterable[str]:
    """The settings that a resumed run may not change and that differ, each with both values."""
    for key in sorted({*stored, *current}):
        if not path and key in _FREE:
            continue
        old, new = stored.get(key), current.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}{key}.")
        elif isinstance(old, dict) or isinstance(new, dict):
            yield f"{path}{key}"
        elif old != (list(new) if isinstance(new, tuple) else new):
            yield f"{path}{key} = {old!r}, now {new!r}"
