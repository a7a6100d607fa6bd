"""Parties that never send: who goes on without them, when, and who is told."""

import functools
import os
import sys
import threading
import time

import numpy as np
import pytest
import ray
from ray import cloudpickle

from primia_jax.errors import (
    ClusterError,
    PartyLost,
    ProtocolError,
    StorageError,
    TrainingError,
)
from primia_jax.runtime import (
    MISSING,
    Deadline,
    Delay,
    Link,
    LocalDriver,
    Locally,
    Receive,
    Send,
    Stage,
    Vanish,
    replay,
    run_local,
)
from primia_jax.runtime.ray_driver import RayDriver

NAMES = ("alice", "bob", "carol")
MAKERS = {name: functools.partial(int, i) for i, name in enumerate(NAMES)}
SOME = ("bob", "carol")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import test modules


def asks(state, patience=None, rounds=1):
    """Alice: the messages of bob and carol in each round, None for those that are missing.

    She writes back to those only that she heard.
    """
    got, there = [], SOME
    for number in range(rounds):
        yield Stage(f"round {number}")
        yield Deadline(patience)
        for name in SOME:
            message = yield Receive(name, optional=True)
            got.append(None if message is MISSING else int(message))
            if message is MISSING:
                there = tuple(other for other in there if other != name)
        yield Send(there, np.asarray(number))
    return state + 1, got


def answers(state, value, rounds=1):
    for number in range(rounds):
        yield Stage(f"round {number}")
        yield Send("alice", np.asarray(value + number))
        yield Receive("alice")
    return state + 10, value


def raises(state):
    raise TrainingError("the images are gone")
    yield


def disk_is_full(state):
    raise StorageError("the disk is full")
    yield


def breaks(state):
    return state, 1 / 0
    yield


def dies(state):
    os._exit(1)
    yield


def sleeps(state, seconds):
    """Computes for a while; the state tells how often it came to an end."""
    time.sleep(seconds)
    yield Send("alice", np.asarray(3))
    yield Receive("alice")
    return state + 100, None


def needs_carol(state):
    yield Send("alice", np.asarray(1))
    yield Receive("carol")
    return state, None


def programs(**changes):
    bob, carol = (functools.partial(answers, value=v) for v in (1, 2))
    return {"alice": asks, "bob": bob, "carol": carol, **changes}


def states(driver):
    return driver.run(dict.fromkeys(NAMES, Locally(lambda state: (state, state))))[0]


@pytest.fixture(scope="class")
def driver(request, ray_cluster):
    driver = request.cls.make_driver()
    yield driver
    driver.close()


class MissingContract:
    """Inherited by each driver's tests."""

    def test_nobody_is_missing(self, driver):
        before = states(driver)
        reports, trace = driver.run(programs(), optional=SOME)
        assert reports == {"alice": [1, 2], "bob": 1, "carol": 2} and trace.lost == {}
        assert [states(driver)[n] - before[n] for n in NAMES] == [1, 10, 10]

    def test_one_that_raises_is_left_out_with_its_reason(self, driver):
        before = states(driver)
        reports, trace = driver.run(programs(bob=raises), optional=SOME)
        assert reports == {"alice": [None, 2], "carol": 2}
        assert list(trace.lost) == ["bob"] and "bob: the images are gone" in trace.lost["bob"]
        assert [states(driver)[n] - before[n] for n in NAMES] == [1, 0, 10]

    def test_without_leave_it_ends_the_run(self, driver):
        before = states(driver)
        with pytest.raises(TrainingError, match="bob: the images are gone"):
            driver.run(programs(bob=raises), optional=("carol",))
        assert states(driver) == before

    def test_what_its_user_must_hear_of_ends_the_run(self, driver):
        """A full disk, a spent budget: nobody is left out silently for that."""
        before = states(driver)
        with pytest.raises(StorageError, match="bob: the disk is full"):
            driver.run(programs(bob=disk_is_full), optional=SOME)
        assert states(driver) == before

    def test_a_mistake_in_a_program_always_ends_the_run(self, driver):
        with pytest.raises(ZeroDivisionError):
            driver.run(programs(bob=breaks), optional=SOME)

    def test_who_needs_a_lost_party_is_lost_too(self, driver):
        reports, trace = driver.run(programs(bob=needs_carol, carol=raises), optional=SOME)
        assert reports == {"alice": [1, None]} and set(trace.lost) == set(SOME)
        assert "carol was lost" in trace.lost["bob"]

    def test_who_is_needed_and_lost_ends_the_run(self, driver):
        """Alice may not be missing; she asks for carol without leave to do without."""
        with pytest.raises(ClusterError, match=r"carol was lost.*the images are gone"):
            driver.run(
                {"alice": _needs_carol_only, "bob": Locally(_same), "carol": raises},
                optional=SOME,
            )

    def test_everybody_is_missing(self, driver):
        reports, trace = driver.run(programs(bob=raises, carol=raises), optional=SOME)
        assert reports == {"alice": [None, None]} and set(trace.lost) == set(SOME)

    def test_a_failure_tells_who_was_lost_before(self, driver):
        def gives_up(state):
            assert (yield Receive("bob", optional=True)) is MISSING
            raise ProtocolError("too few are left")

        with pytest.raises(
            PartyLost, match=r"too few are left \(lost before: bob: .*gone"
        ) as found:
            driver.run({"alice": gives_up, "bob": raises, "carol": Locally(_same)}, optional=SOME)
        assert found.value.parties == ("bob",)  # so that it can be started again

    def test_a_deadline_must_be_a_time(self, driver):
        with pytest.raises(ProtocolError, match="deadline of -1"):
            driver.run(programs(alice=functools.partial(asks, patience=-1)), optional=SOME)


