"""Weighted sums over hospitals: exact totals, and nothing but totals for the model owner."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from primia_jax.config import ExperimentConfig, SecureAggregationConfig, from_config_dict
from primia_jax.errors import ConfigError, ProtocolError, TrainingError
from primia_jax.federated import aggregation, sealing, secagg
from primia_jax.federated.aggregation import OWNER, PROVIDER, Contribution
from primia_jax.mpc import fixed_point
from primia_jax.runtime import Receive, Vanish, count, run_local

SETTINGS = SecureAggregationConfig()
NARROW = SecureAggregationConfig(word_bits=32, frac_bits=8, clip=1000.0, max_samples=999)


def make_keys(hospitals):
    """Every hospital's keys, exchanged for real."""
    parties = {
        name: sealing.exchange_keys(name, [h for h in hospitals if h != name], PROVIDER)
        for name in hospitals
    }
    parties[PROVIDER] = sealing.distribute_keys(hospitals)
    return run_local(parties)[0]


def overheard(steps, transcript):
    """Runs `steps`, writing down every message received."""
    message = None
    while True:
        try:
            event = steps.send(message)
        except StopIteration as stop:
            return stop.value
        message = yield event
        if isinstance(event, Receive):
            transcript.append(message)


def run(kind, contributions, sizes, n_counts, transcript=None):
    """What the owner learns."""
    hospitals = [f"h{i}" for i in range(len(contributions))]
    keys = {} if kind == "plain" else make_keys(hospitals)
    if kind == "plain":
        agg = aggregation.plain(hospitals, OWNER)
    else:
        scheme, _, narrow = kind.partition(" ")
        own_settings = dataclasses.replace(NARROW if narrow else SETTINGS, dropouts=0)
        agg = getattr(aggregation, scheme)(hospitals, OWNER, own_settings)
    parties = {
        name: agg.contribute(name, keys.get(name), lambda own=own: own)
        for name, own in zip(hospitals, contributions)
    }
    parties[OWNER] = overheard(
        agg.collect(sizes, n_counts), [] if transcript is None else transcript
    )
    return run_local(parties)[0][OWNER]


