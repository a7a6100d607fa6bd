"""Torchvision-named weights: imported into the variables of a network, and exported from them.

Axis letters: k/m kernel rows and columns, i/o input and output channels.
"""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from primia_jax.config.sections import ModelConfig
from primia_jax.errors import CheckpointError
from primia_jax.models import vgg
from primia_jax.models.torch_file import read_tensors

# The last layer, which is left as it is where the number of classes differs.
HEADS = {"resnet18": "fc", "resnet34": "fc", "vgg16": "classifier_6", "simple": "fc"}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

Path = tuple[str, ...]


def load_torch(
    path: str, config: ModelConfig, n_classes: int, variables: dict[str, Any]
) -> dict[str, Any]:
    """`variables` with every value replaced by that of a PyTorch file.

    Names and layouts are torchvision's. A first layer for colour is summed over its input channels
    where the network takes grey images: the same as repeating them. The last layer keeps its fresh
    values where the file has another number of classes.

    Args:
      path: a .safetensors file, or a .pth file of a state dictionary (read without running it).
      config: the settings the network was built from.
      n_classes: outputs of the network.
      variables: the network's fresh variables; not changed.

    Raises:
      CheckpointError: if the file cannot be read, or a tensor is missing, misshapen, not finite or
        of another network; one line that names the tensor.
    """
    tensors = read_tensors(path)
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    flat = traverse_util.flatten_dict(variables)
    head = _head(config)
    names = {leaf: _torch_name(leaf) for leaf in flat}
    head_names = {name for leaf, name in names.items() if head in leaf}
    fresh_head = _classes(tensors, head_names) not in (None, n_classes)
    loaded = {}
    for leaf, value in flat.items():
        name = names[leaf]
        if name not in tensors:
            raise CheckpointError(f"{path}: has no tensor {name!r}, which {config.name} needs")
        if fresh_head and name in head_names:
            loaded[leaf] = value
            continue
        array = _converted(tensors[name], leaf, value.shape)
        if array.shape != value.shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(tensors[name].shape)}; the network wants "
                f"{_torch_shape(leaf, value.shape)} (config.model: stem, width, channels)"
            )
        if array.dtype != np.float32 or not np.all(np.isfinite(array)):
            raise CheckpointError(f"{path}: tensor {name!r} holds values that are no finite floats")
        loaded[leaf] = jnp.asarray(array)
    unused = sorted(set(tensors) - set(names.values()))
    if unused:
        raise CheckpointError(
            f"{path}: has a tensor {unused[0]!r} that {config.name} with norm '{config.norm}' "
            "lacks; the weights are of another network"
        )
    return traverse_util.unflatten_dict(loaded)


def _head(config: ModelConfig) -> str:
    """The last layer of a network with torchvision's names.

    Raises:
      CheckpointError: if the network has no such names.
    """
    if config.name not in HEADS:
        raise CheckpointError(
            f"config.model.name = {config.name!r} has no torchvision names: no file of weights can "
            "be read into it; name the folder of a run"
        )
    return HEADS[config.name]


def _torch_name(leaf: Path) -> str:
    """('params', 'layer1_0', 'conv1', 'kernel') -> 'layer1.0.conv1.weight'."""
    *modules, kind = leaf[1:]
    modules = [re.sub(r"^downsample_conv$", "downsample.0", name) for name in modules]
    modules = [re.sub(r"^downsample_bn$", "downsample.1", name) for name in modules]
    modules = [re.sub(r"_(?=\d)", ".", name) for name in modules]
    return ".".join([*modules, LEAVES[kind]])


def classes_in(path: str, config: ModelConfig) -> int | None:
    """Classes that the network in a PyTorch file tells apart; None if it is of another kind.

    Raises:
      CheckpointError: if the file cannot be read.
    """
    head = _head(config).replace("_", ".")
    return _classes(read_tensors(path), {f"{head}.weight", f"{head}.bias"})


def _classes(tensors: dict[str, np.ndarray], head_names: set[str]) -> int | None:
    """The number of classes of the file's last layer, or None if it has no such layer."""
    sizes = {len(tensors[name]) for name in head_names if name in tensors and tensors[name].ndim}
    return sizes.pop() if len(sizes) == 1 else None


def _converted(array: np.ndarray, leaf: Path, shape: tuple[int, ...]) -> np.ndarray:
    """`array` in the layout of our variables; of another shape where it does not fit."""
    if leaf[-1] != "kernel":
        return array
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)  # [o i k m] -> [k m i o]
        grey = len(shape) == 4 and shape[2] == 1
        return array.sum(2, keepdims=True) if grey and array.shape[2] == 3 else array
    if array.ndim != 2:
        return array
    array = array.T
    side = vgg.POOLED_SIDE
    if leaf[-2] == "classifier_0" and array.shape[0] % side**2 == 0:
        # PyTorch flattens the pooled image channels first, we channels last.
        pixels = array.reshape(-1, side, side, array.shape[1])
        return pixels.transpose(1, 2, 0, 3).reshape(array.shape)
    return array


def to_torch(config: ModelConfig, variables: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The variables as `load_torch` reads them; None for a network without torchvision's names."""
    if config.name not in HEADS:
        return None
    flat = traverse_util.flatten_dict(variables)
    return {_torch_name(leaf): _exported(np.asarray(value), leaf) for leaf, value in flat.items()}


def _exported(array: np.ndarray, leaf: Path) -> np.ndarray:
    """`array` in PyTorch's layout; the inverse of `_converted`."""
    if leaf[-1] != "kernel":
        return array
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1))  # [k m i o] -> [o i k m]
    if leaf[-2] == "classifier_0":
        side = vgg.POOLED_SIDE
        pixels = array.reshape(side, side, -1, array.shape[1])
        array = pixels.transpose(2, 0, 1, 3).reshape(array.shape)
    return np.ascontiguousarray(array.T)


def _torch_shape(leaf: Path, shape: tuple[int, ...]) -> list[int]:
    """The shape that PyTorch gives the variable."""
    if leaf[-1] != "kernel":
        return list(shape)
    return [shape[3], shape[2], *shape[:2]] if len(shape) == 4 else list(shape[::-1])
