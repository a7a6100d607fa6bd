"""The verb `audit`: trains what is missing, attacks, judges, and writes what it found.

workdir/audit.json     everything measured
workdir/report.html    for readers; audit.html where the folder is itself that of a run
workdir/audit/         pictures (panels/NAME.png), and what each attack found (NAME.npz), taken up
                       by --resume
workdir/runs/NAME/     the runs that the audit trained
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from primia_jax import experiment, tasks
from primia_jax.campaigns.audit import extractors, judging, pictures, report, threat_model
from primia_jax.campaigns.audit.attacking import Found, Progress, attack_all, fingerprint
from primia_jax.campaigns.audit.control import control
from primia_jax.campaigns.audit.judging import Extract
from primia_jax.campaigns.audit.settings import Run, Setting, overridden, parse, run_config
from primia_jax.campaigns.audit.views import HOW_TO_RECORD, Views, check, check_ahead, digest, views
from primia_jax.config import AuditConfig, ExperimentConfig, to_plain
from primia_jax.core.names import user_path
from primia_jax.core.storage import move_aside, read_json, write_json
from primia_jax.data import make_plan
from primia_jax.errors import CheckpointError, ConfigError
from primia_jax.watch.heartbeat import only_writer
from primia_jax.workdir import CONFIG, check_begun, differences, recorded_config

AUDIT, FOLDER = "audit.json", "audit"
_TABLE = ("local", "federated", "federated_secure")


def audit(
    config: ConfigDict | ExperimentConfig,
    workdir: str | os.PathLike[str],
    *,
    extract: Extract | None = None,
    resume: bool = False,
    ray_address: str | None = None,
    command: str = "",
    progress: Progress = lambda setting, done, total: None,
) -> dict[str, Any]:
    """Attacks what model owners saw in recorded runs, and tells what could be stolen.

    Where `workdir` holds a run, it is that run; else those of `config.audit`, which are trained
    first, each in a folder of its own, if `config.federated.record_updates` is on.

    Args:
      config: its section `audit` says what is attacked, and what the attacker knows.
      workdir: a run's folder, or one for the audit's own runs.
      extract: features [n d] of images [n s s 1], for FID and KID; by `config.audit.features` where
        None.
      resume: take up the audit in `workdir`: what was trained and attacked already is kept, where
        settings and images are the same.
      ray_address: a running Ray cluster for the trainings; else one is started.
      command: the command line, for the report.
      progress: see `Progress`.

    Returns:
      what audit.json holds.

    Raises:
      CheckpointError: if there is a run without recorded updates, or neither a run nor leave to
        train any.
      ConfigError: for settings that cannot be read, or a threat model that a run does not allow.
      DataError: if the truth that a run is judged by is not there.
    """
    config = experiment.checked(config)
    tasks.check_classifies(config, "an audit")
    folder = user_path(workdir)
    if resume:
        check_begun(folder, (AUDIT, FOLDER, "runs"))
    if (folder / CONFIG).exists():
        runs = [_recorded_run(folder, config.audit, "")]
        page = folder / "audit.html"
    else:
        settings = parse(config.audit)
        if not config.federated.record_updates:
            raise CheckpointError(
                f"{folder} holds no run to attack; add {HOW_TO_RECORD} to train and record the "
                "runs of config.audit.settings there"
            )
        runs = [
            Run(setting, folder / "runs" / setting.name, run_config(config, setting), True)
            for setting in settings
        ]
        page = folder / "report.html"
    return _audit(config, folder, page, runs, extract, resume, ray_address, command, progress)


def inversion_table(
    config: ConfigDict | ExperimentConfig,
    workdir: str | os.PathLike[str],
    *,
    runs: Mapping[str, str | os.PathLike[str]] | None = None,
    extract: Extract | None = None,
    resume: bool = False,
    progress: Progress = lambda setting, done, total: None,
) -> dict[str, Any]:
    """The table of inversions of local, federated and securely federated training.

    Leaves in `workdir` what `audit` does.

    Args:
      config: of the experiment.
      workdir: a folder of its own.
      runs: {"local" | "federated" | "federated_secure": folder} of recorded runs; None to train
        short ones of `config` with `config.audit.overrides`.
      extract: see `audit`.
      resume: see `audit`.
      progress: see `audit`.

    Returns:
      JSON-able: `rows`, one a setting in this order, with mse, psnr, ssim (mean, std, interval,
      worst), fid, kid (value, interval, floor, ceiling) and identified; `anova` and `tests` by
      metric; `control`; `threat_model`, rows of names and values; `panels`, paths below `workdir`;
      `images` of the smallest row, and `note`, a sentence on what was attacked.

    Raises:
      UserError: see `audit` and `check_inversion`.
    """
    config = experiment.checked(config)
    tasks.check_classifies(config, "an audit")
    folder = user_path(workdir)
    plain = dataclasses.replace(config.audit, defences=())
    whole, page = dataclasses.replace(config, audit=plain), folder / "report.html"
    if runs is None:
        table_runs = _table_runs(whole, folder)
    else:
        table_runs = [_recorded_run(user_path(runs[name]), plain, name) for name in runs]
    result = _audit(whole, folder, page, table_runs, extract, resume, None, "", progress)
    rows = [{k: v for k, v in row.items() if k != "config"} for row in result["settings"]]
    rows.sort(key=lambda row: _TABLE.index(row["setting"]) if row["setting"] in _TABLE else 9)
    return {
        "images": min(row["n"] for row in rows),
        "note": threat_model.note(table_runs, result["settings"]),
        "threat_model": result["threat_model"],
        "rows": rows,
        "anova": result["anova"],
        "tests": result["tests"],
        "control": result["control"],
        "panels": {row["setting"]: row["panel"] for row in rows},
    }


def check_inversion(config: ConfigDict | ExperimentConfig) -> None:
    """Checks that `inversion_table` can train and attack runs of its own; trains nothing.

    Raises:
      UserError: of settings that cannot be read, that no run goes by or that name no row of the
        table, and of a threat model that a run does not allow; see `audit`.
    """
    config = experiment.checked(config)
    tasks.check_classifies(config, "an audit")
    plain = dataclasses.replace(config.audit, defences=())
    for run in _table_runs(dataclasses.replace(config, audit=plain), pathlib.Path()):
        check_ahead(run.config, plain, run.setting.name)
    extractors.check(config)


def _table_runs(config: ExperimentConfig, folder: pathlib.Path) -> list[Run]:
    """The runs that are trained for the table of inversions."""
    small = overridden(config, config.audit.overrides, "config.audit.overrides")
    wanted = [setting for setting in parse(config.audit) if setting.name in _TABLE]
    if not wanted:
        raise ConfigError(
            f"config.audit.settings names none of {', '.join(_TABLE)}, which are the rows of the "
            "table of inversions; name one so, as in 'federated: federated.mode=federated'"
        )
    return [Run(one, folder / "runs" / one.name, run_config(small, one), True) for one in wanted]


def _recorded_run(folder: pathlib.Path, audit: AuditConfig, name: str) -> Run:
    """The run in a folder, as it was configured."""
    config = recorded_config(folder)
    return Run(Setting(name or config.federated.mode, (), audit.images, False), folder, config)


def _audit(
    config: ExperimentConfig,
    folder: pathlib.Path,
    page: pathlib.Path,
    runs: Sequence[Run],
    extract: Extract | None,
    resume: bool,
    ray_address: str | None,
    command: str,
    progress: Progress,
) -> dict[str, Any]:
    for run in runs:
        (check_ahead if run.is_own else check)(run.config, config.audit, run.setting.name)
    features, features_told = extractors.make(config, extract)
    with only_writer(folder, "an audit"):
        return _made(
            config, folder, page, runs, features, features_told, resume, ray_address, command,
            progress,
        )  # fmt: skip


def _made(
    config: ExperimentConfig,
    folder: pathlib.Path,
    page: pathlib.Path,
    runs: Sequence[Run],
    features: Extract,
    features_told: str,
    resume: bool,
    ray_address: str | None,
    command: str,
    progress: Progress,
) -> dict[str, Any]:
    """Trains, attacks and writes, as the only writer of `folder`."""
    _begin(folder, page, resume)
    targets: dict[str, Views] = {}
    for run in runs:
        if run.is_own:
            _train(run, resume, ray_address, progress)
        targets[run.setting.name] = views(run.folder, run.config, config.audit, run.setting.images)
    findings = {
        run.setting.name: _attacked(
            config, folder, run, targets[run.setting.name], resume, progress
        )
        for run in runs
    }
    others = [run.setting.name for run in runs if run.setting.is_defence]
    first = runs[0].setting.name
    main = {
        name: reconstructions for name, reconstructions in findings.items() if name not in others
    }
    rows = [
        _row(config, folder, run, targets[run.setting.name], findings[run.setting.name], features)
        for run in runs
    ]
    result: dict[str, Any] = {
        "name": config.name,
        "command": command,
        "threat_model": threat_model.rows(config.audit, runs, rows),
        "features": features_told,
        "settings": rows,
        **judging.tests(main),
        "defences": judging.against(config.audit.reference, findings, others) if others else None,
        "control": _control(config, folder, targets[first], findings[first]),
        "config": to_plain(config),
    }
    result["verdicts"] = report.verdicts(result)
    result["report"] = str(page)
    result = json.loads(json.dumps(result))  # as whoever reads the file has it
    write_json(folder / AUDIT, result)
    report.write_report(result, folder, page)
    return result


def _begin(folder: pathlib.Path, page: pathlib.Path, resume: bool) -> None:
    """Moves an earlier audit aside, but never the run that is attacked, nor runs trained for it."""
    if not resume:
        move_aside(folder, (AUDIT, FOLDER, page.name))


def _train(run: Run, resume: bool, ray_address: str | None, progress: Progress) -> None:
    """Trains a run; one that is there is kept or goes on, if settings and images are the same."""
    resume = resume and _is_same(run)
    if resume and (run.folder / "metrics.json").exists():
        return
    progress(f"training {run.setting.name}", 0, run.config.federated.rounds)
    with open(os.devnull, "w") as nowhere:
        experiment.train(
            run.config,
            run.folder,
            resume=resume,
            ray_address=ray_address if run.config.runtime.driver == "ray" else None,
            stream=nowhere,
            on_round=lambda line: _tell(progress, run, line["round"]),
        )


def _is_same(run: Run) -> bool:
    """True if what is in the run's folder was begun with its settings, on its images."""
    paths = [run.folder / name for name in ("config.json", "data.json")]
    if not all(path.exists() for path in paths):
        return False
    stored, data = read_json(paths[0]), read_json(paths[1], ["fingerprint"])
    if any(differences(stored, to_plain(run.config))):
        return False
    return bool(data["fingerprint"] == make_plan(run.config).fingerprint)


