"""The verb of the command line's mode `benchmark`."""

import dataclasses
import difflib
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from primia_jax.campaigns.latency.measuring import Progress, measure
from primia_jax.campaigns.latency.networks import NETWORKS, Network
from primia_jax.campaigns.latency.report import write_report
from primia_jax.campaigns.latency.results import Study, Validation
from primia_jax.campaigns.latency.validation import over_actors
from primia_jax.config import ExperimentConfig, LatencyStudyConfig, to_plain
from primia_jax.core.names import user_path
from primia_jax.core.storage import move_aside
from primia_jax.errors import ConfigError
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.watch.heartbeat import only_writer
from primia_jax.workdir import check_begun

STUDY = "study.json"


def check(study: LatencyStudyConfig, networks: Mapping[str, Network] = NETWORKS) -> None:
    """That the study names what there is.

    Raises:
      ConfigError: naming what there is not.
    """
    _check_names("networks", study.networks, networks)
    _check_names("protocols", study.protocols, PROTOCOLS)
    if study.validated:
        _check_names("validated", (study.validated,), networks)
        missing = set(study.validation_latencies_ms) - set(study.latencies_ms)
        if missing:
            raise ConfigError(
                f"config.latency_study.validation_latencies_ms: {min(missing):g} is none of "
                f"config.latency_study.latencies_ms = {study.latencies_ms!r}; add it there"
            )
    for name in ("latencies_ms", "bandwidths_mbps", "validation_latencies_ms"):
        _check_distinct(name, getattr(study, name))


def _check_names(name: str, given: Sequence[str], known: Mapping[str, Any]) -> None:
    for value in given:
        if value not in known:
            near = difflib.get_close_matches(value, list(known), n=1)
            extra = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(
                f"config.latency_study.{name}: '{value}' is none of {' | '.join(known)}{extra}"
            )
    _check_distinct(name, given)


def _check_distinct(name: str, given: Sequence[Any]) -> None:
    if not given or len(set(given)) < len(given):
        raise ConfigError(
            f"config.latency_study.{name} = {given!r}: name at least one, and each of them once"
        )


def run(
    config: ExperimentConfig,
    workdir: str | os.PathLike[str],
    *,
    resume: bool = False,
    ray_address: str | None = None,
    command: str = "",
    networks: Mapping[str, Network] = NETWORKS,
    progress: Progress = lambda network, done, total: None,
    found: Callable[[Study, str], None] = lambda study, network: None,
) -> Study:
    """Runs `config.latency_study`; leaves study.json, tables, pictures and report.html.

    Args:
      config: of the experiment; `config.mpc` holds for all protocols.
      workdir: folder for what the study leaves; an earlier study there is moved to `previous/`.
      resume: take up the study in `workdir`: networks that it has are not measured again. So the
        report alone is made anew.
      ray_address: a running Ray cluster for the validation; else one is started.
      command: the command line, for the report.
      networks: those that may be named.
      progress: see `Progress`.
      found: called with the study so far and the network just measured.

    Raises:
      ConfigError: for a network or a protocol that there is not, or if `workdir` holds a study with
        other settings.
      DataError: if the study in `workdir` cannot be read.
      StorageError: if `workdir` cannot be written.
      ClusterError: if the cluster cannot be reached, or an actor is lost.
    """
    check(config.latency_study, networks)
    folder = user_path(workdir)
    if resume:
        check_begun(folder, (STUDY,))
    with only_writer(folder, "a latency study"):
        return _run(config, folder, resume, ray_address, command, networks, progress, found)


def _run(
    config: ExperimentConfig,
    folder: pathlib.Path,
    resume: bool,
    ray_address: str | None,
    command: str,
    networks: Mapping[str, Network],
    progress: Progress,
    found: Callable[[Study, str], None],
) -> Study:
    """See `run`."""
    study = _begin(config, folder, command, resume)
    validated, actors = config.latency_study.validated, []
    if validated in config.latency_study.networks and not study.validations:
        actors = over_actors(validated, networks[validated], config, ray_address, progress)
    if not study.machine:
        study = dataclasses.replace(study, machine=_machine())
    for name in config.latency_study.networks:
        if name not in study.networks:
            measured = measure(name, networks[name], config, progress)
            study = dataclasses.replace(
                study,
                cells=study.cells + measured.cells,
                layers=study.layers + measured.layers,
                sessions=study.sessions + measured.sessions,
            )
        if name == validated and actors:
            study = dataclasses.replace(study, validations=_beside(actors, study))
        study.write(folder / STUDY)
        found(study, name)
    write_report(study, folder, {name: network.title for name, network in networks.items()})
    return study


def _beside(actors: Sequence[Validation], study: Study) -> tuple[Validation, ...]:
    """The actors' runs beside what the virtual clocks said of the same links."""
    found = []
    for run_ in actors:
        cell = study.cell(run_.network, run_.protocol, run_.latency_ms, run_.bandwidth_mbps)
        assert cell is not None
        found.append(dataclasses.replace(run_, virtual_seconds=cell.seconds))
    return tuple(found)


def _begin(config: ExperimentConfig, folder: pathlib.Path, command: str, resume: bool) -> Study:
    """An empty study, or the one that is to be taken up."""
    settings = {
        "seed": config.seed,
        "mpc": {k: v for k, v in to_plain(config.mpc).items() if k != "protocol"},
        "latency_study": {
            k: v for k, v in to_plain(config.latency_study).items() if k != "networks"
        },
    }
    settings = _as_json(settings)
    if resume:
        stored = Study.read(folder / STUDY)
        if stored.settings != settings:
            raise ConfigError(
                f"--resume: the study in {folder} was made with other settings "
                f"({', '.join(_changed(stored.settings, settings))}); use the same ones or "
                "another --workdir"
            )
        return stored
    pictures = [path.name for path in folder.glob("study_*.png")]
    move_aside(folder, (STUDY, "tables", "report.html", *pictures))
    return Study(settings, {}, command)


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _changed(stored: dict[str, Any], asked: dict[str, Any], path: str = "") -> list[str]:
    names = []
    for key in sorted({*stored, *asked}):
        old, new = stored.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += _changed(old, new, f"{path}{key}.")
        elif old != new:
            names.append(f"config.{path}{key}")
    return names


def _machine() -> dict[str, str]:
    try:
        with open("/proc/cpuinfo") as file:
            names = {line.partition(":")[2].strip() for line in file if "model name" in line}
    except OSError:
        names = set()
    packages = ("primia_jax", "jax", "flax", "numpy", "scipy")
    return {
        "processor": ", ".join(sorted(names)) or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "backend": jax.default_backend(),
        "begun": time.strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }
