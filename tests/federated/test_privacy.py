"""Trainings with differential privacy: what goes out is noised, charged and within the budget."""

import dataclasses
import functools
import json
import shutil
import types

import jax
import numpy as np
import pytest
import tiny

from primia_jax.config import ExperimentConfig, from_config_dict, remarks, resolved
from primia_jax.data import Dataset, make_plan
from primia_jax.errors import BudgetError, CheckpointError, ConfigError, TrainingError
from primia_jax.federated import (
    accounting,
    aggregation,
    checkpoints,
    discrete_noise,
    hospital,
    hospital_training,
    local_training,
    model_owner,
    privacy,
    privacy_statement,
    private_sums,
    private_training,
    records,
    sealing,
)
from primia_jax.federated.accounting import Release
from primia_jax.federated.aggregation import OWNER, PROVIDER, Total
from primia_jax.federated.privacy_ledger import BEGUN, FILE, Entry, Ledger, path_of
from primia_jax.federated.privacy_units import Units
from primia_jax.runtime import run_local
from primia_jax.tasks import Classification

TASK = Classification(("a", "b", "c"))

PRIVATE = tiny.merged(
    tiny.TINY,
    {
        "data": {"phantom": {"n_train": 40}},
        "federated": {"mode": "federated_secure", "hospitals": 2},
        "privacy": {"mode": "record", "noise_multiplier": 3.0, "epsilon": 2.0},
    },
)
config_with = functools.partial(tiny.config_with, PRIVATE)
start = functools.partial(tiny.start, base=PRIVATE)
train = functools.partial(tiny.train, save=True)


def two(n_units):
    """Local steps a round."""
    return 2


def entries(workdir, site="hospital_0"):
    return Ledger(workdir / "sites" / site / FILE, 1e9, 1e-5, site).entries()


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"federated": {"early_stopping": {"enabled": True}}}, "early_stopping"),
        ({"augmentation": {"mixup_p": 0.5}}, "mixup_p"),
        ({"federated": {"batch_norm": "fedbn"}}, "batch_norm"),
        ({"federated": {"update_clip": 1.0}}, "update_clip"),
        ({"model": {"pretrained": "x.pth"}}, "model.norm.*'frozen'.*'group'"),
        ({"privacy": {"mode": "client"}, "federated": {"mode": "federated"}}, "federated_secure"),
        ({"privacy": {"mode": "client", "missing_hospitals": 2}}, "missing_hospitals"),
        (
            {"privacy": {"mode": "client"}, "federated": {"optimizer_state": "average"}},
            "optimizer_state",
        ),
    ],
)
def test_what_breaks_the_guarantee_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        config_with(**changes)
    assert "\n" not in str(refusal.value)


def test_batch_norm_becomes_group_norm_and_it_is_said():
    asked = from_config_dict(ExperimentConfig, PRIVATE)
    assert asked.model.norm == "batch" and resolved(asked).model.norm == "group"
    assert len(remarks(asked)) == 1 and "model.norm = 'group'" in remarks(asked)[0]
    assert remarks(resolved(asked)) == ()
    plain = from_config_dict(ExperimentConfig, tiny.merged(PRIVATE, {"privacy": {"mode": "none"}}))
    assert resolved(plain).model.norm == "batch" and remarks(plain) == ()


def test_noise_is_found_for_the_whole_plan():
    """ε of everything that a hospital is going to release comes to what was asked for."""
    config = config_with(privacy={"noise_multiplier": 0.0, "epsilon": 3.0})
    found = privacy.mechanisms(config, 40, 2)
    assert found.training.sampling_rate == 0.2 and found.training.steps == 2
    planned = [found.statistics, found.training, found.training]
    assert 2.97 < accounting.by_pld(planned, 1e-5) <= 3.0
    assert 2.97 < accounting.by_pld([found.validation] * 2, 1e-5) <= 3.0


def test_a_client_s_noise_is_found_for_updates_and_judgements_together():
    config = config_with(privacy={"mode": "client", "noise_multiplier": 0.0, "epsilon": 3.0})
    found = privacy.mechanisms(config, 40, 2)
    assert found.statistics is None and found.training.sampling_rate == 1
    assert 2.97 < accounting.by_pld([found.training, found.validation] * 2, 1e-5) <= 3.0


