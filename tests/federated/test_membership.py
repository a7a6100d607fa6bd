"""Who takes part in a round: losses, returns, useless updates, draws. In one process, with losses
injected where a real cluster would have them."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from tiny import assert_same, at, config_with, model, start, train

from primia_jax import rounds
from primia_jax.errors import ClusterError, ConfigError, PartyLost, TrainingError
from primia_jax.federated import checkpoints, hospital, hospital_training
from primia_jax.federated.aggregation import OWNER
from primia_jax.federated.federation import Federation
from primia_jax.runtime import LocalDriver

SECURE = {"mode": "federated_secure"}


class Unreliable:
    """A driver that loses `party` in its `at`-th run, and finds it again after so many calls."""

    def __init__(self, driver, party, at, calls=0, mends=True):
        self._driver, self._party, self._at = driver, party, at
        self._calls, self._mends, self.lost, self.runs = calls, mends, False, 0

    def __getattr__(self, name):
        return getattr(self._driver, name)

    def run(self, programs, *args, **kwargs):
        self.runs += 1
        if self.runs == self._at:
            self.lost = True
            self._driver.states[self._party] = None  # what it held is gone
        if self.lost and self._party in programs:
            raise PartyLost(f"{self._party} was lost: it died", (self._party,))
        return self._driver.run(programs, *args, **kwargs)

    def revive(self, name, timeout_s=0.0):
        assert name == self._party
        self._calls -= 1
        if not self._mends or self._calls >= 0:
            return False
        self.lost = False
        return self._driver.revive(name, timeout_s)


def trained(federation):
    """Trains as a run does, with every round saved; returns what was told on the way."""
    told = []
    federation.set_up()
    for number in range(1, federation.config.federated.rounds + 1):
        told.append(federation.readmit(number - 1))
        failure = None
        while True:
            try:
                if failure is not None:
                    told.append(federation.recover(failure, number - 1))
                reports, _ = federation.train_round(number)
                federation.save(number)
                break
            except (PartyLost, TrainingError) as error:
                if error is failure:
                    raise
                failure = error
        best = reports[OWNER].best_round
        checkpoints.commit(federation.owner_folder, checkpoints.Progress(number, best))
    return [line for line in told if line]


@pytest.mark.parametrize(
    ("mode", "party", "run"),
    (
        pytest.param("federated", "hospital_1", 6, marks=pytest.mark.slow),
        ("federated_secure", "hospital_1", 10),
        ("federated_secure", OWNER, 8),
        pytest.param("federated", OWNER, 8, marks=pytest.mark.slow),
    ),
)
def test_a_party_started_again_changes_nothing(tmp_path, mode, party, run):
    """Lost in the first round, in its saving, or in the second round."""
    whole = start(tmp_path / "whole", federated={"mode": mode})
    assert trained(whole) == []
    broken = start(tmp_path / "broken", federated={"mode": mode})
    broken.driver = Unreliable(broken.driver, party, run)
    (told,) = trained(broken)
    assert party in told and "started again" in told
    assert_same(model(whole).params, model(broken).params)
    assert_same(model(whole).moments, model(broken).moments)


@pytest.mark.fault("a hospital comes back rounds later", "it gets the model and takes part again")
def test_who_does_not_come_back_is_left_out_until_it_does(tmp_path):
    federation = start(tmp_path, federated={**SECURE, "rounds": 5})
    federation.driver = Unreliable(federation.driver, "hospital_2", at=11, calls=2)
    told = trained(federation)
    assert told[0].startswith("hospital_2 was lost") and "hospital_2 is left out" in told[0]
    assert told[1] == "hospital_2 takes part again" and len(told) == 2
    assert federation.present == federation.hospitals and not federation.absent
    models = [at(federation, name).variables["params"] for name in federation.hospitals]
    assert_same(models[0], models[2])


class Late:
    """A driver that begins without some parties, and finds them after so many calls."""

    def __init__(self, driver, names, calls):
        self._driver, self._calls = driver, calls
        self.missing = dict.fromkeys(names, "no node offers it")

    def __getattr__(self, name):
        return getattr(self._driver, name)

    def run(self, programs, *args, **kwargs):
        assert self._calls < 0 or not self.missing.keys() & programs.keys()
        return self._driver.run(programs, *args, **kwargs)

    def revive(self, name, timeout_s=0.0):
        assert name in self.missing
        self._calls -= 1
        if back := self._calls < 0 and self._driver.revive(name):
            del self.missing[name]
        else:
            self.missing[name] = f"{self._calls} calls are left"
        return back


@pytest.mark.parametrize("mode", ["federated", "federated_secure"])
def test_who_is_not_there_at_the_start_joins_later(tmp_path, mode):
    """With the statistics that were pooled without it, and the model of the others."""
    fed = {"mode": mode, "rounds": 4, "hospitals": 4}
    ready = start(tmp_path / "late", federated=fed)
    late = Late(ready.driver, ["hospital_2"], calls=2)
    federation = Federation(late, ready.config, ready.hospitals, tmp_path / "late")
    assert federation.present == ("hospital_0", "hospital_1", "hospital_3")
    assert not federation.readmit(0) and federation.absent == {"hospital_2": "1 calls are left"}
    assert trained(federation) == ["hospital_2 takes part from now on"]
    assert federation.present == federation.hospitals and not federation.absent
    states = [at(federation, name) for name in federation.hospitals]
    assert_same(states[0].variables["params"], states[2].variables["params"])
    assert states[0].statistics.mean == states[2].statistics.mean
    assert checkpoints.newest(tmp_path / "late" / "sites" / "hospital_2", 4) == 4


def test_who_cannot_start_is_told_and_not_tried_for_ever(tmp_path):
    """As a hospital that comes with other classes, or unreadable data."""
    ready = start(tmp_path, federated={"rounds": 6})

    class Broken(Late):
        def revive(self, name, timeout_s=0.0):
            self._calls -= 1
            raise ClusterError(f"{name} cannot start: OSError: no such folder")

    late = Broken(ready.driver, ["hospital_2"], calls=9)
    federation = Federation(late, ready.config, ready.hospitals, tmp_path)
    assert trained(federation) == []
    assert federation.absent == {"hospital_2": "hospital_2 cannot start: OSError: no such folder"}
    assert late._calls == 6  # three tries


def test_too_few_at_the_start_are_refused_with_what_is_missing(tmp_path):
    ready = start(tmp_path)
    late = Late(ready.driver, ["hospital_0", "hospital_2"], calls=0)
    with pytest.raises(
        ClusterError,
        match=r"hospital_0 is not there: no node offers it; hospital_2 is not there.*; 1 of 3 "
        r"hospitals are too few to begin \(config.federated.quorum asks for 2\)",
    ):
        Federation(late, ready.config, ready.hospitals, tmp_path)


@pytest.mark.fault(
    "more hospitals are gone than the quorum allows", "the run ends with one line; rounds stay"
)
def test_too_few_hospitals_end_it_and_say_what_asks_for_more(tmp_path):
    federation = start(tmp_path, federated={**SECURE, "quorum": 1.0})
    federation.driver = Unreliable(federation.driver, "hospital_2", at=11, mends=False)
    with pytest.raises(PartyLost, match=r"2 hospitals are too few .*federated.quorum asks for 3"):
        trained(federation)
    assert checkpoints.latest(federation.owner_folder).round == 1


def test_a_sum_needs_two(tmp_path):
    federation = start(tmp_path, federated={**SECURE, "hospitals": 2, "quorum": 0.0})
    assert federation.quorum == 2
    federation.driver = Unreliable(federation.driver, "hospital_1", at=10, mends=False)
    with pytest.raises(ClusterError, match="1 hospitals are too few"):
        trained(federation)


@pytest.mark.fault(
    "a hospital's training gives NaN or infinity", "it is named and left out of that round's sum"
)
def test_a_useless_update_is_left_out_for_its_round(tmp_path, monkeypatch):
    """Of hospital_1, in rounds 1 and 2; without it the others' average is what it would be."""
    real = hospital_training.train_locally

    def sick(state, number):
        state, result = real(state, number)
        if state.name == "hospital_1" and number < 3:
            result = result._replace(
                variables={**result.variables, "params": _nan(result.variables["params"])}
            )
        return state, result

    monkeypatch.setattr(hospital_training, "train_locally", sick)
    federation = start(tmp_path, federated={**SECURE, "rounds": 3})
    told = trained(federation)
    assert [line.split("; ")[-1] for line in told] == [
        "hospital_1 is left out",
        "hospital_1 takes part again",
        "hospital_1 is left out",
        "hospital_1 takes part again",
    ]
    assert "diverged" in told[0]
    assert all(np.isfinite(vector).all() for vector in model(federation).params)


