"""Numbered single-use keys: which of them are used up, and the material of those that are not.

A mask that hides two values gives away their difference, so no key may ever serve twice. A number
is *burned* before anything of its key is used: whatever happens afterwards (a failed run, a crash,
a second process), nobody gets that key again.

    folder/ledger                       the burned numbers; only ever grows
    folder/ledger.lock                  held while a number is burned
    folder/key_0000000007/level_0003    what key 7 has for gate level 3
    folder/key_0000000007/complete      its levels and its epoch, written when all are there

Not promised: a folder that is copied, or restored from a backup or a snapshot, brings back its old
ledger together with keys that were used since. Nothing in the folder can tell; the other parties'
ledgers can (`mpc.protocols.epochs`). Files are unlinked, not overwritten on the medium.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

from primia_jax.core.storage import PARTIAL, make_folder, private_folder, storing, write_bytes
from primia_jax.errors import ProtocolError
from primia_jax.mpc.key_files import (
    DamagedKeyError,
    LevelFile,
    Message,
    damaged,
    file_pieces,
    structure_of,
)
from primia_jax.mpc.ledger import Ledger, check_kept, checked_number

_KEY_NAME, _LEVEL_NAME = re.compile(r"key_(\d+)"), re.compile(r"level_(\d+)")
_COMPLETE = "complete"


class TakenKey:
    """A key that is burned and may be used now: each level once, in any order.

    `epoch` is the one in which it was dealt.

    Levels come off the disk one by one; the files' names are gone already, so that a crash leaves
    nothing behind.
    """

    def __init__(
        self, number: int, levels: Mapping[int, Callable[[], Message]], epoch: bytes = b""
    ):
        self.number, self.epoch = number, epoch
        self._left = dict(levels)
        self._all = frozenset(levels)

    def __getitem__(self, level: int) -> Message:
        """The message of `level`.

        Raises:
          ProtocolError: if there is none, it is damaged, or it was loaded before.
          StorageError: if it cannot be read.
        """
        if level not in self._all:
            raise ProtocolError(f"key {self.number} has no level {level}, only {self._all_names()}")
        if level not in self._left:
            raise ProtocolError(
                f"level {level} of key {self.number} was loaded before: it serves once"
            )
        return self._left.pop(level)()

    def __iter__(self) -> Iterator[int]:
        """The levels that were not loaded yet, ascending."""
        return iter(sorted(self._left))

    def items(self) -> Iterator[tuple[int, Message]]:
        """The levels that were not loaded yet, ascending, with their messages, one at a time."""
        for level in self:
            yield level, self[level]

    def _all_names(self) -> str:
        return f"{min(self._all)} to {max(self._all)}" if self._all else "none"


class KeyStore:
    """One party's keys of one session and program, each an entry a gate level, each for one use.

    On disk, arrays come back as NumPy arrays (scalars with shape ()); folders have mode 0700, files
    0600. In memory, arrays come back as they were put; do not change them after `put`. Several
    processes may use one folder. All methods may raise StorageError, e.g. on a full disk.
    """

    def __init__(
        self, folder: pathlib.Path | None, fingerprint: str, session: str, begun: bool = False
    ):
        """Opens the store, or begins one.

        Args:
          folder: of the store alone; made if missing. None to keep keys in memory.
          fingerprint: of the program that the keys are for.
          session: of the parties' seeds.
          begun: True if the session was begun before, so that its ledger must be there.

        Raises:
          ProtocolError: if the folder holds other files, keys of another session or program, or no
            ledger though begun.
          StorageError: if it cannot be used.
        """
        self._where = "memory" if folder is None else str(folder)
        self._keys: _MemoryKeys | _FolderKeys
        if folder is None:
            self._ledger = Ledger(None, session)
            self._keys = _MemoryKeys()
            return
        if begun:
            check_kept(folder / "ledger")
        with storing(f"keys cannot be kept in {folder}"):
            _prepare_store_folder(folder)
        self._ledger = Ledger(folder / "ledger", session)
        self._keys = _FolderKeys(folder, fingerprint, session)
        with self._locked():
            self._keys.remove_up_to(self._ledger._highest)  # what a crash left
            for number in sorted(self._fresh())[:1]:
                with contextlib.suppress(DamagedKeyError):  # `take` is to say that
                    self._keys.open(number)  # of this program?

    @property
    def session(self) -> str:
        """Session of the parties' seeds that the keys belong to."""
        return self._ledger.session

    @property
    def ledger(self) -> Ledger:
        """Numbers of the keys that were used."""
        return self._ledger

    @property
    def made(self) -> int:
        """One more than the highest number that was put or burned: the number for a new key."""
        with self._locked():
            return self._made()

    def available(self) -> int:
        """Number of complete keys that are left."""
        with self._locked():
            return len(self._fresh())

    def next(self) -> int:
        """The number of the next complete key; `made` if none is left."""
        with self._locked():
            return min(self._fresh(), default=self._made())

    def put(self, number: int, level: int, message: Message) -> None:
        """Adds a level to a key that is being made; it lasts once the key is closed.

        Args:
          number: of the key, below 10^18.
          level: of the gates.
          message: nested dicts (with strings as keys), tuples and lists of arrays of booleans,
            integers, floats or complex numbers.

        Raises:
          ProtocolError: for another message, or if the key is used or complete, or has the level.
          StorageError: if it cannot be written; the key remains incomplete.
        """
        number, level = checked_number(number), checked_number(level, "level")
        structure_of(message, [])  # refuses what cannot be kept
        with self._locked():
            self._check_open(number)
            if level in self._keys.levels(number):
                raise ProtocolError(f"key {number} in {self._where} has level {level} already")
        self._keys.put(number, level, message)

    def close_key(self, number: int, epoch: bytes = b"") -> None:
        """Marks a key as complete: only now it can be taken.

        Args:
          number: of the key.
          epoch: in which it was dealt.

        Raises:
          ProtocolError: if it has no level, or is used or complete already.
          StorageError: if that cannot be written.
        """
        number = checked_number(number)
        with self._locked():
            self._check_open(number)
            if not self._keys.levels(number):
                raise ProtocolError(f"key {number} in {self._where} has no level yet")
            self._keys.complete(number, epoch)

    def burn(self, number: SupportsIndex) -> None:
        """Uses `number` up without its material, as for a key that is made while it is used.

        Raises:
          ProtocolError: if it was used before.
        """
        checked = checked_number(number)
        with self._locked():
            self._burn(checked)

    def take(self, number: int) -> TakenKey:
        """Burns `number` and hands out its key; keys of lower numbers are gone as well.

        Raises:
          ProtocolError: if it was used before, is not there, or is of another program or session
            (then it is not burned), or if it is damaged (then it is).
        """
        number = checked_number(number)
        damage: DamagedKeyError | None = None
        levels: dict[int, Callable[[], Message]] = {}
        epoch = b""
        with self._locked():
            self._ledger._check(number)
            self._check_there(number)
            try:
                levels, epoch = self._keys.open(number)
            except DamagedKeyError as error:
                damage = error  # burned too, or every further run would meet it again
            self._burn(number)
        if damage is not None:
            raise damage
        return TakenKey(number, levels, epoch)

    def _burn(self, number: int) -> None:
        self._ledger._burn(number)
        self._keys.remove_up_to(number)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._ledger._locked(), storing(f"keys in {self._where} cannot be read or changed"):
            yield

    def _made(self) -> int:
        return max([self._ledger._highest, *self._keys.numbers()]) + 1

    def _fresh(self) -> list[int]:
        highest = self._ledger._highest
        return [n for n in self._keys.numbers() if n > highest and self._keys.is_complete(n)]

    def _check_open(self, number: int) -> None:
        self._ledger._check(number)
        if self._keys.is_complete(number):
            raise ProtocolError(f"key {number} in {self._where} is complete already")

    def _check_there(self, number: int) -> None:
        if self._keys.is_complete(number):
            return
        fresh = self._fresh()
        if not fresh:
            raise ProtocolError(
                f"no key is left in {self._where}: {self._made()} were made; "
                "make more with prepare()"
            )
        what = "is not complete" if self._keys.levels(number) else "is not there"
        raise ProtocolError(
            f"key {number} {what} in {self._where}: the next one that is has number {min(fresh)}"
        )