@st.composite
def some_contributions(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, sizes, n_counts = draw(st.integers(3, 5)), draw(st.lists(st.integers(0, 9), max_size=3)), 4
    scale = 10.0 ** draw(st.integers(-6, 2))
    return (
        [
            Contribution(
                tuple((rng.standard_normal(size) * scale).astype(np.float32) for size in sizes),
                int(rng.integers(0, 1000)),
                rng.integers(0, 1000, n_counts),
            )
            for _ in range(n)
        ],
        sizes,
        n_counts,
    )


@pytest.mark.parametrize(
    "kind", ["plain", "additive", "masked", "additive in 32 bits", "masked in 32 bits"]
)
class TestContract:
    """What every aggregation owes."""

    @settings(max_examples=25)
    @given(data=some_contributions())
    def test_total_is_the_weighted_sum(self, kind, data):
        contributions, sizes, n_counts = data
        total = run(kind, contributions, sizes, n_counts)
        assert total.weight == sum(own.weight for own in contributions)
        everybody = tuple(f"h{i}" for i in range(len(contributions)))
        assert total.took_part == total.present == everybody
        np.testing.assert_array_equal(total.counts, sum(own.counts for own in contributions))
        for j, value in enumerate(total.values):
            exact = sum(own.weight * own.values[j].astype(np.float64) for own in contributions)
            own_settings = NARROW if "32" in kind else SETTINGS
            bound = fixed_point.sum_error(
                len(contributions), own_settings.frac_bits, own_settings.word_bits
            )
            np.testing.assert_allclose(value, exact, rtol=1e-15, atol=bound)

    def test_weight_zero_leaves_a_hospital_out(self, kind):
        out = Contribution((np.full(3, 7.0, np.float32),), 0, np.zeros(1, np.int64))
        own = Contribution((np.ones(3, np.float32),), 5, np.zeros(1, np.int64))
        total = run(kind, [own, out, out], (3,), 1)
        np.testing.assert_array_equal(total.mean()[0], np.ones(3))

    def test_nobody_has_weight(self, kind):
        nobody = Contribution((np.ones(3, np.float32),), 0, np.zeros(1, np.int64))
        total = run(kind, [nobody] * 3, (3,), 1)
        with pytest.raises(ProtocolError, match="no hospital contributed"):
            total.mean()


def test_secure_equals_plain_to_the_fixed_point_bound():
    """|secure − plain| <= N · 2^-(f+1) / Σ n_i."""
    rng = np.random.default_rng(1)
    own = [
        Contribution((rng.standard_normal(1000).astype(np.float32),), n, np.zeros(0, np.int64))
        for n in (37, 411, 120)
    ]
    plain = run("plain", own, (1000,), 0)
    secure = run("additive", own, (1000,), 0)
    bound = fixed_point.sum_error(3, SETTINGS.frac_bits) / plain.weight
    assert np.abs(plain.mean()[0] - secure.mean()[0]).max() <= bound


class TestSecrecy:
    """The model owner's view of the additive scheme."""

    def _owner_view(self, value, n_samples, kind="additive"):
        own = [
            Contribution((np.full(2000, v, np.float32),), n, np.asarray([n]))
            for v, n in ((value, n_samples), (0.0, 10), (0.0, 10))
        ]
        transcript = []
        total = run(kind, own, (2000,), 1, transcript)
        return total, transcript

    @pytest.mark.parametrize("kind", ["additive", "additive in 32 bits"])
    def test_each_message_is_uniform_whatever_the_update(self, kind):
        for value, n_samples in ((0.0, 0), (3.0, 100)):
            _, transcript = self._owner_view(value, n_samples, kind)
            assert len(transcript) == 3
            for message in transcript:
                last = 8 * message.itemsize - 8
                for shift in (0, last // 2, last):
                    bytes_ = (message >> message.dtype.type(shift)).astype(np.uint8)
                    counts = np.bincount(bytes_, minlength=256)
                    assert stats.chisquare(counts).pvalue > 1e-6

    def test_the_same_update_never_looks_the_same(self):
        (first, a), (second, b) = (self._owner_view(3.0, 100) for _ in range(2))
        np.testing.assert_array_equal(first.values[0], second.values[0])
        for x, y in zip(a, b):
            assert not np.any(x == y)

    def test_two_of_three_messages_open_nothing(self):
        """Neither an update nor a sample count can be read off before the last message."""
        _, transcript = self._owner_view(3.0, 100)
        for left_out in range(3):
            partial = sum(m for i, m in enumerate(transcript) if i != left_out)
            count = int(partial[2000].view(np.int64))
            assert count not in (0, 10, 20, 100, 110, 120)
            assert abs(count) > 10**6  # a uniform word is small with probability 2^-43

    def test_what_hospitals_send_each_other_is_sealed(self):
        own = [Contribution((np.ones(4, np.float32),), 1, np.zeros(0, np.int64))] * 3
        hospitals = ["h0", "h1", "h2"]
        keys = make_keys(hospitals)
        agg = aggregation.additive(hospitals, OWNER, SETTINGS)
        heard = []
        parties = {
            h: overheard(agg.contribute(h, keys[h], lambda o=o: o), heard)
            for h, o in zip(hospitals, own)
        }
        run_local({**parties, OWNER: agg.collect((4,), 0)})
        assert {message.shape for message in heard} == {(60,)}
        with pytest.raises(ProtocolError, match="not authentic"):
            keys["h2"].open("h0", next(m for m in heard))  # sealed for h0 or h1 by another


def test_without_a_dropped_hospital_the_average_is_the_others():
    """Of the plain sum and of the masked one."""
    hospitals = [f"h{i}" for i in range(6)]
    keys = make_keys(hospitals)
    own = [Contribution((np.full(3, i, np.float32),), i + 1, np.asarray([1])) for i in range(6)]
    kinds = (
        aggregation.plain(hospitals, OWNER),
        aggregation.masked(hospitals, OWNER, SETTINGS),
    )
    for agg in kinds:
        parties = {h: agg.contribute(h, keys[h], lambda o=o: o) for h, o in zip(hospitals, own)}
        parties[OWNER] = agg.collect((3,), 1)
        results, trace = run_local(parties, optional=hospitals, faults=(Vanish("h2"),))
        total = results[OWNER]
        assert total.took_part == total.present == ("h0", "h1", "h3", "h4", "h5")
        assert set(trace.lost) == {"h2"}
        assert total.weight == sum(range(7)) - 3 and total.counts == [5]
        exact = sum(i * (i + 1) for i in range(6)) - 2 * 3
        np.testing.assert_array_equal(total.values[0], np.full(3, exact))


class TestRefusals:
    """What would break the sum is refused at the hospital, with the numbers."""

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 5000.0])
    def test_values_beyond_the_clip(self, bad):
        own = Contribution((np.asarray([0.0, bad], np.float32),), 1, np.zeros(0, np.int64))
        with pytest.raises(TrainingError, match=r"h[01]: .*clip"):
            run("additive", [own, own], (2,), 0)

    @pytest.mark.parametrize("weight", [-1, SETTINGS.max_samples + 1])
    def test_weights_beyond_the_bound(self, weight):
        own = Contribution((), weight, np.zeros(0, np.int64))
        with pytest.raises(ConfigError, match="max_samples"):
            run("additive", [own, own], (), 0)

    @pytest.mark.parametrize("count", [-1, 2**52 + 1])
    def test_counts_beyond_the_bound(self, count):
        own = Contribution((), 1, np.asarray([count]))
        with pytest.raises(ConfigError, match="count"):
            run("additive", [own, own], (), 1)

    def test_counts_may_exceed_the_samples(self):
        """An image has many pixels."""
        own = Contribution((), 1, np.asarray([2**52]))
        total = run("additive", [own, own], (), 1)
        assert total.counts == [2**53]

    @pytest.mark.parametrize("scheme", ["additive", "masked"])
    def test_a_sum_that_could_overflow_32_bits(self, scheme):
        """What fits 64 does not fit 32: said before anything is summed, with what would."""
        agg = getattr(aggregation, scheme)
        with pytest.raises(ConfigError, match=r"2\^31 is the limit.*raise word_bits to 64"):
            agg(["h0", "h1", "h2"], OWNER, SecureAggregationConfig(word_bits=32))

    def test_a_sum_that_could_overflow(self):
        with pytest.raises(ConfigError, match="could overflow"):
            aggregation.additive(["h0", "h1"], OWNER, SecureAggregationConfig(frac_bits=50))


