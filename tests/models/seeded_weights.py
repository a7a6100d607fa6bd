"""Weights that are a function of their names, so that fixtures need not store them.

Imported both by the tests and, under PyTorch, by `record_torch_logits.py`.
"""

import zlib

import numpy as np

# Networks of which logits are recorded: torchvision's, some with fewer channels.
CASES = {
    "resnet18": {"name": "resnet18", "norm": "batch", "width": 64, "image_size": 64},
    "resnet34": {"name": "resnet34", "norm": "batch", "width": 8, "image_size": 50},
    "vgg16": {"name": "vgg16", "norm": "none", "width": 8, "image_size": 64},
    "vgg16_bn": {"name": "vgg16", "norm": "batch", "width": 8, "image_size": 100},
}
N_IMAGES, CHANNELS, N_CLASSES = 2, 3, 5


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a plausible size for the tensor that PyTorch calls `name`."""
    rng = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
    values = rng.standard_normal(shape)
    if name.endswith("running_var"):
        values = np.exp(0.2 * values)
    elif name.endswith(("bias", "running_mean")):
        values = 0.1 * values
    elif len(shape) == 1:  # the scale of a normalisation
        values = 1 + 0.1 * values
    else:
        values = values * np.sqrt(2 / np.prod(shape[1:]))
    return values.astype(np.float32)


def images(image_size: int) -> np.ndarray:
    """[n s s c]: the images whose logits are recorded."""
    return tensor("images", (N_IMAGES, image_size, image_size, CHANNELS)) * 10