def test_statistics_that_spend_everything_are_named():
    with pytest.raises(ConfigError, match="statistics_noise"):
        privacy.mechanisms(
            config_with(
                privacy={"noise_multiplier": 0.0, "epsilon": 0.5, "statistics_noise": 1.0}
            ), 40, 2,
        )  # fmt: skip


@pytest.mark.parametrize("mode", ["none", "client"])
def test_a_unit_goes_with_records_only(mode):
    with pytest.raises(ConfigError, match=r"unit = 'patient'.*mode = 'record'"):
        config_with(privacy={"mode": mode, "unit": "patient"})


def test_noise_that_no_integer_holds_is_refused_at_the_start():
    config = config_with(privacy={"noise_multiplier": 0.0, "epsilon": 0.01, "statistics_noise": 0})
    with pytest.raises(
        ConfigError, match=r"epsilon = 0\.01 needs a noise multiplier of"
    ) as refusal:
        privacy.mechanisms(config, 8, 2000)
    assert "\n" not in str(refusal.value)


# --- trainings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["record", "client"])
def test_a_training_charges_what_it_releases(tmp_path, mode):
    federation = start(tmp_path, privacy={"mode": mode, "budget": 100.0})
    reports = train(federation)
    charged = entries(tmp_path)
    site = federation.driver.states["hospital_0"].guarantee.mechanisms
    expected = [*site.of_round(mode, 1), *site.of_round(mode, 2)]
    if mode == "record":
        assert charged[0].release == Release(4.0) and charged[0].about["what"] == "pixel statistics"
        charged = charged[1:]
    assert charged == expected and len({entry.split for entry in charged}) == 1
    for report in reports:
        cost = report["hospital_0"].epsilon, report["hospital_0"].epsilon_rdp
        assert 0 < cost[0] < cost[1]
        assert report["hospital_0"].loss is report["hospital_0"].validation_loss is None
    assert reports[0]["hospital_0"].epsilon < reports[1]["hospital_0"].epsilon
    lines = [{"site": "hospital_0", "round": 2, **reports[1]["hospital_0"].line()}]
    stated = privacy_statement.statement(federation.config, lines, tmp_path / "elsewhere")
    assert stated["epsilon"]["pld"] == reports[1]["hospital_0"].epsilon
    assert stated["covered"] and stated["not_covered"] and json.dumps(stated)
    assert f"{stated['epsilon']['pld']:.3f} (PLD)" in privacy_statement.headline(stated)
    weights = federation.driver.states[OWNER].vectors.params
    assert all(np.isfinite(leaf).all() for leaf in weights)


def test_a_training_can_protect_patients(tmp_path):
    """Sampled, weighed, charged and reported in patients; images are nobody's business."""
    own = {"unit": "patient", "images_per_patient": 2, "budget": 100.0}
    federation = start(tmp_path, privacy=own, training={"batch_size": 4})
    (report,) = train(federation, rounds=1)
    state = federation.driver.states["hospital_0"]
    n, n_validation = (len(set(data.patients)) for data in (state.train, state.validation))
    assert n < len(state.train)
    assert report["hospital_0"].samples == n == state.size
    release = state.guarantee.mechanisms.training
    assert release.sampling_rate == 4 / n and release.steps == 2
    charged = entries(tmp_path)
    assert [entry.about["what"] for entry in charged] == [
        "pixel statistics", "update", "confusion matrix",
    ]  # fmt: skip
    assert {entry.unit for entry in charged} == {"patient"}
    assert len(state.guarantee.validation) == n_validation
    stated = privacy_statement.statement(federation.config, [], tmp_path)
    assert stated["unit"] == "one patient" and "all images of one patient" in stated["neighbouring"]
    assert stated["epsilon"]["pld"] == report["hospital_0"].epsilon
    assert not any("patients of several images" in text for text in stated["not_covered"])
    planned = privacy.planned_report(federation.config, state.guarantee)
    report = records.SiteSetUp(n, n_validation, **planned)
    opening = privacy_statement.opening(federation.config, {"hospital_0": report})
    assert "whole patients" in opening[0] and "count patients" in opening[1]


