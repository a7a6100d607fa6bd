"""Whole trainings of a tiny network in one process: what the settings of a federation do."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from tiny import assert_same, at, model, start, train

from primia_jax.errors import CheckpointError, ClusterError, StorageError, TrainingError
from primia_jax.federated import checkpoints, hospital_training, variables
from primia_jax.federated.aggregation import OWNER, PROVIDER
from primia_jax.federated.checkpoints import site_folder
from primia_jax.mpc import fixed_point


@pytest.mark.parametrize("optimizer_state", ["keep", "reset", "average"])
@pytest.mark.parametrize("batch_norm", ["pooled", "fedbn"])
def test_a_resumed_run_ends_with_the_same_model(tmp_path, optimizer_state, batch_norm):
    """Bit for bit, in new parties that know nothing but what is on disk."""
    changes = {
        "federated": {"optimizer_state": optimizer_state, "batch_norm": batch_norm, "rounds": 3}
    }
    whole = start(tmp_path / "a", **changes)
    expected = train(whole)
    first = start(tmp_path / "b", **changes)
    train(first, rounds=2, save=True)
    second = start(tmp_path / "b", **changes)
    (last,) = train(second, first=2)
    assert_same(model(second), model(whole))
    assert last[OWNER] == expected[-1][OWNER]
    for name in whole.hospitals:
        assert_same(at(second, name).variables, at(whole, name).variables)


@pytest.mark.parametrize(
    "federated",
    [
        {"batch_norm": "fedbn"},
        {"optimizer_state": "average"},
        {"early_stopping": {"enabled": True, "check_every": 1}},
    ],
)
def test_a_round_completed_from_its_revealed_sum_is_the_same(tmp_path, federated):
    """Bit for bit, the hospitals' own state too: lost after the sum, before anything was saved."""
    changes = {"federated": {"mode": "federated_secure", "rounds": 3, **federated}}
    whole = start(tmp_path / "a", **changes)
    expected = train(whole)
    first = start(tmp_path / "b", **changes)
    train(first, rounds=1, save=True)
    first.train_round(2)
    second = start(tmp_path / "b", **changes)
    reports = train(second, first=1, save=True)
    assert [report[OWNER] for report in reports] == [report[OWNER] for report in expected[1:]]
    assert_same(model(second), model(whole))
    for name in whole.hospitals:
        assert_same(at(second, name).variables, at(whole, name).variables)
        assert_same(at(second, name).opt_state, at(whole, name).opt_state)
        assert at(second, name).watch == at(whole, name).watch


def test_secure_equals_plain_to_the_stated_bound(tmp_path):
    """After one round: N · 2^-(f+1) / Σ n_i, and one rounding to float32."""
    plain = start(tmp_path, federated={"rounds": 1})
    secure = start(tmp_path, federated={"rounds": 1, "mode": "federated_secure"})
    (report,), _ = train(plain), train(secure)
    f, n = plain.config.secure_aggregation.frac_bits, report[OWNER].samples
    a, b = model(plain), model(secure)
    for x, y in zip(a.params, b.params, strict=True):
        bound = fixed_point.sum_error(3, f) / n + np.spacing(np.abs(x))
        assert np.all(np.abs(x.astype(np.float64) - y) <= bound)


def test_the_average_is_weighted_by_samples(tmp_path):
    federation = start(
        tmp_path, data={"partition": "size", "size_ratio": 3.0}, federated={"rounds": 1}
    )
    federation.set_up()
    sites = [at(federation, name) for name in federation.hospitals]
    expected: list = []
    total = 0
    for site in sites:
        _, result = hospital_training.train_locally(site, 1)
        n = len(site.train)
        own = [n * w.astype(np.float64) for w in variables.to_vectors(result.variables).params]
        expected = [a + b for a, b in zip(expected, own)] if expected else own
        total += n
    federation.train_round(1)
    for leaf, exact in zip(model(federation).params, expected, strict=True):
        np.testing.assert_array_equal(leaf, (exact / total).astype(np.float32))
    assert len({len(site.train) for site in sites}) > 1


def test_local_mode_is_one_site_with_everything(tmp_path):
    federation = start(tmp_path, federated={"mode": "local", "rounds": 1})
    assert federation.hospitals == ("pooled",)
    train(federation)
    site = at(federation, "pooled")
    assert len(site.train) + len(site.validation) == 60
    assert_same(variables.to_vectors(site.variables).params, model(federation).params)
    assert PROVIDER not in federation.driver.states


