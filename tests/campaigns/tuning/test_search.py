"""A search: its files, what is kept, what is taken up, what is never looked at.

Where only the order of things counts, `Pretended` stands for a training.
"""

import ast
import json
import pathlib
import shutil
import sqlite3
import threading

import pytest
from optuna.trial import TrialState
from searches import tiny_search

import primia_jax
from primia_jax import experiment
from primia_jax.campaigns.tuning import Event, report, search
from primia_jax.errors import BudgetError, ClusterError, ConfigError, StorageError, TrainingError
from primia_jax.evaluation.record import read_rounds
from primia_jax.watch import heartbeat


class Killed(BaseException):
    """Stands for the end of the process."""


class Pretended:
    """Stands for `experiment.train`: each round's MCC is the trial's `server_tau` and a bit.

    Attributes:
      errors: what the trials with these numbers raise, at their begin.
      scores: MCCs of the rounds of the trials with these numbers, in place of the others.
      rounds: what was trained: (trial, round).
    """

    def __init__(self):
        self.errors: dict[int, BaseException] = {}
        self.scores: dict[int, list[float]] = {}
        self.rounds: list[tuple[int, int]] = []
        self.configs: list = []
        self.together: threading.Barrier | None = None

    def __call__(self, config, workdir, *, resume, on_round, judge, stream):
        folder = pathlib.Path(workdir)
        assert resume == (folder / "config.json").exists() and not judge
        number = int(folder.name)
        self.configs.append(config)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").touch()
        if self.together is not None:
            self.together.wait(60)
        if number in self.errors:
            raise self.errors[number]
        lines = read_rounds(folder / "rounds.jsonl")
        for round_number in range(len(lines) + 1, config.federated.rounds + 1):
            mcc = config.federated.server_tau + 0.01 * round_number
            if number in self.scores:
                mcc = self.scores[number][round_number - 1]
            score = {"name": "MCC", "value": mcc}
            line = {"round": round_number, "site": "all", "score": score}
            lines.append({**line, "best": True, "bytes_sent": 1, "seconds": 0.1})
            with open(folder / "rounds.jsonl", "a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            self.rounds.append((number, round_number))
            if not on_round(lines[-1]):
                break
        best = max(lines, key=lambda line: line["score"]["value"])
        return experiment.Result({"score": best["score"]}, folder)


@pytest.fixture
def pretended(monkeypatch):
    """Nothing is trained, and no picture drawn."""
    train = Pretended()
    monkeypatch.setattr(search.experiment, "train", train)
    for name in ("history", "by_round"):
        monkeypatch.setattr(report.pictures, name, lambda trials: ("", []))
    monkeypatch.setattr(report.pictures, "importances", lambda shares: "")
    monkeypatch.setattr(report.pictures, "parallel_coordinates", lambda trials, space: "")
    return train


@pytest.fixture
def config():
    return tiny_search()


def kill_after(what: str, number: int, round_number: int = 0):
    """A progress function that ends the search where a trial begins, ends, or a round does."""

    def progress(event: Event) -> None:
        if (event.what, event.number) == (what, number) and event.round >= round_number:
            raise Killed

    return progress


def settings(found):
    """Of all trials that ended, in order."""
    return [trial.params for trial in found.trials if "outcome" in trial.user_attrs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken search that really trains."""
    events = []
    folder = tmp_path_factory.mktemp("whole")
    found = primia_jax.tune(tiny_search(), folder, progress=events.append, command="the command")
    return found, events


def test_what_a_search_leaves(whole):
    found, events = whole
    assert [t.state for t in found.trials][:2] == [TrialState.COMPLETE] * 2
    assert found.mcc == max(t.value for t in found.trials if t.value is not None)
    page = (found.workdir / "report.html").read_text()
    assert "the command" in page and "training.learning_rate" in page
    with sqlite3.connect(found.workdir / "study.db") as file:
        assert file.execute("select count(*) from trials").fetchone() == (3,)
    status = heartbeat.read(found.workdir)
    assert status["kind"] == "search" and status["state"] == "finished"
    assert sum(status["counts"].values()) == 3
    assert [e.number for e in events if e.what == "end"] == [0, 1, 2]
    assert [e.round for e in events if e.number == 0] == [0, 1, 2, 2]


def test_no_trial_sees_a_test_image(whole):
    for folder in (whole[0].workdir / "trials").iterdir():
        assert json.loads((folder / "metrics.json").read_text())["test"] is None
        assert not (folder / "report.html").exists()


def test_the_value_is_the_federated_validation_of_the_best_round(whole):
    found, _ = whole
    lines = read_rounds(found.workdir / "trials" / f"{found.best:04d}" / "rounds.jsonl")
    scores = [line["validation"]["mcc"] for line in lines if line["site"] == "all"]
    assert found.mcc == max(scores)
    reported = found.trials[found.best].intermediate_values
    assert reported == dict(enumerate(scores, 1))


def test_the_best_configuration_trains_to_the_same_score(whole, tmp_path):
    found, _ = whole
    path = found.workdir / "best_config.py"
    namespace: dict = {}
    exec(compile(path.read_text(), path, "exec"), namespace)
    config = namespace["get_config"]()
    assert config.training.learning_rate == found.settings["training.learning_rate"]
    assert str(found.workdir) in ast.get_docstring(ast.parse(path.read_text()))
    metrics = primia_jax.train(config, tmp_path).metrics
    assert metrics["validation"]["mcc"] == found.mcc
    assert metrics["test"]["n"] == 6
    judged = primia_jax.evaluate(config, found.workdir / "trials" / f"{found.best:04d}")
    assert judged == metrics["test"]


def test_a_trial_killed_in_its_training_goes_on_from_its_last_round(whole, tmp_path):
    """It is another trial with the same settings, in the folder that moves with it."""
    config = tiny_search()
    config.tuning.trials = 1
    with pytest.raises(Killed):
        primia_jax.tune(config, tmp_path, progress=kill_after("round", 0, 1))
    first = read_rounds(tmp_path / "trials" / "0000" / "rounds.jsonl")
    found = primia_jax.tune(config, tmp_path, resume=True)
    again = read_rounds(tmp_path / "trials" / "0001" / "rounds.jsonl")
    assert again[: len(first)] == first
    assert [line["round"] for line in again if line["site"] == "all"] == [1, 2]
    assert not (tmp_path / "trials" / "0000").exists()
    assert found.trials[1].params == whole[0].trials[0].params
    assert found.mcc == whole[0].trials[0].value


@pytest.mark.parametrize("where", [("begin", 1), ("round", 1, 1), ("end", 1), ("begin", 0)])
def test_a_search_that_was_killed_ends_like_an_unbroken_one(pretended, config, where, tmp_path):
    config.tuning.trials = 4
    expected = primia_jax.tune(config, tmp_path / "whole")
    trained = len(pretended.rounds)
    pretended.rounds.clear()
    with pytest.raises(Killed):
        primia_jax.tune(config, tmp_path / "killed", progress=kill_after(*where))
    assert heartbeat.read(tmp_path / "killed")["state"] == "interrupted"
    found = primia_jax.tune(config, tmp_path / "killed", resume=True)
    assert settings(found) == settings(expected)
    assert found.mcc == expected.mcc and found.settings == expected.settings
    assert len(pretended.rounds) == trained, "no round was trained twice"
    page = (tmp_path / "killed" / "report.html").read_text()
    assert ("interrupted; taken up as trial" in page) == (where[0] != "end")


def test_killed_again_while_it_takes_up(pretended, config, tmp_path):
    config.tuning.trials = 2
    for number, more in ((0, {}), (1, {"resume": True}), (2, {"resume": True})):
        with pytest.raises(Killed):
            primia_jax.tune(config, tmp_path, progress=kill_after("begin", number), **more)
    found = primia_jax.tune(config, tmp_path, resume=True)
    assert len(settings(found)) == 2
    assert found.trials[0].params == found.trials[1].params == found.trials[2].params


def test_a_taken_up_trial_is_pruned_where_it_would_have_been(pretended, config, tmp_path):
    pretended.scores = {0: [0.5] * 2, 1: [0.5] * 2, 2: [0.1] * 2}
    with pytest.raises(Killed):
        primia_jax.tune(config, tmp_path, progress=kill_after("round", 2, 1))
    found = primia_jax.tune(config, tmp_path, resume=True)
    assert found.trials[3].state is TrialState.PRUNED
    assert (2, 2) not in pretended.rounds and (3, 2) not in pretended.rounds


def test_more_trials_for_a_finished_search(pretended, config, tmp_path):
    first = primia_jax.tune(config, tmp_path)
    config.tuning.trials = 4
    found = primia_jax.tune(config, tmp_path, resume=True)
    assert [t.params for t in found.trials[:3]] == [t.params for t in first.trials]
    assert len(found.trials) == 4 and len(pretended.rounds) == 8
    config.tuning.trials = 1  # fewer than there are: only the report is made anew
    (tmp_path / "report.html").unlink()
    assert primia_jax.tune(config, tmp_path, resume=True).mcc == found.mcc
    assert (tmp_path / "report.html").exists()


def test_other_settings_or_another_space_are_refused(pretended, config, tmp_path):
    primia_jax.tune(config, tmp_path)
    config.federated.rounds = 3
    with pytest.raises(ConfigError, match=r"federated\.rounds = 2, now 3"):
        primia_jax.tune(config, tmp_path, resume=True)
    config.federated.rounds = 2
    config.tuning.space = ("training.learning_rate log 1e-3 1e-2",)
    with pytest.raises(ConfigError, match=r"another config\.tuning\.space"):
        primia_jax.tune(config, tmp_path, resume=True)


def test_a_new_search_moves_the_old_one_aside(pretended, config, tmp_path):
    first, second = (primia_jax.tune(config, tmp_path) for _ in range(2))
    assert first.settings == second.settings
    for name in ("study.db", "best_config.py", "trials/0000/rounds.jsonl"):
        assert (tmp_path / name).exists() and (tmp_path / "previous" / "1" / name).exists()


def test_a_crashed_trial_is_recorded_and_the_search_goes_on(pretended, config, tmp_path):
    pretended.errors = {0: ClusterError("hospital_1 was lost"), 1: KeyError("a mistake of ours")}
    found = primia_jax.tune(config, tmp_path)
    assert [t.state for t in found.trials] == [TrialState.FAIL] * 2 + [TrialState.COMPLETE]
    assert found.best == 2
    assert found.trials[0].user_attrs["outcome"] == "failed: hospital_1 was lost"
    assert "KeyError" in (tmp_path / "trials" / "0001" / "error.txt").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "hospital_1 was lost" in page and "Not told: that takes" in page
    assert len(primia_jax.tune(config, tmp_path, resume=True).trials) == 3


def test_a_diverged_trial_is_a_bad_one(pretended, config, tmp_path):
    pretended.errors = {1: TrainingError("hospital_0: the training diverged")}
    found = primia_jax.tune(config, tmp_path)
    assert found.best != 1 and found.trials[1].value == -1
    assert found.trials[1].user_attrs["outcome"].startswith("diverged: hospital_0")
    assert heartbeat.read(tmp_path)["counts"]["diverged"] == 1


def test_where_none_finds_a_model(pretended, config, tmp_path):
    pretended.errors = dict.fromkeys(range(3), TrainingError("the training diverged"))
    with pytest.raises(TrainingError, match=r"none of the 3 trials.*diverged"):
        primia_jax.tune(config, tmp_path)
    assert heartbeat.read(tmp_path)["state"] == "failed"


def test_where_all_fail_it_does_not_go_on_for_ever(pretended, config, tmp_path):
    config.tuning.trials = 50
    pretended.errors = dict.fromkeys(range(50), ClusterError("the cluster is gone"))
    with pytest.raises(TrainingError, match=r"5 trials in a row failed.*the cluster is gone"):
        primia_jax.tune(config, tmp_path)


def test_a_round_without_a_score(pretended, config, tmp_path):
    pretended.scores = {0: [float("nan")] * 2}
    found = primia_jax.tune(config, tmp_path)
    assert found.trials[0].user_attrs["outcome"] == "failed: no round has a validation MCC"


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_full_disk_ends_the_search(pretended, config, parallel, tmp_path):
    """What ran beside it is taken up like what met the full disk."""
    config.tuning.parallel = parallel
    pretended.errors = {1: StorageError("the disk is full")}
    with pytest.raises(StorageError, match="the disk is full"):
        primia_jax.tune(config, tmp_path)
    pretended.errors = {}
    assert len(settings(primia_jax.tune(config, tmp_path, resume=True))) == 3


def test_trials_at_a_time(pretended, config, tmp_path):
    config.tuning.parallel = 3
    pretended.together = threading.Barrier(3)  # all three begin before one goes on
    found = primia_jax.tune(config, tmp_path)
    assert len(settings(found)) == 3 and not heartbeat.read(tmp_path)["counts"]["running"]


def test_what_a_trial_finds_does_not_depend_on_those_beside_it(whole, config, tmp_path):
    config.tuning.parallel = 2
    config.tuning.trials = 2
    found = primia_jax.tune(config, tmp_path)
    for trial, alone in zip(found.trials, whole[0].trials):
        assert trial.params == alone.params
        assert trial.intermediate_values == alone.intermediate_values


def test_a_trial_below_the_median_is_pruned(pretended, config, tmp_path):
    pretended.scores = {0: [0.5, 0.6], 1: [0.5, 0.6], 2: [0.1, 0.1]}
    found = primia_jax.tune(config, tmp_path)
    assert found.trials[2].state is TrialState.PRUNED
    assert found.trials[2].user_attrs["outcome"] == "pruned after round 1"
    assert (2, 2) not in pretended.rounds
    config.tuning.pruning = False
    primia_jax.tune(config, tmp_path)
    assert (2, 2) in pretended.rounds


def test_a_search_that_goes_on_is_not_disturbed(config, tmp_path):
    status = {"kind": "search", "state": "running", "host": "elsewhere", "pid": 1, "heard": 4e9}
    (tmp_path / "status.json").write_text(json.dumps(status))
    with pytest.raises(StorageError, match=r"goes on in .*process 1 on elsewhere"):
        primia_jax.tune(config, tmp_path)


def test_an_empty_space_and_an_address_without_a_cluster(config, tmp_path):
    with pytest.raises(ConfigError, match="--ray_address needs"):
        primia_jax.tune(config, tmp_path, ray_address="auto")
    config.tuning.space = ()
    with pytest.raises(ConfigError, match=r"config\.tuning\.space is empty"):
        primia_jax.tune(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_all_trials_are_charged_to_one_ledger(pretended, config, tmp_path):
    """Which stays where it is, also where another search is begun there."""
    config.privacy.mode = "record"
    pretended.errors = {1: BudgetError("hospital_0: round 1 would bring ε to 9, beyond 8")}
    found = primia_jax.tune(config, tmp_path)
    assert len(found.trials) == 2 and "beyond 8" in found.spent
    assert {c.privacy.ledger for c in pretended.configs} == {str(tmp_path / "ledger")}
    assert "The search ended early" in (tmp_path / "report.html").read_text()
    assert (
        f'config.privacy.ledger = "{tmp_path / "ledger"}"'
        in (tmp_path / "best_config.py").read_text()
    )
    (tmp_path / "ledger").mkdir()
    pretended.errors = {0: BudgetError("beyond 8")}
    with pytest.raises(BudgetError, match="beyond 8"):
        primia_jax.tune(config, tmp_path)
    assert (tmp_path / "ledger").is_dir()
    config.privacy.validation = "none"
    with pytest.raises(ConfigError, match="nothing to go by"):
        primia_jax.tune(config, tmp_path)


def test_training_that_really_diverges(config, tmp_path):
    config.training.optimizer = "sgd"
    config.training.schedule = "constant"
    config.training.learning_rate = 10.0
    config.training.beta1 = 0.9999
    config.federated.sync_every = 100
    config.tuning.space = ("training.weight_decay uniform 0.99 1.0",)
    config.tuning.trials = 1
    with pytest.raises(TrainingError, match=r"none of the 1 trials.*diverged"):
        primia_jax.tune(config, tmp_path)


def test_a_search_moved_elsewhere_can_be_gone_on_with(whole, tmp_path):
    shutil.copytree(whole[0].workdir, tmp_path / "moved")
    again = primia_jax.tune(tiny_search(), tmp_path / "moved", resume=True)
    assert again.mcc == whole[0].mcc and again.best == whole[0].best
