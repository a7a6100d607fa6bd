"""What readers are told of the attacker is what the runs were, each of them."""

import pathlib

from conftest import tiny

from primia_jax.campaigns.audit import threat_model
from primia_jax.campaigns.audit.settings import Run, parse, run_config
from primia_jax.config import AuditConfig, ExperimentConfig, from_config_dict


def told(audit, rounds=(1, 2)):
    base = from_config_dict(ExperimentConfig, tiny().to_dict())
    runs = [Run(one, pathlib.Path(), run_config(base, one), True) for one in parse(audit)]
    attacked = [
        {
            "setting": run.setting.name,
            "rounds": list(rounds),
            "local_steps": run.config.federated.sync_every,
        }
        for run in runs
    ]
    rows = dict(threat_model.rows(audit, runs, attacked))
    return rows, threat_model.note(runs, attacked)


def test_settings_that_differ_are_told_apart():
    rows, note = told(AuditConfig(settings=("a:", "b: training.learning_rate=0.5", "c:")))
    assert rows["local optimiser"] == (
        "sgd, learning rate 0.1 (constant) (a, c); sgd, learning rate 0.5 (constant) (b)"
    )
    assert rows["network"] == "simple, width 4"
    assert note.startswith("Attacked were updates of rounds 1 to 2 (of 2) of runs trained for this")


def test_only_what_is_easy_is_called_the_best_case():
    for words, rounds, easy in (
        ("", (1, 2), True),
        ("", (2,), False),
        ("federated.sync_every=3", (1,), False),
        ("training.optimizer=adam", (1,), False),
        ("model.norm=batch", (1,), False),
        ("federated.update_clip=0.1", (1,), False),
    ):
        _, note = told(AuditConfig(settings=("a:", f"b: {words}")), rounds)
        assert ("best case" in note) == easy
