"""A network of a user's own module from training to encrypted diagnosis, and the example."""

import functools
import pathlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import primia_jax
from primia_jax import models
from primia_jax.core import objects
from primia_jax.encrypted import description
from primia_jax.errors import CheckpointError, ConfigError, ProtocolError
from primia_jax.experiment import checked
from primia_jax.runtime.ray_driver import RayDriver

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests" / "models")]

import own_network  # noqa: E402
import own_networks  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The example: batch norm, secure sums."""
    return own_network.main(str(tmp_path_factory.mktemp("example")))


def test_the_example_trains_resumes_and_is_evaluated(run):
    config = own_network.get_config()
    assert '"own_network:SmallNet"' in (run.workdir / "config.json").read_text()
    again = primia_jax.train(config, run.workdir, resume=True)
    assert again.metrics == run.metrics
    assert primia_jax.evaluate(config, run.workdir) == run.metrics["test"]


def test_an_encrypted_diagnosis_is_that_in_the_clear(run, tmp_path):
    config = own_network.get_config()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    clear = primia_jax.predict(config, run.workdir, tmp_path / "image.png")
    done = primia_jax.predict_encrypted(config, run.workdir, tmp_path / "image.png")
    secret = primia_jax.read_predictions(done.folder)
    np.testing.assert_allclose(secret.probabilities, clear.probabilities, atol=0.005)


def test_a_description_has_no_module_imported_that_its_reader_does_not_name(run):
    config = checked(own_network.get_config())
    message = description.describe(config, run.workdir).message()
    assert description.received(message, config.mpc, config.model.name).model == config.model
    with pytest.raises(ProtocolError, match=r"own_network:SmallNet'.*set it to that if you trust"):
        description.received(message, config.mpc, "resnet18")


@pytest.mark.parametrize("mode", ("local", "federated", "federated_secure"))
def test_a_network_as_an_object_trains_in_every_mode(mode, tmp_path):
    config = own_network.get_config()
    config.model.name = "resnet18"
    config.federated.mode = mode
    config.federated.rounds = 1
    result = primia_jax.train(config, tmp_path, model=own_networks.Plain, judge=False)
    assert result.metrics["model"] == "own_networks:Plain"
    with pytest.raises(CheckpointError, match=r"--config\.model\.name=own_networks:Plain"):
        primia_jax.evaluate(config, tmp_path)


def test_a_network_that_no_party_can_import_is_refused_before_the_start(tmp_path):
    config = own_network.get_config()
    with pytest.raises(ConfigError, match="top level of a module"):
        primia_jax.train(config, tmp_path, model=lambda n_classes: None)
    config.model.name = "no_such_module:Net"
    with pytest.raises(ConfigError, match="no module 'no_such_module' in process"):
        primia_jax.train(config, tmp_path)
    config.model.name = "own_networks:one_more"
    with pytest.raises(ConfigError, match=r"own_networks:one_more': gives float32 \[2, 4\]"):
        primia_jax.train(config, tmp_path)


def test_an_actor_without_the_module_is_named_and_is_sent_no_code(
    ray_cluster, tmp_path, monkeypatch
):
    (tmp_path / "only_here.py").write_text("def net(n_classes):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = objects.reference_to(objects.load("only_here:net", "model"), "model")
    maker = functools.partial(objects.load, name, "config.model.name")
    with pytest.raises(ConfigError, match=r"hospital_1: .*no module 'only_here' in process \d+"):
        RayDriver({"hospital_1": maker})


def test_a_loss_of_ones_own_is_what_is_minimised(tmp_path):
    config = own_network.get_config()
    config.model.name = "own_networks:Plain"
    config.federated.mode = "federated"
    config.federated.rounds = 1
    config.training.weight_decay = 0.0
    ends = {}
    for loss in ("task", "own_losses:focal", "own_losses:constant"):
        config.training.loss = loss
        primia_jax.train(config, tmp_path / loss, judge=False)
        ends[loss] = primia_jax.load(tmp_path / loss).variables["params"]["Dense_0"]["kernel"]
    fresh = primia_jax.load(tmp_path / "own_losses:constant")
    start = models.init(fresh.module, jax.random.key(config.seed), 16, 1)["params"]["Dense_0"]
    np.testing.assert_allclose(ends["own_losses:constant"], start["kernel"], rtol=1e-6)
    assert not np.allclose(ends["own_losses:focal"], ends["own_losses:constant"])
    assert not np.allclose(ends["own_losses:focal"], ends["task"])


@pytest.mark.parametrize(
    ("name", "message"),
    (
        ("absent", "has no 'absent'"),
        ("summed", r"of shape \(\) for outputs \[2, 3\]; give float32 \[b\]"),
        ("failing", r"with outputs \[2, 3\] it fails with ValueError: two "),
    ),
)
def test_a_loss_that_breaks_the_contract_is_one_line(name, message, tmp_path):
    config = own_network.get_config()
    config.training.loss = f"own_losses:{name}"
    with pytest.raises(ConfigError, match=rf"config\.training\.loss = .*{message}") as caught:
        primia_jax.train(config, tmp_path)
    assert "\n" not in str(caught.value)
    config.training.label_smoothing = 0.1
    with pytest.raises(ConfigError, match=r"label_smoothing = 0\.1 belongs"):
        primia_jax.train(config, tmp_path)


def test_a_rule_of_ones_own_trains_under_secure_sums_and_resumes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "federated")
    config = own_network.get_config()
    config.federated.rule = "own_rules:momentum"
    config.model.name = "own_networks:Plain"
    whole = primia_jax.train(config, tmp_path / "whole", judge=False)
    primia_jax.train(config, tmp_path / "cut", judge=False, on_round=lambda line: False)
    assert primia_jax.train(config, tmp_path / "cut", judge=False, resume=True).metrics == (
        whole.metrics
    )
