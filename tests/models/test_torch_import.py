"""Weights from PyTorch give PyTorch's logits; anything else is refused in one line.

`data/` was written by `record_torch_logits.py` under PyTorch; the weights are made again here.
"""

import io
import json
import os
import pathlib
import pickle
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import seeded_weights
from safetensors.numpy import save_file

from primia_jax import models
from primia_jax.config.sections import ModelConfig
from primia_jax.errors import CheckpointError
from primia_jax.models.torch_file import read_tensors

DATA = pathlib.Path(__file__).parent / "data"
RECORDED = json.loads((DATA / "torch_logits.json").read_text())
SIMPLE = ModelConfig(name="simple", width=4)
SIMPLE_SHAPES = {
    "conv1.weight": (4, 1, 3, 3),
    "conv2.weight": (8, 4, 3, 3),
    "conv3.weight": (16, 8, 3, 3),
    "fc.weight": (3, 16),
    "fc.bias": (3,),
    **{
        f"bn{layer}.{kind}": (4 * 2 ** (layer - 1),)
        for layer in (1, 2, 3)
        for kind in ("weight", "bias", "running_mean", "running_var")
    },
}


def seeded(shapes):
    return {name: seeded_weights.tensor(name, tuple(shape)) for name, shape in shapes.items()}


def blank(config, n_classes, image_size=64):
    """Variables of the right shapes, made without compiling anything."""
    module = models.build(config, n_classes)
    x = jax.ShapeDtypeStruct((1, image_size, image_size, config.channels), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return module, jax.tree.map(lambda s: jnp.full(s.shape, 0.5, s.dtype), shapes)


def load(path, config=SIMPLE, n_classes=3):
    return models.load_torch(str(path), config, n_classes, blank(config, n_classes, 32)[1])


def save(tmp_path, tensors, name="weights.safetensors"):
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("case", seeded_weights.CASES)
def test_logits_equal_pytorch(case, tmp_path):
    """Layouts, names, epsilons, paddings and adaptive pooling are all torchvision's."""
    settings = dict(seeded_weights.CASES[case])
    side = settings.pop("image_size")
    config = ModelConfig(channels=seeded_weights.CHANNELS, **settings)
    module, variables = blank(config, seeded_weights.N_CLASSES, side)
    path = save(tmp_path, seeded(RECORDED[case]["shapes"]))
    variables = models.load_torch(str(path), config, seeded_weights.N_CLASSES, variables)
    x = jnp.asarray(seeded_weights.images(side))
    logits = jax.jit(module.apply)(variables, x)
    expected = np.array(RECORDED[case]["logits"])
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_training_equals_pytorch(tmp_path):
    """Batch moments normalise as PyTorch's do; the running mean moves as far."""
    settings = {k: v for k, v in seeded_weights.CASES["resnet18"].items() if k != "image_size"}
    recorded, side = RECORDED["resnet18"], seeded_weights.CASES["resnet18"]["image_size"]
    config = ModelConfig(channels=seeded_weights.CHANNELS, **settings)
    module, variables = blank(config, seeded_weights.N_CLASSES, side)
    path = save(tmp_path, seeded(recorded["shapes"]))
    variables = models.load_torch(str(path), config, seeded_weights.N_CLASSES, variables)
    x = jnp.asarray(seeded_weights.images(side))
    apply = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))
    logits, new = apply(variables, x)
    expected = np.array(recorded["train_logits"])
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())
    moved = float(new["batch_stats"]["bn1"]["mean"].sum())
    assert moved == pytest.approx(recorded["running_mean_sum"], abs=1e-4)


