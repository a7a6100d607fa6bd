"""MLflow: parameters, the numbers of every round and the files of a run, where it is asked for.

MLflow is imported only if `config.runtime.mlflow` names where to; it is no dependency.
"""

import contextlib
import importlib
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from primia_jax.config import ExperimentConfig, to_plain
from primia_jax.core.storage import read_json, write_json
from primia_jax.errors import ConfigError
from primia_jax.workdir import numbers

MLFLOW = "mlflow.json"  # which MLflow run a resumed training goes on in
_BATCH = 100  # parameters a call, the most that MLflow takes
_LONGEST = 500  # characters of a parameter's value
_OK, _FAILED, _KILLED = "FINISHED", "FAILED", "KILLED"


class Tracking:
    """One run in MLflow. What fails once it has begun is told once and ends the logging alone."""

    def __init__(self, uri: str):
        """`uri` of the tracking server, or a folder or database that MLflow takes for one.

        Raises:
          ConfigError: if MLflow is not installed.
        """
        try:
            self._mlflow = importlib.import_module("mlflow")
            self._entities = importlib.import_module("mlflow.entities")
        except ImportError as error:
            raise ConfigError(
                f"config.runtime.mlflow = {uri!r} needs MLflow, which is not installed ({error}); "
                "pip install 'primia_jax[mlflow]', or leave the setting empty"
            ) from error
        self._uri = uri
        self._client: Any = None
        self._run_id = ""

    @contextlib.contextmanager
    def run(self, config: ExperimentConfig, folder: pathlib.Path, resumed: bool) -> Iterator[None]:
        """Begins a run of the experiment `config.name`, or goes on with the one of `folder`.

        Raises:
          ConfigError: if MLflow does not answer.
        """
        try:
            self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
            self._begin(config, folder, resumed)
        except Exception as error:  # MLflow and what lies under it raise many kinds
            raise ConfigError(
                f"config.runtime.mlflow = {self._uri!r}: MLflow does not answer: {_reason(error)}"
            ) from error
        status = _FAILED
        try:
            yield
            status = _OK
        except Exception:
            raise
        except BaseException:
            status = _KILLED
            raise
        finally:
            if self._client is not None:
                with contextlib.suppress(Exception):  # the run itself is what counts
                    self._client.set_terminated(self._run_id, status)

    def _begin(self, config: ExperimentConfig, folder: pathlib.Path, resumed: bool) -> None:
        path = folder / MLFLOW
        stored = read_json(path) if resumed and path.exists() else {}
        if stored.get("uri") == self._uri:
            self._run_id = stored["run_id"]
            self._client.update_run(self._run_id, "RUNNING")
            return
        existing = self._client.get_experiment_by_name(config.name)
        experiment = (
            existing.experiment_id if existing else self._client.create_experiment(config.name)
        )
        run = self._client.create_run(experiment, run_name=folder.name)
        self._run_id = run.info.run_id
        write_json(path, {"uri": self._uri, "run_id": self._run_id})
        parameters = [self._entities.Param(key, value) for key, value in _flat(to_plain(config))]
        for start in range(0, len(parameters), _BATCH):
            self._client.log_batch(self._run_id, params=parameters[start : start + _BATCH])

    def round(self, lines: Sequence[Mapping[str, Any]]) -> str:
        """Logs every number of a round, by name and site; gives what went wrong, else nothing."""
        now = int(1000 * time.time())
        metrics = [
            self._entities.Metric(f"{key}/{line['site']}", value, now, line["round"])
            for line in lines
            for key, value in numbers(line)
        ]
        return self._guarded(lambda: self._client.log_batch(self._run_id, metrics=metrics))

    def results(self, metrics: Mapping[str, Any], files: Sequence[pathlib.Path]) -> str:
        """Logs the numbers found at the end, and the files; gives what went wrong, else nothing."""
        now = int(1000 * time.time())
        entries = [
            self._entities.Metric(f"{part}/{key}", float(value), now, 0)
            for part in ("validation", "test")
            for key, value in (metrics.get(part) or {}).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]

        def log() -> None:
            self._client.log_batch(self._run_id, metrics=entries)
            for path in files:
                if path.exists():
                    self._client.log_artifact(self._run_id, str(path))

        return self._guarded(log)

    def _guarded(self, log: Any) -> str:
        if self._client is None:
            return ""
        try:
            log()
        except Exception as error:  # a lost server is no reason to lose a training
            self._client = None
            return f"MLflow at {self._uri} is no longer logged to: {_reason(error)}"
        return ""


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, str(value)[:_LONGEST]


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
