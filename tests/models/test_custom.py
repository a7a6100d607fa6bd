"""A user's own network keeps to the contract, or is refused in one line before it trains."""

import pathlib
import sys

import pytest

from primia_jax import models
from primia_jax.config import ExperimentConfig, from_config_dict, resolved
from primia_jax.errors import CheckpointError, ConfigError

sys.path.insert(0, str(pathlib.Path(__file__).parent))


def config_of(name, **sections):
    model = {"name": f"own_networks:{name}", "width": 5, **sections.pop("model", {})}
    sections.setdefault("data", {"image_size": 16})
    return resolved(from_config_dict(ExperimentConfig, {"model": model, **sections}))


def check(config, spatial=False):
    module = models.build(config.model, 3)
    models.check(module, config, 3, spatial)
    return module


def test_a_network_is_given_the_options_that_it_takes():
    assert check(config_of("Plain")).width == 5
    assert check(config_of("Normed")).n_classes == 3


@pytest.mark.parametrize(
    ("name", "message"),
    (
        ("NoTrain", r"no argument `train`; write \(self, x, train=False\)"),
        ("Fails", r"images \[2, 16, 16, 1\] with train=False fail with ValueError: too small "),
        ("nothing", "gives a NoneType; it must give a flax.linen.Module"),
        ("no_arguments", "called with n_classes=3 it failed with TypeError"),
        ("raising", "failed with RuntimeError: two "),
        ("listed", "cannot be hashed; take tuples"),
        ("Drops", "dropout"),
        ("Counts", "has variables 'counts'"),
        ("Half", "is bfloat16; all variables must be float32"),
        ("one_more", r"gives float32 \[2, 4\] for images \[2, 16, 16, 1\]; .* logits \[2, 3\]"),
    ),
)
def test_a_broken_contract_is_one_line(name, message):
    with pytest.raises(ConfigError, match=f"own_networks:{name}': .*({message})") as caught:
        check(config_of(name))
    assert "\n" not in str(caught.value)


def test_what_a_network_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"logits \[2, 16, 16, 3\]"):
        check(config_of("Plain"), spatial=True)
    with pytest.raises(ConfigError, match=r"privacy\.mode = 'record' proves nothing"):
        check(config_of("Normed", privacy={"mode": "record"}))
    check(config_of("Plain", privacy={"mode": "record"}))
    with pytest.raises(ConfigError, match=r"model\.norm = 'group'; set that to 'batch'"):
        check(config_of("Normed", model={"norm": "group"}))
    with pytest.raises(ConfigError, match=r"has no batch norm, which .*fedbn"):
        check(config_of("Plain", federated={"batch_norm": "fedbn"}))
    with pytest.raises(ConfigError, match=r"config\.model\.pretrained: torchvision's names"):
        config_of("Plain", model={"pretrained": "weights.pth"})
    with pytest.raises(CheckpointError, match="has no torchvision names"):
        models.classes_in("weights.pth", config_of("Plain").model)
    with pytest.raises(ConfigError, match="write module:object"):
        config_of("Plain.")
    with pytest.raises(ConfigError, match=r"allowed are resnet18 .*\| module:object"):
        from_config_dict(ExperimentConfig, {"model": {"name": "own"}})