def test_three_useless_updates_are_enough(tmp_path, monkeypatch):
    real = hospital_training.train_locally

    def sick(state, number):
        state, result = real(state, number)
        if state.name == "hospital_0":
            result = result._replace(
                variables={**result.variables, "params": _nan(result.variables["params"])}
            )
        return state, result

    monkeypatch.setattr(hospital_training, "train_locally", sick)
    federation = start(tmp_path, federated={"rounds": 6})
    told = trained(federation)
    assert sum("left out" in line for line in told) == 3
    assert sum("again" in line for line in told) == 2
    assert list(federation.absent) == ["hospital_0"]


def _nan(tree):
    return jax.tree.map(lambda leaf: leaf * np.float32(np.nan), tree)


@pytest.mark.parametrize("sampling", ("fixed", "poisson"))
def test_hospitals_are_drawn_by_seed_and_round_alone(tmp_path, sampling):
    changes = {"hospitals": 8, "participation": 0.5, "sampling": sampling, "quorum": 0.0}
    federation = start(tmp_path, federated=changes)
    drawn = [federation.drawn(number) for number in range(1, 200)]
    assert drawn == [federation.drawn(number) for number in range(1, 200)]
    sizes = [len(names) for names in drawn]
    assert np.mean(sizes) == pytest.approx(4, abs=0.3)
    assert (len(set(sizes)) == 1) == (sampling == "fixed")
    counts = {name: sum(name in names for names in drawn) for name in federation.hospitals}
    assert min(counts.values()) > 70 and max(counts.values()) < 130


