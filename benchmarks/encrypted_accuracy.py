"""Encrypted diagnoses beside those of the same trained model in the clear.

    python -m benchmarks.encrypted_accuracy --config=configs/demo.py --workdir=runs/demo \\
        [--images=200] [--batch=8] [--config.mpc.KEY=VALUE]

`--workdir` is that of a finished training. Takes images of the model owner's test set, evenly
spread, encrypts the network and runs all parties in this process. Prints one JSON line:

- `same_class`: share of images with the same class.
- `largest_probability_error`, `mean_probability_error`: over all images and classes.
- `outside_range`: images of which a layer leaves the range that was provided for.
- `online_seconds`, `online_bytes`, `key_bytes`: for each image of a batch.
"""

import json
import pathlib

from absl import app, flags
from ml_collections import config_flags

from primia_jax import environment

environment.set_up_process()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from primia_jax import encrypted, experiment  # noqa: E402
from primia_jax.data import make_test_plan  # noqa: E402
from primia_jax.federated import local_training  # noqa: E402
from primia_jax.federated.trained_model import load_trained  # noqa: E402
from primia_jax.mpc.inference import SecureProgram, lower_network  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished training.", required=True)
_IMAGES = flags.DEFINE_integer("images", 200, "Test images.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 8, "Images of one encrypted run.", lower_bound=1)


def main(_: list[str]) -> None:
    config = experiment.checked(_CONFIG.value)
    workdir = pathlib.Path(_WORKDIR.value).absolute()
    model = load_trained(workdir, config)
    data = make_test_plan(config).load_test(model.image_size)
    chosen = np.linspace(0, len(data) - 1, min(len(data), _IMAGES.value)).astype(int)
    images = np.asarray(local_training.to_unit(jnp.asarray(data.images[chosen])))
    description = encrypted.describe(config, workdir)
    params, apply_fn = encrypted.params_of(model), description.apply_fn()
    example = jax.ShapeDtypeStruct((_BATCH.value, *images.shape[1:]), np.float32)
    plan = lower_network(apply_fn, params, example, config.mpc)
    program = SecureProgram(apply_fn, params, plan, description.ranges, config.mpc)
    found, outside, trace = [], 0, None
    for start in range(0, len(images), _BATCH.value):
        batch = images[start : start + _BATCH.value]
        missing = _BATCH.value - len(batch)
        padded = np.concatenate([batch, np.repeat(batch[-1:], missing, 0)])
        logits, trace = program.run(padded)
        found.append(np.asarray(jax.nn.softmax(logits))[: len(batch)])
        outside += bool(program.check_range(padded)) * len(batch)
    probabilities = np.concatenate(found)
    clear = model.predictions(data.images[chosen])
    errors = np.abs(probabilities - clear).max(1)
    cost = program.circuit.cost()
    line = {
        "benchmark": "encrypted_accuracy",
        "model": config.model.name,
        "image_size": model.image_size,
        "images": len(images),
        "same_class": float((probabilities.argmax(1) == clear.argmax(1)).mean()),
        "largest_probability_error": round(float(errors.max()), 5),
        "mean_probability_error": round(float(errors.mean()), 5),
        "outside_range": outside,
        "online_seconds": round(trace.seconds / _BATCH.value, 4),
        "online_bytes": cost.online_bytes // _BATCH.value,
        "key_bytes": max(cost.key_bytes.values()) // _BATCH.value,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