@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_a_hospital_whose_training_diverges_is_not_told_from_the_others(
    tmp_path, monkeypatch, part
):
    """An error would name it, uncharged. Its update counts as zeros, with noise, and is charged."""
    diverging(monkeypatch, "hospital_1", part)
    changes = {
        "federated": {"optimizer_state": "keep"},
        "privacy": {"mode": "client", "budget": 100.0},
    }
    (report,) = train(start(tmp_path, **changes), rounds=1)
    assert report["hospital_1"].line().keys() == report["hospital_0"].line().keys()
    assert [entry.about for entry in entries(tmp_path, "hospital_1")] == [
        {"round": 1, "what": "update"}, {"round": 1, "what": "confusion matrix"},
    ]  # fmt: skip
    monkeypatch.undo()
    train(start(tmp_path, **changes), first=1)  # with an optimiser state that can be restored


def test_divergence_is_told_at_the_cost_of_the_round(tmp_path, monkeypatch):
    """Mode `record`: it follows from weights that carry their noise, once they are charged."""
    diverging(monkeypatch, "hospital_1", "weights")
    federation = start(tmp_path, privacy={"budget": 100.0})
    federation.set_up()
    with pytest.raises(TrainingError, match="hospital_1: the training diverged"):
        federation.train_round(1)
    assert {"round": 1, "what": "update"} in [
        entry.about for entry in entries(tmp_path, "hospital_1")
    ]


def diverging(monkeypatch, name, part):
    """Has the local steps of hospital `name` end with numbers that are not finite."""
    train_locally = hospital_training.train_locally

    def spoilt(tree):
        return jax.tree.map(lambda leaf: leaf * np.nan if hospital._is_float(leaf) else leaf, tree)

    def trained(state, number):
        state, result = train_locally(state, number)
        if state.name == name and part == "weights":
            params = spoilt(result.variables["params"])
            result = result._replace(variables={**result.variables, "params": params})
        elif state.name == name:
            result = result._replace(opt_state=spoilt(result.opt_state))
        return state, result

    monkeypatch.setattr(hospital_training, "train_locally", trained)


@pytest.mark.parametrize("shared", [False, True])
def test_a_hospital_lost_after_it_was_charged_is_stated_as_charged(tmp_path, shared):
    """It reported nothing of that round, but its ledger holds it."""
    config = config_with(
        privacy={"budget": 100.0, "ledger": str(tmp_path / "ledgers") if shared else ""}
    )
    for name in ("hospital_0", "hospital_1"):
        path = path_of(config.privacy, name, tmp_path / "sites" / name)
        ledger = Ledger(path, 100.0, 1e-5, name)
        ledger.begin()
        ledger.charge([Entry("training images", Release(3.0, 1.0, 2))], "two rounds")
    lines = [
        {"site": "hospital_0", "epsilon": 0.5, "epsilon_rdp": 99.0},
        {"site": "all", "absent": {"hospital_1": "lost"}},
    ]
    stated = privacy_statement.statement(config, lines, tmp_path)
    spent = accounting.epsilon([Release(3.0, 1.0, 2)], 1e-5)
    assert stated["sites"]["hospital_0"] == {"pld": spent.pld, "rdp": 99.0}
    assert stated["sites"]["hospital_1"] == spent._asdict()
    assert stated["epsilon"]["pld"] == spent.pld


def test_the_statement_says_that_it_holds_for_a_given_division():
    """A copy of an image, or its label, can move others between training and validation."""
    config = ExperimentConfig(
        privacy=dataclasses.replace(ExperimentConfig().privacy, mode="record")
    )
    texts = privacy_statement._not_covered(config)
    assert any("division into training, validation and test images" in text for text in texts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "record", "delta": 0.02}, "1 / 60: it lets a mechanism publish one image of 60"),
        ({"mode": "record", "delta": 0.01}, ""),
        ({"mode": "record", "unit": "patient", "delta": 0.06}, "one patient of 20"),
        ({"mode": "client", "delta": 0.4}, "one hospital of 3"),
        ({"mode": "none", "delta": 0.4}, ""),
    ],
)
def test_a_delta_that_gives_a_unit_away_is_warned_of(changes, words):
    config = ExperimentConfig(privacy=dataclasses.replace(ExperimentConfig().privacy, **changes))
    summary = (
        {"site": "a", "split": "train", "counts": [10, 20], "patients": 12},
        {"site": "b", "split": "train", "counts": [30, 30], "patients": 20},
        {"site": "b", "split": "validation", "counts": [80, 80], "patients": 90},
    )
    text = privacy_statement.large_delta(config, summary)
    assert words in text and bool(text) == bool(words)


