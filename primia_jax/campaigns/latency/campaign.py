"""The verb of the command line's mode `benchmark`."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from primia_jax.campaigns import engine
from primia_jax.campaigns.engine import Progress
from primia_jax.campaigns.latency.actors import over_actors
from primia_jax.campaigns.latency.measuring import measure
from primia_jax.campaigns.latency.networks import NETWORKS, Network
from primia_jax.campaigns.latency.report import write_report
from primia_jax.campaigns.latency.results import Study, Validation
from primia_jax.config import ExperimentConfig, LatencyStudyConfig, to_plain
from primia_jax.core.names import user_path
from primia_jax.errors import ConfigError
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.workdir import differences

STUDY = "study.json"
_LEAVES = (STUDY, "tables", "report.html", "study_*.png")


def check(study: LatencyStudyConfig, networks: Mapping[str, Network] = NETWORKS) -> None:
    """Checks that the study names networks, protocols and links that there are.

    Raises:
      ConfigError: naming what there is not.
    """
    engine.check_names("latency_study.networks", study.networks, networks)
    engine.check_names("latency_study.protocols", study.protocols, PROTOCOLS)
    if study.validated:
        engine.check_names("latency_study.validated", (study.validated,), networks)
        missing = set(study.validation_latencies_ms) - set(study.latencies_ms)
        if missing:
            raise ConfigError(
                f"config.latency_study.validation_latencies_ms: {min(missing):g} is none of "
                f"config.latency_study.latencies_ms = {study.latencies_ms!r}; add it there"
            )
    for name in ("latencies_ms", "bandwidths_mbps", "validation_latencies_ms"):
        engine.check_names(f"latency_study.{name}", getattr(study, name))


def run(
    config: ExperimentConfig,
    workdir: str | os.PathLike[str],
    *,
    resume: bool = False,
    ray_address: str | None = None,
    command: str = "",
    networks: Mapping[str, Network] = NETWORKS,
    progress: Progress = engine.silent,
    measured: Callable[[Study, str], None] = lambda study, network: None,
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
      progress: called with a network, how many of its runs are done, and of how many.
      measured: called with the study so far and the network just measured.

    Raises:
      ConfigError: for a network or a protocol that there is not, or if `workdir` holds a study with
        other options.
      DataError: if the study in `workdir` cannot be read.
      StorageError: if `workdir` cannot be written.
      ClusterError: if the cluster cannot be reached, or an actor is lost.
    """
    check(config.latency_study, networks)
    folder = user_path(workdir)
    with engine.writing(folder, "a latency study", _LEAVES, resume):
        settings = _settings(config)
        study = _resumed(folder, settings) if resume else Study(settings, {}, command)
        validated = config.latency_study.validated
        actors: tuple[Validation, ...] = ()
        if validated in config.latency_study.networks and not study.validations:
            # Before anything is measured: no cluster can be started once JAX runs here.
            actors = over_actors(validated, networks[validated], config, ray_address, progress)
        if not study.machine:
            machine = engine.provenance("flax", "numpy", "scipy")
            study = dataclasses.replace(study, machine=machine)
        for name in config.latency_study.networks:
            if name not in study.networks:
                study = study.joined(*measure(name, networks[name], config, progress))
            if name == validated and actors:
                study = study.validated_by(actors)
            study.write(folder / STUDY)
            measured(study, name)
        write_report(study, folder, {name: network.title for name, network in networks.items()})
        return study


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    """The options that decide the figures of a network, as JSON has them."""
    mpc, study = to_plain(config.mpc), to_plain(config.latency_study)
    del mpc["protocol"], study["networks"]
    settings = {"seed": config.seed, "mpc": mpc, "latency_study": study}
    return dict(json.loads(json.dumps(settings)))


def _resumed(folder: pathlib.Path, settings: dict[str, Any]) -> Study:
    stored = Study.read(folder / STUDY)
    changed = sorted(differences(stored.settings, settings, "config."))
    if changed:
        raise ConfigError(
            f"--resume: the study in {folder} was made with other settings: {'; '.join(changed)}; "
            "use the same ones or another --workdir"
        )
    return stored
