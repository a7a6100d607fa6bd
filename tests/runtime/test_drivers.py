"""The contract of a driver: the same party programs give the same results under each of them."""

import functools
import itertools
import os
import re
import sys
import threading

import numpy as np
import pytest
import ray
from ray import cloudpickle

from primia_jax.core.identity import KEY_FILE, open_credentials
from primia_jax.errors import ClusterError, DataError, PartyLost, ProtocolError
from primia_jax.runtime import Link, LocalDriver, Locally, Receive, Send, Stage, ray_driver
from primia_jax.runtime.link import Line
from primia_jax.runtime.mailbox import Envelope
from primia_jax.runtime.ray_driver import Placement, RayDriver

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


def _asks(state):
    yield from _ask_carol(1)
    return state, 2


def _refusal(act, actor):
    try:
        return ray.get(act(actor))
    except Exception as error:
        cause = getattr(error, "cause", error)
        return f"{type(cause).__name__}: {cause}"


_FORGED = Envelope(1, "alice", "bob", 0, 1, "numbers", "", 28, 0.0, "")
_ATTACKS = {
    "run": lambda bob: bob.run.remote(b"", "bob", 10**6, Locally(_read), ("bob",), Link()),
    "make": lambda bob: bob.make.remote(bytes(32), "bob", dict),
    "hello": lambda bob: bob.hellos.remote(b""),
    "peers": lambda bob: bob.replace_peers.remote(b"", {}),
    "abort": lambda bob: bob.abort.remote(b"", "bob", 1, "no more"),
    "any function": lambda bob: bob.__ray_call__.remote(lambda host: host._parties["bob"]._state),
    "mail by another name": lambda bob: bob.deliver.remote(bytes(32), _FORGED, 1, np.zeros(9)),
}


def _attacks_bob(state):
    """What carol's own process can do with the handles that it was given."""
    import gc

    from primia_jax.runtime.ray_party import PartyShell

    shell = next(o for o in gc.get_objects() if isinstance(o, PartyShell))
    bob = shell.peers["bob"].actor
    return state, {name: _refusal(act, bob) for name, act in _ATTACKS.items()}


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


def _divides(state):
    return state, 1 / 0
    yield


def _fails_without_a_name(state):
    raise DataError("the images are gone")
    yield


def _reads_bob(state):
    yield Receive("bob")
    return state, None


def _staged_alice(state):
    yield Stage("asking")
    yield Send("bob", {"x": np.zeros(100, np.uint8)}, "question | in the clear")
    yield Send(("bob", "carol"), np.zeros(10), "news")
    yield Stage("hearing")
    yield Receive("bob")
    return state, None


def _staged_bob(state):
    yield Stage("answering")
    yield Receive("alice")
    yield Receive("alice")
    yield Send("alice", np.zeros(7, np.uint8), "answer")
    return state, None


def _staged_carol(state):
    yield Receive("alice")
    return state, None


STAGED = {"alice": _staged_alice, "bob": _staged_bob, "carol": _staged_carol}


def _sends_too_much(state):
    yield Send("bob", np.zeros(1))
    raise DataError("alice stops here")


def _reads_later(state):
    yield Receive("carol")
    return state, None


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