def test_a_run_does_not_go_on_without_a_ledger_it_has_charged(tmp_path):
    """ε would be told as if the rounds before had cost nothing."""
    changes = {"federated": {"rounds": 3}, "privacy": {"budget": 100.0}}
    train(start(tmp_path, **changes), rounds=1)
    (tmp_path / "sites" / "hospital_1").rename(tmp_path / "the_other_node")
    with pytest.raises(CheckpointError, match=r"hospital_1: there is no privacy ledger .*sites"):
        start(tmp_path, **changes).set_up(1)
    old = tmp_path / "sites" / "hospital_1" / FILE
    (tmp_path / "the_other_node").rename(old.parent)
    lines = old.read_bytes().splitlines(keepends=True)
    old.write_bytes(lines[0])  # the pixel statistics alone
    with pytest.raises(CheckpointError, match=r"hospital_1: .*as an older copy does"):
        start(tmp_path, **changes).set_up(1)
    (old.parent / BEGUN).unlink()
    with pytest.raises(CheckpointError, match=r"hospital_1 trained round 1"):
        start(tmp_path, **changes).set_up(1)


@pytest.mark.parametrize("mode", ["record", "client"])
def test_a_revealed_round_is_charged_once(tmp_path, mode):
    """Killed after its sums were revealed and before it was saved: it is completed, not trained."""
    changes = {"federated": {"rounds": 3}, "privacy": {"mode": mode, "budget": 100.0}}
    first = start(tmp_path, **changes)
    train(first, rounds=1)
    first.train_round(2)
    charged = entries(tmp_path)
    second = start(tmp_path, **changes)
    reports = train(second, first=1, rounds=2)
    assert entries(tmp_path) == charged and reports[0]["hospital_0"].steps == 0
    tiny.assert_same(tiny.model(second).params, tiny.model(first).params)


def test_resuming_goes_on_with_the_ledger_and_the_statistics(tmp_path):
    """Nothing is forgotten, and what was released already is released again without a charge."""
    changes = {"federated": {"rounds": 3}, "privacy": {"budget": 100.0}}
    first = start(tmp_path, **changes)
    train(first, rounds=1)
    before, known = entries(tmp_path), first.driver.states["hospital_0"].statistics
    assert len(before) == 3
    second = start(tmp_path, **changes)
    reports = train(second, first=1, rounds=2)
    assert entries(tmp_path)[:3] == before and len(entries(tmp_path)) == 5
    assert second.driver.states["hospital_0"].statistics.mean == known.mean
    spent = Ledger(tmp_path / "sites" / "hospital_0" / FILE, 1e9, 1e-5, "").spent()
    assert reports[-1]["hospital_0"].epsilon == spent.pld


def test_the_round_that_would_exceed_the_budget_is_refused(tmp_path, monkeypatch):
    """Before its first step; what was trained stays and is committed."""
    own = {"noise_multiplier": 3.0, "validation": "none", "statistics_noise": 0.0}
    one = start(tmp_path / "a", privacy={**own, "budget": 100.0})
    cost = [r["hospital_0"].epsilon for r in train(one)]
    budget = (cost[0] + cost[1]) / 2
    federation = start(tmp_path / "b", privacy={**own, "budget": budget})
    train(federation, rounds=1)
    monkeypatch.setattr(private_training, "train", lambda *a: pytest.fail("a step was taken"))
    with pytest.raises(BudgetError, match=r"hospital_\d: round 2 would bring ε to"):
        federation.train_round(2)
    assert checkpoints.latest(federation.owner_folder).round == 1
    assert {entry.about["round"] for entry in entries(tmp_path / "b")} == {1}


