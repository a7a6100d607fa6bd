"""Spreads the elements of a gate over several devices.

Keys and their evaluation are element-wise: with the element axis sharded, each device works on its
own part and none waits for another. Linear maps run on one device.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "elements"


def spread(words: Any) -> Any:
    """`words` [... N] with N divided among the local devices, where it can be divided evenly."""
    devices = jax.local_devices()
    if len(devices) == 1 or words.shape[-1] % len(devices) or isinstance(words, jax.core.Tracer):
        return words
    mesh = Mesh(np.asarray(devices), (_AXIS,))
    spec = PartitionSpec(*[None] * (words.ndim - 1), _AXIS)
    return jax.device_put(words, NamedSharding(mesh, spec))


def gather(words: Any) -> Any:
    """`words` on one device."""
    if len(jax.local_devices()) == 1 or isinstance(words, jax.core.Tracer):
        return words
    return jax.device_put(words, jax.local_devices()[0])
