"""The model owner's durable record of secure sums: which it began, gave up and revealed.

Two sums of the same contributions over different sets of hospitals differ by single hospitals'
contributions. So of each quantity only one sum is ever revealed, and this must outlive crashes of
every process, the operator's above all. A quantity is a purpose ("statistics", "update",
"validation", …) at a starting model.

The model owner writes four things into its own folder, each on disk before it goes on:

1. *begun*: a random number for the sum, with its purpose, round and hospitals, before it announces
   the sum to them.
2. *void*: with a new sum, all earlier ones of the same quantity that were never revealed. What it
   received for them is dropped and never put together.
3. *revealing*: the hospitals in the sum, once all messages are there and before it reconstructs.
4. the revealed total itself, a file, before it uses the total in any way. From then on the sum is
   never made again: after a crash the round is completed from the file.

A crash between 3 and 4 leaves a sum that may have been seen and is not kept. It can be repeated
over exactly the same hospitals alone, which gives the same sum: each compares its contribution
(`hospital_journal`, which says who is trusted for what).
"""

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from primia_jax.core import storage
from primia_jax.core.arrays import read_tensors, write_tensors
from primia_jax.errors import CheckpointError, ProtocolError
from primia_jax.federated.aggregation import Total
from primia_jax.federated.quantities import (
    NUMBER_BYTES,
    Announcement,
    Quantity,
    digest_of_names,
    digest_of_quantity,
)
from primia_jax.federated.sum_record import SumRecord, facts, quantity_of

_TOTALS = "sums"  # folder of the revealed totals