def test_runs_that_share_a_ledger_share_a_budget(tmp_path):
    shared = {"ledger": str(tmp_path / "ledgers"), "budget": 6.0}
    first = start(tmp_path / "a", privacy=shared)
    spent = train(first)[-1]["hospital_0"].epsilon
    assert not (tmp_path / "a" / "sites" / "hospital_0" / FILE).exists()
    second = start(tmp_path / "b", privacy={**shared, "budget": spent + 0.01})
    with pytest.raises(BudgetError, match="ledgers/hospital_"):
        train(second)


@pytest.mark.parametrize("mode", ["record", "client"])
def test_the_ledger_is_compared_with_the_record_of_sums(tmp_path, mode):
    """Round 2 was contributed to and did not become complete; then ledger and mark are set back."""
    changes = {"federated": {"rounds": 3}, "privacy": {"mode": mode, "budget": 100.0}}
    first = start(tmp_path, **changes)
    train(first, rounds=1)
    site = tmp_path / "sites" / "hospital_1"
    before = {path: path.read_bytes() for path in (site / FILE, site / BEGUN)}
    first.train_round(2)
    for path, content in before.items():
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"hospital_1: .*names 1 contr.* round 2.* has 0"):
        start(tmp_path, **changes).set_up(1)


def test_a_shared_ledger_that_is_gone_is_not_begun_anew(tmp_path):
    """A later run knows of it by a mark in the folder that the ledgers of the hospitals share."""
    shared = {"ledger": str(tmp_path / "ledgers"), "budget": 100.0}
    train(start(tmp_path / "a", privacy=shared), rounds=1)
    shutil.rmtree(tmp_path / "ledgers" / "hospital_1")
    with pytest.raises(CheckpointError, match=r"hospital_1: there is no privacy ledger"):
        start(tmp_path / "b", privacy=shared).set_up()
    assert not (tmp_path / "ledgers" / "hospital_1").exists()


def test_without_confusion_matrices_the_last_model_is_the_best(tmp_path):
    federation = start(
        tmp_path, privacy={"validation": "none", "statistics_noise": 0.0, "budget": 100.0}
    )
    reports = train(federation)
    assert [report[OWNER].best_round for report in reports] == [1, 2]
    assert reports[0][OWNER].validation is None
    assert {entry.about["what"] for entry in entries(tmp_path)} == {"update"}
    statistics = federation.driver.states["hospital_1"].statistics
    assert (statistics.mean, statistics.std) == (0.5, 0.25) and set(statistics.class_weights) == {1}


def test_exact_confusion_matrices_are_named_as_not_covered(tmp_path):
    federation = start(tmp_path, privacy={"validation": "exact", "budget": 100.0})
    (report,) = train(federation, rounds=1)
    assert report["hospital_0"].validation_loss is not None
    images = sum(len(federation.driver.states[h].validation) for h in federation.hospitals)
    assert sum(report[OWNER].validation.summed) == images
    stated = privacy_statement.statement(federation.config, [], tmp_path)
    assert any("confusion matrices" in text for text in stated["not_covered"])


# --- what goes out -----------------------------------------------------------------------------


def client_config(**own):
    own = {"mode": "client", "missing_hospitals": 0, **own}
    return config_with(privacy=own, federated={"hospitals": 5})


def client_site(noise):
    ledger = Ledger("nowhere", 1.0, 1e-5, "h")
    return privacy.Site(privacy.Mechanisms(Release(noise), None, Release(3 * noise)), ledger)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("frac_bits", [12, 24])
def test_no_update_is_longer_than_the_clip(scale, frac_bits):
    changes = np.random.default_rng(0).standard_normal(1001) * scale
    integers = private_sums.clipped_update(changes, 0.7, frac_bits)
    unit = 2.0**-frac_bits
    assert np.linalg.norm(integers.astype(np.float64)) * unit <= 0.7
    if scale == 1e-3 and frac_bits == 24:
        np.testing.assert_allclose(integers * unit, changes, atol=unit)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_zero(bad):
    changes = np.asarray([0.1, bad, 0.2])
    np.testing.assert_array_equal(private_sums.clipped_update(changes, 0.7, 24), np.zeros(3))


