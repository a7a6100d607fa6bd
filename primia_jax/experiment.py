"""The verbs: what `python -m primia_jax.launch --mode=…` and research code call.

`train(config, workdir)` leaves in `workdir`: config.json, metrics.json, rounds.jsonl, timing.json,
tensorboard/, checkpoints/, sites/ (each hospital's own) and report.html.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, TextIO

import numpy as np
from ml_collections import ConfigDict

from primia_jax import models, predictions, tasks
from primia_jax.config import ExperimentConfig, from_config_dict, resolved
from primia_jax.core import objects
from primia_jax.core.names import user_path
from primia_jax.core.records import Check
from primia_jax.core.storage import move_aside, read_json, write_json
from primia_jax.data import DataPlan, make_plan, make_test_plan, read_inputs
from primia_jax.data.sources import NoUsableImages
from primia_jax.errors import ConfigError, DataError
from primia_jax.evaluation.record import RunRecord
from primia_jax.federated import (
    aggregation,
    credentials,
    privacy_statement,
    records,
    rules,
    safety,
)
from primia_jax.federated.aggregation import OWNER
from primia_jax.federated.checkpoints import Progress
from primia_jax.federated.federation import Federation
from primia_jax.federated.makers import party_makers
from primia_jax.federated.trained_model import load_trained
from primia_jax.reporting.report import write_report
from primia_jax.rounds import Phases, absences, scored, train_rounds
from primia_jax.runtime import Driver, Link, LocalDriver
from primia_jax.tasks import Evaluation, Inputs
from primia_jax.tasks.task import LOSS, Diagnoses
from primia_jax.watch.heartbeat import only_writer
from primia_jax.watch.watch import Watch
from primia_jax.workdir import CONFIG, Workdir, check_begun, recorded_config

_LITTLE = 0.001  # of a resource that only says where an actor goes


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a training."""

    metrics: dict[str, Any]  # what metrics.json holds
    workdir: pathlib.Path
    warnings: tuple[str, ...] = ()  # what the report warns of


def train(
    config: ConfigDict | ExperimentConfig,
    workdir: str | os.PathLike[str],
    *,
    resume: bool = False,
    ray_address: str | None = None,
    command: str = "",
    on_round: Callable[[Mapping[str, Any]], bool] | None = None,
    judge: bool = True,
    stream: TextIO | None = None,
    model: Any = None,
) -> Result:
    """Trains over the hospitals of `config` and judges the best model on the test set, once.

    Args:
      config: what a file in configs/ gives, or the checked form of it.
      workdir: folder for everything the run leaves; an earlier run there is moved to `previous/`.
      resume: go on from the last complete round of the run in `workdir`.
      ray_address: a running Ray cluster (HOST:PORT or "auto"); else one is started for the run.
      command: the command line, for the report.
      on_round: called after every complete round with the line of rounds.jsonl that is of all
        sites; the training ends there if it gives False, and can be resumed.
      judge: whether the test set is used and report.html written; not where a model is only one of
        many that are chosen from.
      stream: where progress is shown; standard output by default.
      model: a Flax Linen module class, or a function that gives a module, in place of
        `config.model.name`; it reaches the parties by its name alone (docs/own_parts.md).

    Raises:
      UserError: one line that says what is wrong, where and how to mend it; finished rounds stay.
    """
    config = checked(config, model)
    models.check_importable(config.model)
    if objects.is_reference(config.training.loss):
        objects.load(config.training.loss, LOSS)
    if objects.is_reference(config.federated.rule):
        objects.load(config.federated.rule, rules.WHERE)
    aggregation.make(config, ("",) * config.federated.hospitals, of_models=True)  # or refuses
    if config.model.pretrained:
        models.check_weights(config.model.pretrained)
    directory = Workdir(user_path(workdir))
    if resume:
        check_begun(directory.path, (CONFIG,))
    with (
        only_writer(directory.path, "a training"),
        Watch(config, directory.path, stream) as watch,
    ):
        return _train(config, directory, watch, resume, ray_address, command, on_round, judge)


