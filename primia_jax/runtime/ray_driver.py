"""Each party in a Ray actor, by itself or with others: the real thing.

An actor keeps its parties' states between runs. Messages go from actor to actor; the driver hands
out programs, watches that every party lives, and ends the others when one fails.
"""

import contextlib
import copy
import dataclasses
import hashlib
import hmac
import itertools
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions

from primia_jax.core.identity import Credentials
from primia_jax.core.records import Check
from primia_jax.environment import thread_variables
from primia_jax.errors import ClusterError, DataError, PartyLost, UserError, joined
from primia_jax.runtime.link import Link
from primia_jax.runtime.party import DROPOUTS, Program, name_party, with_lost
from primia_jax.runtime.ray_cluster import cluster
from primia_jax.runtime.ray_party import Mail, PartyRun, RemoteHost
from primia_jax.runtime.ray_placement import Placement, check_resources, here, nowhere
from primia_jax.runtime.trace import Trace

__all__ = ["Placement", "RayDriver", "check_resources", "cluster"]

_ANSWER_S = 10.0  # in which an actor must tell what it waits for
_NOW_S = 0.01
_AGAIN_S = 1.0
_KEY_BYTES = 32
_NOT_STARTED = "its machine is there, its process starts still or waits for CPUs or GPUs"