def test_no_hospital_is_named_for_the_magnitude_of_its_own_values(monkeypatch):
    """They carry its own share of the noise only: the configuration alone decides what fits."""
    config = config_with(
        privacy={"mode": "client", "missing_hospitals": 0},
        federated={"hospitals": 5},
        secure_aggregation={"clip": 20.0},
    )
    before, score = (np.zeros(3),), local_training.Score(0.0, np.eye(9, dtype=np.int64)[:3])
    noised = private_sums._with_share_of_noise
    monkeypatch.setattr(
        private_sums, "_with_share_of_noise", lambda v, *a: noised(v, *a) + (1 << 62)
    )
    site = dataclasses.replace(client_site(1.0), ledger=types.SimpleNamespace(charge=print))
    for own in (
        private_sums.client_update(config, site, before, before, 5),
        private_sums.validation_contribution(config, site, score, TASK, 1, 5),
    ):
        assert np.abs(np.concatenate(own.values)).max() == 20.0
        aggregation._check_bounds("h0", own, config.secure_aggregation, 5)
    for refused in (
        lambda: private_sums.client_update(config, client_site(9.0), before, before, 5),
        lambda: privacy.mechanisms(
            dataclasses.replace(config, privacy=dataclasses.replace(
                config.privacy, noise_multiplier=9.0)), 8, 2),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"secure_aggregation.clip = 20 is too small"):
            refused()


def test_a_fixed_point_too_coarse_for_the_clip_is_refused():
    with pytest.raises(ConfigError, match=r"clip_norm = 0\.001 is too small"):
        private_sums.clipped_update(np.ones(10**6), 1e-3, 12)


def test_the_secure_sum_decodes_to_sum_and_noise():
    """Through the real aggregation: the deviation that the accountant was told, σ·C."""
    names, p, noise, clip = ("h0", "h1", "h2"), 20_000, 1.5, 0.3
    config = client_config(clip_norm=clip)
    aggregate = aggregation.additive(names, OWNER, config.secure_aggregation)
    keys = run_local(
        {
            **{n: sealing.exchange_keys(n, [m for m in names if m != n], PROVIDER) for n in names},
            PROVIDER: sealing.distribute_keys(names),
        }
    )[0]
    updates = np.random.default_rng(0).standard_normal((3, p)) * 1e-4
    own = [
        private_sums.client_update(config, client_site(noise), (np.zeros(p),), (update,), 3)
        for update in updates
    ]
    parties = {
        n: aggregate.contribute(n, keys[n], lambda part=part: part) for n, part in zip(names, own)
    }
    total = run_local({**parties, OWNER: aggregate.collect((p,), 0)})[0][OWNER]
    np.testing.assert_array_equal(total.values[0], sum(part.values[0] for part in own))
    rest = total.values[0] - updates.sum(0)
    assert total.weight == 3
    assert abs(rest.std() / (noise * clip) - 1) < 6 / np.sqrt(2 * p)