def _tell(progress: Progress, run: Run, number: int) -> bool:
    progress(f"training {run.setting.name}", number, run.config.federated.rounds)
    return True


def _attacked(
    config: ExperimentConfig,
    folder: pathlib.Path,
    run: Run,
    targets: Views,
    resume: bool,
    progress: Progress,
) -> Found:
    """Runs the attacks on a run, or reads their earlier results."""
    name = run.setting.name
    kept = folder / FOLDER / f"{name}.npz"
    depends = fingerprint(
        [to_plain(run.config), digest(targets)],
        config.audit,
        run.setting.images,
        config.seed,
    )
    reconstructions = Found.read(kept, depends) if resume else None
    if reconstructions is None:
        reconstructions = attack_all(name, run.config, targets, config.audit, config.seed, progress)
        reconstructions.write(kept, depends)
    return reconstructions


def _row(
    config: ExperimentConfig,
    folder: pathlib.Path,
    run: Run,
    targets: Views,
    reconstructions: Found,
    extract: Extract,
) -> dict[str, Any]:
    """One setting: what was attacked, what was found, and what its model is worth."""
    first = targets.cases[0]
    training = first.observed.training
    panel = pathlib.Path(FOLDER) / "panels" / f"{run.setting.name}.png"
    notes = list(targets.notes)
    if reconstructions.gallery == 1:
        notes.append("all images of a hospital are behind one update, with none to tell them from")
    pictures.draw_panel(folder / panel, reconstructions)
    return {
        "setting": run.setting.name,
        "overrides": list(run.setting.overrides),
        "is_defence": run.setting.is_defence,
        "mode": run.config.federated.mode,
        "n": len(reconstructions.originals),
        "updates": len(targets.cases),
        "images_per_update": len(first.images),
        "hospitals": len(set(first.hospitals)),
        "local_steps": training.local_steps,
        "batch_size": run.config.training.batch_size,
        "rounds": sorted({case.round for case in targets.cases}),
        **judging.measures(reconstructions, extract, config.audit, config.seed),
        "utility": _utility(run.folder),
        "notes": notes,
        "panel": str(panel),
        "config": to_plain(run.config),
    }


def _utility(folder: pathlib.Path) -> dict[str, Any] | None:
    """Scores of the run's model on its test set; None if it was not tested."""
    if not (folder / "metrics.json").exists():
        return None
    metrics = read_json(folder / "metrics.json")
    test = metrics.get("test")
    if not test:
        return None
    return {
        "mcc": test["mcc"],
        "interval": test["intervals"]["mcc"],
        "accuracy": test["accuracy"],
        "rounds": metrics["rounds"],
    }


def _control(
    config: ExperimentConfig, folder: pathlib.Path, targets: Views, reconstructions: Found
) -> dict[str, Any] | None:
    if not config.audit.control_steps:
        return None
    known = targets.cases[0].observed.training
    result = control(reconstructions.originals[0], known.mean, known.std, config.audit, config.seed)
    picture = pathlib.Path(FOLDER) / "control.png"
    original, image = result.pop("original"), result.pop("found")
    pictures.draw_pair(folder / picture, original, image, result["psnr"])
    return {**result, "panel": str(picture)}