class RayDriver:
    """Runs programs in Ray actors, one a party. Use inside `cluster(...)`.

    Attributes:
      missing: parties that came too late, and why.
    """

    def __init__(
        self,
        parties: Mapping[str, Callable[[], Any]],
        link: Link = Link(),  # noqa: B008
        placements: Mapping[str, Placement] | None = None,
        timeout_s: float = 3600.0,
        sealed: bool = False,
        together: Sequence[Sequence[str]] = (),
        later: Collection[str] = (),
        patience_s: float = 0.0,
        tell: Callable[[str], None] = lambda text: None,
        credentials: Mapping[str, Callable[[], Credentials]] | None = None,
        check_report: Check | None = None,
    ):
        """Starts the actors, and makes each party's state there by calling its entry of `parties`.

        Args:
          parties: name -> what makes the state.
          link: that joins every two.
          placements: of the parties' actors; of several that share one, the first one's.
          timeout_s: the longest wait for a message.
          sealed: whether messages travel as sealed frames (`runtime.frames`) of dicts, lists,
            tuples and NamedTuples; this driver then carries the parties' key agreement.
          together: groups of parties that share an actor; they compute by turns.
          later: parties without which the driver begins, if no node has the custom resources that
            their placements ask for (not if that holds for all of them), or their process dies.
          patience_s: how long it waits for such nodes.
          tell: is given a line that says for whom it waits.
          credentials: name -> what opens the party's credentials, in its own process, for sealed
            frames; a party without has a fresh identity and trusts the first keys that it is shown.
          check_report: refuses reports, in the party's own process, that hold anything else than
            what is declared public.

        Raises:
          UserError: what making a state raised, e.g. a DataError of a hospital.
          ClusterError: if the cluster is too small for the placements, or an actor does not start.
        """
        self._makers, self._timeout_s, self._sealed = dict(parties), timeout_s, sealed
        self._key = secrets.token_bytes(_KEY_BYTES)  # by which the actors know this driver
        self._session: frozenset[str] = frozenset()  # parties that have agreed on keys
        self._credentials, self._check_report = dict(credentials or {}), check_report
        self._group: dict[str, tuple[str, ...]] = {name: (name,) for name in parties}
        for group in together:
            self._group |= dict.fromkeys(group, tuple(group))
        self._groups = tuple(dict.fromkeys(self._group.values()))
        places = placements or {}
        self._placements = {group: places.get(group[0], Placement()) for group in self._groups}
        self.missing = self._without_node(later, patience_s, tell)
        there = [group for group in self._groups if group[0] not in self.missing]
        check_resources([self._placements[group] for group in there])
        self.actors: dict[str, Any] = {}
        self._link, self._runs = link, itertools.count(1)
        self._making: dict[str, Any] = {}  # states that are being made anew, in shared actors
        # (actor, its start) of groups that were lost
        self._returning: dict[tuple[str, ...], tuple[Any, Any]] = {}
        for group in there:
            self.actors |= dict.fromkeys(group, self._actor(group))
        try:
            self._gather(
                {
                    group[0]: self._start(group, self.actors[group[0]], self.actors, group)
                    for group in there
                },
                optional=later,
                lost=self.missing,
            )
            self.actors = {n: actor for n, actor in self.actors.items() if n not in self.missing}
            if sealed:
                self._agree(self.actors)
        except BaseException:
            self.close()
            raise

    def _call(self, actor: Any, method: str, *arguments: Any) -> Any:
        """Calls a method of an actor that only this driver may call; returns its future."""
        return getattr(actor, method).remote(self._key, *arguments)

    def _start(
        self,
        group: tuple[str, ...],
        actor: Any,
        actors: Mapping[str, Any],
        made: Collection[str],
    ) -> Any:
        """Tells the parties of `actor` where their peers are, and has the states of `made` made."""
        makers = {name: self._makers[name] for name in made}
        stamps = {(sender, to): self._stamp(sender, to) for sender in self._group for to in group}
        return self._call(actor, "start", makers, self._mail(group, actors), stamps)

    def _mail(self, group: tuple[str, ...], actors: Mapping[str, Any]) -> dict[str, Mail]:
        """Mail handles by which the parties of `group` reach those in `actors`."""
        return {
            to: Mail(actor, {sender: self._stamp(sender, to) for sender in group})
            for to, actor in actors.items()
        }

    def _stamp(self, sender: str, receiver: str) -> bytes:
        """Stamp of mail from one party to another; the two hosts have it, nobody else."""
        ends = json.dumps([sender, receiver]).encode()
        return hmac.digest(self._key, b"primia_jax mail v1 " + ends, "sha256")

    def _agree(self, needed: Collection[str]) -> None:
        """Has all living parties agree on fresh keys; carries what they show and sign.

        Raises:
          PartyLost: if one of the parties in `needed` is dead.
          ProtocolError: if a party refuses another.
        """
        lost: dict[str, str] = {}
        groups = [group for group in self._groups if group[0] in self.actors]
        spare = {group[0] for group in groups if not set(group) & set(needed)}

        def everybody(method: str, *arguments: Any) -> dict[str, Any]:
            tasks = {
                group[0]: self._call(self.actors[group[0]], method, *arguments)
                for group in groups
                if group[0] not in lost
            }
            answers = self._gather(tasks, optional=spare, lost=lost)
            return {name: part for each in answers.values() if each for name, part in each.items()}

        hellos = everybody("hellos")
        while (signatures := everybody("sign", hellos)).keys() != hellos.keys():
            hellos = everybody("hellos")  # somebody died meanwhile
        everybody("agree", signatures)
        self._session = frozenset(hellos) - lost.keys()

    def _without_node(
        self, later: Collection[str], patience_s: float, tell: Callable[[str], None]
    ) -> dict[str, str]:
        """Those of `later` whose custom resources no node offers in time, and which these are."""
        reported = False
        waited_for = [group for group in self._groups if set(group) <= set(later)]
        end_s = time.monotonic() + patience_s
        while True:
            missing: dict[str, str] = {}
            for group in waited_for:
                if reason := nowhere(self._placements[group]):
                    missing |= dict.fromkeys(group, reason)
            if len(missing) == len(later):  # a mistake rather: it is refused
                return {}
            if not missing or time.monotonic() >= end_s:
                return missing
            if not reported:
                reported = True
                tell(f"waiting for {', '.join(missing)}, {patience_s:g} s at most")
            time.sleep(_AGAIN_S)

    def _actor(self, group: tuple[str, ...]) -> Any:
        place = self._placements[group]
        return RemoteHost.options(
            num_cpus=place.num_cpus,
            num_gpus=place.num_gpus,
            resources=dict(place.resources),
            max_concurrency=len(group),
            scheduling_strategy=here() if place.with_driver else "SPREAD",
            runtime_env={"env_vars": thread_variables(place.threads)},
        ).remote(
            group,
            self._timeout_s,
            self._sealed,
            hashlib.sha256(self._key).digest(),
            {name: make for name, make in self._credentials.items() if name in group},
            self._check_report,
        )

    def with_link(self, link: Link) -> "RayDriver":
        """The same actors, joined by other links."""
        driver = copy.copy(self)
        driver._link = link
        return driver

    def run(
        self,
        programs: Mapping[str, Program],
        deadline_s: float = 0.0,
        optional: Collection[str] = (),
    ) -> tuple[dict[str, Any], Trace]:
        """See `party.Driver.run`.

        Parties that still compute at the deadline are ended, so that the others need not wait.

        Raises:
          UserError: what a party raised; a PartyLost that names the parties that were lost.
        """
        run, names = next(self._runs), tuple(programs)
        lost: dict[str, str] = {}
        if self._sealed and not set(names) <= self._session:
            self._agree(names)
        results = self._gather(
            {
                name: self._call(self.actors[name], "run", name, run, program, names, self._link)
                for name, program in programs.items()
            },
            run,
            deadline_s,
            optional,
            lost,
        )
        commits = {name: self._call(self.actors[name], "commit", name, run) for name in results}
        committed = self._gather(commits, None, deadline_s, optional, lost)
        results = {name: result for name, result in results.items() if name in committed}
        trace = dataclasses.replace(_joined(results), lost=lost)
        return {name: result.report for name, result in results.items()}, trace

    def revive(self, name: str, timeout_s: float = 0.0) -> bool:
        """Starts a lost party's actor once more, its state made anew; it may take several calls.

        Args:
          name: of the party.
          timeout_s: how long to wait for it; what has begun goes on beyond that.

        Returns:
          whether the party is there again.

        Raises:
          UserError: what making its state raised; the next call begins anew.
        """
        group, end_s = self._group[name], time.monotonic() + timeout_s
        alone = len(group) == 1
        while not (made := None if alone else self._made_anew(name, end_s)):
            if made is None and self._has_returned(group, end_s):
                if alone:
                    return True
            elif time.monotonic() >= end_s:
                return False
            else:
                time.sleep(_AGAIN_S)
        return True

    def _made_anew(self, name: str, end_s: float) -> bool | None:
        """True if one party's state is made anew by `end_s`, in an actor that it shares; None if
        that actor is dead."""
        if self._group[name] in self._returning or name not in self.actors:
            return None
        if name not in self._making:
            self._making[name] = self._call(self.actors[name], "make", name, self._makers[name])
        done, _ = ray.wait([self._making[name]], timeout=max(end_s - time.monotonic(), _NOW_S))
        if not done:
            return False
        try:
            ray.get(self._making.pop(name))
        except ray.exceptions.RayTaskError as error:
            raise _start_error(name, error) from error
        except ray.exceptions.RayError:
            return None
        return True

    def _has_returned(self, group: tuple[str, ...], end_s: float) -> bool:
        """True if the new actor of lost parties is ready by `end_s`; begins one if there is none.

        A party that is alone in it has its state then; several have them made one by one. A node
        that has just died is given actors for a while: they die too.
        """
        if group not in self._returning:
            if group[0] in self.actors:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(self.actors[group[0]])
            actor = self._actor(group)
            peers = {**self.actors, **dict.fromkeys(group, actor)}
            made = group if len(group) == 1 else ()
            self._returning[group] = actor, self._start(group, actor, peers, made)
        actor, started = self._returning[group]
        done, _ = ray.wait([started], timeout=max(end_s - time.monotonic(), _NOW_S))
        if not done:
            if group[0] in self.missing:
                why = nowhere(self._placements[group]) or _NOT_STARTED
                self.missing |= dict.fromkeys(group, why)
            return False
        del self._returning[group]
        try:
            ray.get(started)
        except ray.exceptions.RayError as error:
            ray.kill(actor)
            if isinstance(error, ray.exceptions.RayTaskError):
                raise _start_error(group[0], error) from error
            return False
        self.missing = {name: why for name, why in self.missing.items() if name not in group}
        others = {peer: other for peer, other in self.actors.items() if peer not in group}
        self.actors |= dict.fromkeys(group, actor)
        self._session -= set(group)  # its keys are lost: the next run agrees on new ones
        updates = [self._call(actor, "replace_peers", self._mail(group, others))]
        for other in self._groups:
            if other != group and other[0] in self.actors:
                new = dict.fromkeys(group, actor)
                mail = self._mail(other, new)
                updates.append(self._call(self.actors[other[0]], "replace_peers", mail))
        # The next run must find the new actor everywhere; a peer that is lost too is told later.
        ray.wait(updates, num_returns=len(updates), timeout=_ANSWER_S)
        return True

    def close(self) -> None:
        """Ends the actors."""
        living = [self.actors[group[0]] for group in self._groups if group[0] in self.actors]
        for actor in [*living, *(actor for actor, _ in self._returning.values())]:
            ray.kill(actor)
        self.actors.clear()
        self._returning.clear()

    def peak_bytes(self) -> dict[str, int]:
        """Largest resident memory of each party's actor so far, in bytes."""
        there = [group for group in self._groups if group[0] in self.actors]
        by_group = self._gather(
            {group[0]: self._call(self.actors[group[0]], "peak_bytes") for group in there}
        )
        return {name: by_group[group[0]] for group in there for name in group}

    def _gather(
        self,
        tasks: dict[str, Any],
        run: int | None = None,
        deadline_s: float = 0.0,
        optional: Collection[str] = (),
        lost: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Waits for all tasks; on the first failure tells the other parties to give up `run`.

        Optional parties that are lost are entered in `lost`, with the reason, and the others told.
        """
        names = {task: name for name, task in tasks.items()}
        lost = {} if lost is None else lost
        waiting, results = list(names), {}
        failure: Exception | None = None
        end_s = time.monotonic() + deadline_s if deadline_s else None

        def give_up(why: Exception) -> None:
            nonlocal failure
            if failure is None:
                failure = with_lost(why, lost)
                self._tell([names[task] for task in waiting], run, "abort", str(why))
            elif isinstance(failure, PartyLost) and isinstance(why, PartyLost):
                more = tuple(name for name in why.parties if name not in failure.parties)
                failure = PartyLost(str(failure), failure.parties + more)
            elif run is None and isinstance(failure, DataError) and isinstance(why, DataError):
                failure = joined(failure, why)

        while waiting:
            left = None if end_s is None else max(_NOW_S, end_s - time.monotonic())
            done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
            if not done:
                late = self._computing([names[task] for task in waiting])
                if not set(late) <= set(optional):
                    give_up(
                        PartyLost(f"{', '.join(late)} did not finish within {deadline_s:g} s", late)
                    )
                for name in late:
                    ray.kill(self.actors[name])
                end_s = None if late else time.monotonic() + _ANSWER_S
            for task in done:
                name = names[task]
                try:
                    results[name] = ray.get(task)
                except Exception as error:
                    why = _as_user_error(name, error, self._group[name])
                    if failure is None and name in optional and isinstance(why, DROPOUTS):
                        gone = why.parties if isinstance(why, PartyLost) else (name,)
                        for party in gone:
                            if party not in lost:
                                lost[party] = str(why)
                                self._tell(
                                    [names[t] for t in waiting], run, "lose", party, str(why)
                                )
                    else:
                        give_up(why)
            missed = {n for result in results.values() for n in getattr(result, "missed", ())}
            left_over = {names[task] for task in waiting}
            if failure is None and left_over and left_over <= missed & set(optional):
                lost |= dict.fromkeys(sorted(left_over), "it did not come in time")
                self._tell(left_over, run, "abort", "the others did not wait for it any longer")
                break
        if failure is not None:
            raise failure
        return {name: results[name] for name in tasks if name in results}

    def _tell(self, parties: Collection[str], run: int | None, what: str, *words: str) -> None:
        """Calls `abort` or `lose` of the parties' actors, if a run goes on."""
        for name in parties if run is not None else ():
            self._call(self.actors[name], what, name, run, *words)

    def _computing(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the parties that wait for nobody, or do not answer."""
        queries = {self._call(self.actors[name], "waits_for", name): name for name in names}
        done, silent = ray.wait(list(queries), num_returns=len(queries), timeout=_ANSWER_S)
        late = [queries[task] for task in silent]
        for task in done:
            with contextlib.suppress(ray.exceptions.RayError):  # it died: that is told elsewhere
                if not ray.get(task):
                    late.append(queries[task])
        return tuple(name for name in names if name in late)


def _joined(results: Mapping[str, PartyRun]) -> Trace:
    """The trace of all parties: those that share a clock count from the first one's begin."""
    begin: dict[str, float] = {}
    for result in results.values():
        begin[result.clock] = min(result.begin_s, begin.get(result.clock, result.begin_s))
    spans, messages = [], []
    for result in results.values():
        zero = begin[result.clock]
        for span in result.spans:
            spans.append(dataclasses.replace(span, start_s=span.start_s - zero))
        for message in result.received:
            messages.append(
                dataclasses.replace(
                    message, sent_s=message.sent_s - zero, arrives_s=message.arrives_s - zero
                )
            )
    spans.sort(key=lambda span: span.start_s)
    messages.sort(key=lambda message: message.sent_s)
    parties = {name: result.trace for name, result in results.items()}
    return Trace(parties, tuple(messages), tuple(spans))


def _as_user_error(party: str, error: Exception, group: tuple[str, ...] = ()) -> Exception:
    """Converts a failure to this package's errors; a dead process loses all of its `group`."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause if isinstance(error.cause, UserError) else error
        name_party(cause, party)
        return cause
    if isinstance(error, ray.exceptions.RayError):
        return PartyLost(f"{party} was lost: {_first_line(error)}", group or (party,))
    return error


def _start_error(party: str, error: ray.exceptions.RayTaskError) -> UserError:
    """Why a party's state was not made anew, whatever it was: the others go on without it."""
    user_error = _as_user_error(party, error)
    if isinstance(user_error, UserError):
        return user_error
    return ClusterError(f"{party} cannot start: {type(error.cause).__name__}: {error.cause}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
