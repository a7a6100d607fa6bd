"""Secure sums over hospitals that may vanish at any stage: exact, or given up with nothing told."""

import dataclasses
import functools
import itertools
import os
import sys

import jax
import jax.numpy as jnp
import masked_sums
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_sums import LENGTH, SETTINGS, inputs, is_to_h1, keys_of, names_of, plan_of, run
from ray import cloudpickle
from scipy import stats

from primia_jax.config import SecureAggregationConfig
from primia_jax.errors import PartyLost, ProtocolError
from primia_jax.federated import secagg
from primia_jax.federated.aggregation import OWNER, Contribution, masked
from primia_jax.mpc import prg, shamir
from primia_jax.runtime import (
    Delay,
    Receive,
    Send,
    Stage,
    Vanish,
    count,
    ray_driver,
    run_local,
)

cloudpickle.register_pickle_by_value(masked_sums)
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import test modules

STAYS = len(secagg.STAGES)


def faults_of(fates):
    """A hospital's fate: the stage before whose message it vanishes, or STAYS."""
    return [
        Vanish(f"h{i}", stage=secagg.STAGES[fate]) for i, fate in enumerate(fates) if fate != STAYS
    ]


def survives(n, fates):
    """True if every key can be opened that must be, by the protocol's own rule."""
    near, t = plan_of(n).neighbourhoods(), plan_of(n).graph.threshold
    answered = [{i for i, fate in enumerate(fates) if fate > stage} for stage in range(STAYS)]
    advertised, shared, *later = answered
    must = ((advertised, advertised), *((there, shared) for there in (shared, *later)))
    enough = all(len(there & set(near[i])) >= t for there, keys in must for i in keys)
    return enough and bool(shared)


def check(n, fates, seed=0, kind=np.uint64):
    """Exactly the sum of those whose masked input came, or an error that names who is missing."""
    words = inputs(n, seed, kind)
    gone = [f"h{i}" for i, fate in enumerate(fates) if fate != STAYS]
    if not survives(n, fates):
        with pytest.raises(PartyLost, match="given up, nothing of it was opened") as caught:
            run(n, words, faults_of(fates))
        assert any(name in str(caught.value) for name in gone)
        return False
    result, trace = run(n, words, faults_of(fates))
    in_sum = [i for i, fate in enumerate(fates) if fate > secagg.STAGES.index(secagg.MASK)]
    np.testing.assert_array_equal(result.words, sum(words[i] for i in in_sum))
    assert result.took_part == tuple(f"h{i}" for i in in_sum)
    assert result.present == tuple(f"h{i}" for i, fate in enumerate(fates) if fate == STAYS)
    assert set(result.missing) == set(gone) == set(trace.lost)
    for i, fate in enumerate(fates):
        if fate != STAYS:
            assert result.missing[f"h{i}"] == secagg.STAGES[fate]
    return True


class TestDropouts:
    def test_every_fate_of_three(self):
        """All of three must stay for their keys to be opened."""
        for fates in itertools.product(range(STAYS + 1), repeat=3):
            assert check(3, fates) == (min(fates) == STAYS)

    @pytest.mark.parametrize("stage", range(STAYS))
    def test_every_set_of_five_at_one_stage(self, stage):
        for size in range(6):
            for gone in itertools.combinations(range(5), size):
                kept = check(5, [stage if i in gone else STAYS for i in range(5)])
                assert kept == (size <= 1)  # four of the five are needed

    @pytest.mark.slow
    def test_every_fate_of_four(self):
        kept = [check(4, fates) for fates in itertools.product(range(STAYS + 1), repeat=4)]
        assert any(kept) and not all(kept)

    @settings(max_examples=40, deadline=None)
    @given(
        data=st.data(),
        n=st.sampled_from([5, 6, 10, 20]),
        seed=st.integers(0, 99),
        kind=st.sampled_from([np.uint32, np.uint64]),
    )
    def test_sampled_fates(self, data, n, seed, kind):
        """On sparse graphs too, from ten on."""
        drawn = st.sampled_from([STAYS] * 4 + list(range(STAYS)))
        check(n, [data.draw(drawn) for _ in range(n)], seed, kind)

    @pytest.mark.parametrize("share", [0.0, 0.3])
    def test_a_hundred_hospitals(self, share):
        rng = np.random.default_rng(int(10 * share))
        fates = np.full(100, STAYS)
        gone = rng.choice(100, int(100 * share), replace=False)
        fates[gone] = rng.integers(0, STAYS, len(gone))
        assert check(100, fates.tolist())

    def test_too_many_of_a_hundred(self):
        assert not check(100, [2] * 80 + [STAYS] * 20)

    @pytest.mark.slow
    def test_three_hundred_hospitals(self):
        """Their graph is sparse: 198 neighbours."""
        assert plan_of(300).graph.k == 198
        fates = np.full(300, STAYS)
        fates[np.random.default_rng(1).choice(300, 90, replace=False)] = 2
        assert check(300, fates.tolist())


