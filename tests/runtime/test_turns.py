"""Parties that share a process compute one at a time, in the order that others rely on."""

import threading
import time

from primia_jax.runtime.turns import Turns


def test_one_at_a_time_the_lowest_place_first():
    turns, order, together = Turns(), [], []
    inside = threading.Lock()

    def party(place):
        turns.take(place)
        together.append(inside.acquire(blocking=False))
        order.append(place)
        time.sleep(0.001)
        inside.release()
        turns.give()

    turns.take(-1)  # so that all queue up
    threads = [threading.Thread(target=party, args=[place]) for place in (3, 1, 4, 0, 2)]
    for thread in threads:
        thread.start()
    while len(turns._waiting) < len(threads):
        time.sleep(0.001)
    turns.give()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    assert all(together)


def test_it_tells_whether_it_had_to_be_waited_for():
    turns = Turns()
    assert not turns.take(0)
    waited = []
    thread = threading.Thread(target=lambda: waited.append(turns.take(1)))
    thread.start()
    while len(turns._waiting) < 1:
        time.sleep(0.001)
    turns.give()
    thread.join()
    assert waited == [True]
    turns.give()
