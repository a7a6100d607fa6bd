"""How fast phantom films are drawn, and batches augmented: one JSON line a measurement.

python -m benchmarks.phantom
"""

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.config.sections import AugmentationConfig, PhantomConfig
from primia_jax.data import phantom
from primia_jax.data.augmentation import augment
from primia_jax.data.augmentation.draws import OPERATIONS

REPEATS = 30


def milliseconds(call: Callable[[], object]) -> dict[str, float]:
    """Median and minimum over repeated calls, the first one not counted."""
    jax.block_until_ready(call())
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return {"median_ms": round(statistics.median(times), 3), "min_ms": round(min(times), 3)}


def main() -> None:
    films = phantom.catalogue(PhantomConfig(), hospitals=3, seed=0)
    for s in (64, 224):
        record = {"benchmark": "phantom_film", "image_size": s}
        print(json.dumps(record | milliseconds(functools.partial(films.read, 7, s))))

    default = AugmentationConfig()
    nothing = dataclasses.replace(default, **{name + "_p": 0.0 for name in OPERATIONS})
    configs = {"default": default}
    for name in OPERATIONS:
        configs[name] = dataclasses.replace(nothing, **{name + "_p": 0.5})
    step = jax.jit(augment, static_argnames="config")
    key, rng = jax.random.key(0), np.random.Generator(np.random.Philox(0))
    for b, s in ((16, 64), (8, 224)):
        images = jnp.asarray(rng.random((b, s, s, 1), dtype=np.float32))
        labels = jnp.eye(3, dtype=jnp.float32)[np.arange(b) % 3]
        for name, config in configs.items():
            once = functools.partial(step, key, images, labels, config)
            record = {"benchmark": "augmentation", "batch": b, "image_size": s, "operation": name}
            print(json.dumps(record | milliseconds(once)), flush=True)


if __name__ == "__main__":
    main()
