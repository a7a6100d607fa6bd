"""The verb `evaluate_federated`: all hospitals evaluate a finished model, without training."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from primia_jax import experiment, models, tasks
from primia_jax.config import ExperimentConfig
from primia_jax.core.names import user_path
from primia_jax.core.storage import write_json
from primia_jax.data import make_plan
from primia_jax.errors import CheckpointError, ConfigError
from primia_jax.evaluation.record import ROUNDS, read_rounds
from primia_jax.federated import aggregation, checkpoints, judging, privacy
from primia_jax.federated.aggregation import OWNER
from primia_jax.federated.federation import Federation
from primia_jax.runtime import Locally
from primia_jax.watch.heartbeat import only_writer
from primia_jax.workdir import CONFIG, recorded_config

RESULT = "federated_evaluation.json"


def evaluate_federated(
    config: ConfigDict | ExperimentConfig,
    workdir: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    ray_address: str | None = None,
) -> dict[str, Any]:
    """Has every hospital evaluate a finished model on its own images, and sums the results.

    Writes federated_evaluation.json: {"checkpoint", "images", "all": metrics, "sites": {site:
    metrics}}, metrics as `metrics_from_confusion` gives them, with the cross-entropy "loss". Of a
    run of FedBN, where `config.federated.batch_norm` is that too, "personalised" has "all" and
    "sites" likewise, of the model with each hospital's own batch norms.

    Args:
      config: says who the hospitals are, what they hold and, by `config.federated.mode`, how they
        sum; `config.evaluation.images` says on which images they judge.
      workdir: folder for the result; a run in it is left alone.
      checkpoint: the folder of a run, whose best model is judged with the pixel statistics that it
        was trained with; or a torchvision-named .safetensors or .pth file, with pooled ones of the
        hospitals.
      ray_address: a running Ray cluster; else one is started.

    Raises:
      CheckpointError: if there is no such model, or it is another one than `config.model`, or a
        hospital has no batch norms of its own in a run of FedBN.
      ConfigError: where differential privacy is on, or a hospital took part in a private run: what
        is summed here is exact.
    """
    config = experiment.checked(config)
    judging.check(config)
    aggregation.make(config, ("",) * config.federated.hospitals)
    source = user_path(checkpoint)
    run = source if source.is_dir() else None
    plan = make_plan(config)
    if run is None:
        _check_file(source, config, len(tasks.classes(config, plan)))
        model = dataclasses.replace(config.model, pretrained=str(source))
        config = dataclasses.replace(config, model=model)
    hospitals = tuple(site.site for site in plan.sites)
    if run is not None:
        _check_not_private(run, hospitals)
    personalised = run is not None and config.federated.batch_norm == "fedbn" == _batch_norm(run)
    folder = user_path(workdir)
    with (
        only_writer(folder, "an evaluation"),
        experiment.training_driver(config, plan, ray_address, workdir=folder) as driver,
    ):
        every = config.evaluation.images == "all"
        federation = Federation(driver, config, hospitals, folder)
        places = {
            name: [checkpoints.site_folder(each, name) for each in (folder, run) if each]
            for name in federation.present
        }
        driver.run(
            {
                name: Locally(functools.partial(judging.check_no_ledger, folders=own))
                for name, own in places.items()
            }
        )
        if run is not None:
            adopt = functools.partial(judging.adopt_statistics, run=run)
            driver.run({OWNER: Locally(adopt)})
        federation.set_up(to_train=False)
        programs: dict[str, Any] = {
            name: functools.partial(
                judging.judge,
                every=every,
                own=checkpoints.site_folder(source, name) if personalised else None,
            )
            for name in hospitals
        }
        programs[OWNER] = functools.partial(
            judging.have_judged, run=run, personalised=personalised, every=every
        )
        reports, _ = driver.run(programs)
    task = tasks.make(config, tasks.classes(config, plan))
    of_models = [
        {
            "all": whole.metrics(task),
            "sites": {name: reports[name].models[i].metrics(task) for name in hospitals},
        }
        for i, whole in enumerate(reports[OWNER].models)
    ]
    result = {"checkpoint": str(source), "images": config.evaluation.images, **of_models[0]}
    if personalised:
        result["personalised"] = of_models[1]
    write_json(folder / RESULT, result)
    return result


def _check_not_private(run: pathlib.Path, hospitals: Collection[str]) -> None:
    """Refuses exact matrices of hospitals whose images a private run was trained with.

    Raises:
      ConfigError: if `config.privacy` was on in the run, and one of them took part in it.
    """
    if not (run / CONFIG).exists() or not privacy.is_on(recorded := recorded_config(run)):
        return
    known = {str(line.get("site")) for line in read_rounds(run / ROUNDS)} - {"all"}
    shared = sorted(known.intersection(hospitals)) if known else list(hospitals)
    if shared:
        raise ConfigError(
            f"--checkpoint: {run} was trained with config.privacy.mode = "
            f"{recorded.privacy.mode!r} on images of {', '.join(shared)}, and this evaluation "
            "would release exact confusion matrices of them, which no ledger is charged for; its "
            f"noised ones stand in {run / ROUNDS}, and hospitals that took no part may evaluate it"
        )


def _batch_norm(run: pathlib.Path) -> str:
    """The batch-norm policy of the run in that folder."""
    checkpoints.latest(run / "checkpoints")  # or refuses: it is none
    return recorded_config(run).federated.batch_norm


def _check_file(path: pathlib.Path, config: ExperimentConfig, n_classes: int) -> None:
    """Refuses a file whose last layer is for other classes: a fresh one would replace it."""
    if not path.is_file():
        raise CheckpointError(
            f"--checkpoint: {path} is neither the folder of a run nor a file of weights"
        )
    classes = models.classes_in(str(path), config.model)
    if classes != n_classes:
        held = "no last layer" if classes is None else f"{classes} classes"
        raise CheckpointError(
            f"--checkpoint: {path} has {held} for {config.model.name}; the hospitals' images have "
            f"{n_classes} classes"
        )
