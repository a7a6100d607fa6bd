"""Parties of a three-party protocol, and the streams of randomness that two of them share.

Two parties that hold one seed expand the same words without a message, so long as both draw the
same things in the same order.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from primia_jax.errors import ProtocolError
from primia_jax.mpc import observation, prg

SERVERS = (0, 1)
ASSISTANT = 2

_REJECTED = 0xFFFFFFFF  # no four residues: 255 is one modulo 256 only, which rejects nothing
_PIECE = 1 << 16  # 32-bit words that `prg.chunks` gives at a time
_FEW = 1 << 12  # words that are not worth a compiled kernel's whole piece


class SharedStream:
    """Words that two parties expand from one seed, in step, each word once.

    Every call has a nonce of its own, made of the number of the run and of the calls before it.
    """

    def __init__(self, seed: Any, number: int):
        """A stream at its beginning.

        Args:
          seed: uint8 [32].
          number: of the run, 0 <= number < 2^64; a seed gives each number's stream once.
        """
        if not 0 <= number < 1 << 64:
            raise ProtocolError(f"a run's number is a 64-bit one, not {number}")
        self._seed, self._number, self._calls = np.asarray(seed), number, 0

    def words(self, n: int, kind: Any = np.uint64) -> np.ndarray:
        """Uniform words [n] of an unsigned type, which the caller may overwrite."""
        n_bytes = n * np.dtype(kind).itemsize
        words = np.asarray(prg.expand(self._seed, -(-n_bytes // 8), self._nonce()))
        words = np.require(words, requirements="W").view(kind)[:n]
        observation.drawn(words)
        return words

    def residues(self, shape: tuple[int, ...], modulus: int) -> np.ndarray:
        """uint8 `shape`: exactly uniform below `modulus`, which is at most 256.

        A 32-bit word makes four residues, or is rejected and drawn anew. Which words are rejected
        depends on the stream alone, so that both parties reject the same ones.
        """
        if not 1 <= modulus <= 256:
            raise ProtocolError(f"residues in bytes have a modulus from 1 to 256, not {modulus}")
        count = math.prod(shape)
        if 256 % modulus == 0:
            return (self.words(count, np.uint8) & np.uint8(modulus - 1)).reshape(shape)
        residues = np.empty(-(-count // 4), np.uint32)
        start = 0
        for piece in prg.chunks(self._seed, -(-len(residues) // 2), self._nonce()):
            part = residues[start : start + 2 * len(piece)]
            part[:] = _residues_of(piece.view(np.uint32)[: len(part)], modulus)
            start += len(part)
        places = np.flatnonzero(residues == _REJECTED)
        while len(places):
            fresh = _residues_of(self.words(len(places), np.uint32), modulus)
            residues[places] = fresh
            places = places[fresh == _REJECTED]
        return residues.view(np.uint8)[:count].reshape(shape)

    def _nonce(self) -> int:
        if self._calls >= 1 << 32:
            raise ProtocolError(f"no nonce is left in the stream of run {self._number}")
        self._calls += 1
        return (self._calls - 1) | self._number << 32


def _residues_of(words: np.ndarray, modulus: int) -> np.ndarray:
    """uint32 [m] -> uint32 [m]: four residues in each word, or `_REJECTED`."""
    settings = np.uint32(modulus), np.uint32((1 << 32) % modulus**4)
    if len(words) < _FEW:
        return _four_digits(words, *settings)
    whole = np.pad(words, (0, _PIECE - len(words))) if len(words) < _PIECE else words
    return np.asarray(_four_digits_compiled(whole, *settings))[: len(words)]


def _four_digits(words: Any, modulus: Any, excess: Any) -> Any:
    """The first four digits of words / 2^32 to the base `modulus`, the first in the lowest byte.

    words · modulus^4 = 2^32 · digits + rest; words with a rest below `excess`, 2^32 modulo
    modulus^4, are rejected, after which all digits are equally frequent (D. Lemire, "Fast Random
    Integer Generation in an Interval", 2019).
    """
    digits = 0
    for place in range(4):
        low = (words & 0xFFFF) * modulus
        digit = ((words >> 16) * modulus + (low >> 16)) >> 16
        digits = digits | digit << 8 * place
        words = words * modulus
    return digits | (0 - (words < excess).astype(words.dtype))


_four_digits_compiled = jax.jit(_four_digits)


@dataclasses.dataclass(frozen=True)
class Party:
    """One of three parties, as a run sees itself.

    Attributes:
      index: 0 or 1, the servers, which hold shares; 2, the assistant, which holds none.
      names: of the three parties, for messages.
      streams: by the index of the other party, for those pairs that share a seed.
      own: a stream that nobody else can expand, where the protocol needs one.
    """

    index: int
    names: tuple[str, str, str]
    streams: Mapping[int, SharedStream]
    own: SharedStream | None = None

    def __post_init__(self) -> None:
        """Raises ProtocolError unless there is such a party."""
        if self.index not in (*SERVERS, ASSISTANT) or len(set(self.names)) != 3:
            raise ProtocolError(f"party {self.index} of {self.names}: three parties, 0 to 2")

    @property
    def is_assistant(self) -> bool:
        """True if this is party 2."""
        return self.index == ASSISTANT

    @property
    def peer(self) -> str:
        """The name of the other server."""
        return self.names[1 - self.index]

    @property
    def assistant(self) -> str:
        """The name of party 2."""
        return self.names[ASSISTANT]

    def shared_with(self, other: int) -> SharedStream:
        """The stream shared with party `other`."""
        if other not in self.streams:
            raise ProtocolError(f"{self.names[self.index]} shares no seed with party {other}")
        return self.streams[other]

    def private(self) -> SharedStream:
        """The stream that nobody else can expand."""
        if self.own is None:
            raise ProtocolError(f"{self.names[self.index]} has no stream of its own")
        return self.own


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a sub-protocol.

    Attributes:
      rounds: one-way messages on the longest chain.
      n_bytes: of all messages.
    """

    rounds: int
    n_bytes: int