def _names_no_stage(state):
    yield Stage(3)
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
        assert list(reports) == list(trace.parties) == list(PARTIES)
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

    def test_left_over_messages_of_a_failed_run_are_forgotten(self, driver):
        with pytest.raises(DataError, match="alice stops here"):
            driver.run({"alice": _sends_too_much, "bob": _reads_later, "carol": _wait_for_bob})
        self.test_messages_keep_their_order_and_states_go_on(driver)

    def test_messages_and_stages_are_recorded(self, driver):
        _, trace = driver.run(STAGED)
        found = {(m.sender, m.receiver, m.label, m.n_bytes, m.stage) for m in trace.messages}
        assert len(trace.messages) == 4 and found == {
            ("alice", "bob", "question | in the clear", 100, "asking"),
            ("alice", "bob", "news", 80, "asking"),
            ("alice", "carol", "news", 80, "asking"),
            ("bob", "alice", "answer", 7, "answering"),
        }
        to_bob = [m.label for m in trace.messages if (m.sender, m.receiver) == ("alice", "bob")]
        assert to_bob == ["question | in the clear", "news"]
        assert all(m.sent_s <= m.arrives_s for m in trace.messages)

    def test_costs_by_stage_add_up(self, driver):
        _, trace = driver.run(STAGED)
        table = trace.by_stage()
        assert set(table) == {"", "asking", "hearing", "answering"}
        assert table["asking"]["alice"]["bytes_sent"] == 260
        assert table["asking"]["alice"]["messages"] == 3
        assert table["asking"]["bob"]["bytes_received"] == 180
        assert table["answering"]["alice"]["bytes_received"] == 7
        for party, share in trace.parties.items():
            rows = [row[party] for row in table.values()]
            assert sum(row["bytes_sent"] for row in rows) == share.bytes_sent
            assert sum(row["messages"] for row in rows) == share.messages_sent
            seconds = sum(row["seconds"] for row in rows)
            assert seconds == pytest.approx(share.compute_seconds, abs=1e-6)

    def test_spans_of_a_party_lie_one_after_another(self, driver):
        _, trace = driver.run(STAGED)
        for party in PARTIES:
            spans = [span for span in trace.spans if span.party == party]
            assert spans and spans[0].start_s >= 0
            for before, after in itertools.pairwise(spans):
                assert after.start_s >= before.end_s - 1e-9

    def test_an_error_names_its_party(self, driver):
        with pytest.raises(DataError, match="carol: the images are gone"):
            driver.run(
                {"alice": _wait_for_bob, "bob": _reads_later, "carol": _fails_without_a_name}
            )
        with pytest.raises(ZeroDivisionError) as caught:
            driver.run({"alice": _wait_for_bob, "bob": _divides, "carol": _wait_for_bob})
        assert "raised in the program of party 'bob'" in caught.value.__notes__

    def test_other_links_join_the_same_parties(self, driver):
        link, before = Link(latency_s=0.01, bandwidth_bps=1e5), self._states(driver)
        _, trace = driver.with_link(link).run(
            {
                "alice": functools.partial(_alice, n=3),
                "bob": functools.partial(_bob, n=3),
                "carol": _carol,
            }
        )
        assert [a - b for a, b in zip(self._states(driver).values(), before.values())] == [
            *(1, 10, 100)
        ]
        # No driver lets a message arrive before its line does, in its turn.
        lines = {}
        for m in trace.messages:
            ends = (m.sender, m.receiver)
            line = lines.setdefault(ends, Line(link, *ends))
            assert m.arrives_s >= line.arrival(m.sent_s, m.n_bytes) - 1e-9
        # Three messages of 28 bytes on one line, and one of 8 back.
        assert trace.parties["alice"].seconds >= (3 * 28 + 8) * 8e-5 + 0.02

    @pytest.mark.parametrize(
        ("program", "words"),
        [
            (_forgets_yield_from, "yield from"),
            (_sends_text, "must be an array"),
            (_sends_none, "must be an array"),
            (_writes_to_nobody, "dave"),
            (_names_no_stage, "named a stage"),
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


class TestSharedRayDriver(DriverContract):
    """Whether parties share an actor or not, the programs and the trace are the same."""

    @staticmethod
    def make_driver():
        return RayDriver(MAKERS, timeout_s=60, together=[("alice", "bob")])

    def test_a_lost_process_is_all_its_parties(self, driver):
        """The last test of the class: alice goes with bob; both can be started again, once."""
        with pytest.raises(PartyLost, match=r"(alice|bob) was lost") as caught:
            driver.run({"bob": _dies, "carol": _reads_bob})
        assert set(caught.value.parties) == {"alice", "bob"}
        driver.run({"carol": Locally(_nothing)})
        assert driver.revive("bob", 60)
        assert driver.revive("alice", 60)
        reports, _ = driver.run({"alice": Locally(_read), "bob": Locally(_read)})
        assert reports == {"alice": 0, "bob": 1}


class TestSealedRayDriver(DriverContract):
    """Whether messages travel in the open or sealed, the programs and the trace are the same."""

    @staticmethod
    def make_driver():
        return RayDriver(MAKERS, timeout_s=60, sealed=True)

    def test_an_injected_frame_is_refused(self, driver):
        """One claims to be alice's first of the next run; by her stamp it gets into the mailbox."""
        run = next(driver._runs) + 1
        envelope = Envelope(run, "alice", "bob", 0, 1, "numbers", "", 28, 0.0, "")
        stamp = driver._stamp("alice", "bob")
        ray.get(driver.actors["bob"].deliver.remote(stamp, envelope, 1000, np.zeros(100, np.uint8)))
        with pytest.raises(ProtocolError, match=r"alice"):
            driver.run({"alice": _announce, "bob": _hear, "carol": _hear})
        self.test_messages_keep_their_order_and_states_go_on(driver)

    @pytest.mark.parametrize("caller", ("operator", "peer"))
    def test_a_handle_delivers_mail_and_nothing_else(self, driver, caller):
        """Old code ran the programs of whoever held a handle, and gave out the state by them."""
        attacks = dict(_ATTACKS)
        if caller == "operator":
            refusals = {name: _refusal(act, driver.actors["bob"]) for name, act in attacks.items()}
        else:
            refusals = driver.run({"carol": Locally(_attacks_bob)})[0]["carol"]
        assert refusals.keys() == attacks.keys()
        for name, text in refusals.items():
            assert text.startswith("ProtocolError: "), (name, text)
        self.test_messages_keep_their_order_and_states_go_on(driver)

    def test_a_party_that_died_agrees_on_new_keys(self):
        """Old code could not start a party again whose messages were sealed."""
        driver = RayDriver(MAKERS, timeout_s=60, sealed=True)
        try:
            programs = {
                "alice": functools.partial(_alice, n=1),
                "bob": functools.partial(_bob, n=1),
            }
            driver.run({**programs, "carol": _carol})
            ray.kill(driver.actors["bob"])
            ray.kill(driver.actors["carol"])
            with pytest.raises(PartyLost):
                driver.run({**programs, "carol": _carol})
            assert driver.revive("carol", 60.0)
            assert driver.run({"alice": _asks, "carol": _carol})[0]["alice"] == 2  # without bob
            assert driver.revive("bob", 60.0)
            assert driver.run({**programs, "carol": _carol})[0]["alice"] == 0
        finally:
            driver.close()


def test_a_driver_carries_the_agreement_of_parties_that_know_each_other(ray_cluster, tmp_path):
    """They keep their keys in their own folders; who comes back with another key is refused."""

    def opened():
        return {
            name: functools.partial(open_credentials, tmp_path / name, name, bytes(32))
            for name in ("alice", "bob")
        }

    makers = {name: MAKERS[name] for name in ("alice", "bob")}
    for _ in range(2):
        driver = RayDriver(makers, timeout_s=60, sealed=True, credentials=opened())
        try:
            assert driver.run({"bob": Locally(_read)})[0] == {"bob": 1}
        finally:
            driver.close()
    (tmp_path / "bob" / KEY_FILE).unlink()
    with pytest.raises(ProtocolError, match="alice refuses bob: its identity key has") as caught:
        RayDriver(makers, timeout_s=60, sealed=True, credentials=opened())
    assert "\n" not in str(caught.value)


def test_a_killed_party_is_named_and_a_fresh_driver_works(ray_cluster):
    """With the default timeout of an hour: that the test ends shows that nobody waits it out."""
    driver = RayDriver(MAKERS)
    timer = threading.Timer(0.5, ray.kill, [driver.actors["carol"]])
    timer.start()
    with pytest.raises(ClusterError, match="carol was lost") as caught:
        driver.run({"alice": _wait_for_bob, "bob": _reads_later, "carol": _wait_for_bob})
    assert "\n" not in str(caught.value)
    timer.join()
    with pytest.raises(ClusterError, match="carol was lost"):  # nor does it come back
        driver.run(STAGED)
    driver.close()
    fresh = RayDriver({name: MAKERS[name] for name in ("alice", "bob")})
    reports, _ = fresh.run({"alice": Locally(_read), "bob": Locally(_read)})
    fresh.close()
    assert reports == {"alice": 0, "bob": 1}


def test_who_has_no_node_yet_is_not_waited_for(ray_cluster, monkeypatch):
    """Unless nobody has one: that is a mistake."""
    place = {"bob": Placement(resources=(("bob", 0.001),))}
    told = []
    driver = RayDriver(
        MAKERS, placements=place, later=("alice", "bob"), patience_s=0.5, tell=told.append
    )
    try:
        assert told == ["waiting for bob, 0.5 s at most"]
        remedy = "start a node with --resources='{\"bob\": 1}'"
        assert driver.missing == {"bob": f"no node has the resource bob; {remedy}"}
        reports, _ = driver.run({"alice": Locally(_read), "carol": Locally(_read)})
        assert reports == {"alice": 0, "carol": 2}
        assert not driver.revive("bob") and set(driver.peak_bytes()) == {"alice", "carol"}
        assert driver.missing == {"bob": f"no node has the resource bob; {remedy}"}
        monkeypatch.setattr(ray_driver, "nowhere", lambda place: "")  # as if a full node had come
        assert not driver.revive("bob")
        assert "waits for CPUs or GPUs" in driver.missing["bob"]
    finally:
        driver.close()
    with pytest.raises(ClusterError, match="start a node with"):
        RayDriver(MAKERS, placements=place, later=("bob",))


def _dies_once(flag):
    if not flag.exists():
        flag.touch()
        os._exit(1)
    return 7


@pytest.mark.parametrize("together", [(), [("carol", "dave")]])
def test_who_dies_while_it_starts_can_come_later(together, ray_cluster, tmp_path):
    dies = functools.partial(_dies_once, tmp_path / "flag")
    makers = {**MAKERS, "carol": dies, "dave": MAKERS["alice"]}
    driver = RayDriver(makers, later=("bob", "carol", "dave"), timeout_s=60, together=together)
    try:
        assert set(driver.missing) == ({"carol", "dave"} if together else {"carol"})
        assert "carol was lost" in driver.missing["carol"]
        assert driver.run({"bob": Locally(_read)})[0] == {"bob": 1}
        assert driver.revive("carol", 60.0) and driver.missing == {}
        assert driver.run({"carol": Locally(_read)})[0] == {"carol": 7}
        programs = {"alice": functools.partial(_alice, n=1), "bob": functools.partial(_bob, n=1)}
        driver.run({**programs, "carol": _carol})  # everybody reaches it
    finally:
        driver.close()


def _fails_to_come(flag):
    if flag.exists():
        raise OSError("no such folder")
    return _dies_once(flag)


def test_what_keeps_a_late_party_is_one_line(ray_cluster, tmp_path):
    makers = {**MAKERS, "carol": functools.partial(_fails_to_come, tmp_path / "flag")}
    driver = RayDriver(makers, later=("carol",), timeout_s=60)
    try:
        assert set(driver.missing) == {"carol"}
        with pytest.raises(ClusterError, match=r"^carol cannot start: OSError: no such folder$"):
            driver.revive("carol", 60.0)
    finally:
        driver.close()


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


def test_of_parties_that_share_an_actor_the_right_one_is_named(ray_cluster):
    with pytest.raises(DataError, match=r"bob: no such folder"):
        RayDriver({"alice": MAKERS["alice"], "bob": _cannot_start}, together=[("alice", "bob")])


@pytest.mark.parametrize(
    ("place", "remedy"),
    (
        (Placement(num_cpus=1000.0), "lower config.runtime.cpus_per_hospital"),
        (Placement(num_gpus=1000.0), "lower config.runtime.gpus_per_hospital"),
        (Placement(resources=(("bob", 0.001),)), r"""start a node with --resources='{"bob": 1}'"""),
    ),
)
def test_what_no_node_offers_is_not_waited_for(place, remedy, ray_cluster):
    with pytest.raises(ClusterError, match=re.escape(remedy)):
        RayDriver(MAKERS, placements={"bob": place})


@pytest.mark.parametrize("driver", (LocalDriver, RayDriver))
def test_all_parties_that_cannot_start_are_named(driver, ray_cluster):
    makers = {n: functools.partial(_cannot_start, f"{n}: ") for n in ("alice", "bob")}
    with pytest.raises(DataError) as caught:
        driver({**makers, "carol": MAKERS["carol"]})
    assert {"alice: no such folder", "bob: no such folder"} == set(str(caught.value).split("; "))


def _cannot_start(whose=""):
    raise DataError(f"{whose}no such folder")


def _dies(state):
    os._exit(1)
    yield