def sums_of(config, updates, noise):
    """Plainly: what the owner would decode of the hospitals' encoded updates."""
    before = (np.zeros(updates.shape[1] // 2), np.zeros(updates.shape[1] - updates.shape[1] // 2))
    total = 0
    for update in updates:
        after = tuple(np.split(update, [len(before[0])]))
        own = private_sums.client_update(config, client_site(noise), before, after, len(updates))
        assert own.weight == 1 and own.counts.size == 0
        values = np.concatenate(own.values)
        scaled = values * 2.0**config.secure_aggregation.frac_bits
        np.testing.assert_array_equal(scaled, np.rint(scaled))  # encoded without another rounding
        total = total + values
    return total


@pytest.mark.parametrize("missing", [0, 2])
def test_shares_of_noise_add_up_to_what_was_accounted_for(missing):
    n, p, noise, clip = 5, 40_000, 1.5, 0.3
    config = client_config(clip_norm=clip, missing_hospitals=missing)
    updates = np.random.default_rng(0).standard_normal((n, p)) * 1e-4
    rest = sums_of(config, updates, noise) - updates.sum(0)
    expected = noise * clip * np.sqrt(n / (n - missing))
    assert abs(rest.std() / expected - 1) < 6 / np.sqrt(2 * p)
    assert abs(rest.mean()) < 6 * expected / np.sqrt(p)


def test_noise_is_shared_among_those_in_the_sum_alone(tmp_path, monkeypatch):
    """The operator tells hospitals of four and has three summed: each adds a third, no less."""
    counts, update = [], private_sums.client_update

    def noting(*arguments):
        counts.append(arguments[-1])
        return update(*arguments)

    monkeypatch.setattr(private_sums, "client_update", noting)
    federation = start(
        tmp_path,
        federated={"hospitals": 4, "quorum": 0.5},
        privacy={"mode": "client", "validation": "none"},
    )
    federation.set_up()
    names = federation.hospitals
    federation._attend(names[:3], (OWNER,))
    federation._attend(names, ())
    programs = dict.fromkeys(
        names[:3], lambda state: hospital.train_round(state, 1, trainers=names[:3])
    )
    federation.driver.run({**programs, OWNER: lambda state: model_owner.train_round(state, 1)})
    assert counts == [3, 3, 3]


def test_too_few_to_add_noise_are_refused():
    config = client_config(missing_hospitals=2)
    assert privacy.noisy_hospitals(config, 5) == 3
    with pytest.raises(ConfigError, match="none would be left to add noise"):
        privacy.noisy_hospitals(config, 2)


def owner(steps):
    """Runs an owner's part that is given its total at once."""
    return run_local({OWNER: steps})[0][OWNER]


def collecting(total):
    def collect(sizes, n_counts):
        assert (list(sizes), n_counts) == ([len(total.values[0])], 0)
        return total
        yield  # a generator

    return collect


def test_noised_statistics_are_those_of_the_images(tmp_path, monkeypatch):
    """With no noise they are exact; the ledger gives the released ones again."""
    config = config_with()
    plan = make_plan(config)
    data, validation = plan.sites[0].load()
    site = privacy.open_site(config, "h", tmp_path, data, validation, two)
    monkeypatch.setattr(
        discrete_noise, "discrete_gaussian", lambda seed, n, variance: np.zeros(n, np.int64)
    )
    own = private_sums.statistics_contribution(site, data, TASK)
    monkeypatch.undo()
    again = private_sums.statistics_contribution(site, data, TASK)  # drawn anew it would be noised
    np.testing.assert_array_equal(own.values[0], again.values[0])
    assert len(site.ledger.entries()) == 1
    total = Total(tuple(own.weight * v for v in own.values), own.weight, np.zeros(0, np.int64))
    found = owner(private_sums.collect_statistics(config, collecting(total), TASK))
    pixels = data.images / 255
    assert found.mean == pytest.approx(pixels.mean(), abs=1e-4)
    assert found.std == pytest.approx(pixels.std(), abs=1e-3)
    counts = data.class_counts()
    np.testing.assert_allclose(found.class_weights, counts.sum() / (3 * counts), rtol=1e-6)


def test_padding_has_no_part_in_noised_statistics():
    """An image in a padded frame counts as much as the image; one that is all padding as grey."""
    inner = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    framed, padding = np.zeros((3, 12, 12, 1), np.uint8), np.ones((3, 12, 12), bool)
    framed[:, 2:10, 2:10], padding[:, 2:10, 2:10] = inner, False
    padding[2] = True
    sets = [types.SimpleNamespace(images=inner, padding=None)]
    sets.append(types.SimpleNamespace(images=framed, padding=padding))
    plain, padded = map(private_sums._pixel_moments, sets)
    np.testing.assert_allclose(padded[:2], plain[:2], rtol=1e-12)
    np.testing.assert_array_equal(padded[2], 0)


def released(monkeypatch, config, folder, data, validation, score):
    """Statistics and confusion matrix of a hospital, without noise, in units."""
    site = privacy.open_site(config, "h", folder, data, validation, two)
    with monkeypatch.context() as patch:
        patch.setattr(
            discrete_noise, "discrete_gaussian", lambda seed, n, variance: np.zeros(n, np.int64)
        )
        parts = (
            private_sums.statistics_contribution(site, data, TASK),
            private_sums.validation_contribution(config, site, score, TASK, 1, 4),
        )
    return [part.values[0] * part.weight for part in parts]


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_a_unit_moves_statistics_and_matrices_by_no_more_than_their_noise_is_for(
    tmp_path, monkeypatch, unit
):
    """All images of a patient taken out: at most √3, and at most 1, however many they are."""
    config = config_with(privacy={"unit": unit, "budget": 1e3})
    rng, n = np.random.default_rng(0), 24
    images = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    images[:8] = 255  # extreme ones
    labels = rng.integers(0, 3, n).astype(np.int32)
    patients = np.asarray(["many"] * 14 + [f"p{i}" for i in range(10)])
    whole = Dataset(
        images, labels, tuple(map(str, range(n))), patients, np.full(n, "h"), ("a", "b", "c")
    )
    other = dataclasses.replace(whole, patients=np.char.add("v", patients))
    cells = labels.astype(np.int64) * 3 + rng.integers(0, 3, n)
    leave_out = patients != "many" if unit == "patient" else np.arange(n) != 3
    results = []
    for kept in (np.ones(n, bool), leave_out):
        at = np.flatnonzero(kept)
        score = local_training.Score(0.0, np.eye(9, dtype=np.int64)[cells[at]])
        sets, folder = (whole.take(at), other.take(at)), tmp_path / str(len(at))
        results.append(released(monkeypatch, config, folder, *sets, score))
    statistics, matrix = (np.linalg.norm(a - b) for a, b in zip(*results))
    assert 0 < statistics <= np.sqrt(3) + 1e-9 and 0 < matrix <= 1 + 1e-9
    units = len(set(patients)) if unit == "patient" else n
    assert results[0][1].sum() == pytest.approx(units, abs=1e-3)


def test_the_split_is_told_by_the_images_alone(tmp_path):
    """Runs with the same images in the same groups share it; with others they do not."""
    config = config_with()
    train_, validation = make_plan(config).sites[0].load()
    seen = [
        privacy.open_site(config, "h", tmp_path, *data, two).mechanisms.split
        for data in ((train_, validation), (train_, validation), (validation, train_))
    ]
    assert seen[0] == seen[1] != seen[2] and seen[0]


def test_other_images_are_not_taken_for_those_released(tmp_path):
    config = config_with(privacy={"budget": 100.0})
    plan = make_plan(config)
    first, second = (site.load()[0] for site in plan.sites[:2])
    site = privacy.open_site(config, "h", tmp_path, first, second, two)
    other = privacy.open_site(config, "h", tmp_path, second, first, two)
    private_sums.statistics_contribution(site, first, TASK)
    private_sums.statistics_contribution(other, second, TASK)
    assert len(site.ledger.entries()) == 2


@pytest.mark.parametrize("mode", ["record", "client"])
def test_noised_confusion_matrices_have_the_noise_they_are_charged_with(mode):
    """Each that is made is charged, as after a crash between the two sums of a round."""
    config = config_with(privacy={"mode": mode, "missing_hospitals": 0})
    confusion = np.asarray([[5, 1, 0], [0, 7, 2], [3, 0, 2]])
    cells = np.repeat(np.arange(9), confusion.ravel())
    units = Units("image", tuple(np.arange(20)[:, None]), 1)
    charged = []
    ledger = types.SimpleNamespace(charge=lambda releases, what: charged.extend(releases))
    site = dataclasses.replace(client_site(2.0), validation=units, ledger=ledger)
    score = local_training.Score(0.0, np.eye(9, dtype=np.int64)[cells])
    drawn = []
    for _ in range(400):
        own = private_sums.validation_contribution(config, site, score, TASK, 1, 4)
        drawn.append(own.values[0] * own.weight)
    noise = np.asarray(drawn) - confusion.ravel() / (1 if mode == "record" else 20)
    assert [entry.release for entry in charged] == [Release(6.0)] * 400
    expected = 6.0 if mode == "record" else 6.0 / np.sqrt(4)
    assert abs(noise.std() / expected - 1) < 6 / np.sqrt(2 * noise.size)


def test_a_matrix_of_nothing_but_noise_is_judged():
    config = config_with()
    total = Total((np.full(9, -3.7),), 5, np.zeros(0, np.int64))
    metrics = TASK.metrics(owner(private_sums.collect_validation(config, collecting(total), TASK)))
    assert metrics["n"] == 0 and metrics["mcc"] == 0
