"""A trained model, loaded and exported: it answers as `--mode=predict` does."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import primia_jax
from primia_jax import models, tasks
from primia_jax.config import ExperimentConfig, to_config_dict, to_plain
from primia_jax.config.sections import ModelConfig
from primia_jax.core.arrays import read_tensors
from primia_jax.core.storage import write_json
from primia_jax.data import read_inputs
from primia_jax.errors import CheckpointError, ConfigError, DataError
from primia_jax.experiment import checked
from primia_jax.federated import checkpoints
from primia_jax.federated.local_training import Statistics
from primia_jax.models.torch_import import to_torch

CLASSES = ("normal", "bacterial", "viral")
SIDE = 16


def make_run(folder, name="simple", task="classification"):
    """Leaves a run in `folder` whose best model has random weights; returns its configuration."""
    config = to_config_dict(ExperimentConfig())
    config.task = task
    config.data.image_size = SIDE
    config.model.update(name=name, width=4)
    config = checked(config)
    module = models.build(config.model, tasks.make(config, CLASSES).n_outputs)
    variables = models.init(module, jax.random.key(0), SIDE, config.model.channels)
    draws = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: leaf + draws.uniform(0.1, 0.5, leaf.shape), variables)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    statistics = Statistics(np.float32(0.4), np.float32(0.3), np.ones(len(CLASSES), np.float32))
    facts = {
        "task": task,
        "class_names": list(CLASSES),
        "image_size": SIDE,
        "model": to_plain(config.model),
    }
    model = {"variables": variables, "statistics": statistics._asdict()}
    checkpoints.save(folder / "checkpoints", 3, {"model": model}, facts, ())
    checkpoints.commit(folder / "checkpoints", checkpoints.Progress(4, 3))
    write_json(folder / "config.json", to_plain(config))
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return make_run(folder), folder


def grey(n=5, dtype=np.uint8):
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (n, SIDE, SIDE)).astype(dtype)


def test_loaded_model_gives_the_probabilities_of_predict(run, tmp_path):
    config, folder = run
    for i, image in enumerate(grey()):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    expected = primia_jax.predict(config, folder, tmp_path)
    model = primia_jax.load(folder)
    images = read_inputs(str(tmp_path), model.image_size, config.data).images
    np.testing.assert_array_equal(model(images), expected.probabilities)
    np.testing.assert_array_equal(model(images[..., 0]), expected.probabilities)
    logits = model.module.apply(model.variables, model.preprocess(images))
    np.testing.assert_allclose(jax.nn.softmax(logits), expected.probabilities, atol=1e-5)
    assert (model.class_names, model.round, model.task.class_names) == (CLASSES, 3, CLASSES)
    preprocessing = model.preprocessing
    assert (preprocessing.image_size, preprocessing.channels) == (SIDE, 1)
    assert (preprocessing.mean, preprocessing.std) == pytest.approx((0.4, 0.3))


def test_loaded_segmentation_gives_the_mask_files_of_predict(tmp_path):
    config = make_run(tmp_path / "run", "unet", "segmentation")
    image = grey(1)
    Image.fromarray(image[0]).save(tmp_path / "0.png")
    primia_jax.predict(config, tmp_path / "run", tmp_path / "0.png")
    mask = primia_jax.load(tmp_path / "run")(image)
    (file,) = (tmp_path / "run" / "masks").glob("*")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), mask[0])


@pytest.mark.parametrize(
    ("images", "shape"),
    [(np.zeros((2, SIDE, SIDE)), "float64"), (np.zeros((2, 8, 8), np.uint8), r"\[2, 8, 8\]")],
)
def test_images_that_the_model_cannot_take_are_refused_in_one_line(run, images, shape):
    with pytest.raises(DataError, match=rf"{shape}.*\[n, 16, 16\]"):
        primia_jax.load(run[1])(images)


def test_a_folder_without_a_run_and_a_damaged_one_are_refused_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*; train one with"):
        primia_jax.load(tmp_path / "nothing")
    make_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read") as error:
        primia_jax.load(tmp_path)
    assert "\n" not in str(error.value)
    make_run(tmp_path)
    next((tmp_path / "checkpoints").glob("round_*/model.safetensors")).write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read") as error:
        primia_jax.load(tmp_path)
    assert "\n" not in str(error.value)


NETWORKS = [("simple", {}), ("resnet18", {"stem": "small"}), ("vgg16", {"norm": "none"})]


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_torch_names_read_again_give_the_same_variables(tmp_path, name, options):
    """Bit for bit; the input of VGG's dense layer has an order of its own."""
    config = ModelConfig(name=name, width=4, **options)
    module = models.build(config, 3)
    image = jax.ShapeDtypeStruct((1, 32, 32, 1), np.float32)
    draws = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    variables = jax.tree.map(lambda s: draws.random(s.shape, np.float32), shapes)
    save_file(to_torch(config, variables), tmp_path / "model.safetensors")
    blank = jax.tree.map(np.zeros_like, variables)
    again = models.load_torch(str(tmp_path / "model.safetensors"), config, 3, blank)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_exported_file_is_read_by_the_importer_and_gives_the_same_logits(run):
    folder = run[1]
    path = primia_jax.export(folder)
    assert path == folder / "model.safetensors" and path.stat().st_mode & 0o777 == 0o600
    model = primia_jax.load(folder)
    blank = jax.tree.map(np.zeros_like, model.variables)
    again = models.load_torch(str(path), model.config, 3, blank)
    x = model.preprocess(grey())
    apply = jax.jit(model.module.apply)
    np.testing.assert_array_equal(apply(again, x), apply(model.variables, x))
    tensors, facts = read_tensors(path)
    assert tensors["conv1.weight"].shape == (4, 1, 3, 3)
    assert facts["names"] == "torchvision" and facts["task"] == "classification"
    assert json.loads(facts["class_names"]) == list(CLASSES)
    assert json.loads(facts["preprocessing"]) == dataclasses.asdict(model.preprocessing)
    assert json.loads(facts["model"])["width"] == 4


