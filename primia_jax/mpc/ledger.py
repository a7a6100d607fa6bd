"""Ledger of the key numbers that a party has burned, in memory or in a crash-safe file."""

import contextlib
import json
import operator
import os
import pathlib
import threading
import weakref
from collections.abc import Iterator
from typing import SupportsIndex

from primia_jax.core.locks import file_lock
from primia_jax.core.names import shortened
from primia_jax.core.storage import make_folder, parse_json, storing, write_bytes
from primia_jax.errors import ProtocolError

_MAX_DIGITS = 18  # of a key number, which then fits 63 bits
_LEDGER_FORMAT, _LEDGER_VERSION = "primia_jax key ledger", 1


class Ledger:
    """The key numbers of a session that one party has burned. They rise; skipped ones are burned.

    In a file, a number is on disk before `burn` returns, and processes that share the file exclude
    one another. A line is the number of digits as a letter, and the number: what a crash leaves of
    a line bounds what it was to be, and all up to that bound counts as burned. A file that replaces
    the one that was opened, as one from a backup does, is refused.
    """

    def __init__(self, path: pathlib.Path | None, session: str = "", begun: bool = False):
        """Opens the ledger, or begins it.

        Args:
          path: of the file; None to keep it in memory, for one process and its life.
          session: whose numbers they are.
          begun: True if the session was begun before, so that its ledger must be there.

        Raises:
          ProtocolError: if the file is damaged, of another session, or missing though begun.
          StorageError: if it cannot be written or locked.
        """
        self.path, self.session = path, session
        if begun and path is not None:
            check_kept(path)
        self._highest, self._read_to = -1, 0
        self._file: int | None = None  # stays open, so that its inode serves no other file
        self._mutex = threading.Lock() if path is None else None
        if path is not None:
            with storing(f"ledger {path} cannot be made"):
                make_folder(path.parent)
            with self._locked():
                pass

    def next(self) -> int:
        """The lowest number that is not burned."""
        with self._locked():
            return self._highest + 1

    def burn(self, number: SupportsIndex) -> None:
        """Uses `number` up, and all below it, for good.

        Raises:
          ProtocolError: if it was burned before.
          StorageError: if that cannot be written down; then the number must not be used.
        """
        checked = checked_number(number)
        with self._locked():
            self._burn(checked)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Shuts out all others, and reads what they burned."""
        if self._mutex is not None:
            with self._mutex:
                yield
            return
        assert self.path is not None
        with file_lock(self.path.with_name(f"{self.path.name}.lock")):
            self._read()
            yield

    def _check(self, number: int) -> None:
        if number <= self._highest:
            session = f" of session {self.session}" if self.session else ""
            raise ProtocolError(
                f"key {number}{session} was used before: a key serves one run, even one that "
                f"fails; go on with a fresh key, from number {self._highest + 1}"
            )

    def _burn(self, number: int) -> None:
        self._check(number)
        if self.path is not None:
            digits = str(number)
            self._append(f"{chr(96 + len(digits))}{digits}\n".encode())
        self._highest = number

    def _read(self) -> None:
        """Takes over the lines that were not read yet."""
        assert self.path is not None
        with storing(f"ledger {self.path} cannot be read"):
            if not self.path.exists() and not self._read_to:
                about = {"format": _LEDGER_FORMAT, "version": _LEDGER_VERSION}
                header = json.dumps({**about, "session": self.session}) + "\n"
                write_bytes(self.path, header.encode())
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                size = status.st_size
                if self._file is None:
                    self._file = os.dup(file.fileno())
                    weakref.finalize(self, os.close, self._file)
                is_same = os.path.samestat(status, os.fstat(self._file))
                file.seek(self._read_to)
                text = file.read()
        if not is_same:
            raise self._damaged("another file has taken its place")
        if size < self._read_to:
            raise self._damaged("it has become shorter")
        *lines, torn = text.split(b"\n")
        if not self._read_to:
            self._check_header(lines.pop(0) if lines else b"")
        for line in lines:
            self._highest = self._number(line, line)
        self._read_to += len(text) - len(torn)
        if torn:
            completed = _largest_line(torn)
            highest = self._number(completed, torn)
            self._append((completed or b"")[len(torn) :] + b"\n", torn)
            self._highest = highest

    def _number(self, line: bytes | None, raw: bytes) -> int:
        if line is None or _largest_line(line) != line or int(line[1:]) <= self._highest:
            raise self._damaged(f"it has the line {raw[:40]!r}")
        return int(line[1:])

    def _check_header(self, line: bytes) -> None:
        try:
            header = parse_json(line)
            form, version, session = (header[key] for key in ("format", "version", "session"))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged("its first line cannot be read") from error
        if (form, version) != (_LEDGER_FORMAT, _LEDGER_VERSION):
            raise self._damaged(f"it is '{form}' of version {version}")
        if session != self.session:
            raise ProtocolError(
                f"ledger {self.path} is of session '{shortened(session)}', not "
                f"'{shortened(self.session)}': name another folder for the new session"
            )

    def _damaged(self, what: str) -> ProtocolError:
        return ProtocolError(
            f"ledger {self.path} is damaged ({what}), so that nobody knows which keys were used: "
            "begin a new session in another folder"
        )

    def _append(self, text: bytes, torn: bytes = b"") -> None:
        """Adds `text` to the file (after the beginning of a line, `torn`), on disk at return."""
        assert self.path is not None
        with storing(f"ledger {self.path} cannot be written"):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                written = os.write(descriptor, text)
                if written != len(text):  # a full disk; nothing was used yet
                    os.ftruncate(descriptor, self._read_to + len(torn))
                    raise OSError(f"{written} of {len(text)} bytes were written")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._read_to += len(torn) + len(text)


def check_kept(path: pathlib.Path) -> None:
    """Checks that the ledger of a session that was begun is still there.

    Raises:
      ProtocolError: if it is missing.
    """
    if not path.exists():
        raise ProtocolError(
            f"ledger {path} of used keys is missing, so that nobody knows which keys were used: "
            "begin a new session in another folder"
        )


def checked_number(number: SupportsIndex, what: str = "key number") -> int:
    """`number` as an int of at most 18 digits.

    Raises:
      ProtocolError: for any other.
    """
    value = operator.index(number)
    if not 0 <= value < 10**_MAX_DIGITS:
        raise ProtocolError(f"{what} {value}: expected 0 to 10^{_MAX_DIGITS} - 1")
    return value


def _largest_line(beginning: bytes) -> bytes | None:
    """The line of the largest number that begins so; None if none does."""
    n_digits, digits = beginning[:1].ljust(1, b"\0")[0] - 96, beginning[1:]
    if not 1 <= n_digits <= _MAX_DIGITS or len(digits) > n_digits:
        return None
    if digits and (not digits.isdigit() or (digits[:1] == b"0" and n_digits > 1)):
        return None
    return beginning + b"9" * (n_digits - len(digits))
