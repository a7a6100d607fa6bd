"""The search space is checked at the door: a mistake names the setting and what it allows."""

import pytest

from primia_jax.campaigns.tuning.space import parse, with_settings
from primia_jax.config import ExperimentConfig
from primia_jax.errors import ConfigError


def test_every_kind_of_dimension():
    rate, restarts, optimizer, weights = parse(
        (
            "training.learning_rate log 1e-5 1e-3",
            "config.training.restarts uniform 0 5",
            "training.optimizer choice adam sgd",
            "training.class_weights choice true false",
        )
    )
    assert (rate.name, rate.is_log) == ("training.learning_rate", True)
    assert (rate.distribution.low, rate.distribution.high) == (1e-5, 1e-3)
    assert restarts.name == "training.restarts" and type(restarts.distribution.high) is int
    assert optimizer.distribution.choices == ("adam", "sgd")
    assert weights.distribution.choices == (True, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training.learning_rat log 1e-5 1e-3", "mean 'learning_rate'"),
        ("training.learning_rate log 1e-5 100", r"learning_rate = 100.*\[0, 10\]"),
        ("training.learning_rate log 0 1", "above 0"),
        ("training.learning_rate log 1 0.1", "below the highest"),
        ("training.learning_rate log 1e-3", "a lowest and a highest"),
        ("training.learning_rate uniform 0 nan", "'nan' is not a finite number"),
        ("training.learning_rate around 0 1", r"log\|uniform\|choice"),
        ("training.learning_rate", r"log\|uniform\|choice"),
        ("", r"log\|uniform\|choice"),
        ("training.restarts uniform 0 2.5", "'2.5' is not a whole number"),
        ("training.optimizer choice adam lbfgs", "'lbfgs': allowed are adam"),
        ("training.optimizer choice adam adam", "each of them once"),
        ("training.optimizer uniform 0 1", "no number; use choice"),
        ("training.class_weights choice yes no", "'yes' is not true or false"),
        ("training choice a b", "training is a section"),
        ("seed uniform 0 10", "seed cannot be searched"),
        ("data.validation_fraction uniform 0.1 0.2", "cannot be searched"),
        ("federated.mode choice local federated", "what a trial may see"),
        ("privacy.epsilon uniform 1 8", "other guarantees"),
        ("privacy.budget uniform 1 8", "one ledger"),
        ("tuning.space choice a b", "several values"),
        ("nothing.at.all log 1 2", "config.nothing: no such setting"),
    ],
)
def test_a_mistake_is_named(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        parse((text,))
    assert f"config.tuning.space: '{text}'" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_and_the_same_twice():
    with pytest.raises(ConfigError, match="is empty"):
        parse(())
    with pytest.raises(ConfigError, match=r"training\.beta1 more than once"):
        parse(("training.beta1 uniform 0 0.5", "training.beta1 uniform 0.5 0.9"))


def test_values_take_the_place_of_the_settings():
    config = ExperimentConfig()
    values = {"training.learning_rate": 0.5, "federated.early_stopping.patience": 7}
    changed = with_settings(config, values)
    assert changed.training.learning_rate == 0.5
    assert changed.federated.early_stopping.patience == 7
    assert changed.data == config.data
    with pytest.raises(ConfigError, match="must lie in"):
        with_settings(config, {"training.learning_rate": 11.0})
