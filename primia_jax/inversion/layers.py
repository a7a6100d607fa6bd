"""Weights of a network's dense layers, and of the last of them.

Axis letters: f inputs and m outputs of a dense layer, k classes.
"""

from typing import Any, NamedTuple

import jax
from flax import traverse_util

from primia_jax.errors import ConfigError


class Dense(NamedTuple):
    """A dense layer's weights, or what an update says of them."""

    path: str  # of its module, as 'fc' or 'classifier/Dense_0'
    kernel: jax.Array  # [f m]
    bias: jax.Array  # [m]


def dense_layers(params: Any) -> list[Dense]:
    """The dense layers with a bias in a tree of weights, by name: 'Dense_10' after 'Dense_9'."""
    flat = traverse_util.flatten_dict(dict(params))
    layers = []
    for path in sorted({path[:-1] for path in flat}, key=_in_natural_order):
        kernel, bias = flat.get((*path, "kernel")), flat.get((*path, "bias"))
        if kernel is not None and bias is not None and kernel.ndim == 2:
            layers.append(Dense("/".join(path), kernel, bias))
    return layers


def dense_layer(params: Any, path: str) -> Dense:
    """The dense layer at `path`.

    Raises:
      ConfigError: if there is none with a bias.
    """
    layers = dense_layers(params)
    for layer in layers:
        if layer.path == path:
            return layer
    names = ", ".join(layer.path for layer in layers) or "none"
    raise ConfigError(f"no dense layer {path!r} with a bias in the network; it has {names}")


def output_layer(params: Any, k: int) -> Dense:
    """The dense layer that gives the logits: the last by name of those with `k` outputs.

    Raises:
      ConfigError: if no dense layer with a bias has that many.
    """
    layers = [layer for layer in dense_layers(params) if layer.bias.shape == (k,)]
    if not layers:
        raise ConfigError(f"the network has no dense layer with a bias and {k} outputs")
    return layers[-1]


def _in_natural_order(path: tuple[str, ...]) -> list[tuple[str, int]]:
    """Sorts numbers at the end of names by their value."""
    parts = []
    for name in path:
        stem = name.rstrip("0123456789")
        parts.append((stem, int(name[len(stem) :] or -1)))
    return parts
