"""The verb of the command line's mode `study`."""

import contextlib
import csv
import dataclasses
import io
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from primia_jax import experiment, tasks
from primia_jax.campaigns import audit as leakage
from primia_jax.campaigns.study import inverting, judging, report
from primia_jax.campaigns.study.inverting import Progress
from primia_jax.campaigns.study.judging import LOCAL, MODES, SECURE, Choice, Rater
from primia_jax.campaigns.study.readers import Reader, read_readings
from primia_jax.campaigns.study.sets import TEST_1, ImageSet, Material, gather
from primia_jax.config import ExperimentConfig, to_plain
from primia_jax.core.names import csv_cell, user_path
from primia_jax.core.storage import move_aside, read_json, write_json, write_text
from primia_jax.errors import ConfigError
from primia_jax.federated.trained_model import load_trained
from primia_jax.watch.heartbeat import only_writer
from primia_jax.workdir import CONFIG, Workdir, check_begun

TABLES = "tables.json"
PREDICTIONS = "predictions.csv"
_OWN = (TABLES, "tables.md", "tables", "report.html", PREDICTIONS, "inversion")
_ALSO_OWN = ("study_*.png", *(f"{mode}_[0-9]*" for mode in MODES))


@dataclasses.dataclass(frozen=True)
class Study:
    """Result of a study."""

    tables: dict[str, Any]  # what tables.json holds
    workdir: pathlib.Path


def check(config: ExperimentConfig) -> None:
    """Checks that the section `study` makes sense.

    Raises:
      ConfigError: naming the setting that does not.
    """
    study = config.study
    for name, given in (("seeds", study.seeds), ("modes", study.modes)):
        if not given or len(set(given)) < len(given):
            raise ConfigError(
                f"config.study.{name} = {given!r}: name at least one, and each of them once"
            )
    unknown = [mode for mode in study.modes if mode not in MODES]
    if unknown:
        raise ConfigError(f"config.study.modes: {unknown[0]!r} is none of {' | '.join(MODES)}")
    missing = [mode for mode in (SECURE, LOCAL) if mode not in study.modes]
    if missing:
        raise ConfigError(
            f"config.study.modes = {study.modes!r}: {missing[0]!r} is missing; the study compares "
            f"{SECURE} with {LOCAL}"
        )
    if config.privacy.mode == "client":
        raise ConfigError(
            "config.privacy.mode = 'client' protects hospitals, and the study trains on pooled "
            "data too, where there are none; take 'record' or 'none'"
        )


def run(
    config: ConfigDict | ExperimentConfig,
    workdir: str | os.PathLike[str],
    *,
    resume: bool = False,
    ray_address: str | None = None,
    command: str = "",
    progress: Progress = lambda what, done, total: None,
    attack: Callable[..., dict[str, Any]] = inverting.attack,
) -> Study:
    """Trains every mode of `config.study` from every seed, judges the models, writes the tables.

    Leaves in `workdir`: MODE_SEED/ (each a run as `experiment.train` leaves it), tables.json,
    tables.md, tables/ (CSV and LaTeX), predictions.csv, study_*.png, inversion/ and report.html.
    Settings, images and readings are checked before anything is trained.

    Args:
      config: of the experiment; `config.federated.mode` and, where `config.data.seed` is set,
        `config.seed` do not matter.
      workdir: folder for what the study leaves; an earlier study there is moved to `previous/`.
      resume: take up the study in `workdir`: what was trained and attacked is kept, and a broken
        run goes on. So readings can be added, and the report made anew.
      ray_address: a running Ray cluster; else one is started for all trainings, if they need one.
      command: the command line, for the report.
      progress: called with what begins now, how many steps of the study are done, and of how many.
      attack: makes the table of inversions (see `inverting.attack`).

    Raises:
      UserError: one line that says what is wrong, where and how to mend it; what was trained stays.
    """
    config = experiment.checked(config)
    tasks.check_classifies(config, "a study")
    check(config)
    if config.study.inversion:
        leakage.check_inversion(config)
    runs = list(_runs(config))
    data = runs[0][2].data  # with its seed resolved
    material = gather(dataclasses.replace(config, data=data))
    readers = _readers(config, material)
    folder = user_path(workdir)
    if resume:
        check_begun(folder, _own(folder))
    with only_writer(folder, "a study"):
        if not resume:
            move_aside(folder, _own(folder))
        return _run(
            config, folder, runs, material, readers, resume, ray_address, command, progress, attack
        )