class TestDeadlines:
    """In virtual time: no load of the machine can move them."""

    def _delayed(self, seconds):
        words = inputs(4)
        delay = Delay("h1", OWNER, seconds, secagg.MASK)
        return words, *run(4, words, [delay])

    def test_a_straggler_is_left_out_and_named(self):
        words, result, trace = self._delayed(1e4)
        np.testing.assert_array_equal(result.words, words[0] + words[2] + words[3])
        assert result.missing == {"h1": secagg.MASK}
        assert trace.lost == {"h1": "it did not come in time"}
        assert 60 <= trace.parties[OWNER].seconds < 1e4

    def test_who_is_slow_but_in_time_is_in_the_sum(self):
        words, result, trace = self._delayed(30.0)
        np.testing.assert_array_equal(result.words, sum(words))
        assert not result.missing and not trace.lost


class TestDemands:
    """Sums that must be over more hospitals than the threshold asks for."""

    def _plan(self, **demands):
        return dataclasses.replace(plan_of(5), **demands)

    def _opens_nothing(self, monkeypatch):
        monkeypatch.setattr(secagg, "_opened", lambda *_: pytest.fail("keys were opened"))

    @pytest.mark.parametrize("stage", secagg.STAGES)
    def test_a_complete_sum_ends_where_somebody_is_late(self, stage, monkeypatch):
        """Those that are left would open a sum with too little noise."""
        self._opens_nothing(monkeypatch)
        requests = []

        def listen(name, event):
            if isinstance(event, Send) and event.label.startswith("who is in the sum"):
                requests.append(event)

        late = [Delay(name, OWNER, 200.0, stage) for name in ("h1", "h3")]
        with pytest.raises(PartyLost, match=r"must be over all; missing: h1 \(secagg") as lost:
            run(5, inputs(5), late, listen, optional=False, plan=self._plan(complete=True))
        assert lost.value.parties == ("h1", "h3")
        assert bool(requests) == (stage in (secagg.AGREE, secagg.UNMASK))

    def test_a_complete_sum_of_all_is_opened(self):
        words = inputs(5)
        result, _ = run(5, words, plan=self._plan(complete=True))
        np.testing.assert_array_equal(result.words, sum(words))

    @pytest.mark.parametrize("fate", range(3))
    def test_below_the_quorum_nothing_is_opened(self, fate, monkeypatch):
        self._opens_nothing(monkeypatch)
        fates = [STAYS, fate, STAYS, STAYS, STAYS]
        with pytest.raises(PartyLost, match=r"over 4 hospitals, 5 must be .*missing: h1 \("):
            run(5, inputs(5), faults_of(fates), plan=self._plan(quorum=5))

    def test_at_the_quorum_the_sum_goes_on(self):
        """One whose input came is in the sum, even if it vanishes after that."""
        words = inputs(6)
        plan = dataclasses.replace(plan_of(6), quorum=5)
        for later in (secagg.AGREE, secagg.UNMASK):
            gone = [Vanish("h1", stage=secagg.MASK), Vanish("h3", stage=later)]
            result, _ = run(6, words, gone, plan=plan)
            np.testing.assert_array_equal(result.words, sum(words) - words[1])


