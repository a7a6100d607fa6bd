"""The door: every mistake in a configuration is named with its key, value and the allowed ones."""

import dataclasses
import pathlib
import runpy

import pytest

from primia_jax.config import (
    ExperimentConfig,
    MpcConfig,
    from_config_dict,
    resolved,
    to_config_dict,
    to_plain,
)
from primia_jax.errors import ConfigError

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def check(**changes):
    plain = to_plain(ExperimentConfig())
    for dotted, value in changes.items():
        section = plain
        *path, key = dotted.split("__")
        for name in path:
            section = section[name]
        section[key] = value
    return from_config_dict(ExperimentConfig, plain)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sed": 1}, ["config.sed", "did you mean 'seed'"]),
        ({"federated__xyzzy": 1}, ["config.federated.xyzzy", "allowed: mode, hospitals"]),
        ({"data__phantom__n_trian": 1}, ["config.data.phantom.n_trian", "'n_train'"]),
        ({"seed": "one"}, ["config.seed = 'one'", "expected int", "str"]),
        ({"seed": True}, ["config.seed = True", "expected int"]),
        ({"seed": 1.0}, ["config.seed = 1.0", "expected int"]),
        ({"training__class_weights": 1}, ["config.training.class_weights", "expected bool"]),
        ({"training__learning_rate": float("nan")}, ["learning_rate", "finite"]),
        ({"training__learning_rate": -1.0}, ["learning_rate = -1.0", "[0, 10]"]),
        (
            {"federated__rule": "fedavgg"},
            ["'fedavgg'", "fedavg | fedprox", "did you mean 'fedavg'"],
        ),
        ({"data": 3}, ["config.data = 3", "section"]),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(ConfigError) as caught:
        check(**changes)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_integers_pass_for_floats_and_defaults_fill_in():
    config = from_config_dict(ExperimentConfig, {"training": {"learning_rate": 1}})
    assert config.training.learning_rate == 1.0
    assert config.data == ExperimentConfig().data


def test_round_trip_through_config_dict_and_json_form():
    config = ExperimentConfig()
    assert from_config_dict(ExperimentConfig, to_config_dict(config)) == config
    assert from_config_dict(ExperimentConfig, to_plain(config)) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_passes_the_door(path):
    """And its docstring tells how to run it."""
    config = runpy.run_path(str(path))["get_config"]()
    assert resolved(from_config_dict(ExperimentConfig, config))
    assert f"--config=configs/{path.name}" in path.read_text().split('"""')[1]


def test_every_setting_explains_itself():
    def walk(section, path):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                walk(value, f"{path}{field.name}.")
            else:
                assert field.metadata.get("doc"), path + field.name

    walk(ExperimentConfig(), "")


@pytest.mark.parametrize(("mode", "threads"), [("local", 4), ("federated", 1)])
def test_threads_are_settled_by_the_cores(monkeypatch, mode, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    config = resolved(check(federated__mode=mode))
    assert config.runtime.threads == threads
    assert resolved(config) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prg_rounds": 6}, "config.mpc.prg_rounds = 6: allowed are 8 | 12 | 20"),
        ({"ring_bits": 33}, "config.mpc.ring_bits = 33: allowed are 24 | 28 | 32 | 64"),
        ({"margin": 0.5}, "config.mpc.margin = 0.5: must lie in [1, 64]"),
        ({"leaf_bits": 8.0}, "config.mpc.leaf_bits = 8.0: expected int, got float"),
        ({"sign_tolerance": float("nan")}, "config.mpc.sign_tolerance = nan: must be a finite"),
    ],
)
def test_bounds_of_mpc_hold_for_whoever_makes_the_section(changes, words):
    """Six rounds of ChaCha are no option, in a file or in Python."""
    for make in (
        lambda: MpcConfig(**changes),
        lambda: dataclasses.replace(MpcConfig(), **changes),
        lambda: from_config_dict(ExperimentConfig, {"mpc": changes}),
    ):
        with pytest.raises(ConfigError) as refused:
            make()
        assert words in str(refused.value)