def test_network_without_torch_names_is_exported_by_flax_paths(tmp_path):
    make_run(tmp_path, "unet", "segmentation")
    tensors, facts = read_tensors(primia_jax.export(tmp_path))
    assert facts["names"] == facts["format"] == "flax" and facts["task"] == "segmentation"
    variables = primia_jax.load(tmp_path).variables
    kernel = variables["params"]["down0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(tensors["params/down0/conv1/kernel"], kernel)
    assert len(tensors) == len(jax.tree.leaves(variables))


def test_own_network_is_loaded_and_exported_by_flax_paths(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / "models")
    make_run(tmp_path, "own_networks:Plain")
    model = primia_jax.load(tmp_path)
    x = model.preprocess(grey())
    logits = model.module.apply(model.variables, x, train=False)
    np.testing.assert_allclose(model(grey()), jax.nn.softmax(logits), atol=1e-5)
    tensors, facts = read_tensors(primia_jax.export(tmp_path))
    assert facts["names"] == "flax" and json.loads(facts["model"])["name"] == "own_networks:Plain"
    assert "params/Dense_0/kernel" in tensors


def test_export_of_an_unknown_kind_is_refused_in_one_line(run):
    with pytest.raises(ConfigError, match="'onnx'; take one of safetensors, orbax"):
        primia_jax.export(run[1], "onnx")


def test_orbax_reads_the_exported_folder(run):
    from orbax import checkpoint

    path = primia_jax.export(run[1], "orbax")
    assert primia_jax.export(run[1], "orbax") == path  # in place of the first
    assert all(each.stat().st_mode & 0o077 == 0 for each in (path, *path.rglob("*")))
    with checkpoint.StandardCheckpointer() as reader:
        variables, facts = reader.restore(path), reader.metadata(path).custom_metadata
    jax.tree.map(np.testing.assert_array_equal, variables, primia_jax.load(run[1]).variables)
    assert json.loads(facts["class_names"]) == list(CLASSES)
