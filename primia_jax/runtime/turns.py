"""Turns of parties that share a process: one computes, the others wait for messages or for it.

So what computing needs of memory is needed once, however many parties there are, and threads are
not shared out between them.
"""

import heapq
import threading


class Turns:
    """A lock that goes to the waiting party of the lowest place first.

    Where all wait for one, e.g. all train a round, their results come in an order that whoever
    collects them can rely on, and need not store.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._taken = False

    def take(self, place: int) -> bool:
        """Waits for the turn; returns whether there was anything to wait for."""
        with self._changed:
            heapq.heappush(self._waiting, place)
            waited = not self._is_next(place)
            self._changed.wait_for(lambda: self._is_next(place))
            heapq.heappop(self._waiting)
            self._taken = True
        return waited

    def give(self) -> None:
        """Leaves the turn, which this party has, to others."""
        with self._changed:
            self._taken = False
            self._changed.notify_all()

    def _is_next(self, place: int) -> bool:
        return not self._taken and self._waiting[0] == place
