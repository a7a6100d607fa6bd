"""The page and the configuration file of a search, also where hardly anything is known."""

import ast

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from searches import tiny_search

from primia_jax import experiment
from primia_jax.campaigns.tuning import best_config, report
from primia_jax.campaigns.tuning.search import tally
from primia_jax.campaigns.tuning.space import parse
from primia_jax.config import ExperimentConfig, from_config_dict

SPACE = parse(
    (
        "training.learning_rate log 1e-5 1e-1",
        "training.restarts uniform 0 5",
        "training.optimizer choice adam adamw sgd",
        "training.class_weights choice true false",
    )
)


def trial(rng, value=None, state=TrialState.COMPLETE, **attributes):
    params = {
        "training.learning_rate": float(10 ** rng.uniform(-5, -1)),
        "training.restarts": int(rng.integers(6)),
        "training.optimizer": str(rng.choice(["adam", "adamw", "sgd"])),
        "training.class_weights": bool(rng.integers(2)),
    }
    return create_trial(
        state=state,
        value=value,
        params=params,
        distributions={d.name: d.distribution for d in SPACE},
        user_attrs=attributes,
        intermediate_values={} if value is None else {1: value - 0.1, 2: value},
    )


def numbered(trials):
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return study.trials


def rendered(trials, config=None, spent=""):
    config = experiment.checked(config or tiny_search())
    trials = numbered(trials)
    return report.render(config, SPACE, trials, tally(trials, 0), spent, "the command")


def some(n=8):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        one = trial(
            rng, 0.0, outcome="complete", rounds=2, seconds=3.0, bytes_sent=10, best_round=2
        )
        one.value = 0.5 - abs(np.log10(one.params["training.learning_rate"]) + 3) / 10
        found.append(one)
    return found


def test_every_kind_of_trial_stands_in_the_table():
    rng = np.random.default_rng(1)
    trials = [
        *some(),
        trial(rng, -1.0, outcome="diverged: weights <b>", diverged=True),
        trial(rng, state=TrialState.PRUNED, outcome="pruned after round 3"),
        trial(rng, state=TrialState.FAIL, outcome="failed: hospital_1 was lost"),
        trial(rng, state=TrialState.FAIL),
        trial(rng, 0.1, outcome="complete", takes_up=11),
    ]
    page = rendered(trials)
    for text in (
        "diverged: weights &lt;b&gt;",
        "pruned after round 3",
        "hospital_1 was lost",
        "interrupted; taken up as trial 12",
        "complete (takes up trial 11)",
        "the command",
        '<td class="n">adamw</td>',
    ):
        assert text in page
    assert page.count("data:image/svg+xml") == 4
    assert "of 12 trials" in page, "the interrupted one does not count"


def test_the_setting_that_mattered_is_found():
    shares = report.importances(numbered(some(30)), seed=0)
    assert next(iter(shares)) == "training.learning_rate" and shares["training.learning_rate"] > 0.5
    assert sum(shares.values()) == pytest.approx(1)


def test_diverged_trials_do_not_count_as_importance():
    """Their value is no measurement."""
    rng = np.random.default_rng(2)
    lost = [trial(rng, -1.0, outcome="diverged", diverged=True) for _ in range(5)]
    assert report.importances(numbered(some(8) + lost), 0) == report.importances(
        numbered(some(8)), 0
    )


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_trials(count):
    page = rendered(some(count))
    assert "Not told" in page and f"of {count} trials" in page


def test_equal_scores_have_no_importances():
    trials = some()
    for one in trials:
        one.value = 0.5
    assert "Not told" in rendered(trials)


def test_the_configuration_file_is_python_whatever_the_names(tmp_path):
    asked = tiny_search()
    asked.name = 'A "strange"\n"""name\\'
    asked.data.path = "it's\\here\n"
    asked.data.test_path = 'a "b"'
    config = from_config_dict(ExperimentConfig, asked)
    best = numbered(some(1))[0]
    path = tmp_path / "a 'b\"\\" / "best_config.py"
    path.parent.mkdir()
    best_config.write(path, config, best, {"complete": 1})
    namespace: dict = {}
    exec(compile(path.read_text(), path, "exec"), namespace)
    found = namespace["get_config"]()
    assert found.data.path == asked.data.path and found.data.test_path == asked.data.test_path
    assert found.name == f"{asked.name}, best of 1 trials"
    for name, value in best.params.items():
        assert found.training[name.split(".")[1]] == value
    assert found.tuning.space == () and found.federated.rounds == asked.federated.rounds
    assert "Trial 0 of 1" in ast.get_docstring(ast.parse(path.read_text()))
