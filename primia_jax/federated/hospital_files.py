"""Files of a hospital in its own folder: records opened before a run, and its state, saved.

Each function takes the hospital's state first and gives (new state, report).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Collection
from typing import Any

from primia_jax.core import storage
from primia_jax.core.marks import Mark
from primia_jax.errors import CheckpointError
from primia_jax.federated import (
    checkpoints,
    credentials,
    privacy,
    private_training,
    recording,
    records,
    rules,
    variables,
)
from primia_jax.federated.early_stopping import SiteWatch
from primia_jax.federated.hospital_journal import HospitalJournal
from primia_jax.federated.hospital_state import Hospital
from primia_jax.federated.hospital_training import optimizer_state, steps_per_round

_BATCH_NORM = "batch_norm"  # a tree of a hospital's checkpoints
_JOURNAL, _WATCH = "journal", "watch"  # facts of a hospital's checkpoints


def open_journal(state: Hospital, folder: pathlib.Path, number: int) -> tuple[Hospital, None]:
    """Opens this hospital's record of secure sums in its own folder.

    Args:
      state: of the hospital.
      folder: its own in the run.
      number: the last complete round. It does not matter: the newest checkpoint of any round says
        how long the record was.

    Raises:
      CheckpointError: if the record is damaged, lost, cut or of another run; or if the privacy
        ledger lacks a charge that it names.
    """
    held, newest = None, checkpoints.newest(folder)
    if newest:
        where = checkpoints.round_folder(folder, newest)
        facts = checkpoints.about(folder, newest).get(_JOURNAL)
        held = (where, Mark.from_plain(facts, where)) if facts else None
    journal = HospitalJournal(folder, state.name, state.roster, held)
    if state.guarantee:
        privacy.check_charged(state.guarantee, journal.charged())
    return dataclasses.replace(state, journal=journal), None


def open_identity(
    state: Hospital, folder: pathlib.Path, number: int
) -> tuple[Hospital, records.Identity]:
    """Opens this hospital's long-lived key; gives its fingerprint. `number` does not matter."""
    own = credentials.opened(state.config, folder, state.name)
    identity = records.Identity(own.identity.fingerprint)
    return dataclasses.replace(state, credentials=own), identity


def open_ledger(state: Hospital, folder: pathlib.Path, number: int) -> tuple[Hospital, Any]:
    """Finds the noise that `config.privacy` asks for, and the ledger as of round `number`."""
    config = state.config
    steps = functools.partial(steps_per_round, config)
    site = privacy.open_site(
        config, state.name, folder, state.train, state.validation, steps, number
    )
    learner = None
    if config.privacy.mode == "record":
        assert site.train is not None
        expected = site.mechanisms.training.sampling_rate * len(site.train)
        mu = rules.make(config.federated).proximal_mu
        learner = private_training.make(config, state.learner, expected, mu)
    return dataclasses.replace(state, guarantee=site, private_learner=learner), None


def save(
    state: Hospital, folder: pathlib.Path, number: int, best: Collection[int] = ()
) -> tuple[Hospital, None]:
    """Writes what the owner cannot send again, and drops the rounds before the last one.

    Under FedBN those in `best` stay: this hospital's own form of a model that may be kept.
    """
    if state.truth is not None:
        recording.write_truth(folder, number, state.truth, state.train)
        state = dataclasses.replace(state, truth=None)
    kept = best if state.config.federated.batch_norm == "fedbn" else ()
    last = [checkpoints.newest(folder, earlier) for earlier in (number - 1, *kept)]
    facts = {_WATCH: state.watch._asdict()}
    if state.journal is not None:
        facts[_JOURNAL] = state.journal.mark()._asdict()
    checkpoints.save(folder, number, _kept(state), facts, last)
    return state, None


def with_own_batch_norm(
    state: Hospital, folder: pathlib.Path, number: int, model: variables.Variables
) -> dict[str, Any]:
    """`model`, the owner's after round `number`, with this hospital's batch norms in `folder`.

    Of a round that it took no part in they are those that it had then.

    Raises:
      CheckpointError: if there are none.
    """
    newest = checkpoints.newest(folder, number)
    if not newest:
        raise CheckpointError(
            f"{folder} has no batch norms of {state.name} as of round {number}; "
            "--config.federated.batch_norm=pooled judges the hospitals' common model alone"
        )
    own = checkpoints.restore(folder, newest, _BATCH_NORM, dict(state.variables))
    return variables.keep_batch_norm(model, own)


def restore(
    state: Hospital, folder: pathlib.Path, number: int, saved: int = 0
) -> tuple[Hospital, records.Restored]:
    """The state after round `number`, and whether the site has stopped; to be run after `set_up`.

    What this hospital wrote of a later round, which did not become complete, is dropped.

    Args:
      state: of the hospital.
      folder: its own in the run.
      number: the last complete round.
      saved: the last round up to `number` that this hospital took part in to its end, by the model
        owner's checkpoint. It goes on from what it wrote then.

    Raises:
      CheckpointError: if the checkpoint of round `saved` is missing or damaged.
    """
    newest = checkpoints.newest(folder, number)
    if newest < saved:
        raise CheckpointError(
            f"{state.name} took part in round {saved}, and its checkpoint of it is missing in "
            f"{folder}; restore that folder, or begin anew without --resume"
        )
    checkpoints.drop_after(folder, number)
    if not newest:
        return state, records.Restored(stopped=False)
    number = newest
    kept = {
        name: checkpoints.restore(folder, number, name, tree) for name, tree in _kept(state).items()
    }
    try:
        watch = SiteWatch(**checkpoints.about(folder, number, [_WATCH])[_WATCH])
    except TypeError as error:
        raise CheckpointError(
            f"{checkpoints.round_folder(folder, number)} is damaged ({storage.reason(error)}); "
            "restore it, or begin anew without --resume"
        ) from error
    model = state.variables
    if _BATCH_NORM in kept:
        model = variables.keep_batch_norm(state.variables, kept[_BATCH_NORM])
    state = dataclasses.replace(
        state, variables=model, opt_state=kept.get("optimizer", state.opt_state), watch=watch
    )
    return state, records.Restored(watch.stopped)


def _kept(state: Hospital) -> dict[str, Any]:
    """State that must survive a crash besides the global model."""
    fed, kept = state.config.federated, {}
    if fed.optimizer_state != "reset":
        kept["optimizer"] = optimizer_state(state)
    if fed.batch_norm == "fedbn":
        kept[_BATCH_NORM] = dict(state.variables)
    return kept
