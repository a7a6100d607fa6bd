"""All parties of a run together: starts them, runs the programs, keeps what they leave behind.

This is the operator's view: it hands out programs and reads reports, but no data, model or key
passes through it.
"""

import collections
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from primia_jax.config import ExperimentConfig
from primia_jax.errors import ClusterError, PartyLost, TrainingError, UserError
from primia_jax.federated import (
    aggregation,
    checkpoints,
    credentials,
    crypto_provider,
    hospital,
    hospital_files,
    model_owner,
    safety,
)
from primia_jax.federated.aggregation import OWNER, PROVIDER
from primia_jax.federated.quantities import DUE, UPDATE, VALIDATION
from primia_jax.runtime import Driver, Locally, Trace

_PARTICIPATION = 0x70617274  # separates this use of the seed from others
_REFUSALS = 3  # after so many useless updates, or failed starts, a hospital is left out for good


class Federation:
    """The parties of one run under one driver, and which of the hospitals take part at present.

    A party that is lost is started again and the round that it was lost in repeated from the state
    of the round before, which gives what an unbroken run would have given. Sums that were revealed
    are not repeated; under a secure sum that survives dropouts the round goes on without the
    hospital instead. A hospital that does not come back is
    left out until it does; so is, for a round, one whose update is no use. Rounds go on as long as
    `quorum` of the hospitals are there.

    Attributes:
      hospitals: all of the run.
      present: those that take part.
      absent: why the others do not.
    """

    def __init__(
        self,
        driver: Driver,
        config: ExperimentConfig,
        hospitals: tuple[str, ...],
        workdir: pathlib.Path,
    ):
        self.driver, self.config = driver, config
        self.hospitals, self.workdir = hospitals, workdir
        self.absent: dict[str, str] = dict(driver.missing)
        self.present = tuple(name for name in hospitals if name not in self.absent)
        if len(self.present) < self.quorum:
            reasons = "; ".join(f"{name} is not there: {why}" for name, why in self.absent.items())
            raise ClusterError(
                f"{reasons}; {len(self.present)} of {len(hospitals)} hospitals are too few to "
                f"begin ({self._asks} for {self.quorum})"
            )
        self._awaited = set(self.absent)  # not there yet, ever
        self._refused: collections.Counter[str] = collections.Counter()  # useless updates so far
        self._running: set[str] = set()  # absent, yet with a process that can go on at once
        self._behind: set[str] = set()  # present, without the present model
        self._attending: tuple[str, ...] = ()  # what the parties were told last
        self._lost: tuple[str, ...] = ()  # on the way of the last round, which went on without them
        self._stopped: set[str] = set()  # those that do not train any more
        self._best: int = 0  # the best round so far
        self._saved: Mapping[str, int] = {}  # the last round that each hospital wrote its state of

    @property
    def owner_folder(self) -> pathlib.Path:
        """Folder of the model owner's checkpoints."""
        return self.workdir / "checkpoints"

    @property
    def quorum(self) -> int:
        """Fewest hospitals that a round goes on with."""
        return max(self._fewest, math.ceil(self.config.federated.quorum * len(self.hospitals)))

    @property
    def _fewest(self) -> int:
        """Fewest hospitals that a sum may be over; each of them checks it as well."""
        return safety.min_participants(self.config)

    @property
    def _asks(self) -> str:
        """The option that `quorum` follows from, for messages."""
        if self.quorum > self._fewest or self._fewest == 1:
            return "config.federated.quorum asks"
        return "config.secure_aggregation.min_participants asks"

    def set_up(self, after_round: int = 0, to_train: bool = True) -> tuple[dict[str, Any], Trace]:
        """Keys, statistics and the first model; or the state after a complete round.

        Of later rounds the hospitals then drop what they wrote, unless nothing is `to_train`.
        """
        secure = safety.is_secure(self.config)
        servers = [OWNER, PROVIDER] if secure else [OWNER]
        self._attend(self.present, servers)
        if after_round:
            restore = functools.partial(
                model_owner.restore, folder=self.owner_folder, number=after_round
            )
            restored, _ = self._run({OWNER: Locally(restore)})
            self._saved = restored[OWNER].saved
        else:
            self._saved = {}
        if self.config.privacy.mode != "none":
            self._run(self._at_sites(self.present, hospital_files.open_ledger, after_round))
        if secure:
            self._open_journals(after_round)
            shown, _ = self._run(
                self._at_sites(self.present, hospital_files.open_identity, after_round)
            )
            credentials.record(self.workdir, {name: own.fingerprint for name, own in shown.items()})
        known, _ = self._run({OWNER: Locally(model_owner.knows_statistics)})
        pool = not known[OWNER].known
        programs: dict[str, Any] = dict.fromkeys(
            self.present, functools.partial(hospital.set_up, pool=pool)
        )
        programs[OWNER] = functools.partial(model_owner.set_up, pool=pool)
        if PROVIDER in servers:
            programs[PROVIDER] = crypto_provider.set_up
        reports, trace = self._run(programs)
        if to_train:
            restored, _ = self._run(self._restored(after_round))
            self._stopped = {name for name, report in restored.items() if report.stopped}
            self._behind.clear()
        return reports, trace

    def _restored(self, after_round: int) -> Mapping[str, Any]:
        """Has the hospitals go on from what they wrote last."""
        programs: dict[str, Any] = {}
        for name in self.present:
            restore = functools.partial(hospital_files.restore, saved=self._saved.get(name, 0))
            programs |= self._at_sites((name,), restore, after_round)
        return programs

    def _open_journals(self, after_round: int) -> None:
        """Has the parties open their records of secure sums, each in its own folder."""
        at_sites = self._at_sites(self.present, hospital_files.open_journal, after_round)
        open_record = functools.partial(model_owner.open_journal, folder=self.owner_folder)
        self._run({**at_sites, OWNER: Locally(open_record)})

    def _run(self, programs: Mapping[str, Any]) -> tuple[dict[str, Any], Trace]:
        """A run that takes no more than the longest wait for a message allows."""
        return self.driver.run(programs, self.config.runtime.message_timeout_s)

    def train_round(self, number: int) -> tuple[dict[str, Any], Trace]:
        """One round of training, aggregation and validation with those that are drawn for it.

        Of a sum of this round that was revealed before a crash nothing is summed again: the round
        is completed from what the model owner kept.
        """
        revealed, uncertain = self._revealed(number)
        taking_part = self._drawn_again(uncertain, self.drawn(number))
        if taking_part != self._attending:
            self._attend(taking_part, (OWNER,))
        behind = tuple(name for name in taking_part if name in self._behind)
        if behind:
            send = functools.partial(model_owner.send_model, to=behind)
            self._run({**dict.fromkeys(behind, hospital.catch_up), OWNER: send})
        due = tuple(purpose for purpose in DUE if purpose not in revealed)
        trainers = tuple(name for name in taking_part if name not in self._stopped)
        if UPDATE in due:
            self._check_not_alone(trainers)
        programs: dict[str, Any] = {
            name: functools.partial(
                hospital.train_round,
                number=number,
                due=due,
                trained=name in revealed.get(UPDATE, trainers),
                trainers=trainers,
            )
            for name in taking_part
        }
        programs[OWNER] = functools.partial(
            model_owner.train_round, number=number, due=due, trainers=trainers
        )
        parts = {UPDATE: trainers, VALIDATION: taking_part}
        survives = due and all(self._sums_without_some(len(parts[purpose])) for purpose in due)
        optional = taking_part if survives else ()
        reports, trace = self.driver.run(programs, self.config.runtime.round_deadline_s, optional)
        self._lost, self._best = tuple(trace.lost), reports[OWNER].best_round
        for name in reports.keys() & set(taking_part):
            if reports[name].stopped:
                self._stopped.add(name)
        if self.config.federated.participation < 1:  # the owner knows of those drawn alone
            going_on = [name for name in self.present if name not in self._stopped]
            finished = len(going_on) < self._fewest
            reports[OWNER] = dataclasses.replace(reports[OWNER], finished=finished)
        missed = {*trace.lost, *(name for name in self.present if name not in taking_part)}
        self._behind = missed.intersection(self.present)
        return reports, trace

    def _revealed(self, number: int) -> tuple[Mapping[str, tuple[str, ...]], tuple[str, ...]]:
        """The sums of round `number` that the model owner has already, and the hospitals in them;
        and the hospitals of one that it may have seen without keeping it.

        Where sums are in the clear they are made again: there is nothing to hide.
        """
        if not safety.is_secure(self.config):
            return {}, ()
        reports, _ = self._run(
            {OWNER: Locally(functools.partial(model_owner.revealed, number=number))}
        )
        sums = {UPDATE: reports[OWNER].update, VALIDATION: reports[OWNER].validation}
        kept = {purpose: names for purpose, names in sums.items() if names is not None}
        return kept, reports[OWNER].uncertain

    def _drawn_again(self, uncertain: tuple[str, ...], drawn: tuple[str, ...]) -> tuple[str, ...]:
        """Those drawn before a crash, if a sum can only be over them and they are there."""
        trainers = tuple(name for name in drawn if name not in self._stopped)
        if not uncertain or uncertain in (drawn, trainers) or set(uncertain) - set(self.present):
            return drawn
        return uncertain

    def _check_not_alone(self, trainers: tuple[str, ...]) -> None:
        """Refuses a sum of updates over too few hospitals, before they do; or over none."""
        if len(trainers) < self._fewest:
            raise TrainingError(
                f"of the available hospitals only {', '.join(trainers) or 'none'} still train "
                "(config.federated.early_stopping), and a sum of updates needs "
                f"{self._fewest} (config.secure_aggregation.min_participants); the best round so "
                "far is kept, --mode=evaluate judges it"
            )

    def _sums_without_some(self, n_hospitals: int) -> bool:
        """True if a round goes on in its midst when hospitals drop out.

        Not where each adds its part of the noise that the sum must have.
        """
        secure = safety.is_secure(self.config)
        survives = secure and aggregation.scheme(self.config, n_hospitals) == "secagg"
        return survives and self.config.privacy.mode != "client"

    def drawn(self, number: int) -> tuple[str, ...]:
        """The hospitals that take part in round `number`, in the order of `hospitals`.

        They are drawn from those present that have not stopped, by the seed and the round alone.
        """
        fed = self.config.federated
        if fed.participation == 1:
            return self.present
        there = tuple(name for name in self.present if name not in self._stopped)
        key = np.random.SeedSequence([self.config.seed, _PARTICIPATION, number])
        rng = np.random.Generator(np.random.Philox(key))
        # The quorum is of those that could be drawn.
        n, least = len(there), min(self._fewest, len(there))
        if fed.sampling == "fixed":
            size = max(least, round(fed.participation * n))
            chosen = set(rng.permutation(n)[:size])
        else:
            chosen = set()
            while len(chosen) < least:  # too few for a sum: drawn once more
                chosen = set(np.flatnonzero(rng.random(n) < fed.participation))
        return tuple(name for i, name in enumerate(there) if i in chosen)

    def save(self, number: int) -> None:
        """Every party writes its state after round `number`; `commit` then makes it count.

        Raises:
          StorageError: if one cannot; the round before stays complete.
        """
        names = tuple(name for name in self._attending if name not in self._lost)
        best = (checkpoints.committed_best(self.owner_folder), self._best)
        keep = functools.partial(hospital_files.save, best=best)
        programs = self._at_sites(names, keep, number)
        saved = {**self._saved, **dict.fromkeys(names, number)}
        save = functools.partial(
            model_owner.save, folder=self.owner_folder, number=number, saved=saved
        )
        self._run({**programs, OWNER: Locally(save)})
        self._saved = saved

    def recover(self, error: UserError, after_round: int) -> str:
        """Makes ready for the round after `after_round` once more, after it failed by `error`.

        Returns:
          what was done about it, in one line.

        Raises:
          UserError: `error` itself, if nothing can be done, or too few hospitals are left.
        """
        said = self.mend(error)
        self._set_back(after_round)
        return said

    def mend(self, error: UserError) -> str:
        """Starts those again that were lost by `error`, or leaves them out; see `recover`."""
        if isinstance(error, PartyLost) and error.parties:
            end_s = time.monotonic() + self.config.runtime.revive_timeout_s
            return "; ".join(
                (str(error), *(self._start_again(name, error, end_s) for name in error.parties))
            )
        if isinstance(error, TrainingError) and error.party in self.present:
            self._leave_out(error.party, str(error), error)
            self._refused[error.party] += 1
            self._running.add(error.party)
            return f"{error}; {error.party} is left out"
        raise error

    def readmit(self, after_round: int) -> str:
        """Takes hospitals in again that have come back or were left out for one round.

        Returns:
          who, in one line; empty if nobody.
        """
        back = [name for name in self.absent if self._is_back(name)]
        if not back:
            return ""
        for name in back:
            del self.absent[name]
            self._running.discard(name)
        self.present = tuple(name for name in self.hospitals if name not in self.absent)
        self._set_back(after_round)
        said = [
            f"{name} takes part " + ("from now on" if name in self._awaited else "again")
            for name in back
        ]
        self._awaited.difference_update(back)
        return "; ".join(said)

    def _set_back(self, after_round: int) -> None:
        if not after_round:
            self._run({OWNER: Locally(model_owner.begin_again)})
        self.set_up(after_round)

    def _start_again(self, name: str, error: PartyLost, end_s: float) -> str:
        failed = ""
        try:
            if self.driver.revive(name, max(0.0, end_s - time.monotonic())):
                return f"{name} is started again"
        except UserError as failure:
            failed = f"; starting it again failed: {failure}"
        if name in self.absent:  # it shared the process of another
            self._running.discard(name)
            return f"{name} stays left out"
        if name not in self.present:
            raise ClusterError(f"{error}{failed}") from error
        self._leave_out(name, f"{error}{failed}", error)
        return f"{name} is left out{failed}"

    def _leave_out(self, name: str, reason: str, error: UserError) -> None:
        if len(self.present) - 1 < self.quorum:
            error.args = (
                f"{error}; {len(self.present) - 1} hospitals are too few to go on "
                f"({self._asks} for {self.quorum})",
                *error.args[1:],
            )
            raise error
        self.absent[name] = reason
        self.present = tuple(other for other in self.present if other != name)

    def _is_back(self, name: str) -> bool:
        if self._refused[name] >= _REFUSALS:
            return False
        if name in self._running:
            return True
        try:
            back = self.driver.revive(name)
        except UserError as error:
            self.absent[name] = str(error)
            self._refused[name] += 1
            return False
        self.absent[name] = self.driver.missing.get(name, self.absent[name])
        return back

    def _attend(self, hospitals: tuple[str, ...], servers: Sequence[str]) -> None:
        """Tells these parties which hospitals take part from now on."""
        step = Locally(functools.partial(_with_hospitals, hospitals=hospitals))
        self._run(dict.fromkeys((*hospitals, *servers), step))
        self._attending = hospitals

    def _at_sites(
        self, names: tuple[str, ...], function: Callable[..., Any], number: int
    ) -> Mapping[str, Any]:
        return {
            name: Locally(
                functools.partial(
                    function, folder=checkpoints.site_folder(self.workdir, name), number=number
                )
            )
            for name in names
        }


def _with_hospitals(state: Any, hospitals: tuple[str, ...]) -> tuple[Any, None]:
    """Any party's state with the hospitals that take part from now on."""
    return dataclasses.replace(state, hospitals=hospitals), None