def test_small_changes_are_not_lost_in_32_bits():
    """Each far below the grid: round after round they add up as they would without one."""
    size, change, rounds = 4000, 1e-5, 200  # the grid is 2^-8, of weight 20: 2e-4
    model = np.full(size, 0.3, np.float32)
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        moved = [
            Contribution(
                ((model + change + rng.normal(0, 1e-6, size)).astype(np.float32),),
                20,
                np.zeros(0, np.int64),
            )
            for _ in range(3)
        ]
        words = [aggregation._encoded(f"h{i}", own, NARROW, 2) for i, own in enumerate(moved)]
        total = aggregation._decoded(sum(words[1:], words[0]), (size,), 0, NARROW.frac_bits)
        model = total.mean()[0].astype(np.float32)
    grown = model.astype(np.float64).mean() - 0.3
    assert 0.9 * rounds * change < grown < 1.1 * rounds * change


def test_the_same_values_are_rounded_the_same():
    """A round that is begun again gives what it would have given; another hospital rounds anew."""
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    own = Contribution((values,), 7, np.zeros(0, np.int64))
    first, again, other = (
        aggregation._encoded(name, own, NARROW, 2) for name in ("h0", "h0", "h1")
    )
    np.testing.assert_array_equal(first, again)
    assert 100 < np.count_nonzero(first != other) < 900