def test_fedbn_keeps_the_sites_batch_norms_apart(tmp_path):
    federation = start(tmp_path, federated={"batch_norm": "fedbn"})
    train(federation)
    stats = [
        jax.tree.leaves(at(federation, n).variables["batch_stats"])[0] for n in federation.hospitals
    ]
    assert not np.array_equal(stats[0], stats[1])
    kernels = [
        [x for x in jax.tree.leaves(at(federation, n).variables["params"]) if x.ndim > 1]
        for n in federation.hospitals
    ]
    assert_same(kernels[0], kernels[1])


def test_averaged_optimiser_states_are_the_same_everywhere(tmp_path):
    federation = start(
        tmp_path, federated={"optimizer_state": "average", "mode": "federated_secure"}
    )
    train(federation)
    first, second = (
        [x for x in jax.tree.leaves(at(federation, n).opt_state) if x.dtype == np.float32]
        for n in federation.hospitals[:2]
    )
    assert_same(first, second)
    assert any(np.any(np.asarray(leaf) != 0) for leaf in first)


def test_reset_optimiser_state_ignores_the_past(tmp_path):
    """From the same model, a site trains the same whatever its optimiser had seen."""
    federation = start(tmp_path, federated={"optimizer_state": "reset"})
    train(federation)
    site = at(federation, "hospital_0")
    other = dataclasses.replace(site, opt_state=jax.tree.map(lambda x: x + 1, site.opt_state))
    results = [hospital_training.train_locally(s, 3)[1].variables for s in (site, other)]
    assert_same(results[0], results[1])


@pytest.mark.parametrize("rule", ["fedprox", "fedadam", "fedyogi"])
def test_rules_resume(tmp_path, rule):
    changes = {"federated": {"rule": rule, "rounds": 3}}
    whole = start(tmp_path / "a", **changes)
    train(whole)
    train(start(tmp_path / "b", **changes), rounds=2, save=True)
    second = start(tmp_path / "b", **changes)
    train(second, first=2)
    assert_same(model(second), model(whole))


def stopping(mode, **changes):
    """With a learning rate of zero nothing improves after the first round."""
    return {
        "training": {"learning_rate": 0.0, "end_learning_rate": 0.0, "schedule": "constant"},
        "federated": {
            "early_stopping": {
                "enabled": True,
                "check_every": 1,
                "patience": 1,
                "stop_after_rounds": 1,
            },
            "rounds": 4,
            "mode": mode,
        },
        "model": {"norm": "group"},
        **changes,
    }


def test_sites_that_stop_for_good_end_the_training(tmp_path):
    federation = start(tmp_path, **stopping("federated"))
    reports = train(federation, rounds=2)
    assert not reports[0][OWNER].finished
    assert reports[-1][OWNER].finished
    assert all(reports[-1][name].stopped for name in federation.hospitals)
    assert reports[0]["hospital_0"].steps <= 2


@pytest.mark.parametrize(
    ("mode", "still_training", "finished"),
    [("federated", 1, False), ("federated_secure", 1, True), ("federated_secure", 2, False)],
)
def test_no_site_is_ever_summed_alone(tmp_path, mode, still_training, finished):
    """A secure sum over one site would be that site's model and sample count."""
    federation = start(tmp_path, **stopping(mode))
    train(federation, rounds=1)
    for i, name in enumerate(federation.hospitals):
        site = at(federation, name)
        best = float("inf") if i < still_training else float("-inf")  # cannot or must stop now
        watch = site.watch._replace(best_loss=best)
        federation.driver.states[name] = dataclasses.replace(site, watch=watch)
    reports, _ = federation.train_round(2)
    assert reports[OWNER].finished is finished
    everybody = sum(len(at(federation, name).train) for name in federation.hospitals)
    assert reports[OWNER].samples == everybody  # those that stop now still count


def test_a_stopped_site_is_left_out_and_still_gets_the_model(tmp_path):
    federation = start(tmp_path, **stopping("federated"))
    train(federation, rounds=1)
    site = at(federation, "hospital_0")
    stopped = dataclasses.replace(site, watch=site.watch._replace(stopped=True))
    federation.driver.states["hospital_0"] = stopped
    federation._stopped.add("hospital_0")
    reports, _ = federation.train_round(2)
    others = sum(len(at(federation, name).train) for name in federation.hospitals[1:])
    assert reports[OWNER].samples == others and reports["hospital_0"].steps == 0
    assert_same(
        variables.to_vectors(at(federation, "hospital_0").variables).params,
        model(federation).params,
    )