def test_who_was_not_drawn_catches_up_and_a_resumed_run_is_the_same(tmp_path):
    changes = {**SECURE, "hospitals": 4, "participation": 0.5, "rounds": 5}
    whole = start(tmp_path / "whole", federated=changes)
    train(whole, save=True)
    first = start(tmp_path / "parts", federated=changes)
    train(first, rounds=3, save=True)
    rest = start(tmp_path / "parts", federated=changes)
    train(rest, first=3, save=True)
    assert_same(model(whole).params, model(rest).params)
    latest = [at(whole, name).variables["params"] for name in whole.drawn(5)]
    assert_same(latest[0], latest[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"federated": {"mode": "local", "participation": 0.5}}, "mode 'local' has none"),
        ({"runtime": {"driver": "local", "round_deadline_s": 5.0}}, "driver = 'ray'"),
    ),
)
def test_impossible_settings(changes, words):
    with pytest.raises(ConfigError, match=words):
        config_with(**changes)


def test_lost_parties_of_another_kind_are_not_mended(tmp_path):
    federation = start(tmp_path)
    federation.set_up()
    error = TrainingError("the sum of all diverged")
    with pytest.raises(TrainingError) as caught:
        federation.recover(error, 0)
    assert caught.value is error and dataclasses.is_dataclass(federation.config)


@pytest.mark.parametrize("kind", ("trimmed_mean", "median", "krum"))
def test_robust_averages_outlive_a_poisoned_update(tmp_path, monkeypatch, kind):
    """One of five hospitals sends weights a thousand times too large."""
    real = hospital_training.train_locally

    def poisoned(state, number):
        state, result = real(state, number)
        if state.name == "hospital_3":
            params = jax.tree.map(lambda leaf: leaf * 1000, result.variables["params"])
            result = result._replace(variables={**result.variables, "params": params})
        return state, result

    monkeypatch.setattr(hospital_training, "train_locally", poisoned)
    changes = {"hospitals": 5, "rounds": 1, "robust": kind, "quorum": 1.0}
    federation = start(tmp_path, federated=changes)
    train(federation)
    assert max(np.abs(vector).max() for vector in model(federation).params) < 5


def test_a_hospital_that_was_refused_and_then_dies_is_started_again(tmp_path, monkeypatch):
    """Once of no use, it comes back; lost later, it must not be taken for one that still runs."""
    real = hospital_training.train_locally

    def sick(state, number):
        state, result = real(state, number)
        if state.name == "hospital_1" and number == 1:
            result = result._replace(
                variables={**result.variables, "params": _nan(result.variables["params"])}
            )
        return state, result

    monkeypatch.setattr(hospital_training, "train_locally", sick)
    federation = start(tmp_path, federated={"rounds": 3})
    assert len(trained(federation)) == 2
    federation.driver = Unreliable(federation.driver, "hospital_1", at=1, calls=2)
    with pytest.raises(PartyLost) as caught:
        federation.train_round(4)
    federation.recover(caught.value, 3)
    assert federation.absent and not federation.readmit(3)
    assert federation.readmit(3) == "hospital_1 takes part again"


def test_hospitals_of_one_process_hold_one_model(tmp_path):
    """What many hospitals need of memory beyond their images does not grow with their number."""
    fed = {"hospitals": 4, "optimizer_state": "reset", **SECURE}
    federation = start(tmp_path, federated=fed, data={"partition": "iid"})
    train(federation)
    leaves = [
        jax.tree.leaves(at(federation, name).variables["params"]) for name in federation.hospitals
    ]
    for other in leaves[1:]:
        assert all(np.shares_memory(a, b) for a, b in zip(leaves[0], other))
    assert all(at(federation, name).opt_state is None for name in federation.hospitals)


class Gone:
    """A driver whose lost parties do not come back."""

    def __init__(self, driver):
        self._driver = driver

    def __getattr__(self, name):
        return getattr(self._driver, name)

    def revive(self, name, timeout_s=0.0):
        return False


def lost(*names):
    return PartyLost(f"{names[0]} was lost: it died", names)