class TestChoice:
    """Which scheme a configuration means."""

    def _scheme(self, n, hospitals=3, **settings_):
        config = from_config_dict(
            ExperimentConfig,
            {"federated": {"hospitals": hospitals}, "secure_aggregation": settings_},
        )
        return aggregation.scheme(config, n)

    def test_auto_is_additive_up_to_five_hospitals_and_where_there_is_no_graph(self):
        assert [self._scheme(n, n) for n in (2, 3, 5, 6, 7, 8, 100)] == [
            *("additive", "additive", "additive", "secagg", "additive", "secagg", "secagg")
        ]

    def test_a_large_confederation_keeps_its_scheme_when_few_are_drawn(self):
        assert self._scheme(6, 10) == "secagg"
        assert self._scheme(4, 10) == "additive"  # no graph withstands a lie there
        assert self._scheme(2, 10) == "additive"  # of two each must stay anyway

    @pytest.mark.parametrize(
        ("federated", "privacy", "n", "demands"),
        [
            ({"quorum": 1.0}, {}, 10, (10, False)),
            ({"quorum": 0.65}, {}, 8, (7, False)),
            ({"quorum": 0.0}, {}, 10, (3, False)),  # min_participants
            ({"quorum": 0.5, "participation": 0.6}, {}, 6, (3, False)),  # of those drawn
            ({"quorum": 0.5}, {"mode": "client"}, 10, (5, True)),
        ],
    )
    def test_what_a_masked_sum_must_be_over(self, federated, privacy, n, demands, monkeypatch):
        seen = []
        whole = secagg.Plan
        monkeypatch.setattr(
            aggregation.secagg, "Plan", lambda *fields: seen.append(whole(*fields)) or seen[-1]
        )
        config = from_config_dict(
            ExperimentConfig, {"federated": {"hospitals": 10, **federated}, "privacy": privacy}
        )
        aggregation.make(config, [f"h{i}" for i in range(n)])
        assert (seen[0].quorum, seen[0].complete) == demands

    @pytest.mark.parametrize("scheme", ["auto", "secagg"])
    def test_a_run_outlives_numbers_that_have_no_graph(self, scheme):
        """One of eight, or three, may be left out, and seven and five cannot sum by masks."""
        assert [self._scheme(n, 8, scheme=scheme) for n in (8, 7, 6, 5, 4)] == [
            *("secagg", "additive", "secagg", "additive", "additive")
        ]

    def test_a_confederation_that_asks_for_masks_and_has_no_graph_is_refused(self):
        config = from_config_dict(
            ExperimentConfig,
            {"federated": {"hospitals": 7}, "secure_aggregation": {"scheme": "secagg"}},
        )
        with pytest.raises(ConfigError, match="no 7 hospitals can sum securely"):
            aggregation.make(config, [f"h{i}" for i in range(7)])

    def test_what_is_asked_for_is_taken(self):
        assert self._scheme(100, 100, scheme="additive") == "additive"
        assert self._scheme(3, 3, scheme="secagg") == "secagg"


@pytest.mark.parametrize(
    "share",
    [np.zeros(1, np.uint64), np.zeros(9, np.uint64), np.zeros(6, np.uint32), {"x": 1}],
)
def test_a_share_of_another_length_is_refused(share):
    """NumPy would stretch a single word over the whole vector."""
    steps = aggregation.additive(["h0", "h1"], OWNER, SETTINGS).collect((4,), 1)
    next(steps)
    with pytest.raises(ProtocolError, match="h0 sent a share that is no vector of 6 words"):
        steps.send(share)


@pytest.mark.parametrize("settings_", [SETTINGS, NARROW])
def test_declared_cost_of_the_additive_scheme(settings_):
    """N(N−1) messages of 60 bytes and N of p + 1 words, two deep, counted without computing."""
    hospitals = ["h0", "h1", "h2", "h3"]
    keys, p = make_keys(hospitals), 501
    agg = aggregation.additive(hospitals, OWNER, settings_)

    def parties(vector):
        own = Contribution((vector,), 1, np.zeros(0, np.int64))
        programs = {h: agg.contribute(h, keys[h], lambda: own) for h in hospitals}
        return {**programs, OWNER: agg.collect((p,), 0)}

    trace = count(parties, jax.ShapeDtypeStruct((p,), jnp.float32))
    assert trace.bytes_sent == 4 * 3 * 60 + 4 * settings_.word_bits // 8 * (p + 1)
    assert trace.round_trips == 1.0
    _, real = run_local(parties(np.zeros(p, np.float32)))
    assert real.bytes_sent == trace.bytes_sent and real.round_trips == trace.round_trips


@pytest.mark.parametrize(
    ("value", "said"),
    [(5000.25, "has a magnitude of up to 8192, beyond"), (np.nan, "is no finite number, beyond")],
)
def test_a_value_beyond_the_clip_is_not_told_itself(value, said):
    """It is one hospital's, and the operator and the model owner read the message."""
    own = Contribution((np.asarray([1.0, value]),), 1, np.zeros(0, np.int64))
    with pytest.raises(TrainingError, match=said):
        aggregation._check_bounds("h0", own, SETTINGS, 3)
