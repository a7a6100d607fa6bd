"""Owners that lie: every inconsistent list ends in a refusal before anything is opened.

An adversary here is the model owner with the hospitals that collude with it. It sends each hospital
what it likes, forwards or replays whatever it holds, and knows all that colluders know.
"""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_sums import inputs, keys_of, plan_of, run

from primia_jax.config import SecureAggregationConfig
from primia_jax.errors import ConfigError, ProtocolError
from primia_jax.federated import secagg, secagg_graph
from primia_jax.federated.sealing import SIGNATURE_BYTES
from primia_jax.federated.secagg_lists import View
from primia_jax.federated.secagg_plan import KEY_BYTES, LETTER_BYTES, table, table_rows, to_bits
from primia_jax.runtime import Receive, Send, Vanish

SPARSE = secagg_graph.Graph(14, 6, 5, 1, 0.0, 1.0)


@functools.cache
def sparse_plan():
    """Fourteen hospitals with six neighbours each."""
    return dataclasses.replace(plan_of(14), graph=SPARSE)


class Attack:
    """The programs of honest hospitals, stepped by an owner that sends what it likes.

    Attributes:
      refusals: number of a hospital -> the error with which it ended.
    """

    def __init__(self, plan, keys, colluders=(), roll=lambda i, rows: rows):
        """`roll(i, rows)` may change the fresh keys that hospital i is shown."""
        self.plan, self.keys, self.colluders = plan, keys, frozenset(colluders)
        self.near = [members[1:] for members in plan.neighbourhoods()]
        self.words = inputs(len(plan.hospitals))
        self.refusals, self._steps = {}, {}
        self.honest = [i for i in range(len(plan.hospitals)) if i not in self.colluders]
        names = plan.hospitals
        self.publics, shared = {}, {}
        for i in range(len(names)):
            self._steps[i] = secagg.contribute(plan, names[i], keys[names[i]], self.words[i].copy())
            self.publics[i] = self.send(i, None)
        n, rows = len(names), np.stack(list(self.publics.values()))
        for i in range(n):
            shared[i] = self.send(i, table(range(n), roll(i, rows.copy()), KEY_BYTES))
        shared = {i: message for i, message in shared.items() if message is not None}
        self.letters = {i: table_rows("", m, LETTER_BYTES, n) for i, m in shared.items()}

    def send(self, i, message):
        """What hospital i sends in answer to `message`; None if it refuses."""
        reply = None
        try:
            event = self._steps[i].send(message) if message is not None else next(self._steps[i])
            while not isinstance(event, Receive):
                reply = event.message if isinstance(event, Send) else reply
                event = next(self._steps[i])
        except StopIteration:
            pass
        except ProtocolError as error:
            self.refusals[i] = str(error)
            return None
        return reply

    def masked(self, sharers):
        """The masked inputs and signatures that come where i is told `sharers[i]`."""
        answers = {}
        for i in self.honest:
            senders = [j for j in self.near[i] if j in sharers[i]]
            message = table(senders, [self.letters[j][i] for j in senders], LETTER_BYTES)
            message["sharers"] = to_bits(sharers[i], len(self.plan.hospitals))
            answers[i] = self.send(i, message)
        return {i: answer for i, answer in answers.items() if answer is not None}

    def agreed(self, masked, survivors):
        """The signatures that come where i is told `survivors[i]`."""
        bits = {i: to_bits(survivors[i], len(self.plan.hospitals)) for i in masked}
        answers = {i: self.send(i, bits[i]) for i in masked}
        return {i: answer for i, answer in answers.items() if answer is not None}

    def signature(self, signer, receiver, sharers, survivors):
        """A colluder's signature of whatever `receiver` was told."""
        keys = self.keys[self.plan.hospitals[signer]]
        near = self.near[receiver]
        return View(self.plan, keys, receiver, near, self.publics, sharers, survivors).sign()

    def opened(self, agreed, sharers, survivors):
        """Shares that come at the end: (of seeds, of keys), {whose: {giver: share}}."""
        seeds, keys = {}, {}
        for i in agreed:
            signers = {j: agreed[j] for j in self.near[i] if j in agreed}
            for j in self.colluders.intersection(self.near[i]):
                signers[j] = self.signature(j, i, sharers[i], survivors[i])
            message = table(signers, list(signers.values()), SIGNATURE_BYTES)
            answer = self.send(i, message)
            if answer is None:
                continue
            held = sorted({i, *self.near[i]} & sharers[i])
            alive = [j for j in held if j in survivors[i]]
            gone = [j for j in held if j not in survivors[i]]
            for shares, whose, rows in ((seeds, alive, "seeds"), (keys, gone, "keys")):
                for j, row in zip(whose, answer[rows], strict=True):
                    shares.setdefault(j, {})[i] = row
        return seeds, keys

    def revealed(self, sharers, survivors):
        """The smallest sets of honest hospitals over which the adversary learns a sum.

        Checks on the way that no hospital has both of its keys opened.
        """
        masked = self.masked(sharers)
        agreed = self.agreed(masked, survivors)
        shares = self.opened(agreed, sharers, survivors)
        threshold = self.plan.graph.threshold

        def is_open(kind, i):
            helpers = self.colluders.intersection(self.near[i])
            return len(shares[kind].get(i, {})) + len(helpers) >= threshold

        seeds, keys = ({i for i in self.honest if is_open(kind, i)} for kind in (0, 1))
        assert not seeds & keys
        closed = set(self.honest) - keys

        def masks(i):  # that stay on the input of i
            senders = sharers[i].intersection(self.near[i]) if i in masked else ()
            return {j for j in senders if i in closed and j in closed}

        sets = []
        for i in self.honest:
            members, edge = {i}, [i]
            while edge:
                new = masks(edge.pop()) - members
                members |= new
                edge += new
            cancels = all(j in masks(peer) for j in members for peer in masks(j))
            if cancels and members <= seeds & masked.keys():
                sets.append(frozenset(members))
        return sorted(set(sets), key=sorted)


