"""Sums over hospitals as the parties' programs make them: announced, checked, noted, then summed.

In mode `federated_secure` the model owner first announces the sum. Each hospital checks who takes
part (`safety`), compares with its own record and writes the sum down (`hospital_journal`), and only
then contributes by one of the schemes of `aggregation`. A total that was revealed before is taken
from the model owner's folder, and nobody contributes. In other modes there is nothing to hide: the
sum is made at once.
"""

import functools
from collections.abc import Callable, Sequence

from primia_jax.config import ExperimentConfig
from primia_jax.errors import ProtocolError
from primia_jax.federated import aggregation, quantities, safety
from primia_jax.federated.aggregation import OWNER, Contribution, Making, Total
from primia_jax.federated.hospital_journal import HospitalJournal
from primia_jax.federated.owner_journal import OwnerJournal
from primia_jax.federated.quantities import Announcement, Quantity
from primia_jax.federated.sealing import KeyRing
from primia_jax.runtime import Receive, Send, Steps

# collect(sizes, n_counts), as `aggregation.Aggregation` has it
Collect = Callable[[Sequence[int], int], Steps]


def contribute(
    me: str,
    keys: KeyRing | None,
    journal: HospitalJournal | None,
    config: ExperimentConfig,
    participants: Sequence[str],
    roster: Sequence[str],
    quantity: Quantity,
    make: Making,
    charged: bool = False,
    start: str = "",
) -> Steps:
    """The part of hospital `me` in one sum.

    Args:
      me: its name.
      keys: for sealed messages; None where sums are in the clear.
      journal: its record; None likewise.
      config: of the experiment.
      participants: hospitals in the sum.
      roster: all hospitals of the run.
      quantity: what is summed.
      make: makes the contribution, called when it is due.
      charged: True if it is noised anew each time, and each time charged to a privacy ledger. Any
        other must be the same whenever the sum is made again.
      start: digest of what the contribution starts from beside the model of `quantity`. A hospital
        that was sent another model, or other moments or statistics, cannot be summed with this one.

    Raises:
      ProtocolError: if this hospital refuses.
    """
    if not safety.is_secure(config):
        yield from aggregation.make(config, participants).contribute(me, keys, make)
        return
    if journal is None:
        raise ProtocolError(f"{me} refuses to contribute: its record of sums is not open")
    announced = Announcement.of((yield Receive(OWNER)))
    safety.check_participants(me, participants, roster, config, quantity.purpose)
    complete = journal.contribute(quantity, participants, announced)
    scheme = aggregation.make(config, participants, complete=complete, purpose=quantity.purpose)
    narrow = functools.partial(journal.narrow, announced.number)

    def noted() -> Contribution:
        contribution = make()
        if not charged:
            digest = quantities.digest_of_arrays(contribution._asdict())
            journal.note_digest(announced.number, digest)
        else:
            journal.note_charged(announced.number)
        return contribution

    yield from scheme.contribute(me, keys, noted, narrow, quantities.subject_of(announced, start))


def collecting(
    journal: OwnerJournal | None,
    config: ExperimentConfig,
    participants: Sequence[str],
    quantity: Quantity,
    *,
    of_models: bool = False,
    keep: bool = True,
) -> Collect:
    """The model owner's part: a function of sizes and number of counts that returns a `Total`.

    Args:
      journal: its record; None where sums are in the clear.
      config: of the experiment.
      participants: hospitals in the sum.
      quantity: what is summed.
      of_models: whether models are averaged, robustly where that is configured.
      keep: whether the total is kept, for a run that may have to go on from it.
    """

    def collect(sizes: Sequence[int], n_counts: int) -> Steps:
        if not safety.is_secure(config):
            scheme = aggregation.make(config, participants, of_models=of_models)
            return (yield from scheme.collect(sizes, n_counts))
        if journal is None:
            raise ProtocolError("the model owner's record of sums is not open")
        kept = journal.total(quantity)
        if kept is not None:
            return kept
        announced, complete = journal.begin(quantity, participants)
        for name in participants:
            own = announced._replace(revealed=journal.last_with(name))
            yield Send((name,), own.message(), "numbers of a sum, of void and of revealed ones")
        scheme = aggregation.make(
            config, participants, of_models=of_models, complete=complete, purpose=quantity.purpose
        )

        def reveal(took_part: Sequence[str]) -> None:
            least = safety.fewest(config, len(participants), quantity.purpose)
            if len(took_part) < least:
                raise ProtocolError(
                    f"the sum would be over {len(took_part)} hospitals, {least} must be in it"
                )
            journal.reveal(announced.number, took_part)

        total: Total = yield from scheme.collect(sizes, n_counts, reveal)
        if keep:
            journal.store(announced.number, total)
        return total

    return collect
