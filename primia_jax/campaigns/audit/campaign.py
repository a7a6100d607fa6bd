"""The verb `audit`: trains what is missing, attacks, measures, and writes tables and a page.

workdir/audit.json     everything measured
workdir/report.html    for readers; audit.html where the folder is itself that of a run
workdir/audit/         pictures (panels/NAME.png), and reconstructions of each attack (NAME.npz),
                       taken up by --resume
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
from primia_jax.campaigns import engine
from primia_jax.campaigns.audit import analysis, features, plots, report, threat_model
from primia_jax.campaigns.audit.attacks import Reconstructions, attack_all, control, fingerprint
from primia_jax.campaigns.audit.features import Extract
from primia_jax.campaigns.audit.settings import Run, Setting, overridden, parse, run_config
from primia_jax.campaigns.audit.views import HOW_TO_RECORD, Views, check, check_ahead, digest, views
from primia_jax.campaigns.engine import Progress
from primia_jax.config import AuditConfig, ExperimentConfig, to_plain
from primia_jax.core.names import user_path
from primia_jax.core.storage import read_json, write_json
from primia_jax.errors import CheckpointError, ConfigError
from primia_jax.workdir import CONFIG, recorded_config

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
    progress: Progress = engine.silent,
) -> dict[str, Any]:
    """Attacks what model owners saw in recorded runs, and says what could be stolen.

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
    progress: Progress = engine.silent,
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
        attacked = _table_runs(whole, folder)
    else:
        attacked = [_recorded_run(user_path(runs[name]), plain, name) for name in runs]
    # A study that was interrupted before its attack resumes with nothing here.
    resume = resume and bool(engine.names(folder, (AUDIT, FOLDER, "runs")))
    result = _audit(whole, folder, page, attacked, extract, resume, None, "", progress)
    rows = [{k: v for k, v in row.items() if k != "config"} for row in result["settings"]]
    rows.sort(key=lambda row: _TABLE.index(row["setting"]) if row["setting"] in _TABLE else 9)
    return {
        "images": min(row["n"] for row in rows),
        "note": threat_model.note(attacked, result["settings"]),
        "threat_model": result["threat_model"],
        "rows": rows,
        "anova": result["anova"],
        "tests": result["tests"],
        "control": result["control"],
        "panels": {row["setting"]: row["panel"] for row in rows},
    }


def check_inversion(config: ConfigDict | ExperimentConfig) -> None:
    """Checks that `inversion_table` can be made under `config`, and trains nothing.

    Raises:
      UserError: of settings that cannot be read, that no run goes by or that name no row of the
        table, and of a threat model that a run does not allow; see `audit`.
    """
    config = experiment.checked(config)
    tasks.check_classifies(config, "an audit")
    plain = dataclasses.replace(config.audit, defences=())
    for run in _table_runs(dataclasses.replace(config, audit=plain), pathlib.Path()):
        check_ahead(run.config, plain, run.name)
    features.check(config)


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
    """Trains, attacks and writes; what was trained and attacked stays for a later audit."""
    for run in runs:
        (check_ahead if run.is_own else check)(run.config, config.audit, run.name)
    extract, about = features.make(config, extract)
    leaves = (AUDIT, FOLDER, page.name)  # but never the run that is attacked, nor one trained
    with engine.writing(folder, "an audit", leaves, resume, keeps=("runs",)):
        observed: dict[str, Views] = {}
        for run in runs:
            if run.is_own:
                _train(run, resume, ray_address, progress)
            observed[run.name] = views(run.folder, run.config, config.audit, run.setting.images)
        attacked = {
            run.name: _attacked(config, folder, run, observed[run.name], resume, progress)
            for run in runs
        }
        rows = [
            _row(config, folder, run, observed[run.name], attacked[run.name], extract)
            for run in runs
        ]
        defences = [run.name for run in runs if run.setting.is_defence]
        main = {name: each for name, each in attacked.items() if name not in defences}
        reference = config.audit.reference
        result: dict[str, Any] = {
            "name": config.name,
            "command": command,
            "threat_model": threat_model.rows(config.audit, runs, rows),
            "features": about,
            "settings": rows,
            **analysis.tests(main),
            "defences": analysis.against(reference, attacked, defences) if defences else None,
            "control": _control(config, folder, observed[runs[0].name], attacked[runs[0].name]),
            "config": to_plain(config),
        }
        result["verdicts"] = report.verdicts(result)
        result["report"] = str(page)
        result = json.loads(json.dumps(result))  # as whoever reads the file has it
        write_json(folder / AUDIT, result)
        report.write_report(result, folder, page)
        return result


