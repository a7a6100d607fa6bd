"""Who could read which message of a run, and what hid it: an audit of real transcripts.

    transcript = Transcript()
    driver.run({name: transcript.recorded(name, program) for name, program in programs.items()})
    for line in transcript.audit(): print(line)

The label of a message says what it is and which mask hides it. The audit does not believe it: the
bytes of every masked message must look uniform, and a message without a known mask fails.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy import stats

from primia_jax.errors import ProtocolError
from primia_jax.runtime.party import Program, Send, Steps, message_bytes, receivers

# What a label may name after its bar, and whether the bytes must then look uniform; a number is the
# modulus below which bytes that travel alone do.
MASKS = {
    "for its reader": True,  # a fresh seed, which the reader shall know
    "public": False,
    "masked by B": True,
    "masked by e": True,
    "masked by ρ": True,
    "masked by r": True,
    "masked by r of the data owner": True,
    "masked by u, shared": True,
    "masked by ρ, shared": True,
    "masked by the dealer": True,
    "share for its reader": True,
    "masked by A, shared": True,
    "masked by B, shared": True,
    "masked by α, shared": True,
    "masked by the triple, shared": True,
    "masked by x": True,
    "masked by u, modulo 67": 67,
    "masked by the dealer, modulo 67": 67,
}
_FEWEST_BYTES = 512  # below, the test could see nothing
_FALSE_ALARM = 1e-9
_COARSE_BITS = 4
_FEW = 20  # values a bin: chi-square's tail is far heavier than it says then


@dataclasses.dataclass(frozen=True)
class Entry:
    """One message of a run."""

    sender: str
    readers: tuple[str, ...]
    what: str
    mask: str
    n_bytes: int
    message: Any

    def __str__(self) -> str:
        readers = ", ".join(self.readers)
        return f"{self.sender} -> {readers}: {self.what} ({self.n_bytes} bytes), {self.mask}"


class Transcript:
    """Everything that the parties of a run sent."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def recorded(self, party: str, program: Program) -> Callable[[Any], Steps]:
        """`program`, writing down what it sends."""

        def run(state: Any) -> Steps:
            steps, message = program(state), None
            while True:
                try:
                    event = steps.send(message)
                except StopIteration as stop:
                    return stop.value
                if isinstance(event, Send):
                    what, _, mask = event.label.partition(" | ")
                    size = message_bytes(event.message)
                    self.entries.append(
                        Entry(party, receivers(event), what, mask, size, event.message)
                    )
                message = yield event

        return run

    def audit(self) -> list[str]:
        """A line a message.

        Raises:
          ProtocolError: for a message that nothing hides, or whose bytes do not look hidden.
        """
        for entry in self.entries:
            if entry.mask not in MASKS:
                raise ProtocolError(f"nothing hides a message: {entry}")
            if MASKS[entry.mask]:
                for leaf in jax.tree.leaves(entry.message):
                    words, modulus = np.asarray(leaf), int(MASKS[entry.mask])
                    residues = modulus > 1 and words.dtype == np.uint8
                    if not looks_uniform(words, modulus if residues else 256):
                        raise ProtocolError(f"the bytes of a message do not look masked: {entry}")
        return [str(entry) for entry in self.entries]


def looks_uniform(words: np.ndarray, modulus: int = 256) -> bool:
    """Whether the bytes of `words` could be random; errs once in some 10^9 places if so.

    Words that travel in more bytes than they have bits show zeros at their top: these are left out.

    Args:
      words: of an unsigned type.
      modulus: that the bytes lie below.
    """
    if words.nbytes < _FEWEST_BYTES:
        return True
    width = words.dtype.itemsize
    columns = np.ascontiguousarray(words).view(np.uint8).reshape(-1, width).T
    return all(_byte_looks_uniform(column, modulus) for column in columns)


def _byte_looks_uniform(column: np.ndarray, modulus: int) -> bool:
    if modulus < 256:
        return column.max() < modulus and _evenly_spread(column, modulus)
    bits = int(column.max()).bit_length()
    if bits == 8 or len(column) <= 64:
        bits = 8
    elif not bits:  # else the top of a narrow word, a byte of fewer bits
        return False
    coarse = min(bits, _COARSE_BITS)
    return (
        _evenly_spread(column, 2**bits)
        and _evenly_spread(column >> (bits - coarse), 2**coarse)
        and _evenly_spread(column & (2**coarse - 1), 2**coarse)
    )


def _evenly_spread(values: np.ndarray, n_bins: int) -> bool:
    """Of values below `n_bins`: chi-square, and of few values how many different ones there are."""
    counts = np.bincount(values, minlength=n_bins)
    if len(values) < _FEW * n_bins:
        return bool(_so_few_differ(len(values), n_bins)[np.count_nonzero(counts)] > _FALSE_ALARM)
    return bool(stats.chisquare(counts).pvalue > _FALSE_ALARM)


@functools.cache
def _so_few_differ(n_values: int, n_bins: int) -> np.ndarray:
    """[n_bins + 1]: the chance that at most so many of uniform values differ; exact."""
    different = np.arange(n_bins + 1)
    chance = (different == 0).astype(np.float64)
    for _ in range(n_values):
        repeated = chance * different / n_bins
        repeated[1:] += chance[:-1] * (n_bins - different[:-1]) / n_bins
        chance = repeated
    return np.cumsum(chance)
