"""The study on disk: what is kept, what is taken up, and that the seed decides what is drawn."""

import optuna
import pytest
from optuna.trial import TrialState

from primia_jax.campaigns.tuning.space import parse
from primia_jax.campaigns.tuning.study import LOWEST, Study, best_of, interrupted
from primia_jax.config import TuningConfig
from primia_jax.errors import CheckpointError, StorageError

SPACE = parse(
    (
        "training.learning_rate log 1e-5 1e-3",
        "training.restarts uniform 0 5",
        "training.optimizer choice adam sgd",
        "training.class_weights choice true false",
    )
)
TUNING = TuningConfig(startup_trials=3, warmup_rounds=2)


def open_study(folder, seed=0):
    return Study(folder, TUNING, SPACE, seed)


def run(study, count):
    """Completes `count` trials with a score that only their settings decide; gives the settings."""
    drawn = []
    for _ in range(count):
        trial = study.ask()
        drawn.append(trial.params)
        study.note(trial, outcome="complete")
        study.tell(trial, TrialState.COMPLETE, trial.params["training.learning_rate"])
    return drawn


def test_a_search_that_was_killed_draws_what_an_unbroken_one_draws(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    whole = run(open_study(tmp_path / "a"), 6)
    run(open_study(tmp_path / "b"), 4)
    open_study(tmp_path / "b").ask()  # killed here
    study = open_study(tmp_path / "b")
    assert study.take_up() == [4]
    assert run(study, 2) == whole[4:]
    assert len(study.counted()) == 6
    assert run(open_study(tmp_path / "c", seed=1), 1) != whole[:1]


def test_what_ran_is_taken_up_once_with_the_same_settings(tmp_path):
    study = open_study(tmp_path)
    run(study, 1)
    lost = study.ask()
    study = open_study(tmp_path)
    assert study.take_up() == [1]
    study = open_study(tmp_path)  # killed again, before it was asked for
    assert study.take_up() == []
    again = study.ask()
    assert again.params == lost.params
    assert again.user_attrs["takes_up"] == lost.number
    study = open_study(tmp_path)  # and again, in the midst of it
    assert study.take_up() == [again.number]
    third = study.ask()
    assert third.params == lost.params
    assert interrupted(study.trials()) == {1, 2}
    assert [trial.number for trial in study.counted()] == [0, 3]


def test_a_trial_that_had_ended_but_was_not_told_does_not_count_twice(tmp_path):
    study = open_study(tmp_path)
    trial = study.ask()
    study.note(trial, outcome="failed: something")
    study = open_study(tmp_path)  # killed between the two
    study.take_up()
    run(study, 1)
    assert [trial.number for trial in study.counted()] == [1]


def test_a_trial_without_all_its_settings_is_drawn_anew(tmp_path):
    study = open_study(tmp_path)
    study._study.ask().suggest_float("training.learning_rate", 1e-5, 1e-3, log=True)
    study = open_study(tmp_path)
    assert study.take_up() == [0]
    assert "takes_up" not in study.ask().user_attrs
    assert len(study.counted()) == 1


def test_below_the_median_a_trial_is_pruned_after_its_first_rounds(tmp_path):
    study = open_study(tmp_path)
    for level in (0.5, 0.6, 0.7):
        trial = study.ask()
        assert all(study.report(trial, number, level) for number in (1, 2, 3))
        study.tell(trial, TrialState.COMPLETE, level)
    bad, good = study.ask(), study.ask()
    assert study.report(bad, 1, 0.1), "the first rounds are given to everyone"
    assert not study.report(bad, 2, 0.1)
    assert study.report(good, 2, 0.65)
    assert study.report(good, 3, None) and study.report(good, 4, float("nan"))


def test_a_diverged_trial_is_never_the_best(tmp_path):
    study = open_study(tmp_path)
    trial = study.ask()
    study.note(trial, diverged=True)
    study.tell(trial, TrialState.COMPLETE, LOWEST)
    assert best_of(study.trials()) is None
    for value in (-0.5, 0.25, 0.25):
        study.tell(study.ask(), TrialState.COMPLETE, value)
    assert best_of(study.trials()).number == 2, "the first of equals"


def test_the_file_is_one_of_optunas(tmp_path):
    run(open_study(tmp_path), 2)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert study.direction is optuna.study.StudyDirection.MAXIMIZE and len(study.trials) == 2


def test_what_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"study\.db cannot be written"):
        open_study(tmp_path / "file")
    (tmp_path / "study.db").write_text("no database, but long enough to be taken for one" * 99)
    with pytest.raises(CheckpointError, match=r"study\.db is no study"):
        open_study(tmp_path)