def _train(run: Run, resume: bool, ray_address: str | None, progress: Progress) -> None:
    """Trains a run; one that is there is kept or goes on, if settings and images are the same."""
    rounds = run.config.federated.rounds

    def on_round(line: Mapping[str, Any]) -> bool:
        progress(f"training {run.name}", line["round"], rounds)
        return True

    with open(os.devnull, "w") as nowhere:
        engine.train(
            engine.Run(run.name, run.folder, run.config),
            resume=resume,
            ray_address=ray_address if run.config.runtime.driver == "ray" else None,
            retrain=True,
            begins=lambda: progress(f"training {run.name}", 0, rounds),
            on_round=on_round,
            stream=nowhere,
        )


def _attacked(
    config: ExperimentConfig,
    folder: pathlib.Path,
    run: Run,
    observed: Views,
    resume: bool,
    progress: Progress,
) -> Reconstructions:
    """The reconstructions of a run's images, new ones or those of an earlier audit."""
    kept = folder / FOLDER / f"{run.name}.npz"
    recorded = [to_plain(run.config), digest(observed)]
    depends = fingerprint(recorded, config.audit, run.setting.images, config.seed)
    attacked = Reconstructions.read(kept, depends) if resume else None
    if attacked is None:
        attacked = attack_all(run.name, run.config, observed, config.audit, config.seed, progress)
        attacked.write(kept, depends)
    return attacked


def _row(
    config: ExperimentConfig,
    folder: pathlib.Path,
    run: Run,
    observed: Views,
    attacked: Reconstructions,
    extract: Extract,
) -> dict[str, Any]:
    """One setting: the attacked updates, the results, and the utility of its model."""
    first = observed.cases[0]
    training = first.observed.training
    panel = pathlib.Path(FOLDER) / "panels" / f"{run.name}.png"
    notes = list(observed.notes)
    if attacked.gallery == 1:
        notes.append("all images of a hospital are behind one update, with none to tell them from")
    plots.draw_panel(folder / panel, attacked)
    return {
        "setting": run.name,
        "overrides": list(run.setting.overrides),
        "is_defence": run.setting.is_defence,
        "mode": run.config.federated.mode,
        "n": len(attacked.originals),
        "updates": len(observed.cases),
        "images_per_update": len(first.images),
        "hospitals": len(set(first.hospitals)),
        "local_steps": training.local_steps,
        "batch_size": run.config.training.batch_size,
        "rounds": sorted({case.round for case in observed.cases}),
        **analysis.measures(attacked, extract, config.audit, config.seed),
        "utility": _utility(run.folder),
        "notes": notes,
        "panel": str(panel),
        "config": to_plain(run.config),
    }


def _utility(folder: pathlib.Path) -> dict[str, Any] | None:
    """Utility of the model on its test set; None if it was not tested."""
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
    config: ExperimentConfig, folder: pathlib.Path, observed: Views, attacked: Reconstructions
) -> dict[str, Any] | None:
    if not config.audit.control_steps:
        return None
    known = observed.cases[0].observed.training
    result, original, image = control(
        attacked.originals[0], known.mean, known.std, config.audit, config.seed
    )
    picture = pathlib.Path(FOLDER) / "control.png"
    plots.draw_pair(folder / picture, original, image, result["psnr"])
    return {**result, "panel": str(picture)}
