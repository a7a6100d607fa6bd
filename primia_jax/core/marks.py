"""Marks of files that are only added to: a lost, cut or older copy is not taken for the whole."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from primia_jax.core import storage
from primia_jax.errors import CheckpointError


class Mark(NamedTuple):
    """Length and digest that a file had."""

    length: int
    digest: str

    @classmethod
    def of(cls, content: bytes) -> "Mark":
        """The mark of a file that holds `content`."""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    @classmethod
    def from_plain(cls, facts: Any, where: pathlib.Path) -> "Mark":
        """The inverse of `_asdict`, for facts that stand in the file `where`.

        Raises:
          CheckpointError: if they are no mark.
        """
        try:
            mark = cls(facts["length"], facts["digest"])
            if type(mark.length) is not int or mark.length < 0 or type(mark.digest) is not str:
                raise ValueError("no length and digest")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{where} is damaged: it says how long another file was; restore it"
            ) from error
        return mark

    def begins(self, content: bytes) -> bool:
        """True if `content` begins with what the file held."""
        return self.length <= len(content) and self == Mark.of(content[: self.length])


def read(path: pathlib.Path) -> Mark:
    """The mark in the file `path`.

    Raises:
      CheckpointError: if it is missing or damaged.
    """
    return Mark.from_plain(storage.read_json(path), path)


def write(path: pathlib.Path, mark: Mark, facts: Mapping[str, Any]) -> None:
    """Replaces the mark in `path`, on disk when this returns, with `facts` for people to read.

    Raises:
      StorageError: if it cannot be written.
    """
    storage.private_folder(path.parent)
    storage.write_json(path, {**facts, **mark._asdict()})
