"""A hospital's durable record of the secure sums that it contributed to, and what it refuses.

It writes (starting model, purpose, round, set of hospitals, number of the sum) into its own folder,
and then a digest of its contribution, or that it was charged to the privacy ledger, before anything
of the contribution leaves it. It refuses

- a sum that the model owner announces as another quantity than the hospital was called for;
- another set for the same quantity, unless the model owner declares the earlier sum void, by its
  number; where hospitals drop out of a masked sum, what counts is the set that all agreed on;
- another contribution to the same quantity, unless likewise, or where it is noised anew and charged
  to its privacy ledger: the difference of the two sums would be its own;
- a round before the last one that it contributed to, and another starting model for the same round;
- a declaration about a sum whose result it was sent;
- any sum, if the model owner names a revealed one that the hospital was in and its own record does
  not hold. Each announcement names the last one, so that a hospital whose folder was lost or set
  back does not forget what the model owner has.

Who is trusted for what: the model owner follows the protocol (honest but curious), so its
declaration is believed. The operator is not believed: it says neither which sums are void nor which
attempt this is, and restarting, reordering or repeating its calls changes nothing. A model owner
whose folder was lost or set back cannot declare anything void, as it does not know the numbers.
Files that were lost, cut or set back singly are recognised by marks (`sum_record`).
A model owner that lies about void sums is not withstood. Nor are two *runs*: they begin with empty
journals, like two trainings at different times.
"""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from primia_jax.core.marks import Mark
from primia_jax.errors import CheckpointError, ProtocolError
from primia_jax.federated.quantities import (
    Announcement,
    Quantity,
    digest_of_names,
    digest_of_quantity,
)
from primia_jax.federated.sum_record import SumRecord, facts, quantity_of


