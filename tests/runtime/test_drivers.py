"""The contract of a driver: the same party programs give the same results under each of them."""

import functools
import os
import sys

import numpy as np
import pytest
from ray import cloudpickle

from primia_jax.errors import ClusterError, DataError, ProtocolError
from primia_jax.runtime import Link, LocalDriver, Locally, Receive, Send
from primia_jax.runtime.ray_driver import RayDriver, cluster

PARTIES = ("alice", "bob", "carol")
MAKERS = {name: functools.partial(int, i) for i, name in enumerate(PARTIES)}

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import test modules


def _alice(state, n):
    """Sends `n` arrays to bob, two to carol, and adds up what comes back."""
    for i in range(n):
        yield Send("bob", {"x": np.full(3, i), "y": (np.float32(i),)}, "numbers")
    yield from _ask_carol(n)
    total = yield Receive("bob")
    return state + 1, int(total)


def _announce(state):
    yield Send(("bob", "carol"), {"x": np.arange(5)})
    return state, None


def _hear(state):
    message = yield Receive("alice")
    return state, message["x"].sum()


def _ask_carol(n):
    yield Send("carol", np.asarray(n))
    answer = yield Receive("carol")
    assert answer == 2 * n


def _bob(state, n):
    order = []
    for _ in range(n):
        message = yield Receive("alice")
        order.append(int(message["x"][0]))
        assert message["y"][0] == order[-1]
    yield Send("alice", np.asarray(sum(order)))
    return state + 10, order


def _carol(state):
    n = yield Receive("alice")
    yield Send("alice", n * 2)
    return state + 100, None


def _read(state):
    return state, state


def _fail(state):
    raise DataError("bob's images are gone")
    yield


def _wait_for_bob(state):
    yield Receive("bob")
    return state, None


def _nothing(state):
    return state, "nothing"


def _forgets_yield_from(state):
    yield _ask_carol(1)
    return state, None


def _sends_text(state):
    yield Send("bob", {"x": "not an array"})
    return state, None


def _sends_none(state):
    yield Send("bob", {"x": np.zeros(1), "y": None})
    return state, None


def _writes_to_nobody(state):
    yield Send("dave", np.zeros(1))
    return state, None


@pytest.fixture(scope="class")
def driver(request, ray_cluster):
    driver = request.cls.make_driver()
    yield driver
    driver.close()


class DriverContract:
    """Inherited by each driver's tests, which say how to make it."""

    def _states(self, driver):
        return driver.run(dict.fromkeys(PARTIES, Locally(_read)))[0]

    def test_messages_keep_their_order_and_states_go_on(self, driver):
        before = self._states(driver)
        reports, trace = driver.run(
            {
                "alice": functools.partial(_alice, n=4),
                "bob": functools.partial(_bob, n=4),
                "carol": _carol,
            }
        )
        assert reports == {"alice": 6, "bob": [0, 1, 2, 3], "carol": None}
        after = self._states(driver)
        assert [after[p] - before[p] for p in PARTIES] == [1, 10, 100]
        assert trace.parties["alice"].messages_sent == 5
        assert trace.parties["alice"].bytes_sent == 4 * (3 * 8 + 4) + 8
        assert trace.round_trips == 1.0
        assert trace.bytes_sent == sum(p.bytes_sent for p in trace.parties.values())

    def test_one_message_to_several(self, driver):
        reports, trace = driver.run({"alice": _announce, "bob": _hear, "carol": _hear})
        assert reports == {"alice": None, "bob": 10, "carol": 10}
        assert trace.bytes_sent == 2 * 40 and trace.parties["alice"].messages_sent == 2

    def test_a_failure_is_told_and_changes_no_state(self, driver):
        before = self._states(driver)
        with pytest.raises(DataError, match="bob's images are gone"):
            driver.run({"alice": Locally(_nothing), "bob": _fail, "carol": _wait_for_bob})
        assert self._states(driver) == before

    def test_goes_on_after_a_failure(self, driver):
        with pytest.raises(DataError):
            driver.run({"alice": _wait_for_bob, "bob": _fail})
        self.test_messages_keep_their_order_and_states_go_on(driver)

    @pytest.mark.parametrize(
        ("program", "words"),
        [
            (_forgets_yield_from, "yield from"),
            (_sends_text, "must be an array"),
            (_sends_none, "must be an array"),
            (_writes_to_nobody, "dave"),
        ],
    )
    def test_broken_programs_fail_loudly(self, driver, program, words):
        with pytest.raises(ProtocolError, match=words):
            driver.run({"alice": program, "bob": Locally(_nothing)})


class TestLocalDriver(DriverContract):
    @staticmethod
    def make_driver():
        return LocalDriver(MAKERS)

    def test_deadlock_names_who_waits(self, driver):
        with pytest.raises(ProtocolError, match=r"alice waits for bob.*carol waits for bob"):
            driver.run({"alice": _wait_for_bob, "bob": Locally(_nothing), "carol": _wait_for_bob})


class TestRayDriver(DriverContract):
    @staticmethod
    def make_driver():
        return RayDriver(MAKERS, timeout_s=60)

    def test_a_lost_party_is_named(self, driver):
        """The last test of the class: bob does not come back."""
        with pytest.raises(ClusterError, match="bob was lost"):
            driver.run({"alice": _wait_for_bob, "bob": _dies, "carol": _wait_for_bob})


def test_real_delay_is_injected(ray_cluster):
    """Alice waits for two one-way messages, one after the other, of 0.1 s each."""
    driver = RayDriver(MAKERS, Link(latency_s=0.1), timeout_s=60)
    programs = {"alice": functools.partial(_alice, n=1), "bob": functools.partial(_bob, n=1)}
    _, trace = driver.run({**programs, "carol": _carol})
    driver.close()
    assert trace.parties["alice"].seconds >= 0.2  # a lower bound that no load can break


def test_what_making_a_state_raises_is_told(ray_cluster):
    with pytest.raises(DataError, match="no such folder"):
        RayDriver({"alice": _cannot_start, "bob": MAKERS["bob"]})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:port"])
def test_a_dead_address_is_one_clear_line(address):
    with pytest.raises(ClusterError, match=r"ray_address|no Ray cluster answers"), cluster(address):
        pass


def _cannot_start():
    raise DataError("no such folder")


def _dies(state):
    os._exit(1)
    yield