def everybody(plan, lists):
    """The same list for all, where a single one is given."""
    whole = frozenset(range(len(plan.hospitals)))
    return {i: frozenset(lists.get(i, whole)) for i in range(len(plan.hospitals))}


class TestWhatAnOwnerCanReveal:
    def test_an_honest_owner_reveals_the_sum_over_all(self):
        plan = plan_of(6)
        attack = Attack(plan, keys_of(6))
        lists = everybody(plan, {})
        assert attack.revealed(lists, lists) == [frozenset(range(6))]
        assert not attack.refusals

    @pytest.mark.parametrize("n", [6, 8])
    def test_isolating_a_victim_ends_in_refusals(self, n):
        """One hospital is told few mask partners, which the others are told dropped out."""
        plan = plan_of(n)
        victim, partners = 0, frozenset(range(1, plan.graph.threshold))
        sharers = everybody(plan, {victim: {victim} | partners})
        rest = frozenset(range(n)) - partners
        survivors = {i: sharers[victim] if i in sharers[victim] else rest for i in range(n)}
        attack = Attack(plan, keys_of(n))
        assert attack.revealed(sharers, survivors) == []
        assert len(attack.refusals) == n
        for error in attack.refusals.values():
            assert "they were told different lists" in error or "of its neighbourhood" in error

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_whatever_it_says_a_sum_is_over_enough_honest_hospitals(self, data):
        """Groups of hospitals, at random or along the circle of neighbours, are told anything."""
        dense = data.draw(st.booleans())
        plan, keys = (plan_of(8), keys_of(8)) if dense else (sparse_plan(), keys_of(14))
        n, t, c = len(plan.hospitals), plan.graph.threshold, plan.graph.colluding
        circle = [0]
        if not dense:  # neighbours follow one another
            first = plan.neighbourhoods()
            while len(circle) < n:
                near = [j for j in first[circle[-1]][1:] if j not in circle]
                circle.append(max(near, key=lambda j: len({*first[j]} & {*first[circle[-1]]})))
        else:
            circle = list(range(n))
        colluders = data.draw(st.sets(st.integers(0, n - 1), max_size=1))
        n_groups = data.draw(st.integers(1, 3))
        if data.draw(st.booleans()):
            cuts = sorted(data.draw(st.integers(0, n)) for _ in range(n_groups - 1))
            group = {i: sum(at >= cut for cut in cuts) for at, i in enumerate(circle)}
        else:
            group = {i: data.draw(st.integers(0, n_groups - 1)) for i in range(n)}
        part = st.frozensets(st.integers(0, n - 1), max_size=n // 3)
        whole = frozenset(range(n))
        one = data.draw(st.booleans())  # list of those that shared keys, for all
        absent = [data.draw(part) for _ in range(n_groups)]
        dropped = [data.draw(part) for _ in range(n_groups)]
        sharers = {i: whole - absent[0 if one else group[i]] | {i} for i in range(n)}
        if one:
            sharers = {i: whole - absent[0] for i in range(n)}
        survivors = {i: sharers[i] - dropped[group[i]] for i in range(n)}
        for members in Attack(plan, keys, colluders).revealed(sharers, survivors):
            assert len(members) >= t - c

    @pytest.mark.parametrize("mutation", ["", "signatures", "thresholds"])
    def test_each_check_is_needed(self, mutation, monkeypatch):
        """Without one of them the same lies reveal sums over fewer hospitals, or a single input."""
        plan = plan_of(10)
        t, c = plan.graph.threshold, plan.graph.colluding
        if mutation == "signatures":
            monkeypatch.setattr(View, "check_signed", lambda self, signatures: None)
        if mutation == "thresholds":
            monkeypatch.setattr(View, "_check_enough", lambda self, listed, state: None)
        sizes = [
            len(members)
            for sharers, survivors in (_one_partner(plan), _scattered(plan))
            for members in Attack(plan, keys_of(10), {9}).revealed(sharers, survivors)
        ]
        least = {"": t - c, "signatures": 3, "thresholds": 1}[mutation]
        assert min(sizes, default=t - c) == least


def _one_partner(plan):
    """Hospital 0 is told that 1 alone shared keys, the others that 1 dropped out."""
    whole = frozenset(range(len(plan.hospitals)))
    pair = frozenset({0, 1})
    survivors = {i: pair if i in pair else whole - {1} for i in whole}
    return {i: pair if i == 0 else whole for i in whole}, survivors


def _scattered(plan):
    """All outside {0, 1, 2} are said to have dropped out, each to just enough of the honest."""
    n, t, c = len(plan.hospitals), plan.graph.threshold, plan.graph.colluding
    whole = frozenset(range(n))
    dropped = {i: set() for i in range(n - c)}  # the last ones collude
    for j in range(3, n - c):
        fewest = sorted((i for i in dropped if i != j), key=lambda i: len(dropped[i]))
        for i in fewest[: t - c]:
            dropped[i].add(j)
    assert max(map(len, dropped.values())) <= n - t
    return dict.fromkeys(whole, whole), {i: whole - dropped.get(i, set()) for i in whole}


class TestThresholds:
    def test_a_threshold_that_lies_could_exceed_is_refused_by_the_hospitals(self):
        """Seven hospitals with four neighbours and a threshold of two: any lie read an input."""
        weak = secagg_graph.Graph(7, 4, 2, 1, 0.0, 0.0)
        plan = dataclasses.replace(plan_of(7), graph=weak)
        with pytest.raises(
            ProtocolError, match=r"h0 refuses: .* a threshold of 2 lets model_owner"
        ):
            run(7, inputs(7), plan=plan, optional=False)

    def test_seven_hospitals_have_no_graph_by_default(self):
        with pytest.raises(ConfigError, match="no 7 hospitals can sum securely"):
            secagg_graph.choose(7, SecureAggregationConfig())


LETTERS, LIST, SIGNED = 1, 2, 3  # messages that a hospital receives, after the fresh keys


def altered(count, change):
    """Changes what h1 receives as message number `count`."""

    def received(name, number, message):
        return change(message) if (name, number) == ("h1", count) else message

    return received


class TestRefusals:
    """Each names what is inconsistent; the hospital gives no share afterwards."""

    def _refused(self, match, count, change, plan=None):
        given_shares = []

        def listen(name, event):
            shares = isinstance(event, Send) and event.label.startswith("shares of survivors")
            if name == "h1" and shares:
                given_shares.append(event)

        with pytest.raises(ProtocolError, match=match) as caught:
            received = altered(count, change)
            run(6, inputs(6), (), listen, optional=False, plan=plan, received=received)
        assert "\n" not in str(caught.value) and not given_shares

    # --- fresh keys

    @pytest.mark.parametrize(
        ("row", "key", "match"),
        [
            (1, np.arange(32), "its own is missing or changed"),
            (0, None, "same fresh key for two hospitals"),
            (0, np.arange(32), "h1: a sealed message said to be from h0 is not authentic"),
        ],
    )
    def test_fresh_keys_of_the_owners_making(self, row, key, match):
        """With the last it would know the mask between h1 and h0."""

        def roll(i, rows):
            if i == 1:
                rows[row] = rows[2] if key is None else key
            return rows

        attack = Attack(plan_of(6), keys_of(6), roll=roll)
        if not attack.refusals:
            attack.masked(everybody(plan_of(6), {}))
        assert match in attack.refusals[1]

    # --- who shared keys

    @pytest.mark.parametrize(
        ("listed", "sent", "match"),
        [
            ({0, 2, 3, 4, 5}, None, "h1 refuses: model_owner sent a list that leaves it out"),
            ({1, 2, 3, 4, 5}, None, "h1 refuses: .* other letters than those of the neighbours"),
            (None, {0, 2, 3, 4}, "h1 refuses: .* other letters than those of the neighbours"),
            ({1, 2, 3}, {2, 3}, "h1 refuses: of its neighbourhood only 3 shared their keys"),
        ],
    )
    def test_lists_of_who_shared_keys(self, listed, sent, match):
        def change(message):
            rows = table_rows("", message, LETTER_BYTES, 6)
            kept = [j for j in rows if sent is None or j in sent]
            bits = message["sharers"] if listed is None else to_bits(listed, 6)
            return {**table(kept, [rows[j] for j in kept], LETTER_BYTES), "sharers": bits}

        self._refused(match, LETTERS, change)

    def test_a_list_of_who_shared_keys_that_others_were_not_told(self):
        """The step that isolated a hospital: consistent in itself, its signature fits no other."""

        def change(message):
            rows = table_rows("", message, LETTER_BYTES, 6)
            kept = [j for j in rows if j != 5]
            bits = to_bits({0, 1, 2, 3, 4}, 6)
            return {**table(kept, [rows[j] for j in kept], LETTER_BYTES), "sharers": bits}

        self._refused(
            "h1 refuses: model_owner says that h5 is in the sum, which sha", LETTERS, change
        )

    @pytest.mark.parametrize("damage", ["altered", "swapped"])
    def test_letters_that_are_not_authentic(self, damage):
        def change(message):
            rows = message["rows"].copy()
            rows[0, 40] ^= 1
            return {**message, "rows": rows if damage == "altered" else rows[::-1].copy()}

        self._refused(
            "h1: a sealed message said to be from h[05] is not authentic", LETTERS, change
        )

    # --- who is in the sum

    @pytest.mark.parametrize(
        ("listed", "match"),
        [
            ({0, 2, 3, 4, 5}, "h1 refuses: model_owner sent a list that leaves it out"),
            ({0, 1, 2}, "h1 refuses: of its neighbourhood only 3 are said to be in the sum"),
        ],
    )
    def test_lists_of_who_is_in_the_sum(self, listed, match):
        self._refused(match, LIST, lambda bits: to_bits(listed, 6))

    @pytest.mark.parametrize(
        ("demands", "match"),
        [
            (
                {"quorum": 6},
                "h1 refuses: model_owner says that the sum is over 5 hospitals, 6 must",
            ),
            (
                {"complete": True},
                "h1 refuses: model_owner leaves h3 out of a sum that must be over",
            ),
        ],
    )
    def test_a_sum_that_its_plan_does_not_allow(self, demands, match):
        """Hospitals do not rest on the owner's own check."""
        plan = dataclasses.replace(plan_of(6), **demands)
        self._refused(match, LIST, lambda bits: to_bits({0, 1, 2, 4, 5}, 6), plan)

    def test_a_survivor_that_never_shared_its_keys(self):
        """h5 vanishes before it shares them, and is said to be in the sum."""

        gone = [Vanish("h5", stage=secagg.SHARE)]
        _, trace = run(
            6, inputs(6), gone, received=altered(LIST, lambda bits: to_bits(range(6), 6))
        )
        assert "says that h5 is in the sum, which shared no keys" in trace.lost["h1"]

    def test_survivors_that_others_were_not_told(self):
        """h1 alone is told that h5 dropped out: it would give a share of h5's other key."""

        match = "h1 refuses: model_owner shows 1 signatures .* 4 are needed"
        self._refused(match, LIST, lambda bits: to_bits({0, 1, 2, 3, 4}, 6))

    def test_forged_signatures(self):
        def change(message):
            forged = message["rows"].copy()
            forged[:3, 5] ^= 1
            return {**message, "rows": forged}

        self._refused("3 signatures .* 4 are needed", SIGNED, change)

    def test_signatures_of_an_earlier_sum(self):
        """The same hospitals, lists and plan; but its fresh keys were others."""
        kept = []
        run(6, inputs(6), received=altered(SIGNED, lambda rows: kept.append(rows) or rows))
        self._refused("1 signatures .* 4 are needed", SIGNED, lambda message: kept[0])

    def test_signatures_of_one_hospital_do_not_count_for_others(self):
        def change(message):
            return {**message, "rows": np.repeat(message["rows"][:1], 5, axis=0)}

        self._refused("shows 2 signatures .* 4 are needed", SIGNED, change)

    def test_a_signature_counts_once(self):
        """A table that names one hospital five times is none."""

        def change(message):
            numbers = np.zeros(5, np.uint16)
            return {"hospitals": numbers, "rows": np.repeat(message["rows"][:1], 5, axis=0)}

        self._refused("sent a table of hospitals that is none", SIGNED, change)

    @pytest.mark.parametrize("count", [LETTERS, LIST, SIGNED])
    def test_messages_that_are_none(self, count):
        for message in (np.zeros(3), {}, np.full(1, 255, np.uint8)):
            self._refused("sent (no|a table|other|a list)", count, lambda _, m=message: m)


def test_a_hospital_signs_one_list_a_sum_and_answers_once():
    sent = []

    def listen(name, event):
        if name == "h0" and isinstance(event, Send):
            sent.append(event.label)

    run(6, inputs(6), tamper=listen)
    assert sent[-1].startswith("shares of survivors") and len(sent) == len(secagg.STAGES)


def test_a_sum_over_fewer_told_to_all_is_still_over_enough():
    """Leaving hospitals out of everybody's list is within the owner's power, down to the bounds."""
    plan = plan_of(8)
    attack = Attack(plan, keys_of(8))
    everyone = everybody(plan, {})
    rest = frozenset(range(2, 8))
    survivors = dict.fromkeys(range(8), rest)
    assert attack.revealed(everyone, survivors) == [rest]
    assert set(attack.refusals) == {0, 1}