class _MemoryKeys:
    def __init__(self) -> None:
        self._messages: dict[int, dict[int, Message]] = {}
        self._complete: dict[int, bytes] = {}  # their epochs

    def numbers(self) -> Iterable[int]:
        return list(self._messages)

    def levels(self, number: int) -> set[int]:
        return set(self._messages.get(number, ()))

    def is_complete(self, number: int) -> bool:
        return number in self._complete

    def put(self, number: int, level: int, message: Message) -> None:
        self._messages.setdefault(number, {})[level] = message

    def complete(self, number: int, epoch: bytes) -> None:
        self._complete[number] = epoch

    def open(self, number: int) -> tuple[dict[int, Callable[[], Message]], bytes]:
        levels = {level: _held(m) for level, m in self._messages[number].items()}
        return levels, self._complete[number]

    def remove_up_to(self, number: int) -> None:
        self._messages = {n: key for n, key in self._messages.items() if n > number}
        self._complete = {n: epoch for n, epoch in self._complete.items() if n > number}


def _held(message: Message) -> Callable[[], Message]:
    return lambda: message


class _FolderKeys:
    def __init__(self, folder: pathlib.Path, fingerprint: str, session: str):
        self._folder = folder
        self._about = {"program": fingerprint, "session": session}

    def numbers(self) -> Iterable[int]:
        return _numbered(self._folder, _KEY_NAME)

    def levels(self, number: int) -> set[int]:
        return set(_numbered(self._key(number), _LEVEL_NAME))

    def is_complete(self, number: int) -> bool:
        return (self._key(number) / _COMPLETE).exists()

    def put(self, number: int, level: int, message: Message) -> None:
        leaves: list[Any] = []
        about = {**self._about, "key": number, "level": level}
        header = json.dumps({**about, "message": structure_of(message, leaves)}).encode()
        write_bytes(self._level(number, level), file_pieces(header, leaves))

    def complete(self, number: int, epoch: bytes) -> None:
        about = {"levels": sorted(self.levels(number)), "epoch": epoch.hex()}
        text = json.dumps(about).encode()
        digest = hashlib.sha256(text).hexdigest().encode()
        write_bytes(self._key(number) / _COMPLETE, text + b"\n" + digest)

    def open(self, number: int) -> tuple[dict[int, Callable[[], Message]], bytes]:
        marker, files = self._key(number) / _COMPLETE, {}
        text, _, digest = marker.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise damaged(marker, "it cannot be read")
        about = json.loads(text)
        levels, epoch = list(about["levels"]), bytes.fromhex(about["epoch"])
        for level in levels:
            try:
                files[level] = LevelFile(self._level(number, level))
            except FileNotFoundError as error:
                raise damaged(self._level(number, level), "it is missing") from error
            files[level].check({**self._about, "key": number, "level": level})
        return {level: file.load for level, file in files.items()}, epoch

    def remove_up_to(self, number: int) -> None:
        for other in self.numbers():
            if other <= number:
                shutil.rmtree(self._key(other))

    def _key(self, number: int) -> pathlib.Path:
        return self._folder / f"key_{number:010d}"

    def _level(self, number: int, level: int) -> pathlib.Path:
        return self._key(number) / f"level_{level:04d}"


def _numbered(folder: pathlib.Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers in the names of what is in `folder`; none if it is missing."""
    try:
        matches = [pattern.fullmatch(name) for name in os.listdir(folder)]
    except FileNotFoundError:
        return []
    return [int(match[1]) for match in matches if match]


def _prepare_store_folder(folder: pathlib.Path) -> None:
    """Makes `folder` or, if it is empty or a store, closes it to others."""
    if not folder.exists():
        return make_folder(folder)
    others = [n for n in os.listdir(folder) if n != "ledger.lock" and not n.endswith(PARTIAL)]
    if others and not (folder / "ledger").exists():
        raise ProtocolError(
            f"{folder} has files but no ledger of used keys: name a new folder (keys without their "
            "ledger are of no use)"
        )
    private_folder(folder)