def test_file_of_torch_save():
    """Wrapped, prefixed, strided, offset, half, double and bfloat16, as torch.save wrote them."""
    variables = load(DATA / "simple.pth")
    params, expected = variables["params"], seeded(SIMPLE_SHAPES)
    for layer in ("conv1", "conv2", "conv3"):
        wanted = expected[f"{layer}.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(params[layer]["kernel"], wanted)
    np.testing.assert_array_equal(params["fc"]["kernel"], expected["fc.weight"].T)
    np.testing.assert_array_equal(params["bn1"]["bias"], expected["bn1.bias"])
    np.testing.assert_array_equal(params["bn2"]["bias"], expected["bn2.bias"])
    np.testing.assert_allclose(params["bn3"]["bias"], expected["bn3.bias"], rtol=1e-3)
    np.testing.assert_allclose(params["bn3"]["scale"], expected["bn3.weight"], rtol=1e-2)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    stats = variables["batch_stats"]["bn2"]
    np.testing.assert_array_equal(stats["var"], expected["bn2.running_var"])


def test_big_endian_storage(tmp_path):
    with zipfile.ZipFile(DATA / "simple.pth") as source:
        files = {name: source.read(name) for name in source.namelist()}
    root = next(iter(files)).split("/")[0]
    files[f"{root}/byteorder"] = b"big"
    with zipfile.ZipFile(tmp_path / "big.pth", "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    plain, swapped = read_tensors(str(DATA / "simple.pth")), read_tensors(str(tmp_path / "big.pth"))
    for name in ("fc.bias", "conv2.weight"):
        np.testing.assert_array_equal(plain[name].byteswap(), swapped[name])


def test_colour_is_summed_for_grey_images(tmp_path):
    tensors = seeded({**SIMPLE_SHAPES, "conv1.weight": (4, 3, 3, 3)})
    kernel = load(save(tmp_path, tensors))["params"]["conv1"]["kernel"]
    wanted = tensors["conv1.weight"].sum(1, keepdims=True).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel, wanted, rtol=1e-6)


def test_head_of_other_classes_stays_fresh(tmp_path):
    path = save(tmp_path, seeded(SIMPLE_SHAPES))
    params = load(path, n_classes=2)["params"]
    np.testing.assert_array_equal(params["fc"]["kernel"], np.full((16, 2), 0.5))
    np.testing.assert_array_equal(params["fc"]["bias"], np.full(2, 0.5))
    assert not np.any(params["conv1"]["kernel"] == 0.5)


def test_other_widths_of_floats_and_frozen_norm(tmp_path):
    tensors = seeded(SIMPLE_SHAPES)
    tensors["fc.weight"] = tensors["fc.weight"].astype(np.float16)
    tensors["fc.bias"] = tensors["fc.bias"].astype(ml_dtypes.bfloat16)
    tensors["bn1.bias"] = tensors["bn1.bias"].astype(np.float64)
    tensors["bn1.num_batches_tracked"] = np.array(3)
    frozen = ModelConfig(name="simple", width=4, norm="frozen")
    variables = load(save(tmp_path, tensors), frozen)
    wanted = tensors["fc.weight"].T.astype(np.float32)
    np.testing.assert_array_equal(variables["params"]["fc"]["kernel"], wanted)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bn2.running_var": None}, r"has no tensor 'bn2\.running_var'"),
        ({"fc.bias": None}, r"has no tensor 'fc\.bias'"),
        (
            {"conv2.weight": np.ones((8, 3, 3, 3))},
            r"'conv2\.weight' has shape \[8, 3, 3, 3\].*\[8, 4",
        ),
        ({"fc.weight": np.ones((3, 15))}, r"'fc\.weight' has shape \[3, 15\].*\[3, 16\]"),
        ({"conv1.weight": np.ones(4)}, r"'conv1\.weight' has shape \[4\]"),
        ({"conv1.weight": np.full((4, 1, 3, 3), np.nan)}, r"'conv1\.weight' holds values"),
        ({"bn1.bias": np.ones(4, np.int32)}, r"'bn1\.bias' holds values"),
        ({"layer1.2.conv1.weight": np.ones(3)}, r"has a tensor 'layer1\.2\.conv1\.weight'"),
    ],
    ids=str,
)
def test_a_wrong_tensor_is_named(tmp_path, change, message):
    tensors = {**seeded(SIMPLE_SHAPES), **change}
    path = save(tmp_path, {k: v for k, v in tensors.items() if v is not None})
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_moments_need_a_norm_with_moments(tmp_path):
    group = ModelConfig(name="simple", width=4, norm="group")
    with pytest.raises(CheckpointError, match=r"'bn1\.running_mean'.*norm 'group'"):
        load(save(tmp_path, seeded(SIMPLE_SHAPES)), group)