def _run(
    config: ExperimentConfig,
    folder: pathlib.Path,
    runs: list[tuple[str, int, ExperimentConfig]],
    material: Material,
    readers: tuple[Reader, ...],
    resume: bool,
    ray_address: str | None,
    command: str,
    progress: Progress,
    attack: Callable[..., dict[str, Any]],
) -> Study:
    """See `run`."""
    data, total = runs[0][2].data, len(runs) + 1 + config.study.inversion
    with _cluster(config, ray_address):
        for done, (mode, seed, settings) in enumerate(runs):
            progress(f"training: {MODES[mode].lower()}, seed {seed}", done, total)
            _train(settings, folder / f"{mode}_{seed}", material, resume, ray_address)
    progress("judging", len(runs), total)
    models = _models(config, folder, runs, material)
    raters = [*models, *(judging.human(r, len(material.class_names)) for r in readers)]
    choice = Choice(config.evaluation.bootstrap, data.seed, config.study.margin)
    results = {
        **_about(config, folder, runs, material, command),
        **judging.judge(material.sets, material.class_names, raters, config.study.seeds, choice),
        "inversion": None,
    }
    drawn = report.Drawn(material.sets, tuple(raters), material.class_names)
    # Written before the attack too: a mistake in its settings must not cost the tables.
    report.write(folder, results, drawn)
    write_json(folder / TABLES, results)
    if config.study.inversion:
        progress("attacking", len(runs) + 1, total)

        def attacking(setting: str, done: int, of: int) -> None:
            progress(f"attacking: {setting}, {done} of {of}", len(runs) + 1, total)

        results["inversion"] = attack(config, folder / "inversion", resume, attacking)
        report.write(folder, results, drawn)
        write_json(folder / TABLES, results)
    progress("done", total, total)
    return Study(results, folder)


def _runs(config: ExperimentConfig) -> Iterator[tuple[str, int, ExperimentConfig]]:
    """Trainings as (mode, seed, settings), all on the same images, from the same start."""
    data = config.data
    if data.seed < 0:
        data = dataclasses.replace(data, seed=config.seed)
    for seed in config.study.seeds:
        for mode in config.study.modes:
            training = config.training
            federated = dataclasses.replace(config.federated, mode=mode)
            if mode == LOCAL:  # which has no hospitals to draw from
                federated = dataclasses.replace(federated, participation=1.0)
            if mode == LOCAL and config.study.pooled_batch:
                batch = training.batch_size * config.federated.hospitals
                training = dataclasses.replace(training, batch_size=batch)
            settings = dataclasses.replace(
                config,
                name=f"{config.name}: {MODES[mode].lower()}, seed {seed}",
                seed=seed,
                data=data,
                training=training,
                federated=federated,
            )
            yield mode, seed, experiment.checked(settings)


def _readers(config: ExperimentConfig, material: Material) -> tuple[Reader, ...]:
    if not config.study.readers:
        return ()
    first = next(image_set for image_set in material.sets if image_set.key == TEST_1)
    return read_readings(
        config.study.readers, first.names, material.class_names, config.study.min_readers
    )


def _own(folder: pathlib.Path) -> list[str]:
    """Names of what a study leaves in `folder`, those of its runs included."""
    return [*_OWN, *(path.name for pattern in _ALSO_OWN for path in folder.glob(pattern))]


def _cluster(
    config: ExperimentConfig, ray_address: str | None
) -> contextlib.AbstractContextManager[None]:
    """One cluster for all trainings: none is to be started once JAX runs in this process."""
    if config.runtime.driver == "local":
        return contextlib.nullcontext()
    from primia_jax.runtime import ray_driver  # Ray is slow to import

    return ray_driver.cluster(ray_address, config.runtime.ray_auth)


