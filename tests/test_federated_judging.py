"""A model from elsewhere, judged by all hospitals without training."""

import json
import shutil
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import primia_jax
from primia_jax import experiment, models
from primia_jax.config import ExperimentConfig, to_config_dict
from primia_jax.errors import CheckpointError, ConfigError
from primia_jax.evaluation.record import read_rounds
from primia_jax.federated import judging, statistics


def small(seed=0, **data):
    config = to_config_dict(ExperimentConfig())
    config.seed = seed
    config.data.image_size = 16
    config.data.phantom.update(n_train=60, n_test=6)
    config.data.update(data)
    config.model.update(name="simple", width=4)
    config.federated.update(rounds=1, sync_every=1, sync_unit="steps")
    for name in config.augmentation:
        if name.endswith("_p"):
            config.augmentation[name] = 0.0
    config.runtime.driver = "local"
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return primia_jax.train(small(), tmp_path_factory.mktemp("run"), judge=False).workdir


def test_the_same_hospitals_find_what_the_training_found(run, tmp_path, monkeypatch):
    """Bit for bit: the best round's own validation; the statistics are not pooled again."""
    monkeypatch.delattr(statistics, "contribution")
    found = primia_jax.evaluate_federated(small(), tmp_path, run)
    *sites, summary = read_rounds(run / "rounds.jsonl")
    assert found["all"] == summary["validation"]
    for line in sites:
        assert found["sites"][line["site"]]["accuracy"] == line["validation_accuracy"]
    assert json.loads((tmp_path / "federated_evaluation.json").read_text()) == found
    records = {"checkpoints", "sites", "identities.json"}  # of the secure sum
    assert {path.name for path in tmp_path.iterdir()} == {"federated_evaluation.json", *records}


@pytest.mark.parametrize("mode", ["federated", "federated_secure"])
def test_fedbn_is_judged_with_each_hospitals_own_batch_norms(mode, tmp_path):
    """As the best round's own validation was; the owner's model beside it. The run stays whole."""
    config = small()
    config.federated.update(
        mode=mode, batch_norm="fedbn", rounds=6, sync_every=4, optimizer_state="keep"
    )
    # So fast that an early round is the best.
    config.training.update(learning_rate=0.05, end_learning_rate=0.05)
    run = primia_jax.train(config, tmp_path, judge=False).workdir
    latest = json.loads((run / "checkpoints" / "latest.json").read_text())
    assert latest["best_round"] < latest["round"] - 1, "the best round must be kept on its own"
    before = sorted(run.rglob("*"))
    found = primia_jax.evaluate_federated(config, run, run)
    assert sorted({*run.rglob("*")} - {*before}) == [run / "federated_evaluation.json"]
    assert {*before} <= {*run.rglob("*")}
    lines = [
        line for line in read_rounds(run / "rounds.jsonl") if line["round"] == latest["best_round"]
    ]
    *sites, summary = lines
    assert found["personalised"]["all"] == summary["validation"]
    for line in sites:
        own = found["personalised"]["sites"][line["site"]]
        assert (own["accuracy"], own["loss"]) == (
            line["validation_accuracy"],
            line["validation_loss"],
        )
        assert own["loss"] != found["sites"][line["site"]]["loss"]
    config.federated.batch_norm = "pooled"
    assert "personalised" not in primia_jax.evaluate_federated(config, tmp_path / "pooled", run)


def test_a_hospital_without_batch_norms_of_its_own_is_named(tmp_path):
    config = small()
    config.federated.batch_norm = "fedbn"
    run = primia_jax.train(config, tmp_path, judge=False).workdir
    shutil.rmtree(run / "sites" / "hospital_1")
    with pytest.raises(CheckpointError, match=r"no batch norms of hospital_1.*=pooled judges"):
        primia_jax.evaluate_federated(config, tmp_path / "judged", run)


def test_a_run_without_fedbn_is_judged_once(run, tmp_path):
    config = small()
    config.federated.batch_norm = "fedbn"
    assert "personalised" not in primia_jax.evaluate_federated(config, tmp_path, run)


@pytest.mark.parametrize("mode", ["federated", "federated_secure"])
def test_other_hospitals_judge_all_their_images(mode, run, tmp_path):
    config = small(seed=3)
    config.data.phantom.scanner = 100
    config.federated.mode = mode
    config.evaluation.images = "all"
    found = primia_jax.evaluate_federated(config, tmp_path, run)
    assert found["all"]["n"] == 60 == sum(site["n"] for site in found["sites"].values())
    summed = np.sum([site["confusion"] for site in found["sites"].values()], axis=0)
    assert summed.tolist() == found["all"]["confusion"]
    expected = sum(s["loss"] * s["n"] for s in found["sites"].values()) / 60
    assert found["all"]["loss"] == pytest.approx(expected, abs=1e-6)