def test_nothing_in_a_file_is_run():
    with pytest.raises(CheckpointError, match="Opaque, which is not run"):
        read_tensors(str(DATA / "unsafe.pth"))


@pytest.mark.parametrize(
    "function", ["builtins print", "builtins eval", "builtins getattr", "collections Counter"]
)
def test_calls_are_refused(tmp_path, function, capsys):
    """Written by hand, as a process in which Ray has replaced `print` cannot pickle it."""
    module, name = function.split()
    content = f"(S'fc.bias'\nc{module}\n{name}\n(S'1'\ntRd.".encode()
    write_pickle(tmp_path / "call.pth", content)
    with pytest.raises(CheckpointError, match="is not run"):
        read_tensors(str(tmp_path / "call.pth"))
    assert capsys.readouterr().out == ""


def write_pickle(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "archive/data.pkl", content if isinstance(content, bytes) else dump(content)
        )


def dump(content):
    stream = io.BytesIO()
    pickle.Pickler(stream, 2).dump(content)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "no dictionary of tensors"),
        ({"epoch": 3}, "'epoch' is not a tensor"),
        ({"state_dict": {3: 4}}, "3 is not a tensor"),
        (b"\x80\x02", "damaged"),
        (b"garbage", "damaged"),
        (b"", "damaged"),
    ],
    ids=str,
)
def test_other_pickles_are_refused(tmp_path, content, message):
    write_pickle(tmp_path / "odd.pth", content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(str(tmp_path / "odd.pth"))
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused_cleanly(tmp_path):
    """A damaged file may fail anywhere; it never ends in another kind of error."""
    content = (DATA / "simple.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(content), 997):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_tensors(str(path))


def test_flipped_bytes_never_escape_as_other_errors(tmp_path):
    content = (DATA / "simple.pth").read_bytes()
    rng = np.random.Generator(np.random.Philox(3))
    path = tmp_path / "flipped.pth"
    for _ in range(200):
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(flipped))
        try:
            read_tensors(str(path))
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.pth", None, "no such weights file"),
        ("weights.npz", b"", "only"),
        ("old.pth", pickle.dumps(0x1950A86A20F9469CFC6C), "before PyTorch 1.6"),
        ("bad.safetensors", b"\x08\0\0\0\0\0\0\0{}garbag", "not a readable safetensors file"),
        ("empty.safetensors", b"", "not a readable safetensors file"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(str(tmp_path / name))


def tensor_pickle(side, names=("w",)):
    """Tensors [side side] whose every element is the same one of a storage of 4 bytes."""
    n = side.to_bytes(4, "little")
    entry = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00J" + n + b"J" + n + b"\x86"
        b"K\x00K\x00\x86tR"
    )
    items = [b"X" + len(name).to_bytes(4, "little") + name.encode() + entry for name in names]
    return b"\x80\x02}" + b"".join(item + b"s" for item in items) + b"."


@pytest.mark.parametrize(
    ("side", "names", "zeros", "compression"),
    [
        (10_000, ("w",), 0, zipfile.ZIP_STORED),
        (30, [f"w{i:03d}" for i in range(400)], 0, zipfile.ZIP_STORED),
        (1, ("w",), 50_000_000, zipfile.ZIP_DEFLATED),
    ],
    ids=("strides", "many views", "compressed"),
)
def test_a_small_file_takes_little_memory(tmp_path, side, names, zeros, compression):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", compression) as archive:
        archive.writestr("a/data.pkl", tensor_pickle(side, names))
        archive.writestr("a/data/0", np.float32(1).tobytes())
        archive.writestr("a/data/1", bytes(zeros))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"smaller|that declare"):
            read_tensors(str(tmp_path / "bomb.pth"))
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_a_pipe_is_no_weights_file(tmp_path):
    os.mkfifo(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="pipe"):
        read_tensors(str(tmp_path / "weights.pth"))
