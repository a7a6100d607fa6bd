"""The decisions behind a batch's changes: which images an operation picks, and how strongly.

All numbers come from one call of the generator, as every further call would lengthen compilation;
each operation has rows of its own, whatever else is switched on.

Axis letters: b images of a batch.
"""

import dataclasses
from typing import NamedTuple

import jax

from primia_jax.config.sections import AugmentationConfig

_SUFFIX = "_p"
OPERATIONS = tuple(
    field.name.removesuffix(_SUFFIX)
    for field in dataclasses.fields(AugmentationConfig)
    if field.name.endswith(_SUFFIX)
)


class Draw(NamedTuple):
    """One operation's decisions for a batch."""

    picked: jax.Array  # [b] bool
    amount: jax.Array  # [b] float32, uniform in [-1, 1)
    other: jax.Array  # [b] float32, uniform in [-1, 1): for operations with two directions


def probabilities(config: AugmentationConfig) -> dict[str, float]:
    """The probability of every operation, by its name."""
    return {name: getattr(config, name + _SUFFIX) for name in OPERATIONS}


def draw(key: jax.Array, b: int, config: AugmentationConfig) -> dict[str, Draw]:
    """Independent decisions for every operation and each of b images; consumes `key`."""
    numbers = jax.random.uniform(key, (3, len(OPERATIONS), b))
    return {
        name: Draw(numbers[0, i] < p, 2.0 * numbers[1, i] - 1.0, 2.0 * numbers[2, i] - 1.0)
        for i, (name, p) in enumerate(probabilities(config).items())
        if p > 0
    }