class HospitalJournal:
    """A hospital's record of the sums that it contributed to; see the module's docstring."""

    def __init__(
        self,
        folder: pathlib.Path,
        me: str,
        roster: Sequence[str],
        other: tuple[pathlib.Path, Mark] | None = None,
    ):
        """Reads the record in `folder`, or begins one.

        Args:
          folder: this hospital's own.
          me: its name.
          roster: all hospitals of the run.
          other: a mark of the record that was written elsewhere, and where.

        Raises:
          CheckpointError: if it is damaged, not whole, or of a run with another roster.
          StorageError: if it cannot be begun.
        """
        self._record, self._me = SumRecord(folder, other), me
        self._parts: dict[str, tuple[Quantity, tuple[str, ...]]] = {}
        self._digests: dict[str, str] = {}  # of its contributions, by the number of the sum
        self._charged: set[str] = set()  # sums whose contribution is in the privacy ledger
        self._void: set[str] = set()
        self._final: set[str] = set()
        lines = self._record.lines
        if not lines:
            self._record.add([{"kind": "roster", "hospitals": list(roster)}])
        elif lines[0]["kind"] != "roster" or tuple(lines[0]["hospitals"]) != tuple(roster):
            raise CheckpointError(
                f"{me}: the record of secure sums {self._record.path} is of a run with other "
                "hospitals; take another --workdir"
            )
        for entry in lines[1:]:
            if entry["kind"] == "contributed":
                self._parts[entry["sum"]] = (quantity_of(entry), tuple(entry["hospitals"]))
            elif entry["kind"] == "narrowed":
                self._parts[entry["sum"]] = (
                    self._parts[entry["sum"]][0],
                    tuple(entry["hospitals"]),
                )
            elif entry["kind"] == "digest":
                self._digests[entry["sum"]] = entry["digest"]
            elif entry["kind"] == "charged":
                self._charged.add(entry["sum"])
            elif entry["kind"] == "void":
                self._void.add(entry["sum"])
            else:
                self._final.add(entry["sum"])

    def contribute(
        self, quantity: Quantity, hospitals: Sequence[str], announced: Announcement
    ) -> bool:
        """Notes that this hospital is about to contribute, or refuses.

        Returns:
          True if an earlier sum over the same set may have been revealed, so that this one must be
          over all of them.

        Raises:
          ProtocolError: if the contribution could be told from the difference of two sums.
          StorageError: if it cannot be noted; then nothing may be contributed.
        """
        me = self._me
        if announced.hospitals != digest_of_names(hospitals):
            raise ProtocolError(f"{me} refuses: the model owner sums over other hospitals")
        if announced.quantity != digest_of_quantity(quantity):
            raise ProtocolError(
                f"{me} refuses: it was called for the {quantity}, and the model owner sums "
                "something else"
            )
        if announced.number in self._parts:
            raise ProtocolError(f"{me} refuses to contribute to the same sum twice")
        if set(announced.revealed) - self._parts.keys():
            raise ProtocolError(
                f"{me} refuses the {quantity}: the model owner revealed a sum that {me} was in and "
                f"of which its record {self._record.path} holds nothing, as a lost or older "
                f"{self._record.path.parent} does; restore that folder, go on without {me}, or "
                "begin anew without --resume"
            )
        void = self._void | (set(announced.void) & self._parts.keys())
        if void & self._final:
            raise ProtocolError(
                f"{me} refuses: the model owner declares a sum void whose result it sent"
            )
        last = max((other.round or 0 for other, _ in self._parts.values()), default=0)
        if quantity.round is not None and quantity.round < last:
            raise ProtocolError(
                f"{me} refuses to train round {quantity.round} again: it contributed to round "
                f"{last}"
            )
        uncertain = False
        for key, (other, others) in self._parts.items():
            same_round = quantity.round is not None and other[:2] == quantity[:2]
            same_start = (other.purpose, other.model) == (quantity.purpose, quantity.model)
            if same_round and not same_start:
                raise ProtocolError(
                    f"{me} refuses: the {quantity} begins from another model than before"
                )
            if key in void or not same_start:
                continue
            if set(others) != set(hospitals):
                raise ProtocolError(
                    f"{me} refuses: it contributed to the {other} over {', '.join(others)}; a sum "
                    f"over {', '.join(hospitals)} from the same model could give single "
                    "hospitals away"
                )
            uncertain = True
        lines: list[Mapping[str, Any]] = [
            {"kind": "void", "sum": key} for key in sorted(void - self._void)
        ]
        sum_ = {"sum": announced.number, **facts(quantity, hospitals)}
        self._record.add([*lines, {"kind": "contributed", **sum_}], mark=False)
        self._void = void
        self._parts[announced.number] = (quantity, tuple(hospitals))
        return uncertain

    def note_digest(self, number: str, digest: str) -> None:
        """Notes what this hospital contributes, or refuses if it was something else before.

        Args:
          number: of the sum.
          digest: of the contribution, of which nothing has left yet.

        Raises:
          ProtocolError: if an earlier sum of the quantity may have been revealed, and the
            contribution to it was another one.
          StorageError: if it cannot be noted; then nothing may be contributed.
        """
        quantity, _ = self._parts[number]
        for key, (other, _) in self._parts.items():
            if key == number or key in self._void or other != quantity:
                continue
            if self._digests.get(key, digest) != digest:
                raise ProtocolError(
                    f"{self._me} refuses to contribute to the {quantity} once more: its "
                    "contribution is another one than before, and the difference of the two sums "
                    "would be its own; restore its images and the files in "
                    f"{self._record.path.parent}, or begin in another --workdir"
                )
        self._record.add([{"kind": "digest", "sum": number, "digest": digest}])
        self._digests[number] = digest

    def note_charged(self, number: str) -> None:
        """Notes that a contribution was charged to the privacy ledger, before it leaves.

        Raises:
          StorageError: if it cannot be noted; then nothing may be contributed.
        """
        self._record.add([{"kind": "charged", "sum": number}])
        self._charged.add(number)

    def mark(self) -> Mark:
        """Mark of the record as it is, to be kept elsewhere too."""
        return self._record.mark()

    def charged(self) -> dict[tuple[str, int | None], int]:
        """Number of contributions that were charged, by purpose and round."""
        known = self._charged & self._parts.keys()
        return collections.Counter(self._parts[number][0][:2] for number in known)

    def narrow(self, number: str, hospitals: Sequence[str]) -> None:
        """Notes which hospitals a sum is over after some have dropped out, or refuses.

        Args:
          number: of the sum that this hospital contributed to.
          hospitals: in it, as all of them agreed.

        Raises:
          ProtocolError: if a sum over others from the same model may be known.
          StorageError: if it cannot be noted; then nothing may be unmasked.
        """
        quantity, announced = self._parts[number]
        for key, (other, others) in self._parts.items():
            same_start = other[::2] == quantity[::2]  # purpose and model
            if key == number or key in self._void or not same_start:
                continue
            if set(others) != set(hospitals):
                raise ProtocolError(
                    f"{self._me} refuses to unmask the {quantity} over {', '.join(hospitals)}: "
                    f"from the same model it contributed to a sum over {', '.join(others)}"
                )
        if set(hospitals) != set(announced):
            self._record.add([{"kind": "narrowed", "sum": number, "hospitals": list(hospitals)}])
            self._parts[number] = (quantity, tuple(hospitals))

    def note_final(self, quantity: Quantity) -> None:
        """Notes that the result of the last sum of `quantity` came back."""
        numbers = [key for key, (other, _) in self._parts.items() if other == quantity]
        if numbers and numbers[-1] not in self._final:
            self._record.add([{"kind": "final", "sum": numbers[-1]}])
            self._final.add(numbers[-1])