def _train(
    settings: ExperimentConfig,
    folder: pathlib.Path,
    material: Material,
    resume: bool,
    ray_address: str | None,
) -> None:
    """One run, unless it came to its end before."""
    resume = resume and (folder / CONFIG).exists()
    if resume and (folder / "report.html").exists():  # the last thing that a run writes
        progress = Workdir(folder).resume(settings, material.plan)
        if progress.finished or progress.round == settings.federated.rounds:
            return
    experiment.train(settings, folder, resume=resume, ray_address=ray_address)


def _models(
    config: ExperimentConfig,
    folder: pathlib.Path,
    runs: list[tuple[str, int, ExperimentConfig]],
    material: Material,
) -> list[Rater]:
    """Makes raters of all models, by their predictions on all sets; writes predictions.csv."""
    images = {s.key: s.load(config.data.image_size) for s in material.sets}
    predictions: dict[str, dict[str, list[np.ndarray]]] = {}
    for mode, seed, settings in runs:
        trained = load_trained(folder / f"{mode}_{seed}", settings)
        for key, dataset in images.items():
            probabilities = trained.predictions(dataset.images, config.evaluation.batch_size)
            predictions.setdefault(mode, {}).setdefault(key, []).append(probabilities)
    _write_predictions(folder / PREDICTIONS, material, config.study.seeds, predictions)
    return [
        judging.model(mode, {key: np.stack(rows).astype(np.float64) for key, rows in sets.items()})
        for mode, sets in predictions.items()
    ]


def _write_predictions(
    path: pathlib.Path,
    material: Material,
    seeds: tuple[int, ...],
    predictions: dict[str, dict[str, list[np.ndarray]]],
) -> None:
    names = [csv_cell(name) for name in material.class_names]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["set", "image", "true", "mode", "seed", "class", *(f"p_{n}" for n in names)])
    for image_set in material.sets:
        for mode, sets in predictions.items():
            for seed, rows in zip(seeds, sets[image_set.key]):
                for image, label, row in zip(image_set.names, image_set.labels, rows):
                    writer.writerow(
                        [image_set.key, csv_cell(image), names[label], mode, seed,
                         names[int(row.argmax())], *(f"{p:.6f}" for p in row)]
                    )  # fmt: skip
    write_text(path, file.getvalue())


def _about(
    config: ExperimentConfig,
    folder: pathlib.Path,
    runs: list[tuple[str, int, ExperimentConfig]],
    material: Material,
    command: str,
) -> dict[str, Any]:
    """Description of the study for readers of the tables."""
    packages = ("primia_jax", "jax", "flax", "numpy", "scikit-learn", "statsmodels")
    return {
        "name": config.name,
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        "command": command,
        "seeds": list(config.study.seeds),
        "modes": list(config.study.modes),
        "classes": list(material.class_names),
        "sets": {s.key: _about_set(s) for s in material.sets},
        "training": [
            {"site": part["site"], "split": part["split"], "counts": part["counts"]}
            for part in material.plan.summary
        ],
        "runs": [_about_run(folder, mode, seed) for mode, seed, _ in runs],
        "settings": to_plain(config),
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in packages},
        },
    }


def _about_set(image_set: ImageSet) -> dict[str, Any]:
    return {
        "n": len(image_set.records),
        "patients": image_set.patients,
        "counts": image_set.counts,
        "what": image_set.what,
    }


def _about_run(folder: pathlib.Path, mode: str, seed: int) -> dict[str, Any]:
    name = f"{mode}_{seed}"
    metrics = read_json(folder / name / "metrics.json", ["rounds", "best_round"])
    timing = read_json(folder / name / "timing.json")
    return {
        "folder": name,
        "mode": mode,
        "seed": seed,
        "rounds": metrics["rounds"],
        "best_round": metrics["best_round"],
        "seconds": sum(phase["seconds"] for phase in timing.values()),
    }
