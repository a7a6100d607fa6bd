"""The verb of the command line's mode `tune`: a search over the whole confederation.

A trial is a federation: a training of its own with its own parties, in D/trials/NNNN, that sees no
test image. What is maximised is the MCC over all hospitals' validation images, from the confusion
matrices that they sum as `config.federated.mode` says. Optuna's tree-structured Parzen estimator
(Bergstra et al. 2011, "Algorithms for hyper-parameter optimization", §4) draws the settings; a
trial whose best MCC so far lies below the median of the others' at its round is ended there.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from optuna.trial import FrozenTrial, Trial, TrialState

from primia_jax import experiment, models, tasks
from primia_jax.campaigns.tuning import best_config, report
from primia_jax.campaigns.tuning.space import Dimension, parse, with_settings
from primia_jax.campaigns.tuning.study import LOWEST, STUDY, Study, best_of, interrupted, learned
from primia_jax.config import ExperimentConfig, TuningConfig, resolved
from primia_jax.core.names import user_path
from primia_jax.core.storage import read_json, write_text
from primia_jax.data import make_plan
from primia_jax.errors import BudgetError, ConfigError, StorageError, TrainingError
from primia_jax.evaluation.record import score
from primia_jax.watch import heartbeat
from primia_jax.watch.heartbeat import Heartbeat
from primia_jax.workdir import CONFIG, Workdir, check_begun

_MOST_FAILURES = 5  # in a row: then it is not the settings, and all that are left would fail
TRIALS, BEST_CONFIG, LEDGER = "trials", "best_config.py", "ledger"


class Event(NamedTuple):
    """Something that happened to a trial: it began, a round ended, or it did."""

    what: str  # "begin" | "round" | "end"
    number: int
    round: int  # the last complete one
    mcc: float | None  # of that round; at the end the trial's value
    text: str  # at the end: how it ended
    counts: Mapping[str, int]  # of trials by what became of them: see `Tally`


Progress = Callable[[Event], None]


@dataclasses.dataclass(frozen=True)
class Found:
    """Result of a search."""

    workdir: pathlib.Path
    best: int  # number of the best trial
    mcc: float  # its federated validation MCC
    settings: dict[str, Any]  # what the search chose for it, by dotted name
    trials: tuple[FrozenTrial, ...]
    spent: str = ""  # why it ended before all trials were made, if the privacy budget ended it


def tune(
    config: ConfigDict | ExperimentConfig,
    workdir: str | os.PathLike[str],
    *,
    resume: bool = False,
    ray_address: str | None = None,
    command: str = "",
    progress: Progress = lambda event: None,
) -> Found:
    """Searches `config.tuning.space`; leaves study.db, trials/, best_config.py and report.html.

    Args:
      config: of the experiment; what is searched takes the place of its own settings.
      workdir: folder for everything the search leaves; an earlier run there is moved to
        `previous/`.
      resume: go on with the search in `workdir`: finished trials stay, and what ran when its
        process ended goes on from its last complete round. `config.tuning.trials` may have been
        raised.
      ray_address: a running Ray cluster (HOST:PORT or "auto"); else one is started.
      command: the command line, for the report.
      progress: see `Event`; called by several threads, one at a time.

    Raises:
      ConfigError: naming a dimension that is none, or a setting that a resumed search may not
        change.
      DataError: if the images cannot be used.
      StorageError: if `workdir` cannot be written, or another process is at work there.
      ClusterError: if the cluster cannot be reached or is too small for the trials at a time.
      TrainingError: if trials fail one after the other, or none came to its end with a model.
      BudgetError: if the privacy budget does not cover a single trial.
    """
    config = experiment.checked(config)
    tasks.check_classifies(config, "a search")
    space = parse(config.tuning.space)
    if config.runtime.driver == "local" and ray_address:
        raise ConfigError("--ray_address needs config.runtime.driver = 'ray', not 'local'")
    if config.model.pretrained:
        models.check_weights(config.model.pretrained)
    directory = Workdir(user_path(workdir))
    config = _with_one_ledger(config, directory.path)
    if resume:
        check_begun(directory.path, (STUDY,))
    with contextlib.ExitStack() as stack:
        stack.enter_context(heartbeat.only_writer(directory.path, "a search"))
        _begin(directory, config, resume)
        heart = stack.enter_context(Heartbeat(directory.path, "search"))
        study = Study(directory.path, config.tuning, space, config.seed)
        study.take_up()
        search = _Search(config, directory.path, study, heart, progress)
        heart.stage("searching")
        search.run(_cluster(config, ray_address))
        heart.stage("reporting")
        return _conclude(config, directory.path, space, study.trials(), search.spent, command)


def _with_one_ledger(config: ExperimentConfig, folder: pathlib.Path) -> ExperimentConfig:
    """`config` with every trial charged to the same privacy ledgers, as all see the same images.

    They stay where they are if another search is begun in the folder: what is spent is spent.
    """
    privacy = config.privacy
    if privacy.mode == "none":
        return config
    if privacy.validation == "none":
        raise ConfigError(
            "config.privacy.validation = 'none' leaves a search nothing to go by; take 'noised'"
        )
    ledger = privacy.ledger or str(folder / LEDGER)
    return dataclasses.replace(config, privacy=dataclasses.replace(privacy, ledger=ledger))


def _begin(directory: Workdir, config: ExperimentConfig, resume: bool) -> None:
    """Makes the folder ready; what cannot be trained on at all is told before any trial."""
    plan = make_plan(config)
    if not resume:
        directory.begin(config, plan)
        return
    directory.check_same(config, plan)
    stored = read_json(directory.path / "config.json").get("tuning", {})
    # As JSON has it: lists for tuples.
    if list(stored.get("space", ())) != list(config.tuning.space):
        raise ConfigError(
            f"--resume: the search in {directory.path} was begun with another "
            "config.tuning.space; use the same one or another --workdir"
        )


@contextlib.contextmanager
def _cluster(config: ExperimentConfig, ray_address: str | None) -> Iterator[None]:
    """The one cluster that all trials use."""
    run, count = config.runtime, config.tuning.parallel
    if run.driver == "local":
        yield
        return
    from primia_jax.runtime import ray_driver  # Ray is slow to import

    with ray_driver.cluster(ray_address, run.ray_auth):
        hospital = ray_driver.Placement(run.cpus_per_hospital, run.gpus_per_hospital)
        actors = run.hospital_actors or config.federated.hospitals
        ray_driver.check_resources(
            [hospital] * (count * actors),
            f"config.tuning.parallel = {count} trials",
            " or config.tuning.parallel",
        )
        yield


class _Search:
    """The trials of one process, as many at a time as are asked for."""

    def __init__(
        self,
        config: ExperimentConfig,
        folder: pathlib.Path,
        study: Study,
        heart: Heartbeat,
        progress: Progress,
    ):
        self._config, self._folder, self._study = config, folder, study
        self._heart, self._progress = heart, progress
        self._tell = threading.Lock()
        self._running: dict[int, int] = {}  # rounds by trial
        self._stop = threading.Event()
        self._failures = 0  # in a row
        self.spent = ""  # why no further trial is begun: the privacy budget does not allow it

    def run(self, cluster: contextlib.AbstractContextManager[None]) -> None:
        """Runs trials within `cluster` until there are as many as wanted."""
        self._show()
        parallel = self._config.tuning.parallel
        if parallel == 1:  # in this thread, which can be interrupted
            with cluster:
                while (trial := self._next()) is not None:
                    self._run_trial(trial)
            return
        pool = concurrent.futures.ThreadPoolExecutor(parallel, thread_name_prefix="trial")
        try:
            with cluster:
                self._fill(pool, parallel)
        finally:
            # Trials that still run after an error or an interruption lost their actors with the
            # cluster; in one process they end with their present round.
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, pool: concurrent.futures.Executor, parallel: int) -> None:
        waiting: set[concurrent.futures.Future[None]] = set()
        try:
            while True:
                while len(waiting) < parallel and (trial := self._next()) is not None:
                    waiting.add(pool.submit(self._run_trial, trial))
                if not waiting:
                    return
                done, waiting = concurrent.futures.wait(
                    waiting, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    future.result()
        except BaseException:
            self._stop.set()
            raise

    def _next(self) -> Trial | None:
        if self.spent or len(self._study.counted()) >= self._config.tuning.trials:
            return None
        return self._study.ask()

    def _run_trial(self, trial: Trial) -> None:
        """Runs one trial to its end, whatever becomes of it.

        Raises:
          StorageError: if nothing can be written any more.
          TrainingError: if one after the other fails.
        """
        start = time.monotonic()
        folder = self._folder / TRIALS / f"{trial.number:04d}"
        self._happened("begin", trial.number)
        try:
            state, value, text = self._train(trial, folder)
        except _Stopped:
            return  # stays a running trial, to be taken up
        except StorageError:
            raise
        except TrainingError as error:
            state, value, text = TrialState.COMPLETE, LOWEST, f"diverged: {_first_line(error)}"
            self._study.note(trial, diverged=True)
        except BudgetError as error:
            self.spent = _first_line(error)
            state, value = TrialState.PRUNED, None
            text = f"ended by the privacy budget: {self.spent}"
        except Exception as error:
            if self._stop.is_set():
                return
            state, value, text = TrialState.FAIL, None, f"failed: {_first_line(error)}"
            _write_error(folder)
        # The outcome is noted first, since by it a failed trial is told from an interrupted one.
        cost = _cost(folder)
        if absent := cost["absent"]:
            text += f" (without {', '.join(absent)} in some rounds)"
        self._study.note(trial, outcome=text, seconds=round(time.monotonic() - start, 3))
        self._study.note(trial, **cost)
        self._study.tell(trial, state, value)
        self._happened("end", trial.number, value, text)
        with self._tell:
            self._failures = self._failures + 1 if state is TrialState.FAIL else 0
            if self._failures == _MOST_FAILURES:
                raise TrainingError(
                    f"{_MOST_FAILURES} trials in a row failed, the last {folder}: {text}; mend "
                    "that and go on with --resume"
                )

    def _train(self, trial: Trial, folder: pathlib.Path) -> tuple[TrialState, float | None, str]:
        """Trains, or goes on with what an interrupted trial had begun."""
        config = with_settings(self._config, trial.params)
        config = resolved(dataclasses.replace(config, tuning=TuningConfig()))
        begun = trial.user_attrs.get("takes_up")
        if begun is not None:
            earlier = folder.with_name(f"{begun:04d}")
            if earlier.exists() and not folder.exists():
                earlier.rename(folder)
            last = 0
            for line in Workdir(folder).rounds():
                if line["site"] == "all":
                    last = line["round"]
                    going_on = self._study.report(trial, last, score(line).value)
            if last and last < config.federated.rounds and not going_on:
                return TrialState.PRUNED, None, f"pruned after round {last}"
        elif folder.exists():
            shutil.rmtree(folder)  # of a trial that the study knows nothing of
        pruned = 0

        def on_round(line: Mapping[str, Any]) -> bool:
            nonlocal pruned
            number, mcc = line["round"], score(line).value
            self._happened("round", trial.number, mcc, rounds=number)
            if self._stop.is_set():
                raise _Stopped
            if self._study.report(trial, number, mcc) or number == config.federated.rounds:
                return True
            pruned = number
            return False

        with open(os.devnull, "w") as nowhere:
            result = experiment.train(
                config,
                folder,
                resume=(folder / CONFIG).exists(),
                on_round=on_round,
                judge=False,
                stream=nowhere,
            )
        if pruned:
            return TrialState.PRUNED, None, f"pruned after round {pruned}"
        mcc = score(result.metrics).value
        if mcc is None or not math.isfinite(mcc):
            return TrialState.FAIL, None, "failed: no round has a validation MCC"
        return TrialState.COMPLETE, mcc, "complete"

    def _happened(
        self, what: str, number: int, mcc: float | None = None, text: str = "", rounds: int = 0
    ) -> None:
        with self._tell:
            if what == "end":
                rounds = self._running.pop(number, 0)
            else:
                self._running[number] = rounds
            counts = self._show()
            self._progress(Event(what, number, rounds, mcc, text, counts))

    def _show(self) -> dict[str, int]:
        """Writes the sign of life; gives the numbers of trials."""
        trials = self._study.trials()
        best, counts = best_of(trials), tally(trials, len(self._running))
        seconds = [t.user_attrs["seconds"] for t in trials if "seconds" in t.user_attrs]
        self._heart.update(
            name=self._config.name,
            trials=self._config.tuning.trials,
            running=sorted(self._running),
            counts=counts,
            best=None if best is None else {"number": best.number, "mcc": best.value},
            median_seconds=statistics.median(seconds) if seconds else None,
            parallel=self._config.tuning.parallel,
        )
        return counts


class _Stopped(Exception):
    """The search ends, and this trial with it, between two rounds."""


def tally(trials: Sequence[FrozenTrial], running: int) -> dict[str, int]:
    """Numbers of complete (not diverged), pruned, diverged, failed and running trials."""
    left_out = interrupted(trials)
    ended = [t for t in trials if t.state.is_finished() and t.number not in left_out]
    return {
        "complete": sum(learned(trial) for trial in ended),
        "pruned": sum(trial.state is TrialState.PRUNED for trial in ended),
        "diverged": sum(bool(trial.user_attrs.get("diverged")) for trial in ended),
        "failed": sum(trial.state is TrialState.FAIL for trial in ended),
        "running": running,
    }


def _conclude(
    config: ExperimentConfig,
    folder: pathlib.Path,
    space: tuple[Dimension, ...],
    trials: list[FrozenTrial],
    spent: str,
    command: str,
) -> Found:
    """Writes best_config.py and the report."""
    best = best_of(trials)
    if best is None and spent:
        raise BudgetError(f"no trial came to its end: {spent}")
    if best is None:
        raise TrainingError(
            f"none of the {config.tuning.trials} trials in {folder} came to its end with a model; "
            f"the last: {trials[-1].user_attrs.get('outcome', 'interrupted')}"
        )
    counts = tally(trials, 0)
    best_config.write(folder / BEST_CONFIG, config, best, counts)
    report.write_report(folder, config, space, trials, counts, spent, command)
    return Found(folder, best.number, best.value or 0.0, dict(best.params), tuple(trials), spent)


def _cost(folder: pathlib.Path) -> dict[str, Any]:
    """Resources that a trial took, all its processes together, from its files."""
    lines = [line for line in Workdir(folder).rounds() if line["site"] == "all"]
    kept = [line["round"] for line in lines if line["best"]]
    return {
        "rounds": len(lines),
        "bytes_sent": sum(line["bytes_sent"] for line in lines),
        "best_round": kept[-1] if kept else 0,
        "absent": sorted({name for line in lines for name in line.get("absent") or ()}),
    }


def _write_error(folder: pathlib.Path) -> None:
    """The whole of what went wrong, for whoever wants to mend it."""
    with contextlib.suppress(StorageError):  # the study has the message
        write_text(folder / "error.txt", traceback.format_exc())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__
