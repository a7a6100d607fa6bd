"""Plan of a masked sum, on which its parties agree beforehand, and the form of their messages."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.federated.sealing import SEAL_BYTES
from primia_jax.federated.secagg_graph import Graph
from primia_jax.mpc import ring

ADVERTISE, SHARE, MASK, AGREE, UNMASK = STAGES = (
    "secagg: advertise keys",
    "secagg: share keys",
    "secagg: masked input",
    "secagg: agree on survivors",
    "secagg: unmask",
)
KEY_BYTES = 32  # of a key, a seed, a digest, and of a share of one
LETTER_BYTES = 2 * KEY_BYTES + SEAL_BYTES  # two shares, sealed


@dataclasses.dataclass(frozen=True)
class Plan:
    """Agreement of the parties before a sum.

    Attributes:
      hospitals: their names; a hospital's number is its place in it.
      owner: name of the model owner.
      graph: neighbours and threshold.
      seed: of the graph.
      patience_s: how long the owner waits for a hospital to begin, and for its input, which it may
        have to make first; None: as long as it lives.
      deadline_s: how long in each of the other stages.
      quorum: fewest hospitals that the sum may be over.
      complete: True if it must be over all.
      word_bits: of the ring in which is summed, 64 or 32.
      subject: what is summed, as this hospital was told; hospitals told otherwise are refused.
    """

    hospitals: tuple[str, ...]
    owner: str
    graph: Graph
    seed: int = 0
    patience_s: float | None = None
    deadline_s: float | None = None
    quorum: int = 0
    complete: bool = False
    word_bits: int = ring.N_BITS
    subject: bytes = b""

    def neighbourhoods(self) -> list[tuple[int, ...]]:
        """For each hospital: itself, then its neighbours, by number."""
        return [(i, *others) for i, others in enumerate(self.graph.neighbours(self.seed))]

    def names(self, numbers: Iterable[int]) -> str:
        """The hospitals' names, for messages."""
        return ", ".join(self.hospitals[j] for j in sorted(numbers)) or "nobody"

    def signed_fields(self) -> dict[str, Any]:
        """Parts of the plan that a signature of this sum is bound to."""
        return {
            "hospitals": list(self.hospitals),
            "owner": self.owner,
            "graph": [self.graph.k, self.graph.threshold, self.seed],
            "demands": [self.quorum, int(self.complete), self.word_bits],
            "subject": self.subject,
        }


def to_bits(numbers: Collection[int], n: int) -> np.ndarray:
    """uint8 [⌈n/8⌉]: bit i is 1 for the hospitals in `numbers`."""
    bits = np.zeros(n, bool)
    bits[list(numbers)] = True
    return np.packbits(bits)


def from_bits(sender: str, bits: Any, n: int) -> frozenset[int]:
    """The inverse of `to_bits`.

    Raises:
      ProtocolError: if `bits` is no list of `n` hospitals.
    """
    size = -(-n // 8)
    if getattr(bits, "shape", None) != (size,) or bits.dtype != np.uint8:
        raise ProtocolError(f"{sender} sent no list of {n} hospitals")
    flags = np.unpackbits(bits)
    if flags[n:].any():
        raise ProtocolError(f"{sender} sent a list of more than {n} hospitals")
    return frozenset(int(i) for i in np.flatnonzero(flags))


def table(numbers: Iterable[int], rows: Sequence[np.ndarray], row_bytes: int) -> dict[str, Any]:
    """Rows of bytes, each with the number of the hospital that it belongs to."""
    stacked = np.stack(rows) if len(rows) else np.zeros((0, row_bytes), np.uint8)
    return {"hospitals": np.asarray(list(numbers), np.uint16), "rows": stacked}


def table_rows(sender: str, message: Any, row_bytes: int, n: int) -> dict[int, np.ndarray]:
    """The inverse of `table`.

    Raises:
      ProtocolError: if it is no table of some of `n` hospitals.
    """
    numbers, rows = part(message, "hospitals"), part(message, "rows")
    shape, kind = (getattr(rows, name, None) for name in ("shape", "dtype"))
    if (
        getattr(numbers, "dtype", None) != np.uint16
        or (shape, kind) != ((numbers.size, row_bytes), np.uint8)
        or np.unique(numbers).shape != numbers.shape
        or max(numbers, default=0) >= n
    ):
        raise ProtocolError(f"{sender} sent a table of hospitals that is none")
    return {int(number): row for number, row in zip(numbers, rows)}


def part(message: Any, name: str) -> Any:
    """A named part of a message, None if it has none."""
    return message.get(name) if isinstance(message, Mapping) else None


def roll_digest(publics: Mapping[int, np.ndarray]) -> bytes:
    """Digest of all fresh public keys of a sum, which names it: no other sum has the same."""
    digest = hashlib.sha256(b"primia_jax fresh keys v1")
    for number, key in sorted(publics.items()):
        digest.update(number.to_bytes(4, "big") + key.tobytes())
    return digest.digest()
