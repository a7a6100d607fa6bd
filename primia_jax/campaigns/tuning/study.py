"""The study on disk: all its trials, in an SQLite file that Optuna's own tools read.

A trial is one of Optuna's; besides what Optuna knows it has the user attributes

  outcome      how it ended, in words
  diverged     true if its training diverged; its value is then the lowest there is
  takes_up     the number of the trial that it goes on with, which was interrupted: its process
               ended before it did; it is marked as failed, and does not count
  seconds, rounds, bytes_sent, best_round, absent   what it took and found, and without whom
"""

import contextlib
import math
import pathlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import optuna
import sqlalchemy.exc
from optuna.trial import FrozenTrial, Trial, TrialState

from primia_jax.campaigns.tuning.space import Dimension
from primia_jax.config import TuningConfig
from primia_jax.core.storage import private_file
from primia_jax.errors import CheckpointError, StorageError

STUDY = "study.db"
LOWEST = -1.0  # of all MCCs
_NAME = "search"
_LOCKED_S = 60  # patience with another program that reads the file


class Study:
    """An Optuna study that several threads may use."""

    def __init__(
        self,
        folder: pathlib.Path,
        tuning: TuningConfig,
        space: Sequence[Dimension],
        seed: int,
    ):
        """Opens the study in `folder`, or begins it.

        Raises:
          StorageError: if the file cannot be written.
          CheckpointError: if it is not such a study.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._tuning, self._space, self._seed = tuning, space, seed
        self._lock = threading.Lock()
        self._path = folder / STUDY
        private_file(self._path)
        pruner: Any = optuna.pruners.NopPruner()
        if tuning.pruning:
            pruner = optuna.pruners.MedianPruner(tuning.startup_trials, tuning.warmup_rounds)
        with self._guarded():
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{self._path}",
                engine_kwargs={"connect_args": {"timeout": _LOCKED_S}},
            )
            self._study = optuna.create_study(
                storage=storage,
                study_name=_NAME,
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )

    def trials(self) -> list[FrozenTrial]:
        """All trials by number, the interrupted ones and those that only wait too."""
        with self._guarded():
            return self._study.get_trials(deepcopy=False)

    def counted(self) -> list[FrozenTrial]:
        """The trials that were neither interrupted nor are only waiting."""
        trials = self.trials()
        left_out = interrupted(trials)
        return [
            trial
            for trial in trials
            if trial.number not in left_out and trial.state is not TrialState.WAITING
        ]

    def take_up(self) -> list[int]:
        """Marks what ran when an earlier process ended, to be run again with the same settings.

        Returns the numbers of those trials. If the process ends here too, nothing is lost or
        doubled.
        """
        numbers = []
        with self._guarded():
            trials = self._study.get_trials(deepcopy=False)
            following = followers(trials)
            for trial in trials:
                if trial.state is not TrialState.RUNNING:
                    continue
                numbers.append(trial.number)
                complete = set(trial.params) == {dimension.name for dimension in self._space}
                if complete and trial.number not in following:
                    attributes = {"takes_up": trial.number}
                    self._study.enqueue_trial(trial.params, user_attrs=attributes)
                self._study.tell(trial.number, state=TrialState.FAIL)
        return numbers

    def ask(self) -> Trial:
        """A new trial with its settings drawn, or one that waits to be taken up.

        What is drawn is decided by the seed and the trials so far: a search that was interrupted
        goes on as it would have gone.
        """
        with self._guarded():
            trials = self._study.get_trials(deepcopy=False)
            self._study.sampler = self._sampler(len(trials) - len(interrupted(trials)))
            trial = self._study.ask()
            for dimension in self._space:
                _suggest(trial, dimension)
            return trial

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        entropy = np.random.SeedSequence([self._seed, number])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                n_startup_trials=self._tuning.startup_trials,
                seed=int(entropy.generate_state(1)[0]),
                multivariate=True,
                constant_liar=self._tuning.parallel > 1,
            )

    def report(self, trial: Trial, round_number: int, mcc: float | None) -> bool:
        """Notes the MCC of a round, and says whether the trial is to go on."""
        if mcc is None or not math.isfinite(mcc):
            return True
        with self._guarded():
            trial.report(mcc, round_number)
            return not trial.should_prune()

    def note(self, trial: Trial, **attributes: Any) -> None:
        """Adds user attributes to a trial that is not yet told."""
        with self._guarded():
            for key, value in attributes.items():
                trial.set_user_attr(key, value)

    def tell(self, trial: Trial, state: TrialState, value: float | None = None) -> None:
        """Ends a trial."""
        with self._guarded():
            if state is TrialState.COMPLETE:
                self._study.tell(trial, value)
            else:
                self._study.tell(trial, state=state)

    def best(self) -> FrozenTrial | None:
        """The complete trial with the highest value, the first of equals; None without any."""
        return best_of(self.trials())

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.OperationalError) as error:
            raise StorageError(
                f"{self._path} cannot be written or read: {_reason(error)}"
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
            raise CheckpointError(
                f"{self._path} is no study that can be gone on with: {_reason(error)}; begin in "
                "another --workdir, or without --resume"
            ) from error


def _suggest(trial: Trial, dimension: Dimension) -> None:
    name, distribution = dimension.name, dimension.distribution
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, optuna.distributions.IntDistribution):
        trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    elif isinstance(distribution, optuna.distributions.FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def best_of(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The complete trial with the highest value that did not diverge; None without any."""
    complete = [trial for trial in trials if learned(trial)]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def learned(trial: FrozenTrial) -> bool:
    """True if the trial came to its end with a model."""
    return trial.state is TrialState.COMPLETE and not trial.user_attrs.get("diverged")


def followers(trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """{an interrupted trial: the one that takes it up}, by number."""
    taken = {trial.number: trial.user_attrs.get("takes_up") for trial in trials}
    return {begun: number for number, begun in taken.items() if begun is not None}


def interrupted(trials: Sequence[FrozenTrial]) -> set[int]:
    """The numbers of the trials whose process ended before they did."""
    unfinished = {
        trial.number
        for trial in trials
        if trial.state is TrialState.FAIL and "outcome" not in trial.user_attrs
    }
    return unfinished | set(followers(trials))


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