def _train(
    config: ExperimentConfig,
    directory: Workdir,
    watch: Watch,
    resume: bool,
    ray_address: str | None,
    command: str,
    on_round: Callable[[Mapping[str, Any]], bool] | None,
    judge: bool,
) -> Result:
    """See `train`."""
    clock = Phases()
    with clock("reading the data"):
        plan = make_plan(config)
    task = tasks.make(config, tasks.classes(config, plan))
    progress = Progress()
    if resume:
        progress = directory.resume(config, plan)
    else:
        directory.begin(config, plan)
    hospitals = tuple(site.site for site in plan.sites)
    warnings = [*plan.remarks]
    if weak := privacy_statement.large_delta(config, plan.summary):
        warnings.append(weak)
    if plan.skipped:
        warnings.append(f"{len(plan.skipped)} unreadable files were left out")
    with (
        watch.open(hospitals, progress.round) as console,
        contextlib.ExitStack() as stack,
    ):
        absent = task.warning(plan.test_catalogue, plan.test) if judge else ""
        if absent:
            console.message(f"warning: {absent}")
        complete = progress.round >= config.federated.rounds or progress.finished
        if complete:
            console.message(
                f"already complete after round {progress.round} (best: round "
                f"{progress.best_round}); only the evaluation and the report are made again"
            )
        elif progress.round:
            console.message(
                f"going on after round {progress.round} (best so far: round {progress.best_round})"
            )
        if not complete:
            if risk := safety.pair_statement(config):
                console.message(f"warning: {risk}")
            console.stage("starting")
            with clock("starting the parties"):
                driver = stack.enter_context(
                    training_driver(
                        config,
                        plan,
                        ray_address,
                        some_later=True,
                        tell=console.message,
                        workdir=directory.path,
                    )
                )
            federation = Federation(driver, config, hospitals, directory.path)
            progress = train_rounds(federation, task, directory, console, clock, progress, on_round)
            driver.close()
        tested = None
        if judge and len(plan.test):
            console.stage("testing")
            with clock("testing"):
                tested = _test(config, directory, plan)
    if tested is None:
        warnings.append("there is no test set: the model was not judged on images unseen so far")
    elif absent:
        warnings.append(absent)
    if risk := safety.pair_statement(config):
        warnings.append(risk)
    lines = [line for line in directory.rounds() if line["site"] == "all"]
    warnings += absences(lines)
    best = next(
        (line["validation"] for line in lines if line["round"] == progress.best_round), None
    )
    metrics = {
        "mode": config.federated.mode,
        "model": config.model.name,
        "rounds": progress.round,
        "best_round": progress.best_round,
        "validation": best,
        "score": scored(task, best),
        "test": tested.scores if tested else None,
    }
    private = privacy_statement.statement(config, directory.rounds(), directory.path)
    if private:
        metrics["privacy"] = private
    write_json(directory.path / "metrics.json", metrics)
    write_json(directory.path / "timing.json", clock.phases)
    files = ("config.json", "metrics.json", "rounds.jsonl", "timing.json", "report.html")
    if not judge:
        watch.results(metrics, [directory.path / name for name in files[:-1]])
        return Result(metrics, directory.path)
    record = RunRecord(
        config=read_json(directory.path / "config.json"),
        mode=config.federated.mode,
        class_names=plan.class_names,
        data_summary=plan.summary,
        skipped=plan.skipped,
        rounds=directory.rounds(),
        phases=clock.phases,
        privacy=private,
        warnings=warnings,
        versions=_versions(),
        command=command,
        finished=time.strftime("%Y-%m-%d %H:%M"),
        figures=task.figures(tested) if tested else None,
        outputs=task.class_names,
        loss_name=task.loss_name,
    )
    write_report(directory.path / "report.html", record)
    watch.results(metrics, [directory.path / name for name in files])
    return Result(metrics, directory.path, tuple(warnings))


