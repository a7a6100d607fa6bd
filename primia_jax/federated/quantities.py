"""Quantities of secure sums, and their announcement by the model owner (see `owner_journal`)."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.federated.variables import Vectors

STATISTICS, UPDATE, VALIDATION = "statistics", "update", "validation"  # purposes
DUE = (UPDATE, VALIDATION)  # the sums of a round
NUMBER_BYTES = 16  # of a sum's number
_DIGEST_BYTES = 32
_LISTS = ("void", "revealed")  # fields of an announcement that hold several numbers


class Quantity(NamedTuple):
    """The quantity that is summed: only one sum of it is ever revealed."""

    purpose: str
    round: int | None  # None: not part of a round
    model: str  # digest of the model that contributions start from (`digest_of_vectors`), or empty

    def __str__(self) -> str:
        """For messages: "update of round 3"."""
        return self.purpose if self.round is None else f"{self.purpose} of round {self.round}"


class Announcement(NamedTuple):
    """Announcement of a sum by the model owner to the hospitals."""

    number: str  # 32 hexadecimal digits
    void: tuple[str, ...]  # numbers of earlier sums of the same quantity, never revealed
    hospitals: str  # digest of their names
    quantity: str  # digest of the purpose, the round and the model
    revealed: tuple[str, ...] = ()  # number of the last revealed sum that the receiver was in

    def message(self) -> dict[str, np.ndarray]:
        """As it travels."""
        return {
            "number": _array(self.number),
            "void": _array("".join(self.void)).reshape(-1, NUMBER_BYTES),
            "hospitals": _array(self.hospitals),
            "quantity": _array(self.quantity),
            "revealed": _array("".join(self.revealed)).reshape(-1, NUMBER_BYTES),
        }

    @classmethod
    def of(cls, message: Any) -> "Announcement":
        """The inverse of `message`.

        Raises:
          ProtocolError: if it is none.
        """
        try:
            parts = {key: message[key] for key in cls._fields}
            shapes = [part.shape[key in _LISTS :] for key, part in parts.items()]
            types = {part.dtype for part in parts.values()}
        except (TypeError, KeyError, AttributeError):
            parts, shapes, types = {}, [], set()
        sizes = (NUMBER_BYTES, NUMBER_BYTES, _DIGEST_BYTES, _DIGEST_BYTES, NUMBER_BYTES)
        if shapes != [(size,) for size in sizes] or types != {np.dtype(np.uint8)}:
            raise ProtocolError("the model owner announced no sum")
        texts: dict[str, Any] = {
            key: tuple(row.tobytes().hex() for row in part)
            if key in _LISTS
            else part.tobytes().hex()
            for key, part in parts.items()
        }
        return cls(**texts)


def _array(digits: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digits), np.uint8)


def digest_of_names(hospitals: Sequence[str]) -> str:
    """Digest of a set of hospitals in its order."""
    return hashlib.sha256(json.dumps(list(hospitals)).encode()).hexdigest()


def digest_of_quantity(quantity: Quantity) -> str:
    """Digest of purpose, round and model, for hospitals to compare with their own."""
    return hashlib.sha256(json.dumps(list(quantity)).encode()).hexdigest()


def subject_of(announced: Announcement, start: str) -> bytes:
    """Digest of a sum that all hospitals in it must agree on, 32 bytes.

    Args:
      announced: by the model owner, and held against the hospital's own call.
      start: digest of the rest that contributions start from: moments of batch norms, statistics.
    """
    fields = [announced.number, announced.hospitals, announced.quantity, start]
    return hashlib.sha256(json.dumps(["primia_jax sum v1", *fields]).encode()).digest()


def digest_of_vectors(vectors: Vectors) -> str:
    """Digest of the model owner's model: its parameters, in single precision.

    Batch norms' moments are left out. They lose digits where a model is written and read again, and
    it must be known as the same model then.
    """
    return digest_of_arrays({"params": [np.asarray(v, np.float32) for v in vectors.params]})


def digest_of_arrays(tree: Any) -> str:
    """Digest of a tree of arrays: paths, shapes, types and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
