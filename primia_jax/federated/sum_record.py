"""Files that records of secure sums lie in: JSON lines that are only added to, and a mark.

The mark holds the length and digest of the file. It is written after the lines that have to be on
disk before something leaves the party, and before that leaves. So a file that was lost, cut or set
back to an older copy is recognised (`core.marks`). What is not: a folder of which all files are
older ones. The model owner's announcements tell that to hospitals (`owner_journal`).
"""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from primia_jax.core import marks, storage
from primia_jax.core.marks import Mark
from primia_jax.errors import CheckpointError
from primia_jax.federated.quantities import Quantity

FILE = "sums.jsonl"
MARK = "sums.begun"
_KINDS = {
    "roster",
    "begun",
    "void",
    "revealing",
    "contributed",
    "digest",
    "charged",
    "narrowed",
    "final",
}


class SumRecord:
    """The record in a party's own folder.

    Attributes:
      path: of the file.
      lines: in it, when it was opened.
    """

    def __init__(self, folder: pathlib.Path, other: tuple[pathlib.Path, Mark] | None = None):
        """Reads the record, if there is one.

        Args:
          folder: the party's own.
          other: a mark that was written elsewhere, and where.

        Raises:
          CheckpointError: if the record is damaged, or lacks what a mark says that it held.
        """
        self.path, self._mark = folder / FILE, folder / MARK
        content = self._content()
        self.lines = _parsed(self.path, content)
        known = [other] if other else []
        if self._mark.exists():
            known.append((self._mark, marks.read(self._mark)))
        for where, mark in known:
            if not mark.begins(content):
                raise CheckpointError(
                    f"the record of secure sums {self.path} lacks lines that it held when {where} "
                    "was written, as a lost, cut or older file does: what was revealed cannot be "
                    "told; restore the file, or begin anew without --resume"
                )

    def add(self, lines: Sequence[Mapping[str, Any]], mark: bool = True) -> None:
        """Adds lines, on disk when this returns.

        Args:
          lines: of the kinds that a record has.
          mark: False if nothing leaves the party before more lines are added.

        Raises:
          StorageError: if they cannot be written; then nothing may leave.
        """
        storage.append_lines(self.path, map(json.dumps, lines))
        if mark:
            marks.write(self._mark, self.mark(), {"record": str(self.path)})

    def mark(self) -> Mark:
        """The mark of the record as it is."""
        return Mark.of(self._content())

    def _content(self) -> bytes:
        """All whole lines; an unfinished last one was followed by nothing."""
        if not self.path.exists():
            return b""
        storage.check_regular(self.path, error=CheckpointError)
        return storage.whole_lines(self.path.read_bytes())


def facts(quantity: Quantity, hospitals: Iterable[str]) -> dict[str, Any]:
    """A sum as it stands in a line."""
    return {**quantity._asdict(), "hospitals": list(hospitals)}


def quantity_of(line: Mapping[str, Any]) -> Quantity:
    """The quantity in a line."""
    return Quantity(line["purpose"], line["round"], line["model"])


def _parsed(path: pathlib.Path, content: bytes) -> list[dict[str, Any]]:
    lines, sums = [], set()
    for number, text in enumerate(content.splitlines(), 1):
        try:
            line = storage.parse_json(text)
            kind = line["kind"]
            if kind not in _KINDS:
                raise ValueError(f"unknown kind {kind!r}")
            if kind in ("begun", "contributed"):
                hash(quantity_of(line))
                sums.add(bytes.fromhex(line["sum"]))
            if kind == "digest":
                bytes.fromhex(line["digest"])
            elif kind not in ("final", "void", "charged"):
                set(line["hospitals"])
            if kind != "roster" and bytes.fromhex(line["sum"]) not in sums:
                raise ValueError("a sum that was never begun")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the record of secure sums {path} is damaged in line {number} ({error}): what was "
                "revealed cannot be told; restore the file, or begin anew without --resume"
            ) from error
        lines.append(line)
    return lines