def evaluate(
    config: ConfigDict | ExperimentConfig, workdir: str | os.PathLike[str]
) -> dict[str, Any]:
    """Judges the best model of the run in `workdir` on the test set of `config.data`.

    Writes evaluation.json, and returns what it holds (see `Task.evaluate`).

    Raises:
      CheckpointError: if there is no model, or another one than `config.model`.
      DataError: if there is no test set, or its classes are not the model's.
    """
    config = checked(config)
    directory = Workdir(user_path(workdir))
    model = load_trained(directory.path, config)
    plan = make_test_plan(config, model.task.labels)
    classes = tasks.classes(config, plan)
    if classes != model.class_names:
        raise DataError(
            f"the test set has classes {', '.join(classes)}; the model knows "
            f"{', '.join(model.class_names)}"
        )
    warnings = [directory.check_unseen(plan), _judged_in_part(config, directory, plan)]
    with only_writer(directory.path, "an evaluation"):
        scores = _test(config, directory, plan).scores
        if any(warnings):
            scores["warnings"] = [text for text in warnings if text]
        write_json(directory.path / "evaluation.json", scores)
    return scores


def _judged_in_part(config: ExperimentConfig, directory: Workdir, plan: DataPlan) -> str:
    """A warning where other images than the training's are split before they are judged; or ""."""
    data, total = config.data, len(plan.test_catalogue)
    if data.test_path or data.source == "phantom" or len(plan.test) == total:
        return ""
    if recorded_config(directory.path).data.path == data.path:
        return ""
    return (
        f"{len(plan.test)} of {total} images in {data.path} were judged, as if they had been split "
        "for a training; to judge all of a folder name it by --config.data.test_path"
    )


def predict(
    config: ConfigDict | ExperimentConfig,
    workdir: str | os.PathLike[str],
    input_path: str | os.PathLike[str],
    *,
    tell: Callable[[str], None] = lambda text: None,
) -> Diagnoses:
    """Diagnoses an image, a DICOM file or a folder of them with the best model in `workdir`.

    Writes predictions.csv, and for a segmentation `masks/`, see `Diagnoses.write`; earlier ones are
    moved to `previous/N`.

    Args:
      config: of the experiment.
      workdir: of the training.
      input_path: the images.
      tell: given a line that says where an earlier predictions.csv went.

    Raises:
      CheckpointError: if there is no model, or another one than `config.model`.
      DataError: if nothing is at `input_path`, or no image there can be used; in the latter case
        predictions.csv has the reason for each.
    """
    config = checked(config)
    directory = user_path(workdir)
    model = load_trained(directory, config)
    with only_writer(directory, "a diagnosis"):
        source = user_path(input_path)
        if not source.exists():
            raise DataError(f"input {source}: no such file or folder")
        table = directory / predictions.FILE
        if earlier := move_aside(directory, (predictions.FILE, predictions.MASKS)):
            tell(f"the earlier {predictions.FILE} was moved to {earlier}")
        try:
            inputs = read_inputs(str(source), model.image_size, config.data)
        except NoUsableImages as error:
            model.task.diagnoses(np.zeros(0), Inputs((), skipped=error.skipped)).write(table)
            raise
        answers = model.predictions(inputs.images, config.evaluation.batch_size)
        images = Inputs(inputs.names, inputs.sizes, inputs.skipped, remarks=inputs.remarks)
        diagnoses = model.task.diagnoses(answers, images)
        diagnoses.write(table)
    return diagnoses


def checked(config: ConfigDict | ExperimentConfig, model: Any = None) -> ExperimentConfig:
    """The checked form of `config`, see `primia_jax.config`.

    Args:
      config: what is checked.
      model: a class or function that `config.model.name` shall name instead; or None.

    Raises:
      ConfigError: if it is no configuration, or a value in it is not allowed.
    """
    if not isinstance(config, (ExperimentConfig, Mapping, ConfigDict)):
        raise ConfigError(
            f"config is {config!r}; pass what get_config() of a file in configs/ returns, e.g. "
            "`from configs import demo; primia_jax.train(demo.get_config(), workdir)`"
        )
    if not isinstance(config, ExperimentConfig):
        config = from_config_dict(ExperimentConfig, config)
    if model is not None:
        name = objects.reference_to(model, "model")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, name=name))
    return resolved(config)


