"""A segmentation from training to diagnosis: secure sums, privacy, report, masks in the clear and
encrypted. The classification's own tests hold for all that the two share.
"""

import json

import numpy as np
import pytest
from PIL import Image

import primia_jax
from primia_jax import predictions
from primia_jax.config import ExperimentConfig, from_config_dict, resolved
from primia_jax.data import make_plan
from primia_jax.errors import CheckpointError, ConfigError, DataError

TINY = {
    "seed": 5,
    "task": "segmentation",
    "data": {"image_size": 16, "phantom": {"n_train": 60, "n_test": 9}},
    "model": {"name": "unet", "width": 4, "pooling": "avg"},
    "training": {"batch_size": 8, "learning_rate": 1e-2},
    "augmentation": {"noise_p": 0.0, "gamma_p": 0.0},
    "federated": {"rounds": 2, "sync_every": 2, "sync_unit": "steps"},
    "evaluation": {"bootstrap": 20},
    "runtime": {"driver": "local"},
}


def config_with(**changes):
    merged = {name: {**TINY.get(name, {}), **section} for name, section in changes.items()}
    return resolved(from_config_dict(ExperimentConfig, {**TINY, **merged}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and a folder with two of its pictures in other sizes."""
    folder = tmp_path_factory.mktemp("segmentation")
    config = config_with()
    result = primia_jax.train(config, folder / "run")
    data = make_plan(config).load_test(64)
    (folder / "images").mkdir()
    for i, size in enumerate(((64, 64), (90, 70))):
        picture = Image.fromarray(data.images[i, :, :, 0]).resize(size)
        picture.save(folder / "images" / f"image_{i}.png")
    return config, folder, result


def test_the_round_is_chosen_by_the_summed_dice(trained):
    config, folder, result = trained
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result.metrics))
    assert {"test", "mode", "rounds"} <= metrics.keys() and metrics["mode"] == "federated_secure"
    lines = [json.loads(x) for x in (folder / "run" / "rounds.jsonl").read_text().splitlines()]
    whole = {line["round"]: line["validation"]["dice"] for line in lines if line["site"] == "all"}
    assert metrics["best_round"] == max(whole, key=whole.get)
    assert metrics["score"] == {"name": "Dice", "value": max(whole.values())}
    n = sum(len(site.load()[1]) for site in make_plan(config).sites)
    assert metrics["validation"]["n"] == n
    test = metrics["test"]
    assert set(test["dice_by_class"]) == {"background", "lungs", "heart"}
    assert set(test["per_site"]) == {"hospital_0", "hospital_1", "hospital_2"}
    page = (folder / "run" / "report.html").read_text()
    assert "Dice, heart" in page and page.count("image, Dice") == 3


def test_masks_have_the_sizes_of_their_pictures(trained):
    config, folder, _ = trained
    diagnoses = primia_jax.predict(config, folder / "run", folder / "images")
    assert diagnoses.names == ["image_0.png", "image_1.png"] and len(diagnoses.lines()) == 2
    rows = (folder / "run" / predictions.FILE).read_text().splitlines()
    assert rows[0].startswith("file,mask,share_background,share_lungs,share_heart,in_range")
    for i, size in enumerate(((64, 64), (90, 70))):
        picture = Image.open(folder / "run" / predictions.MASKS / f"image_{i}.png.mask.png")
        values = np.asarray(picture)
        assert picture.size == size and set(np.unique(values)) <= {0, 1, 2}
        square = values[:, (size[0] - size[1]) // 2 :][:, : size[1]]
        assert (np.delete(values, np.s_[10:80], 1) == 0).all() if i else (square == values).all()


def test_an_encrypted_mask_is_the_data_owners_alone(trained):
    """Hardly a pixel differs from the mask in the clear; the model's owner gets no file of it."""
    config, folder, _ = trained
    primia_jax.predict(config, folder / "run", folder / "images" / "image_1.png")
    clear = np.asarray(Image.open(folder / "run" / "masks" / "image_1.png.mask.png"))
    before = {path for path in folder.rglob("*") if path.is_file()}
    diagnosis = primia_jax.predict_encrypted(
        config, folder / "run", folder / "images" / "image_1.png"
    )
    secret = np.asarray(Image.open(diagnosis.folder / "masks" / "image_1.png.mask.png"))
    assert secret.shape == clear.shape and (secret == clear).mean() > 0.97
    new = {path for path in folder.rglob("*") if path.is_file()} - before
    assert {path.name for path in new if path.suffix == ".png"} == {
        "image_1.png.mask.png",
        "trace.png",
    }
    assert all(diagnosis.folder in path.parents for path in new if path.name.startswith("image_1"))
    assert (diagnosis.folder / "masks").stat().st_mode & 0o077 == 0


def test_differential_privacy_of_records_protects_masks_too(tmp_path):
    """Gradients of images are clipped one by one, and the summed pixels go out with noise."""
    config = config_with(
        privacy={"mode": "record", "epsilon": 50.0},
        federated={"rounds": 1},
        augmentation={"rotation_p": 1.0},
    )
    assert config.model.norm == "group"
    result = primia_jax.train(config, tmp_path)
    assert result.metrics["privacy"]["epsilon"]["pld"] <= 50.0
    validation = result.metrics["validation"]
    assert validation["dice"] is None or 0 <= validation["dice"] <= 1
    assert "loss" not in validation and result.metrics["test"]["n"] == 9


def test_what_does_not_fit_is_one_line(trained, tmp_path):
    config, folder, _ = trained
    with pytest.raises(ConfigError, match=r"'simple' does not fit config.task = 'segmentation'"):
        config_with(model={"name": "simple"})
    with pytest.raises(ConfigError, match=r"'unet' does not fit config.task = 'classification'"):
        resolved(from_config_dict(ExperimentConfig, {"model": {"name": "unet"}}))
    with pytest.raises(DataError, match="no masks"):
        primia_jax.train(config_with(data={"source": "folder", "path": str(folder)}), tmp_path)
    with pytest.raises(ConfigError, match="multiple of 8"):
        primia_jax.train(config_with(data={"image_size": 20}), tmp_path)
    classifies = resolved(from_config_dict(ExperimentConfig, {"data": {"image_size": 16}}))
    with pytest.raises(CheckpointError, match=r"--config.task=segmentation"):
        primia_jax.predict(classifies, folder / "run", folder / "images")
    with pytest.raises(ConfigError, match=r"a search needs config.task = 'classification'"):
        primia_jax.tune(config, tmp_path / "search")