class OwnerJournal:
    """The model owner's record of the secure sums of a run; see the module's docstring."""

    def __init__(self, folder: pathlib.Path):
        """Reads the record in `folder`, if there is one.

        Raises:
          CheckpointError: if it is damaged, or not whole.
        """
        self._folder, self._record = folder, SumRecord(folder)
        self._begun: dict[str, tuple[Quantity, tuple[str, ...]]] = {}
        self._void: set[str] = set()
        self._revealing: dict[str, tuple[str, ...]] = {}
        for line in self._record.lines:
            if line["kind"] == "begun":
                self._begun[line["sum"]] = (quantity_of(line), tuple(line["hospitals"]))
            elif line["kind"] == "void":
                self._void.add(line["sum"])
            else:
                self._revealing[line["sum"]] = tuple(line["hospitals"])

    def begin(self, quantity: Quantity, hospitals: Sequence[str]) -> tuple[Announcement, bool]:
        """Begins a sum; the earlier ones of the same quantity are void from now on.

        Returns:
          what to tell the hospitals; and whether the sum must be over all of them, since an earlier
          one over the same set may have been revealed.

        Raises:
          CheckpointError: if the sum was revealed already, or may have been over another set, or
            the round lies before the last one.
        """
        if self.has(quantity):
            raise CheckpointError(f"the {quantity} was revealed and is not summed again")
        number = quantity.round or 0
        last = max((other.round or 0 for other, _ in self._begun.values()), default=0)
        if number and number < last:
            raise CheckpointError(
                f"round {number} cannot be trained again: {self._folder} holds sums of round "
                f"{last}; restore its checkpoint of round {last - 1}, or begin anew without "
                "--resume"
            )
        earlier = [
            key
            for key, (other, _) in self._begun.items()
            if other[:2] == quantity[:2] and (quantity.round is not None or other == quantity)
        ]
        if any(self._begun[key][0].model != quantity.model for key in earlier):
            raise CheckpointError(
                f"the {quantity} was begun from another model; restore {self._folder}, or begin "
                "anew without --resume"
            )
        uncertain = [key for key in earlier if key in self._revealing and key not in self._void]
        for key in uncertain:
            if not self._begun[key][1] == self._revealing[key] == tuple(hospitals):
                names = ", ".join(self._revealing[key])
                raise CheckpointError(
                    f"the {quantity} over {names} may have been revealed just before a crash, and "
                    f"a sum over others would give single hospitals away; go on with --resume once "
                    "all of these are available, or begin anew"
                )
        fresh = [k for k in earlier if k not in self._void and k not in uncertain]
        key = os.urandom(NUMBER_BYTES).hex()
        lines = [{"kind": "void", "sum": old} for old in fresh]
        begun = {"kind": "begun", "sum": key, **facts(quantity, hospitals)}
        self._record.add([*lines, begun], mark=False)
        self._void.update(fresh)
        self._begun[key] = (quantity, tuple(hospitals))
        void = tuple(old for old in earlier if old in self._void)
        announced = Announcement(
            key, void, digest_of_names(hospitals), digest_of_quantity(quantity)
        )
        return announced, bool(uncertain)

    def reveal(self, number: str, hospitals: Sequence[str]) -> None:
        """Notes that the sum is about to be reconstructed, over these hospitals.

        Raises:
          ProtocolError: if the sum is void, or one over another set from the same model is known.
          StorageError: if it cannot be noted; then nothing may be reconstructed.
        """
        if number in self._void or number not in self._begun:
            raise ProtocolError("a sum that was given up is not revealed")
        quantity, _ = self._begun[number]
        for key, others in self._revealing.items():
            same_start = self._begun[key][0][::2] == quantity[::2]  # purpose and model
            if same_start and key not in self._void and set(others) != set(hospitals):
                raise ProtocolError(
                    f"the {quantity} over {', '.join(hospitals)} is not revealed: from the same "
                    f"model a sum over {', '.join(others)} was, and the difference of the two "
                    "would give single hospitals away"
                )
        self._record.add([{"kind": "revealing", "sum": number, "hospitals": list(hospitals)}])
        self._revealing[number] = tuple(hospitals)

    def uncertain(self, number: int) -> tuple[str, ...]:
        """Hospitals of the sum of round `number` that may have been revealed but is not kept.

        Empty if there is none. A sum of that quantity can only be made over them again.
        """
        for key, (quantity, _) in self._begun.items():
            noted = key in self._revealing and key not in self._void
            if noted and quantity.round == number and not self.has(quantity):
                return self._revealing[key]
        return ()

    def last_with(self, hospital: str) -> tuple[str, ...]:
        """Number of the last revealed sum that `hospital` was in; empty if there is none."""
        numbers = [key for key, hospitals in self._revealing.items() if hospital in hospitals]
        return tuple(numbers[-1:])

    def store(self, number: str, total: Total) -> None:
        """Writes a revealed total; from now on the sum is final.

        Totals of earlier rounds are removed: those rounds are complete.

        Raises:
          StorageError: if it cannot be written.
        """
        quantity, _ = self._begun[number]
        about = {
            "sum": number,
            "weight": total.weight,
            "took_part": list(total.took_part),
            "present": list(total.present),
        }
        arrays = {f"value_{i:04d}": np.asarray(v) for i, v in enumerate(total.values)}
        arrays["counts"] = np.asarray(total.counts)
        path = self._path(quantity)
        with storage.replacing(path) as partial:
            write_tensors(partial, arrays, {"about": json.dumps(about)})
        with storage.storing(f"earlier totals in {path.parent} cannot be removed"):
            for earlier in path.parent.glob("round_*"):
                if quantity.round is not None and earlier.name < _round(quantity.round):
                    earlier.unlink(missing_ok=True)

    def has(self, quantity: Quantity) -> bool:
        """True if the sum was revealed and is kept."""
        return self._path(quantity).exists()

    def total(self, quantity: Quantity) -> Total | None:
        """The total that was revealed; None if it was not.

        Raises:
          CheckpointError: if it is damaged.
        """
        path = self._path(quantity)
        if not path.exists():
            return None
        try:
            arrays, stored = read_tensors(path)
            about = storage.parse_json(stored["about"].encode())
            counts = arrays.pop("counts")
            values = tuple(arrays[name] for name in sorted(arrays))
            names = [tuple(about[key]) for key in ("took_part", "present")]
            return Total(values, int(about["weight"]), counts, (), *names)
        except (CheckpointError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({storage.reason(error)}); the sum in it was revealed and "
                "cannot be made again: restore the file, or begin anew without --resume"
            ) from error

    def _path(self, quantity: Quantity) -> pathlib.Path:
        number = quantity.round
        name = quantity.purpose if number is None else f"{_round(number)}.{quantity.purpose}"
        return self._folder / _TOTALS / f"{name}.safetensors"


def _round(number: int) -> str:
    return f"round_{number:06d}"
