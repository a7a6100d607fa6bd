"""The verb of the command line's mode `study`."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from primia_jax import experiment, tasks
from primia_jax.campaigns import audit as leakage
from primia_jax.campaigns import engine
from primia_jax.campaigns.engine import Progress, Run
from primia_jax.campaigns.study import judging, report
from primia_jax.campaigns.study.judging import LOCAL, MODES, SECURE, Choice, Rater
from primia_jax.campaigns.study.readers import read_readings
from primia_jax.campaigns.study.sets import TEST_1, Material, gather
from primia_jax.config import ExperimentConfig, to_plain
from primia_jax.core.names import user_path
from primia_jax.core.storage import read_json, write_json, write_text
from primia_jax.errors import ConfigError
from primia_jax.federated.trained_model import load_trained
from primia_jax.reporting.tables import as_csv

TABLES = "tables.json"
PREDICTIONS = "predictions.csv"
_LEAVES = (TABLES, "tables.md", "tables", "report.html", PREDICTIONS, "inversion", "study_*.png",
           *(f"{mode}_[0-9]*" for mode in MODES))  # fmt: skip
_PACKAGES = ("flax", "numpy", "scikit-learn", "statsmodels")


def attack(
    config: ExperimentConfig, folder: pathlib.Path, resume: bool, progress: Progress
) -> dict[str, Any]:
    """The table of inversions, made by the audit: see `leakage.inversion_table`.

    The audit trains short runs of its own for this, as `config.audit` says; it says so in "note".
    Paths of "panels" are relative to `folder`.
    """
    return leakage.inversion_table(config, folder, resume=resume, progress=progress)


@dataclasses.dataclass(frozen=True)
class Study:
    """The results of a study."""

    results: dict[str, Any]  # what tables.json holds
    workdir: pathlib.Path


def check(config: ExperimentConfig) -> None:
    """Checks the section `study`.

    Raises:
      ConfigError: naming the setting that does not.
    """
    study = config.study
    engine.check_names("study.seeds", study.seeds)
    engine.check_names("study.modes", study.modes, MODES)
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
    progress: Progress = engine.silent,
    attack: Callable[..., dict[str, Any]] = attack,
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
      attack: makes the table of inversions (see `attack`).

    Raises:
      UserError: one line that says what is wrong, where and how to mend it; what was trained stays.
    """
    config = experiment.checked(config)
    tasks.check_classifies(config, "a study")
    check(config)
    if config.study.inversion:
        leakage.check_inversion(config)
    folder = user_path(workdir)
    runs = _runs(config, folder)
    data = runs[0].config.data  # with the seed that all runs share
    material = gather(dataclasses.replace(config, data=data))
    humans = _humans(config, material)
    total = len(runs) + 1 + config.study.inversion
    with engine.writing(folder, "a study", _LEAVES, resume):
        with engine.cluster(config, ray_address):
            for done, each in enumerate(runs):
                mode, seed = each.config.federated.mode, each.config.seed
                progress(f"training: {MODES[mode].lower()}, seed {seed}", done, total)
                engine.train(each, resume=resume, ray_address=ray_address, plan=material.plan)
        progress("judging", len(runs), total)
        raters = (*_models(config, folder, runs, material), *humans)
        choice = Choice(config.evaluation.bootstrap, data.seed, config.study.margin)
        seeds, names = config.study.seeds, material.class_names
        results = {
            **_about(config, runs, material, command),
            **judging.judge(material.sets, names, raters, seeds, choice),
            "inversion": None,
        }
        drawn = report.Drawn(material.sets, raters, names)

        def write() -> None:
            report.write(folder, results, drawn)
            write_json(folder / TABLES, results)

        write()  # before the attack too: a mistake in its options must not cost the tables
        if config.study.inversion:
            progress("attacking", len(runs) + 1, total)

            def attacking(setting: str, done: int, of: int) -> None:
                progress(f"attacking: {setting}, {done} of {of}", len(runs) + 1, total)

            results["inversion"] = attack(config, folder / "inversion", resume, attacking)
            write()
        progress("done", total, total)
        return Study(results, folder)


def _runs(config: ExperimentConfig, folder: pathlib.Path) -> list[Run]:
    """The trainings of every mode from every seed, on the same images."""
    runs = []
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
            name = f"{mode}_{seed}"
            runs.append(Run(name, folder / name, experiment.checked(settings)))
    return runs


def _humans(config: ExperimentConfig, material: Material) -> list[Rater]:
    if not config.study.readers:
        return []
    images = next(each for each in material.sets if each.key == TEST_1).names
    names = material.class_names
    readers = read_readings(config.study.readers, images, names, config.study.min_readers)
    return [judging.human(reader, len(names)) for reader in readers]


def _models(
    config: ExperimentConfig, folder: pathlib.Path, runs: Sequence[Run], material: Material
) -> list[Rater]:
    """The predictions of every model on every set, written to predictions.csv too."""
    images = {s.key: s.load(config.data.image_size).images for s in material.sets}
    predictions = {}
    for run in runs:
        trained = load_trained(run.folder, run.config)
        for key in images:
            predictions[run.name, key] = trained.predictions(
                images[key], config.evaluation.batch_size
            )
    classes, study = material.class_names, config.study
    lines = [
        {"set": each.key, "image": image, "true": classes[label], "mode": mode, "seed": seed,
         "class": classes[int(row.argmax())],
         **{f"p_{name}": f"{p:.6f}" for name, p in zip(classes, row)}}
        for each in material.sets
        for mode in study.modes
        for seed in study.seeds
        for image, label, row in zip(
            each.names, each.labels, predictions[f"{mode}_{seed}", each.key]
        )
    ]  # fmt: skip
    write_text(folder / PREDICTIONS, as_csv(lines))
    return [
        judging.model(
            mode,
            {
                key: np.stack([predictions[f"{mode}_{seed}", key] for seed in study.seeds]).astype(
                    np.float64
                )
                for key in images
            },
        )
        for mode in study.modes
    ]


def _about(
    config: ExperimentConfig, runs: Sequence[Run], material: Material, command: str
) -> dict[str, Any]:
    """The origin of the tables, for their readers."""
    return {
        "name": config.name,
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        "command": command,
        "seeds": list(config.study.seeds),
        "modes": list(config.study.modes),
        "classes": list(material.class_names),
        "sets": {
            s.key: {"n": len(s.records), "patients": s.patients, "counts": s.counts, "what": s.what}
            for s in material.sets
        },
        "training": [
            {"site": part["site"], "split": part["split"], "counts": part["counts"]}
            for part in material.plan.summary
        ],
        "runs": [_about_run(run) for run in runs],
        "settings": to_plain(config),
        "versions": engine.versions(*_PACKAGES),
    }


def _about_run(run: Run) -> dict[str, Any]:
    metrics = read_json(run.folder / "metrics.json", ["rounds", "best_round"])
    timing = read_json(run.folder / "timing.json")
    return {
        "folder": run.name,
        "mode": run.config.federated.mode,
        "seed": run.config.seed,
        "rounds": metrics["rounds"],
        "best_round": metrics["best_round"],
        "seconds": sum(phase["seconds"] for phase in timing.values()),
    }