def test_a_revealed_round_is_completed_and_not_summed_again(tmp_path, monkeypatch):
    """A sum over fewer from the same model would differ by the update of the missing one."""
    contributed = []
    whole = hospital._contribution

    def keeping(state, result, weight):
        contributed.append(state.name)
        return whole(state, result, weight)

    monkeypatch.setattr(hospital, "_contribution", keeping)
    federation = start(tmp_path, federated=SECURE)
    federation.driver = Gone(federation.driver)
    federation.set_up()
    reports, _ = federation.train_round(1)
    first, moments = model(federation), at(federation, "hospital_0").opt_state
    federation.recover(lost("hospital_2"), 0)
    assert at(federation, "hospital_0").opt_state is None
    again, _ = federation.train_round(1)
    assert sorted(contributed) == ["hospital_0", "hospital_1", "hospital_2"]
    assert again[OWNER] == reports[OWNER]
    assert_same(model(federation).params, first.params)
    assert_same(at(federation, "hospital_0").opt_state, moments)  # trained once more


def test_statistics_are_pooled_once(tmp_path, monkeypatch):
    """A second sum over fewer would tell the class counts of the one that is missing."""
    asked = []
    whole = hospital.statistics.contribution
    monkeypatch.setattr(
        hospital.statistics, "contribution", lambda *a: asked.append(1) or whole(*a)
    )
    federation = start(tmp_path, federated=SECURE)
    federation.driver = Gone(federation.driver)
    federation.set_up()
    federation.recover(lost("hospital_2"), 0)
    federation.train_round(1)
    assert len(asked) == 3


@pytest.mark.parametrize("run", [1, 2, 3, 4, 5])
def test_a_loss_in_the_set_up_is_mended(tmp_path, run):
    federation = start(tmp_path / "broken", federated=SECURE)
    federation.driver = Unreliable(federation.driver, "hospital_1", run)
    told = []
    console = types.SimpleNamespace(message=told.append)
    rounds._set_up(federation, console, 0)
    assert "hospital_1 is started again" in " ".join(told) or not federation.driver.lost
    federation.train_round(1)
    whole = start(tmp_path / "whole", federated=SECURE)
    train(whole, rounds=1)
    assert_same(model(federation).params, model(whole).params)


@pytest.mark.parametrize(("sampling", "least", "most"), [("fixed", 10, 10), ("poisson", 2, 30)])
def test_few_of_many_can_be_drawn(tmp_path, sampling, least, most):
    """Whatever the quorum, which is of those that are there."""
    fed = {"hospitals": 100, "participation": 0.1, "sampling": sampling, **SECURE}
    names = tuple(f"hospital_{i}" for i in range(100))
    federation = Federation(LocalDriver({}), config_with(federated=fed), names, tmp_path)
    sizes = [len(federation.drawn(number)) for number in range(1, 20)]
    assert least <= min(sizes) and max(sizes) <= most


def test_who_was_left_out_before_does_not_end_the_run(tmp_path):
    """A hospital that is absent shares the process of one that is lost now."""
    federation = start(tmp_path)
    federation.driver = Gone(federation.driver)
    federation.absent = {"hospital_0": "its training diverged"}
    federation.present = ("hospital_1", "hospital_2")
    federation._running = {"hospital_0"}
    federation.config = config_with(federated={"quorum": 0.1})
    said = federation.mend(lost("hospital_0", "hospital_2"))
    assert "hospital_0 stays left out" in said and federation.present == ("hospital_1",)
    assert federation.absent["hospital_0"] == "its training diverged"


def test_no_secure_sum_in_which_one_hospital_trains(tmp_path):
    federation = start(tmp_path, federated=SECURE)
    federation.set_up()
    federation._stopped = {"hospital_0", "hospital_2"}
    with pytest.raises(TrainingError, match=r"only hospital_1 still train .* needs 2"):
        federation.train_round(1)


def test_what_never_became_complete_is_dropped(tmp_path):
    """A round saved by some and then repeated without them is no round to go on from."""
    federation = start(tmp_path)
    train(federation, rounds=2, save=True)
    folder = tmp_path / "sites" / "hospital_0"
    assert checkpoints.newest(folder, 2) == 2
    federation.set_up(1)
    assert checkpoints.newest(folder, 2) == 1


def test_those_that_have_stopped_are_not_drawn(tmp_path):
    """Else a draw of one that trains and one that has stopped would sum the former alone."""
    fed = {"hospitals": 6, "participation": 0.34, **SECURE}
    names = tuple(f"hospital_{i}" for i in range(6))
    federation = Federation(LocalDriver({}), config_with(federated=fed), names, tmp_path)
    federation._stopped = {"hospital_0", "hospital_1", "hospital_2"}
    for number in range(1, 20):
        drawn = federation.drawn(number)
        assert len(drawn) == 2 and not federation._stopped.intersection(drawn)