class TestSecrecy:
    def _view(self, words, fates, monkeypatch):
        """Everything that the owner got: its messages, and the keys that it opened."""
        heard, opened = [], []
        whole = secagg._opened

        def keeping(*arguments):
            opened.append(whole(*arguments))
            return opened[-1]

        monkeypatch.setattr(secagg, "_opened", keeping)
        n = len(words)

        def listen(name, event):
            if isinstance(event, Send) and event.to == OWNER:
                heard.append((name, event.label.split(":")[0], event.message))

        result, _ = run(n, words, faults_of(fates), listen)
        masked_inputs = {
            name: message.copy() for name, label, message in heard if "masked" in label
        }
        return result, heard, masked_inputs, *opened[0]

    def _uniform(self, words):
        columns = words.view(np.uint8).reshape(len(words), -1).T
        for bytes_ in (columns[0], columns[len(columns) // 2], columns[-1]):
            assert stats.chisquare(np.bincount(bytes_, minlength=256)).pvalue > 1e-6

    @pytest.mark.parametrize("kind", [np.uint32, np.uint64])
    @pytest.mark.parametrize("value", [0, 1 << 30])
    def test_what_the_owner_opens_leaves_every_input_uniform(self, value, kind, monkeypatch):
        """Its own y_i less all masks that it can open is uniform; only their sum is not.

        So its view can be drawn by whoever knows the sum alone: uniform vectors with that sum,
        under masks of keys drawn at random.
        """
        words = [np.full(4000, value + i, kind) for i in range(6)]
        fates = [STAYS, STAYS, 2, STAYS, STAYS, 3]  # one before its input, one after
        result, _, masked_inputs, seeds, keys = self._view(words, fates, monkeypatch)
        assert set(keys) == {2} and set(seeds) == {0, 1, 3, 4, 5}
        left = {}
        for i in seeds:
            self._uniform(masked_inputs[f"h{i}"])
            left[i] = masked_inputs[f"h{i}"] - prg.expand(seeds[i], 4000, words=kind)
        total = sum(left.values())
        assert not np.array_equal(total, result.words)  # the masks towards h2 are still in it
        for i, residue in left.items():
            self._uniform(residue)
            assert not np.any(residue == words[i])
        np.testing.assert_array_equal(result.words, sum(words[1:], words[0]) - words[2])

    def test_no_message_holds_an_input(self, monkeypatch):
        words = [np.full(100, 7 + i, np.uint64) for i in range(4)]
        _, heard, *_ = self._view(words, [STAYS] * 4, monkeypatch)
        labels = {label for _, label, _ in heard}
        assert labels == {
            "fresh public key, in the clear",
            "shares of keys, sealed for their receivers",
            "masked input",
            "signature of who is in the sum",
            "shares of survivors' seeds and dropped hospitals' keys",
        }
        for _, _, message in heard:
            for leaf in jax.tree.leaves(message):
                for own in words:
                    assert own[:4].tobytes() not in np.asarray(leaf).tobytes()

    def test_keys_are_fresh_in_every_sum(self, monkeypatch):
        words = inputs(3)
        views = [self._view(words, [STAYS] * 3, monkeypatch) for _ in range(2)]
        first, second = ({m.tobytes() for _, lab, m in v[1] if "public" in lab} for v in views)
        assert len(first) == len(second) == 3 and not first & second
        for name, masked_input in views[0][2].items():
            assert not np.any(masked_input == views[1][2][name])

    @pytest.mark.parametrize("fates", [[5, 4, 4, 4], [5, 3, 3, 3], [5, 2, 2, 2], [0, 0, 0, 5]])
    def test_a_given_up_sum_opens_no_key(self, fates, monkeypatch):

        def opens(*_):
            raise AssertionError("keys were opened")

        monkeypatch.setattr(secagg, "_opened", opens)
        with pytest.raises(PartyLost, match="given up"):
            run(4, inputs(4), faults_of(fates))


class TestHospitalsThatLie:
    @pytest.mark.parametrize("part", ["seeds", "keys"])
    def test_wrong_shares_are_noticed(self, part):
        """A hospital that lies in the last stage stops the sum, it cannot change it."""

        def tamper(name, event):
            if (
                name == "h0"
                and isinstance(event, Send)
                and event.label.startswith("shares of surv")
            ):
                rows = event.message[part].copy()
                rows[...] ^= 1
                return Send(event.to, {**event.message, part: rows}, event.label)
            return None

        with pytest.raises(PartyLost, match="do not fit together"):
            run(4, inputs(4), faults_of([STAYS, STAYS, STAYS, 2]), tamper)

    def test_one_that_refuses_is_lost_and_the_others_sum(self):
        """A hospital that cannot open its letters drops out of this sum, like any other."""

        def tamper(name, event):
            if is_to_h1(name, event, "shares of neighbours' keys, sealed; who shared keys"):
                message = {**event.message, "rows": np.zeros_like(event.message["rows"])}
                return Send(event.to, message, event.label)
            return None

        words = inputs(4)
        result, trace = run(4, words, tamper=tamper)
        np.testing.assert_array_equal(result.words, words[0] + words[2] + words[3])
        assert "not authentic" in trace.lost["h1"]

    @pytest.mark.parametrize(
        ("label", "message", "words"),
        [
            ("fresh public key", np.zeros(31, np.uint8), "public key that is none"),
            ("shares of keys", {"rows": np.zeros(3)}, "table of hospitals that is none"),
            (
                "shares of keys",
                {"hospitals": np.zeros(0, np.uint16), "rows": np.zeros((0, 92), np.uint8)},
                "for others than its neighbours",
            ),
            ("masked input", np.zeros(1, np.uint64), "no vector of 6 words"),
            ("masked input", np.zeros(6, np.uint32), "no vector of 6 words"),
            ("signature of who", np.zeros(63, np.uint8), "no signature of 64 bytes"),
            ("shares of survivors", {"seeds": np.zeros(3)}, "other shares than those due"),
        ],
    )
    def test_what_is_not_due_names_its_sender(self, label, message, words):
        def tamper(name, event):
            if name == "h2" and isinstance(event, Send) and event.label.startswith(label):
                return Send(event.to, message, event.label)
            return None

        with pytest.raises(ProtocolError, match=f"h2 sent.*{words}"):
            run(4, inputs(4), tamper=tamper)


@pytest.mark.parametrize("word_bits", [32, 64])
def test_declared_cost(word_bits):
    """Counted without computing, and the same when it is computed."""
    n, p = 6, 501
    plan, hospitals = plan_of(n), names_of(n)
    narrow = SecureAggregationConfig(word_bits=32, frac_bits=8, clip=100.0, max_samples=999)
    agg = masked(hospitals, OWNER, SETTINGS if word_bits == 64 else narrow, seed=3)

    def parties(vector):
        own = Contribution((vector,), 1, np.zeros(0, np.int64))
        programs = {name: agg.contribute(name, keys_of(n)[name], lambda: own) for name in hospitals}
        return {**programs, OWNER: agg.collect((p,), 0)}

    trace = count(parties, jax.ShapeDtypeStruct((p,), jnp.float32))
    k = plan.graph.k
    for name in hospitals:
        vector = word_bits // 8 * (p + 1)
        sent = 32 + (94 * k + 32) + vector + 64 + 32 * (k + 1)
        assert trace.parties[name].bytes_sent == sent and trace.parties[name].messages_sent == 5
    received = 34 * n + (94 * k + 1) + 1 + 66 * k
    assert trace.parties[OWNER].bytes_sent == n * received
    assert trace.round_trips == 4.5
    _, real = run_local(parties(np.zeros(p, np.float32)))
    assert real.bytes_sent == trace.bytes_sent and real.round_trips == trace.round_trips


def test_a_hospital_without_a_neighbours_keys_drops_out():
    """As after an exchange of keys that the neighbour did not come to."""
    words, rings = inputs(5), dict(keys_of(5))
    short = {peer: key for peer, key in rings["h0"].seal_keys.items() if peer != "h1"}
    rings["h0"] = dataclasses.replace(rings["h0"], seal_keys=short)
    result, trace = run(5, words, keys=rings)
    np.testing.assert_array_equal(result.words, sum(words[1:]))
    assert "h0 has exchanged no keys with h1" in trace.lost["h0"]


def test_shares_below_the_threshold_open_nothing():
    """What the owner would make of t - 1 shares of a seed."""
    seed = prg.new_seed()
    shares = shamir.share(seed[None], np.arange(1, 6), 3)
    assert not np.array_equal(shamir.reconstruct(np.asarray([1, 2]), shares[:2])[0], seed)


def test_programs_wait_for_hospitals_only_optionally():
    """Of the owner's waits none must hang on one hospital."""
    waits = []

    def listen(name, event):
        if name == OWNER and isinstance(event, Receive):
            waits.append(event.optional)

    run(3, inputs(3), tamper=listen)
    assert waits and all(waits)


def _ray_hospital(_, plan, name, keys, value, dies):
    """Contributes `value`; one that dies does so when its masked input is due."""
    steps = secagg.contribute(plan, name, keys, np.full(LENGTH, value, np.uint64))
    message, stage = None, ""
    while True:
        try:
            event = steps.send(message)
        except StopIteration:
            return None, value
        stage = event.label if isinstance(event, Stage) else stage
        if dies and stage == secagg.MASK and isinstance(event, Send):
            os._exit(1)
        message = yield event


def _ray_owner(_, plan):
    result = yield from secagg.collect(plan, LENGTH)
    return None, (result.words.tolist(), result.took_part, result.missing)


@pytest.mark.slow
def test_a_killed_actor_is_left_out_of_a_sum_over_real_actors(ray_cluster):
    """Its process ends in the midst of the sum; the others wait for no deadline."""
    plan, keys, hospitals = plan_of(4), keys_of(4), names_of(4)
    programs = {
        name: functools.partial(
            _ray_hospital, plan=plan, name=name, keys=keys[name], value=10**i, dies=i == 2
        )
        for i, name in enumerate(hospitals)
    }
    programs[OWNER] = functools.partial(_ray_owner, plan=plan)
    parties = dict.fromkeys((*hospitals, OWNER), _nothing)
    driver = ray_driver.RayDriver(parties, timeout_s=120)
    try:
        reports, trace = driver.run(programs, optional=hospitals)
    finally:
        driver.close()
    words, took_part, missing = reports[OWNER]
    assert words == [1011] * LENGTH and took_part == ("h0", "h1", "h3")
    assert missing == {"h2": secagg.MASK} and "h2 was lost" in trace.lost["h2"]
    assert set(reports) == {OWNER, "h0", "h1", "h3"}


def _nothing():
    return None
