"""A hospital's ledger: every noisy release that its records, or it itself, took part in.

A file of JSON lines that is only added to. A release is written down, and is on disk, before
anything of it leaves the hospital: after a crash the ledger may have charged for what was never
sent, but never the other way round. Several runs, one after the other or side by side, may share a
ledger; each charge is checked and written under the file's lock.

A file that is lost is not taken for an empty ledger, nor an older copy for the whole one. Marks
outside the file hold its length after the last charge, and a digest of it (`marks_of`). Each is
written after the ledger and before the release, so that what left the hospital is in both.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from typing import Any

from primia_jax.config import PrivacyConfig
from primia_jax.core import marks, storage
from primia_jax.core.marks import Mark
from primia_jax.core.names import safe_file_name
from primia_jax.core.storage import private_file, private_folder
from primia_jax.errors import BudgetError, CheckpointError, ConfigError, StorageError
from primia_jax.federated import accounting
from primia_jax.federated.accounting import Epsilon, Release

FILE = "privacy_ledger.jsonl"
BEGUN = "privacy_ledger.begun"  # mark in a hospital's own folder: the ledger that the run charges
_BEGUN = ".begun"  # folder of marks beside those of the hospitals, where runs share ledgers
IMAGE, PATIENT = "image", "patient"  # units
TRAINING, VALIDATION, HOSPITAL = "training images", "validation images", "hospital"  # groups


def path_of(config: PrivacyConfig, hospital: str, folder: pathlib.Path) -> pathlib.Path:
    """Path of the ledger of `hospital`, whose own folder in the run is `folder`."""
    shared = pathlib.Path(config.ledger).absolute() / safe_file_name(hospital)
    return (shared if config.ledger else folder) / FILE


def marks_of(
    config: PrivacyConfig, hospital: str, folder: pathlib.Path
) -> tuple[pathlib.Path, ...]:
    """Paths of the marks of the ledger of `hospital`, whose own folder in the run is `folder`.

    One is the run's own. Where runs share ledgers, another lies in their common folder, so that a
    later run knows of a ledger that is gone.
    """
    own = folder / BEGUN
    if not config.ledger:
        return (own,)
    return (own, pathlib.Path(config.ledger).absolute() / _BEGUN / safe_file_name(hospital))


@dataclasses.dataclass(frozen=True)
class Entry:
    """A release, and whose it was.

    A split of a hospital's images makes disjoint groups of them (training, validation), which share
    no patient. A release of one group tells nothing of another's images, so that ε is the largest
    over the groups. A release of the hospital as a whole tells of all its images and counts in
    every group; and where there are several splits, an image may be of one group here and of the
    other there.

    A release that protects a patient protects each of its images as well as that. The reverse does
    not hold: ε of images says too little of a patient of several.
    """

    group: str
    release: Release
    about: dict[str, Any] = dataclasses.field(default_factory=dict)  # round, and what went out
    split: str = ""  # a fingerprint of the images and their groups
    unit: str = IMAGE  # protected as a whole: an image, or all images of a patient

    def line(self) -> bytes:
        """As it stands in the file."""
        facts: dict[str, Any] = {"group": self.group, "unit": self.unit, "split": self.split}
        facts |= self.release._asdict()
        facts["about"] = self.about
        return json.dumps(facts).encode() + b"\n"


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The ledger in `path`, with a budget."""

    path: pathlib.Path
    budget: float  # the largest ε, by PLD, of all that it holds
    delta: float
    owner: str  # whose it is, for messages
    unit: str = IMAGE  # that ε is of
    marks: tuple[pathlib.Path, ...] = ()  # see `marks_of`

    def begin(self) -> None:
        """Makes the file, without entries, if there is none and no mark says that there was.

        A run that crashed before its first round was complete may have released something, and
        must find its ledger.

        Raises:
          CheckpointError: if there was a ledger, and it is gone, or is an older copy.
          StorageError: if it cannot be made.
        """
        if any(mark.exists() for mark in self.marks) and not self.path.exists():
            raise self._lost()
        self.check_whole()
        private_folder(self.path.parent)
        private_file(self.path)
        with self._locked() as file:
            self._mark(storage.whole_lines(file.read()))

    def check_whole(self) -> None:
        """Refuses a ledger that does not begin with what it held at the last charge.

        Raises:
          CheckpointError: if it is an older copy, or a mark of it is damaged.
        """
        known = self._known()  # before the ledger, which others may be adding to
        if known:
            content = self._content()
            self._parsed(content)  # damage has a message of its own
            self._compare(known, content)

    def _known(self) -> list[tuple[pathlib.Path, Mark]]:
        """The marks, by their paths."""
        return [(path, marks.read(path)) for path in self.marks if path.exists()]

    def _compare(self, known: Iterable[tuple[pathlib.Path, Mark]], content: bytes) -> None:
        for path, mark in known:
            if not mark.begins(content):
                raise CheckpointError(
                    f"{self.owner}: the privacy ledger {self.path} lacks charges that it held when "
                    f"{path} was written, as an older copy does: what was spent cannot be told; "
                    "restore the file"
                )

    def _mark(self, content: bytes) -> None:
        """Notes in the marks what the ledger holds."""
        for path in self.marks:
            marks.write(path, Mark.of(content), {"ledger": str(self.path)})

    def check_kept(self, number: int) -> None:
        """Refuses a ledger that is gone, or lacks round `number` though the hospital trained it.

        Args:
          number: the last round that it is known to have trained; 0: none.

        Raises:
          CheckpointError: if something was lost.
        """
        rounds = {entry.about.get("round") for entry in self.entries()}
        if number and number not in rounds:
            raise CheckpointError(
                f"{self.owner} trained round {number}, of which its privacy ledger {self.path} "
                "holds nothing: what was spent cannot be told; restore the file"
            )

    def entries(self) -> list[Entry]:
        """Entries that were charged so far.

        Raises:
          CheckpointError: if the file is damaged or not there.
          ConfigError: if ε of a patient is wanted and some releases protect single images only.
        """
        return self._parsed(self._content())

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError as error:
            raise self._lost() from error
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def spent(self) -> Epsilon:
        """ε of all that was charged so far."""
        return _of_groups(self.entries(), self.delta)

    def check(self, entries: Sequence[Entry], what: str) -> None:
        """Refuses what is to be done if the budget does not cover it; charges nothing.

        Args:
          entries: what it would release.
          what: its name, for the message.

        Raises:
          BudgetError: with the numbers.
        """
        self._refuse_beyond_budget(self.entries(), entries, what)

    def charge(self, entries: Sequence[Entry], what: str) -> None:
        """Writes `entries` down; they are on disk when this returns.

        Args:
          entries: what will be released.
          what: its name, for the message.

        Raises:
          BudgetError: if the budget does not cover them; then nothing is written.
          CheckpointError: if the ledger is damaged, gone or an older copy; likewise.
          StorageError: if they cannot be written; then nothing may be released.
        """
        if not entries:
            return
        with self._locked() as file:
            whole = storage.whole_lines(file.read())
            before = self._parsed(whole)
            self._compare(self._known(), whole)
            self._refuse_beyond_budget(before, entries, what)
            try:
                # What a crash cut short was never followed by a release.
                file.truncate(len(whole))
                file.seek(len(whole))
                lines = b"".join(entry.line() for entry in entries)
                if file.write(lines) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError as error:
                with contextlib.suppress(OSError):
                    file.truncate(len(whole))
                raise _unwritable(self.path, error) from error
            self._mark(whole + lines)

    def _parsed(self, content: bytes) -> list[Entry]:
        entries = _parsed(self.path, content)
        singly = [entry for entry in entries if entry.group != HOSPITAL and entry.unit == IMAGE]
        if self.unit == PATIENT and singly:
            raise ConfigError(
                f"{self.owner}: the ledger {self.path} holds releases that protect single images, "
                "whose cost to a patient of several is not known; set config.privacy.unit = "
                "'image', or give this run a ledger of its own (config.privacy.ledger)"
            )
        return entries

    def _refuse_beyond_budget(
        self, before: Sequence[Entry], entries: Sequence[Entry], what: str
    ) -> None:
        after = largest_epsilon([*before, *entries], self.delta)
        if after > self.budget:
            spent = largest_epsilon(before, self.delta)
            raise BudgetError(
                f"{self.owner}: {what} would bring ε to {after:.3f} at δ = {self.delta:g}, beyond "
                f"the budget of {self.budget:g} ({spent:.3f} are spent, ledger {self.path}); what "
                "was trained so far is kept: judge it with --mode=evaluate, or begin anew with "
                "more noise, fewer rounds or a larger config.privacy.budget"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[FileIO]:
        """The file, open for reading and writing, no other process being in here."""
        try:
            file = FileIO(self.path, "r+")
        except FileNotFoundError as error:
            raise self._lost() from error
        except OSError as error:
            raise _unwritable(self.path, error) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _lost(self) -> CheckpointError:
        return CheckpointError(
            f"{self.owner}: there is no privacy ledger {self.path}, so that what was spent cannot "
            "be told; restore the file (or, if nothing of this hospital was ever released, make an "
            "empty one)"
        )


def largest_epsilon(entries: Sequence[Entry], delta: float) -> float:
    """The largest ε of any group, by the accountant that holds the budgets."""
    return max(accounting.by_pld(releases, delta) for releases in _grouped(entries))


def _of_groups(entries: Sequence[Entry], delta: float) -> Epsilon:
    costs = [accounting.epsilon(releases, delta) for releases in _grouped(entries)]
    return Epsilon(max(cost.pld for cost in costs), max(cost.rdp for cost in costs))


def _grouped(entries: Sequence[Entry]) -> list[list[Release]]:
    """Releases that may depend on one and the same image, for each group of images."""
    of_images = [entry for entry in entries if entry.group != HOSPITAL]
    if len({entry.split for entry in of_images}) > 1:
        return [[entry.release for entry in entries]]
    return [
        [entry.release for entry in entries if entry.group in (group, HOSPITAL)]
        for group in {entry.group for entry in of_images} or {HOSPITAL}
    ]


def _parsed(path: pathlib.Path, content: bytes) -> list[Entry]:
    """The entries of all whole lines."""
    entries = []
    lines = storage.whole_lines(content).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            facts = storage.parse_json(line)
            release = Release(
                float(facts["noise_multiplier"]), float(facts["sampling_rate"]), int(facts["steps"])
            )
            if not (release.noise_multiplier > 0 and 0 < release.sampling_rate <= 1):
                raise ValueError("no such mechanism")
            if release.steps < 1 or facts.get("unit", IMAGE) not in (IMAGE, PATIENT):
                raise ValueError("no such mechanism")
            split, unit, about = facts.get("split", ""), facts.get("unit", IMAGE), facts["about"]
            hash((facts["group"], split, about.get("round"), about.get("what")))
            entries.append(Entry(facts["group"], release, about, split, unit))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"the privacy ledger {path} is damaged in line {number} ({error}): what was spent "
                "cannot be told; restore the file"
            ) from error
    return entries


def _unwritable(path: pathlib.Path, error: OSError) -> StorageError:
    return StorageError(
        f"the privacy ledger {path} cannot be used ({error.strerror or error}); nothing is "
        "released without it"
    )