def test_averaged_second_moments_survive_the_fixed_point(tmp_path):
    """Adam's ν lies below its resolution; its root does not."""
    changes = {"optimizer_state": "average", "rounds": 2}
    plain = start(tmp_path, federated=changes)
    secure = start(tmp_path, federated={**changes, "mode": "federated_secure"})
    train(plain), train(secure)
    for a, b in zip(model(plain).params, model(secure).params, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_divergence_is_named_with_its_site(tmp_path):
    federation = start(
        tmp_path,
        training={"learning_rate": 10.0, "optimizer": "sgd", "schedule": "constant"},
        model={"norm": "frozen"},
        federated={"sync_every": 40, "rounds": 5},
    )
    with pytest.raises(TrainingError, match=r"hospital_\d: the training diverged"):
        train(federation)


@pytest.mark.fault(
    "the disk is full", "the run ends with one line; --resume goes on from its round"
)
def test_disk_full_keeps_the_round_before(tmp_path, monkeypatch):
    federation = start(tmp_path)
    train(federation, rounds=1, save=True)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_json", full)
    federation.train_round(2)
    with pytest.raises(
        StorageError, match=r"round 2 could not be written.*No space left.*--resume"
    ):
        federation.save(2)
    monkeypatch.undo()
    assert checkpoints.latest(federation.owner_folder).round == 1
    again = start(tmp_path)
    train(again, first=1)
    whole = start(tmp_path / "whole")
    train(whole)
    assert_same(model(again), model(whole))


@pytest.mark.parametrize("lost", ["round_000002", "round_*"], ids=["newest", "all"])
@pytest.mark.fault("a hospital's checkpoint is lost", "the command ends with one line")
def test_a_hospital_does_not_go_on_from_an_older_or_no_checkpoint(tmp_path, lost):
    """Its optimiser would be another one. A hospital that took no part since goes on."""
    federation = start(tmp_path, federated={"rounds": 3})
    federation.set_up()
    federation.train_round(1)
    federation.save(1)
    federation._leave_out("hospital_2", "gone", ClusterError("gone"))
    federation.train_round(2)
    federation.save(2)
    start(tmp_path, federated={"rounds": 3}).set_up(2)
    assert dict(federation._saved) == {"hospital_0": 2, "hospital_1": 2, "hospital_2": 1}
    sites = {name: site_folder(tmp_path, name) for name in federation.hospitals}
    assert (sites["hospital_2"] / "round_000001").is_dir()
    for path in sites["hospital_0"].glob(lost):
        shutil.rmtree(path)
    left = sorted(sites["hospital_0"].glob("round_*"))
    again = start(tmp_path, federated={"rounds": 3})
    with pytest.raises(
        CheckpointError, match=r"hospital_0 took part in round 2, and its .* missing .*restore"
    ):
        again.set_up(2)
    assert sorted(sites["hospital_0"].glob("round_*")) == left


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(start(tmp_path), rounds=1, save=True)
    other = start(tmp_path, model={"width": 8})
    with pytest.raises(CheckpointError, match="does not hold the state of this model"):
        other.set_up(1)


def test_a_best_model_is_there_whenever_a_crash_comes(tmp_path):
    """A new best round that was saved but not committed must not cost the committed best one."""
    federation = start(tmp_path, federated={"rounds": 6})
    train(federation, rounds=4, save=True)
    committed = checkpoints.latest(federation.owner_folder).best_round
    federation.train_round(5)
    owner = at(federation, OWNER)
    federation.driver.states[OWNER] = dataclasses.replace(owner, best_round=5, best_score=1.0)
    federation.save(5)
    assert checkpoints.round_folder(federation.owner_folder, committed).is_dir()


def test_old_checkpoints_go_but_the_best_stays(tmp_path):
    federation = start(tmp_path, federated={"rounds": 4})
    reports = train(federation, save=True)
    best = {report[OWNER].best_round for report in reports[-2:]}
    kept = {int(p.name.split("_")[1]) for p in federation.owner_folder.glob("round_*")}
    assert kept == {3, 4} | best
    sites = list((tmp_path / "sites" / "hospital_1").glob("round_*"))
    assert {p.name for p in sites} == {"round_000003", "round_000004"}
