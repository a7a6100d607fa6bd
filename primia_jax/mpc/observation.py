"""Reports of what a party draws and opens, for audits; without an audit they do nothing.

The code that expands seeds reports every nonce it consumes and every word it draws; protocols
report the values that a party opens by adding up shares. An audit (`mpc.transcript`) listens while
it steps a party's program.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np


class Observer(Protocol):
    """Listens to one party."""

    def consumed(self, seed: bytes, nonce: int, value: Any, use: str) -> None:
        """A key stream was begun; `value` and `use` as in `using`."""

    def dealt(self, roots: tuple[np.ndarray, ...], domain: bytes) -> None:
        """Correction words are made for trees with these roots, uint32 [4, N] each."""

    def drawn(self, words: Any) -> None:
        """The party knows these words, which it expanded from a seed."""

    def opened(self, name: str, words: Any) -> None:
        """The party knows this value, which shares of it and of another party add up to."""


_observer: contextvars.ContextVar[Observer | None] = contextvars.ContextVar(
    "observer", default=None
)
_use: contextvars.ContextVar[tuple[Any, str]] = contextvars.ContextVar("use", default=(None, ""))


@contextlib.contextmanager
def watching(observer: Observer) -> Iterator[None]:
    """Reports to `observer` until the end of the block."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextlib.contextmanager
def using(value: Any, use: str) -> Iterator[None]:
    """Names what is drawn in the block, and what it is drawn for.

    A protocol may need one mask in two places (ρ hides the image, and enters κ_C): each is a use of
    the same value. Words that are drawn without a name serve once.
    """
    token = _use.set((value, use))
    try:
        yield
    finally:
        _use.reset(token)


def consumed(seed: np.ndarray, nonce: int) -> None:
    """See `Observer.consumed`."""
    observer = _observer.get()
    if observer is not None:
        observer.consumed(np.asarray(seed).tobytes(), nonce, *_use.get())


def dealt(roots: tuple[Any, ...], domain: np.ndarray) -> None:
    """See `Observer.dealt`."""
    observer = _observer.get()
    if observer is not None:
        observer.dealt(tuple(np.asarray(root).reshape(4, -1) for root in roots), domain.tobytes())


def drawn(words: Any) -> None:
    """See `Observer.drawn`."""
    observer = _observer.get()
    if observer is not None:
        observer.drawn(words)


def opened(name: str, value: Callable[[], Any]) -> None:
    """See `Observer.opened`; `value` gives the words and is called if somebody listens."""
    observer = _observer.get()
    if observer is not None:
        observer.opened(name, value())
