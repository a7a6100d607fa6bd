"""The registry of consumed nonces: every (seed, nonce) serves one value, once for each use.

A mask that hides two things gives away their difference. The ledgers keep numbers of keys apart;
this checks what the code really expands, below everything that composes nonces. It is a part of
audits (`mpc.transcript`): a run is watched from its first word to its last.
"""

import hashlib
from typing import Any

import numpy as np

from primia_jax.errors import ProtocolError


class Registry:
    """Nonces that the parties of a run consumed, each in its own books."""

    def __init__(self) -> None:
        self._nonces: dict[tuple[str, bytes, int], tuple[Any, set[str]]] = {}
        self._roots: set[tuple[str, bytes]] = set()

    def __len__(self) -> int:
        """Number of the nonces."""
        return len(self._nonces)

    def consume(
        self, party: str, seed: bytes, nonce: int, value: Any = None, use: str = ""
    ) -> bool:
        """Writes down that `party` expands a seed.

        Args:
          party: its name; two parties that share a seed expand it once each.
          seed: 32 bytes.
          nonce: under which it is expanded.
          value: what the words are; None for words without a name.
          use: what they are drawn for.

        Returns:
          True if the words are drawn for the first time.

        Raises:
          ProtocolError: if they were drawn for this use before, or are another value too.
        """
        entry = (party, hashlib.sha256(seed).digest(), nonce)
        known, uses = self._nonces.setdefault(entry, (value, set()))
        if use in uses or known != value:
            purpose = f" for {use}" if use else ""
            raise ProtocolError(
                f"the {party.replace('_', ' ')} expands a seed twice under nonce {nonce:#x}"
                f"{purpose}: a mask that serves twice hides nothing; count its calls and keys"
            )
        uses.add(use)
        return len(uses) == 1

    def deal(self, party: str, roots: tuple[np.ndarray, ...], domain: bytes) -> None:
        """Writes down that `party` makes correction words for trees with these roots [4, N].

        Raises:
          ProtocolError: if it did so before, or if two of the N trees have one root.
        """
        for root in roots:
            if len(np.unique(root, axis=1).T) < root.shape[1]:
                raise ProtocolError(
                    f"the {party.replace('_', ' ')} deals two trees with one root: draw each anew"
                )
        digest = hashlib.sha256(domain)
        for root in roots:
            digest.update(np.ascontiguousarray(root).tobytes())
        entry = (party, digest.digest())
        if entry in self._roots:
            raise ProtocolError(
                f"the {party.replace('_', ' ')} deals twice for the same roots: draw them anew"
            )
        self._roots.add(entry)