def _same(state):
    return state, None


def _needs_carol_only(state):
    yield Receive("carol")
    return state, None


class TestLocalMissing(MissingContract):
    @staticmethod
    def make_driver():
        return LocalDriver(MAKERS)

    @pytest.mark.parametrize("event", range(4))
    def test_a_party_vanishes_before_a_chosen_event(self, driver, event):
        """Bob sends and waits twice, and ends: missing from then on."""
        two = {"rounds": 2}
        run = programs(
            alice=functools.partial(asks, **two),
            bob=functools.partial(answers, value=1, **two),
            carol=functools.partial(answers, value=2, **two),
        )
        reports, trace = driver.with_faults(Vanish("bob", event)).run(run, optional=SOME)
        bobs = [1, 2][: (event + 1) // 2]
        assert reports["alice"][::2] == bobs + [None] * (2 - len(bobs))
        assert reports["alice"][1::2] == [2, 3] and trace.lost == {"bob": "it vanished"}

    def test_a_party_vanishes_in_a_chosen_stage(self, driver):
        run = programs(
            alice=functools.partial(asks, rounds=2),
            bob=functools.partial(answers, value=1, rounds=2),
            carol=functools.partial(answers, value=2, rounds=2),
        )
        fault = Vanish("carol", stage="round 1")
        reports, _ = driver.with_faults(fault).run(run, optional=SOME)
        assert reports["alice"] == [1, 2, 2, None]

    def test_one_that_vanishes_at_its_end_keeps_its_old_state(self, driver):
        before = states(driver)
        reports, trace = driver.with_faults(Vanish("bob", 2)).run(programs(), optional=SOME)
        assert reports["alice"] == [1, 2] and set(trace.lost) == {"bob"}
        assert states(driver)["bob"] == before["bob"]

    def test_one_that_vanishes_and_may_not_ends_the_run(self, driver):
        with pytest.raises(ClusterError, match="bob was lost: it vanished"):
            driver.with_faults(Vanish("bob")).run(programs())


class TestRayMissing(MissingContract):
    @staticmethod
    def make_driver():
        return RayDriver(MAKERS, timeout_s=60)

    def test_who_does_not_come_in_time_is_left_out_and_can_come_again(self, driver):
        """Its late messages and its late end change nothing; the next run has it again."""
        before = states(driver)
        slow = programs(
            alice=functools.partial(asks, patience=0.2), bob=functools.partial(sleeps, seconds=2)
        )
        reports, trace = driver.run(slow, optional=SOME)
        assert reports == {"alice": [None, 2], "carol": 2}
        assert trace.lost == {"bob": "it did not come in time"}
        assert states(driver)["bob"] == before["bob"]
        assert driver.run(programs(), optional=SOME)[0]["alice"] == [1, 2]

    def test_a_message_that_the_link_delays_beyond_the_deadline_is_missing(self, driver):
        slow = driver.with_link(Link(latency_s=0.5))
        hasty = programs(alice=functools.partial(asks, patience=0.1))
        reports, trace = slow.run(hasty, optional=SOME)
        assert reports == {"alice": [None, None]} and set(trace.lost) == set(SOME)

    def test_z_a_dead_actor_is_missing_at_once(self, driver):
        """The last test of the class; nobody waits out the timeout of a minute."""
        timer = threading.Timer(0.3, ray.kill, [driver.actors["carol"]])
        timer.start()
        reports, trace = driver.run(
            programs(bob=dies, carol=functools.partial(sleeps, seconds=30)), optional=SOME
        )
        timer.join()
        assert reports == {"alice": [None, None]}
        assert set(trace.lost) == set(SOME) and "bob was lost" in trace.lost["bob"]
        reports, trace = driver.run(programs(), optional=SOME)  # nor do they come back
        assert reports == {"alice": [None, None]} and set(trace.lost) == set(SOME)


class TestVirtualDeadlines:
    """Of the driver of one process: delays beside which computing is nothing."""

    def _run(self, *faults, patience=100.0, rounds=1, link=Link()):  # noqa: B008
        parties = {
            "alice": asks(0, patience, rounds),
            "bob": answers(0, 1, rounds),
            "carol": answers(0, 2, rounds),
        }
        results, trace = run_local(parties, link, SOME, faults)
        return results["alice"][1], trace

    def test_late_by_a_delayed_line(self):
        got, trace = self._run(Delay("bob", "alice", 1e4))
        assert got == [None, 2] and trace.lost == {"bob": "it did not come in time"}
        assert trace.parties["alice"].seconds == pytest.approx(100.0, abs=5)

    def test_in_time(self):
        got, trace = self._run(Delay("bob", "alice", 50.0))
        assert got == [1, 2] and not trace.lost
        assert trace.parties["alice"].seconds == pytest.approx(50.0, abs=5)

    def test_a_delay_of_one_stage_only(self):
        got, _ = self._run(Delay("bob", "alice", 1e4, "round 1"), rounds=2)
        assert got == [1, 2, None, 3]

    def test_late_on_a_slow_link_without_any_fault(self):
        got, trace = self._run(link=Link(latency_s=1e4))
        assert got == [None, None] and set(trace.lost) == set(SOME)
        assert trace.recording == ()  # another link would have other gaps

    def test_who_was_missed_once_is_missed_for_good(self):
        """Though its message of the second round would be in time."""
        got, _ = self._run(Delay("bob", "alice", 1e4, "round 0"), rounds=2)
        assert got == [None, 2, None, 3]

    def test_all_are_waited_for_until_the_same_deadline(self):
        """Not for one patience after the other."""
        _, trace = self._run(Delay("bob", "alice", 1e4), Delay("carol", "alice", 1e4))
        assert trace.parties["alice"].seconds == pytest.approx(100.0, abs=5)

    def test_without_a_deadline_the_living_are_waited_for(self):
        got, trace = self._run(Delay("bob", "alice", 1e6), patience=None)
        assert got == [1, 2] and trace.parties["alice"].seconds > 1e5

    def test_the_earliest_deadline_passes_first(self):
        """Bob gives alice up after 10 s and tells carol, who waits for him for 1,000."""

        def bob():
            yield Deadline(10.0)
            assert (yield Receive("alice", optional=True)) is MISSING
            yield Send("carol", np.zeros(1))

        def carol():
            yield Deadline(1000.0)
            return (yield Receive("bob", optional=True)) is not MISSING

        def alice():
            yield Receive("carol")

        parties = {"carol": carol(), "bob": bob(), "alice": alice()}
        results, trace = run_local(parties, optional=("alice",))
        assert results["carol"] and set(trace.lost) == {"alice"}
        assert trace.parties["carol"].seconds == pytest.approx(10.0, abs=5)

    def test_asking_again_for_one_that_was_missed_is_a_mistake(self):
        def alice():
            yield Deadline(1.0)
            yield Receive("bob", optional=True)
            yield Receive("bob")

        def bob():
            yield Receive("alice")

        with pytest.raises(ProtocolError, match="whom it missed before"):
            run_local({"alice": alice(), "bob": bob()}, optional=("bob",))

    def test_a_run_with_faults_is_not_replayed(self):
        _, trace = self._run(Delay("bob", "alice", 1.0))
        with pytest.raises(ProtocolError, match="nothing to replay"):
            replay(trace.recording, Link())

    def test_a_deadlock_is_still_one(self):
        def waits(name):
            yield Receive(name)

        with pytest.raises(ProtocolError, match="deadlock: alice waits for bob"):
            run_local({"alice": waits("bob"), "bob": waits("alice")}, optional=SOME)