@contextlib.contextmanager
def training_driver(
    config: ExperimentConfig,
    plan: DataPlan,
    ray_address: str | None,
    some_later: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    workdir: pathlib.Path | None = None,
) -> Iterator[Driver]:
    """The driver that the configuration asks for, with all parties of a training started.

    With `some_later` hospitals that have machines of their own may come later than the others; not
    where privacy is asked for, since each adds noise to the sum or keeps a ledger from round 1 on.
    `tell` is given a line that says for whom it waits. Below `workdir` lie the parties' identities,
    and a hospital writes there why its images cannot be used.
    """
    run, sites = config.runtime, [site.site for site in plan.sites]
    placements: dict[str, dict[str, Any]] = {
        site: {
            "num_cpus": run.cpus_per_hospital,
            "num_gpus": run.gpus_per_hospital,
            "resources": _resources(run.hospital_resource, site),
        }
        for site in sites
    }
    placements[OWNER] = {"with_driver": True}
    # In turn, so that the first hospital of every actor comes before the second of any.
    together = [
        sites[i :: run.hospital_actors] for i in range(min(run.hospital_actors, len(sites)))
    ]
    makers = functools.partial(party_makers, config, plan, workdir)
    own_machines = "{site}" in run.hospital_resource
    later = sites if some_later and own_machines and config.privacy.mode == "none" else ()
    folders = credentials.training_folders(workdir, sites) if workdir else None
    with open_driver(
        config,
        makers,
        placements,
        ray_address,
        sealed=True,
        together=together,
        later=later,
        tell=tell,
        check_report=records.check(plan.class_names, sites),
        folders=folders,
    ) as driver:
        yield driver


def _resources(name: str, site: str) -> tuple[tuple[str, float], ...]:
    """A little of `config.runtime.hospital_resource`, for one site's actor."""
    return ((name.replace("{site}", site), _LITTLE),) if name else ()


@contextlib.contextmanager
def open_driver(
    config: ExperimentConfig,
    makers: Callable[[], Mapping[str, Callable[[], Any]]],
    placements: Mapping[str, Mapping[str, Any]],
    ray_address: str | None,
    sealed: bool = False,
    together: Sequence[Sequence[str]] = (),
    later: Collection[str] = (),
    tell: Callable[[str], None] = lambda text: None,
    check_report: Check | None = None,
    folders: Mapping[str, pathlib.Path] | None = None,
) -> Iterator[Driver]:
    """The driver that `config.runtime` asks for, with the parties of `makers` started.

    Args:
      config: of the experiment.
      makers: gives, by party, what makes its state; called once the cluster is there, since a
        cluster is not to be started from a process in which JAX runs already.
      placements: by party, fields of `ray_driver.Placement` other than its threads.
      ray_address: a running Ray cluster; else one is started.
      sealed: whether messages between actors are encrypted and authenticated.
      together: groups of parties that share an actor.
      later: parties that may be missing at first.
      tell: is given a line that says for whom it waits.
      check_report: refuses reports with anything that is not declared public.
      folders: the parties' own, by name, where they keep the identities that sign the keys of
        sealed messages; without them identities last as long as the driver.

    Raises:
      ConfigError: for a cluster's address where no cluster is used.
    """
    run = config.runtime
    link = Link(run.latency_s, run.bandwidth_bps, run.jitter_s, config.seed)
    if run.driver == "local":
        if ray_address:
            raise ConfigError("--ray_address needs config.runtime.driver = 'ray', not 'local'")
        yield LocalDriver(makers(), link, check_report=check_report)
        return
    from primia_jax.runtime import ray_driver  # Ray is slow to import

    where = {
        name: ray_driver.Placement(threads=run.threads, **fields)
        for name, fields in placements.items()
    }
    with (
        ray_driver.cluster(ray_address, run.ray_auth),
        contextlib.closing(
            ray_driver.RayDriver(
                makers(),
                link,
                where,
                run.message_timeout_s,
                sealed,
                together,
                later,
                run.revive_timeout_s,
                tell,
                credentials=credentials.makers(config, folders or {}),
                check_report=check_report,
            )
        ) as driver,
    ):
        yield driver


def _test(config: ExperimentConfig, directory: Workdir, plan: DataPlan) -> Evaluation:
    """The best model on the test set."""
    model = load_trained(directory.path, config)
    data = plan.load_test(model.image_size)
    predictions = model.predictions(data.images, config.evaluation.batch_size)
    scores = model.task.evaluate(predictions, data, config.evaluation.bootstrap, config.seed)
    return Evaluation(data, predictions, scores)


def _versions() -> dict[str, str]:
    packages = ("primia_jax", "jax", "flax", "optax", "ray", "numpy")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}}
