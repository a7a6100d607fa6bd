"""Protects the sets of a study: same images for all modes and seeds, none seen in training."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from primia_jax.campaigns.study.sets import gather
from primia_jax.config import ExperimentConfig, to_config_dict
from primia_jax.errors import ConfigError, DataError
from primia_jax.experiment import checked


def _config(**overrides):
    config = to_config_dict(ExperimentConfig())
    config.data.image_size = 16
    config.data.phantom.n_train = 240
    config.data.phantom.n_test = 30
    config.study.second_n_test = 40
    for name, value in overrides.items():
        section, _, key = name.partition("__")
        config[section][key] = value
    return checked(config)


def test_the_bundled_sets():
    material = gather(_config())
    validation, first, second = material.sets
    assert [s.key for s in material.sets] == ["validation", "test_1", "test_2"]
    assert len(first.records) == 30 and len(second.records) == 40
    assert sum(validation.counts) == len(validation.records) > 10
    assert second.what == "other scanners and patients, of another country"
    pixels = [s.load(16).images for s in (first, second)]
    assert not any(np.array_equal(a, b) for a in pixels[0] for b in pixels[1])


def test_seed_and_mode_change_no_set_where_the_data_have_a_seed_of_their_own():
    """Else models of several seeds would be judged, and read by people, on other images."""
    config = _config(data__seed=4)
    names, fingerprints = [], set()
    for seed, mode in ((0, "federated_secure"), (7, "local")):
        changed = dataclasses.replace(
            config, seed=seed, federated=dataclasses.replace(config.federated, mode=mode)
        )
        material = gather(changed)
        names.append([sorted(s.catalogue.digests[i] for i in s.records) for s in material.sets])
        fingerprints.add(material.plan.fingerprint)
    assert names[0] == names[1] and len(fingerprints) == 1
    other = gather(_config(data__seed=5))
    assert other.sets[1].catalogue.digests != material.sets[1].catalogue.digests


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"study__min_per_class": 20}, DataError, "Validation is too small: .* of normal"),
        ({"study__second_n_test": 6}, DataError, "Test Set 2 is too small"),
        ({"study__second_scanner": 0}, ConfigError, "second_scanner = 0 is that of the training"),
        ({"study__second_test_path": "x"}, ConfigError, "goes with a config.data.source that"),
    ],
)
def test_sets_with_which_no_study_can_be_made(overrides, error, message):
    with pytest.raises(error, match=message):
        gather(_config(**overrides))


def _films(root, rng, n, split):
    for kind, patient in (("NORMAL", "IM-{:04d}-0001"), ("PNEUMONIA", "person{}_bacteria_1"),
                          ("PNEUMONIA", "person{}_virus_1")):  # fmt: skip
        folder = root / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            number = i + (n if "virus" in patient else 0)
            pixels = rng.integers(0, 255, (20, 20), np.uint8)
            Image.fromarray(pixels).save(folder / f"{patient.format(number)}.png")


def test_folders(tmp_path):
    """Test Set 2 may be missing; images that stand in two sets are refused."""
    rng = np.random.default_rng(0)
    _films(tmp_path / "own", rng, 40, "train")
    _films(tmp_path / "own", rng, 6, "test")
    _films(tmp_path / "other", rng, 6, "test")
    own = {"data__source": "folder", "data__path": str(tmp_path / "own"),
           "data__partition": "iid"}  # fmt: skip
    assert [s.key for s in gather(_config(**own)).sets] == ["validation", "test_1"]
    config = _config(**own, study__second_test_path=str(tmp_path / "other"))
    *_, second = gather(config).sets
    assert second.key == "test_2" and second.counts == [6, 6, 6]
    copied = tmp_path / "other" / "test" / "NORMAL" / "IM-0099-0001.png"
    seen = next((tmp_path / "own" / "train" / "NORMAL").iterdir())
    copied.write_bytes(seen.read_bytes())
    with pytest.raises(DataError, match="1 of 19 images are also in training and validation"):
        gather(config)
    copied.write_bytes(next((tmp_path / "own" / "test" / "NORMAL").iterdir()).read_bytes())
    with pytest.raises(DataError, match="1 of 19 images are also in Test Set 1"):
        gather(config)
    with pytest.raises(ConfigError, match="every hospital its own path"):
        gather(_config(**(own | {"data__path": str(tmp_path / "{site}")})))
