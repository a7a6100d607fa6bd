"""An audit of real transcripts: who could read which message, what hid it, and what all tell.

    transcript = Transcript(copies=1024)  # a batch of 1024 copies of one image
    driver.run({name: transcript.recorded(name, program) for name, program in programs.items()})
    for line in transcript.audit(): print(line)

The label of a message says what it is and which mask hides it. The audit does not believe it. It
fails if

- a message names no known mask, or its bytes do not look uniform (`check_messages`);
- a nonce is consumed twice, in the run itself (`mpc.registry`);
- the view of a party (what it received, drew and opened, in all the runs that were recorded) tells
  more than its parts do (`mpc.views`). One message tells nothing of that, hence the copies.

Adversary: one party, honest but curious, that keeps all it sees. Assumed: ChaCha20 and the trees'
reduced ChaCha are pseudo-random functions.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from scipy import stats

from primia_jax.errors import ProtocolError
from primia_jax.mpc import observation, views
from primia_jax.mpc.registry import Registry
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
    "masked by μ": True,
    "masked by ω": True,
    "masked by ρ, shared": True,
    "masked by the dealer": True,
    "opened by its reader": False,  # who learns the result, hence this share beside its own
    "masked by A, shared": True,
    "masked by B, shared": True,
    "masked by α, shared": True,
    "masked by the triple, shared": True,
    "masked by x, shared": True,
    "masked by u, modulo 67": 67,
    "masked by the dealer, modulo 67": 67,
}
_RESULTS = ("outputs",)  # for the data owner
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


class _Watched:
    """Knowledge of one party beside the messages (`observation.Observer`)."""

    def __init__(self, party: str, registry: Registry):
        self._party, self._registry, self._is_new = party, registry, False
        self.words: list[tuple[str, Any]] = []
        self.opened_words: list[tuple[str, Any]] = []

    def consumed(self, seed: bytes, nonce: int, value: Any, use: str) -> None:
        self._is_new = self._registry.consume(self._party, seed, nonce, value, use)

    def dealt(self, roots: tuple[np.ndarray, ...], domain: bytes) -> None:
        self._registry.deal(self._party, roots, domain)

    def drawn(self, words: Any) -> None:
        if self._is_new:
            self.words.append(("what it drew", words))

    def opened(self, name: str, words: Any) -> None:
        self.opened_words.append((name, words))


class Transcript:
    """Everything that the parties of some runs sent, drew and opened.

    Attributes:
      entries: the messages.
      registry: the nonces that were consumed.
    """

    def __init__(self, copies: int = 1) -> None:
        """A transcript of runs over batches of `copies` copies of one input."""
        self.entries: list[Entry] = []
        self.registry = Registry()
        self._copies = copies
        self._watched: dict[str, _Watched] = {}

    def recorded(self, party: str, program: Program) -> Callable[[Any], Steps]:
        """`program`, writing down what it sends, draws and opens; refuses a nonce's second use."""
        watched = self._watched.setdefault(party, _Watched(party, self.registry))

        def run(state: Any) -> Steps:
            steps, message = program(state), None
            while True:
                try:
                    with observation.watching(watched):
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
        """A line a message, after all tests.

        Raises:
          ProtocolError: for a message that nothing hides, for a view that tells more than it may,
            or if there are too few copies to tell.
        """
        if self._copies < views.FEWEST_COPIES:
            raise ProtocolError(
                f"{self._copies} copies of an input cannot show what messages tell together: audit "
                f"a batch of at least {views.FEWEST_COPIES} copies of one, Transcript(copies=…)"
            )
        lines = self.check_messages()
        for party in self._watched:
            try:
                self._check_view(party)
            except ProtocolError as error:
                raise ProtocolError(f"view of the {party.replace('_', ' ')}: {error}") from error
        return lines

    def _check_view(self, party: str) -> None:
        sent = [*self._bits(e for e in self.entries if e.sender == party)]
        # Results are for their reader, who shall learn what no mask hides from it.
        received = [e for e in self.entries if party in e.readers and e.what not in _RESULTS]
        # Of what is shared, a party knows the sum too, and that is what is masked.
        whole = [e for e in received if not e.mask.endswith(", shared")]
        watched = self._watched[party]
        known = [*self._named(watched.opened_words), *self._named(watched.words)]
        for bits in (sent, [*self._bits(received), *known]):
            views.check_balanced(bits)
        views.check_pairs([*self._bits(received), *known])
        views.check_rank([*self._bits(whole), *known])

    def _bits(self, entries: Iterable[Entry]) -> Iterator[views.Bits]:
        for entry in entries:
            if MASKS[entry.mask] is True:
                for leaf in jax.tree.leaves(entry.message):
                    yield from self._named([(f"{entry.what} | {entry.mask}", leaf)])

    def _named(self, arrays: Iterable[tuple[str, Any]]) -> Iterator[views.Bits]:
        for name, words in arrays:
            for leaf in jax.tree.leaves(words):
                bits = views.bits_of(name, leaf, self._copies)
                if bits is not None:
                    yield bits

    def check_messages(self) -> list[str]:
        """A line a message, each looked at for itself.

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
    """True if the bytes of `words` could be random; errs once in some 10^9 places if so.

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
    """True if values below `n_bins` pass chi-square, or few values a test of distinct ones."""
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
