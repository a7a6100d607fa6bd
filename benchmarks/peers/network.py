"""The ResNet-18 that every system runs: its weights, its image, its logits in the clear."""

import functools
from typing import Any

import jax
import numpy as np

from primia_jax import models
from primia_jax.config import ModelConfig
from primia_jax.models.layers import EPSILON

NAME = "resnet18"
N_CLASSES = 3
_SEED = 0
_BRANCH_SCALE = 0.5  # of a block's last norm: activations stay near 1, as in a trained network
_BIAS_SPREAD = 0.05
_MODULE = models.build(
    ModelConfig(name=NAME, channels=3, pooling="max", convolution="xla"), N_CLASSES
)


def variables(image_size: int) -> Any:
    """Random weights, biases and batch norms of torchvision's network for colour images."""
    rng = np.random.default_rng(_SEED)
    found = jax.device_get(models.init(_MODULE, jax.random.key(_SEED), image_size, 3))

    def varied(path: Any, leaf: np.ndarray) -> np.ndarray:
        names = [key.key for key in path]
        if names[-2:] == ["bn2", "scale"]:
            return _BRANCH_SCALE * leaf
        if names[-1] == "bias" and "fc" not in names:
            return _BIAS_SPREAD * rng.normal(size=leaf.shape).astype(np.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(varied, found)


def shapes(image_size: int) -> Any:
    """The variables' shapes and types, which are public."""
    return jax.eval_shape(lambda: models.init(_MODULE, jax.random.key(0), image_size, 3))


def images(image_size: int, n_images: int, seed: int) -> np.ndarray:
    """Noise [n s s 3] in [0, 1]."""
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(n_images, image_size, image_size, 3)).astype(np.float32)


def apply_fn(variables: Any, images: Any) -> Any:
    """[n s s 3] -> logits [n 3]."""
    return _MODULE.apply(variables, images, train=False)


def logits(variables: Any, images: np.ndarray) -> np.ndarray:
    """The same in the clear, in float32."""
    return np.asarray(jax.jit(apply_fn)(variables, images))


def folded(variables: Any) -> dict[str, np.ndarray]:
    """Each convolution with its batch norm folded in, as a peer's script takes them.

    Returns:
      `NAME.kernel` [h w i o] and `NAME.bias` [o] of conv1 and of conv1, conv2 and, where there is
      one, downsample of the blocks layer1_0 to layer4_1; of fc, the kernel [i o].
    """
    params, moments = variables["params"], variables["batch_stats"]
    fold = functools.partial(_folded, params, moments)
    arrays = fold("conv1", [], "conv1", "bn1")
    for block in sorted(name for name in params if name.startswith("layer")):
        for number in (1, 2):
            name = f"conv{number}"
            arrays |= fold(f"{block}.{name}", [block], name, f"bn{number}")
        if "downsample_conv" in params[block]:
            arrays |= fold(f"{block}.downsample", [block], "downsample_conv", "downsample_bn")
    arrays |= {f"fc.{key}": np.asarray(value) for key, value in params["fc"].items()}
    return arrays


def save(path: str, image: np.ndarray, variables: Any) -> None:
    """Writes `image` and the folded network into an .npz file for the peers' scripts."""
    arrays: dict[str, Any] = {"image": image, **folded(variables)}
    np.savez(path, **arrays)


def _folded(
    params: Any, moments: Any, name: str, within: list[str], conv: str, norm: str
) -> dict[str, np.ndarray]:
    for step in within:
        params, moments = params[step], moments[step]
    factor = params[norm]["scale"] / np.sqrt(moments[norm]["var"] + EPSILON)
    return {
        f"{name}.kernel": params[conv]["kernel"] * factor,
        f"{name}.bias": params[norm]["bias"] - moments[norm]["mean"] * factor,
    }