def test_a_file_of_weights(tmp_path):
    """Judged with the pixel statistics that the hospitals pool."""
    config = small()
    checked = experiment.checked(config)
    for n_classes in (3, 7):
        module = models.build(checked.model, n_classes)
        variables = models.init(module, jax.random.key(1), 16, 1)
        save_file(torch_named(variables), tmp_path / f"{n_classes}.safetensors")
    found = primia_jax.evaluate_federated(config, tmp_path, tmp_path / "3.safetensors")
    assert 0 < found["all"]["n"] < 20
    with pytest.raises(CheckpointError, match=r"has 7 classes for simple.*have 3 classes"):
        primia_jax.evaluate_federated(config, tmp_path, tmp_path / "7.safetensors")


def torch_named(variables):
    """`variables` of the small network under PyTorch's names and in its layouts."""
    from flax import traverse_util

    from primia_jax.models import torch_import

    tensors = {}
    for leaf, value in traverse_util.flatten_dict(variables).items():
        array = np.asarray(value)
        if leaf[-1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        tensors[torch_import._torch_name(leaf)] = np.ascontiguousarray(array)
    return tensors


def test_what_does_not_fit_is_named(run, tmp_path):
    config = small()
    config.model.width = 8
    with pytest.raises(CheckpointError, match=r"model\.width = 4.*--config\.model\.width=4"):
        primia_jax.evaluate_federated(config, tmp_path, run)
    config = small(image_size=24)
    with pytest.raises(CheckpointError, match=r"--config\.data\.image_size=16"):
        primia_jax.evaluate_federated(config, tmp_path, run)
    with pytest.raises(CheckpointError, match="neither the folder of a run nor a file"):
        primia_jax.evaluate_federated(small(), tmp_path, tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        primia_jax.evaluate_federated(small(), tmp_path, tmp_path)


@pytest.mark.parametrize("mode", ["record", "client"])
def test_exact_matrices_are_refused_where_privacy_is_protected(run, tmp_path, monkeypatch, mode):
    """By the verb, and by each hospital whatever the operator runs."""
    config = small()
    config.federated.mode = "federated_secure"
    config.privacy.update(mode=mode, missing_hospitals=0)
    with pytest.raises(ConfigError, match="no ledger is charged") as refusal:
        primia_jax.evaluate_federated(config, tmp_path, run)
    assert "\n" not in str(refusal.value)
    state = types.SimpleNamespace(config=experiment.checked(config))
    with pytest.raises(ConfigError, match="no ledger is charged"):
        next(judging.judge(state))


@pytest.mark.parametrize("images", ["validation", "all"])
def test_a_private_run_is_not_evaluated_exactly(tmp_path, monkeypatch, images):
    """With privacy switched off as well: its images stay protected."""
    config = small()
    config.federated.mode = "federated_secure"
    config.model.norm = "group"
    config.privacy.update(mode="record", noise_multiplier=3.0, budget=100.0)
    run = primia_jax.train(config, tmp_path / "run", judge=False).workdir
    ledgers = {path: path.read_bytes() for path in run.glob("sites/*/privacy_ledger.jsonl")}
    assert len(ledgers) == 3
    config.privacy.mode, config.evaluation.images = "none", images
    for name in ("have_judged", "judge", "adopt_statistics"):
        monkeypatch.setattr(judging, name, lambda *a, **k: pytest.fail("something was summed"))
    for workdir in (run, tmp_path / "elsewhere"):
        with pytest.raises(ConfigError, match=r"trained with .* 'record' on images of hospital_0"):
            primia_jax.evaluate_federated(config, workdir, run)
    (run / "config.json").rename(tmp_path / "config.json")
    for workdir in (run, tmp_path / "elsewhere"):
        with pytest.raises(ConfigError, match=r"hospital_0: .*ledger .*sites/hospital_0"):
            primia_jax.evaluate_federated(config, workdir, run)
    for path in ledgers:
        path.parent.rename(path.parent.with_name("elsewhere_" + path.parent.name))
    other = tmp_path / "ledgers" / "hospital_2"
    other.mkdir(parents=True)
    (other / "privacy_ledger.jsonl").touch()
    config.privacy.ledger = str(other.parent)
    with pytest.raises(ConfigError, match=r"hospital_2: .*ledgers/hospital_2"):
        primia_jax.evaluate_federated(config, tmp_path / "elsewhere", run)


def test_hospitals_that_took_no_part_evaluate_a_private_model(run, tmp_path, monkeypatch):
    private = shutil.copytree(run, tmp_path / "private")
    stored = json.loads((private / "config.json").read_text())
    stored["privacy"]["mode"] = "record"
    (private / "config.json").write_text(json.dumps(stored))
    lines = (private / "rounds.jsonl").read_text().replace("hospital_", "clinic_")
    (private / "rounds.jsonl").write_text(lines)
    assert primia_jax.evaluate_federated(small(), tmp_path / "judged", private)["all"]["n"]
