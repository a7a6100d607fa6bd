"""The engine of all campaigns: one writer a folder, resumable runs, one cluster, provenance.

A campaign is a module with `check(config)`, which refuses before anything runs, and a function of
(config, workdir) that resumes, reports its progress, and leaves tables and a page:

  with engine.writing(folder, "a study", leaves, resume):
      with engine.cluster(config, ray_address):
          for done, run in enumerate(runs):
              progress(run.name, done, len(runs))
              engine.train(run, resume=resume, ray_address=ray_address)
      tables, page
"""

import contextlib
import difflib
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax

from primia_jax import experiment
from primia_jax.config import ExperimentConfig, from_config_dict, resolved, to_plain
from primia_jax.core.storage import move_aside
from primia_jax.data import DataPlan, make_plan
from primia_jax.errors import CheckpointError, ConfigError, DataError
from primia_jax.watch.heartbeat import only_writer
from primia_jax.workdir import CONFIG, Workdir, check_begun

Progress = Callable[[str, int, int], None]  # (what goes on, how much of it is done, of how much)


def silent(what: str, done: int, total: int) -> None:
    """Reports no progress."""


class Run(NamedTuple):
    """One training of a campaign, in a folder of its own."""

    name: str
    folder: pathlib.Path
    config: ExperimentConfig


@contextlib.contextmanager
def writing(
    folder: pathlib.Path,
    activity: str,
    leaves: Sequence[str],
    resume: bool,
    keeps: Sequence[str] = (),
) -> Iterator[None]:
    """Holds `folder` as its only writer; an earlier campaign there is moved to `previous/`.

    Args:
      folder: of the campaign.
      activity: named to whoever finds the folder locked.
      leaves: patterns of the names that the campaign leaves.
      resume: keeps what an earlier one left.
      keeps: patterns of what it leaves besides, and what is never moved.

    Raises:
      CheckpointError: if there is nothing to resume.
      StorageError: if another process writes there, or the folder cannot be written.
    """
    if resume:
        check_begun(folder, names(folder, (*leaves, *keeps)))
    with only_writer(folder, activity):
        if not resume:
            move_aside(folder, names(folder, leaves))
        yield


def names(folder: pathlib.Path, patterns: Iterable[str]) -> list[str]:
    """The files and folders in `folder` that fit one of `patterns`."""
    return [path.name for pattern in patterns for path in sorted(folder.glob(pattern))]


def check_names(option: str, given: Sequence[Any], known: Iterable[str] = ()) -> None:
    """Checks that `given` names at least one, each once, and all of them of `known`, if any.

    Raises:
      ConfigError: naming the option, and what is near.
    """
    known = list(known)
    for name in given:
        if known and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(f"config.{option}: '{name}' is none of {' | '.join(known)}{hint}")
    if not given or len(set(given)) < len(given):
        raise ConfigError(f"config.{option} = {given!r}: name at least one, and each of them once")


def overridden(
    config: ExperimentConfig, overrides: Mapping[str, Any], where: str
) -> ExperimentConfig:
    """`config` with other values of some options, checked as at the door.

    Args:
      config: of the campaign.
      overrides: {dotted name: value}, such as {"training.batch_size": 16}.
      where: names the overrides in messages.

    Raises:
      ConfigError: for an option that there is not, or a value that it does not take.
    """
    plain = to_plain(config)
    for name, value in overrides.items():
        *path, last = name.split(".")
        section = plain
        for part in path:
            section = section.get(part)
            if not isinstance(section, dict):
                raise ConfigError(f"{where}: there is no config.{name}")
        section[last] = value
    # Threads were chosen for the parties of `config`; other modes have other parties.
    return resolved(from_config_dict(ExperimentConfig, plain))


@contextlib.contextmanager
def cluster(config: ExperimentConfig, ray_address: str | None) -> Iterator[None]:
    """One cluster for all runs: none can be started once JAX runs in this process.

    Raises:
      ClusterError: if it cannot be reached.
    """
    if config.runtime.driver == "local":
        yield
        return
    from primia_jax.runtime import ray_driver  # Ray is slow to import

    with ray_driver.cluster(ray_address, config.runtime.ray_auth):
        yield


def train(
    run: Run,
    *,
    resume: bool,
    ray_address: str | None = None,
    plan: DataPlan | None = None,
    retrain: bool = False,
    **arguments: Any,
) -> None:
    """Trains a run, goes on with it, or leaves it alone if it came to its end.

    Args:
      run: what is trained, and where.
      resume: keeps what is there.
      ray_address: a running Ray cluster.
      plan: of the images of all runs, if they are known to be the same.
      retrain: begins anew where options or images changed, in place of an error.
      **arguments: further ones of `experiment.train`.

    Raises:
      UserError: see `experiment.train`.
    """
    if resume := resume and (run.folder / CONFIG).exists():
        directory = Workdir(run.folder)
        try:
            directory.check_same(run.config, plan or make_plan(run.config))
        except (CheckpointError, ConfigError, DataError):
            if not retrain:
                raise
            resume = False
        if resume and (run.folder / "report.html").exists():  # the last thing that a run writes
            return
    experiment.train(run.config, run.folder, resume=resume, ray_address=ray_address, **arguments)


def provenance(*packages: str) -> dict[str, str]:
    """This machine and the versions of Python and `packages`, for whoever repeats a campaign."""
    try:
        with open("/proc/cpuinfo") as file:
            models = {line.partition(":")[2].strip() for line in file if "model name" in line}
    except OSError:
        models = set()
    return {
        "processor": ", ".join(sorted(models)) or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "backend": jax.default_backend(),
        "begun": time.strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("primia_jax", "jax", *packages)},
    }
