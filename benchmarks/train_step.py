"""A ResNet-18's training step and inference on a CPU, beside XLA's convolution and PyTorch.

    python -m benchmarks.train_step [--torch_python=PATH]

The network has torchvision's architecture for colour images and 3 classes; a step is forward,
backward and Adam in float32. The steps to be compared take turns, so that a busy machine slows all
alike, and the fastest repetition of each counts. Prints one JSON line a shape:

- `images_per_second`: of a training step as shipped (`convolution='auto'`).
- `over_xla_convolution`: speed over the same step with XLA's own convolution and pooling.
- `over_torch`: speed over PyTorch's step, contiguous or channels last, whichever is faster. Absent
  without PyTorch: name an interpreter that has it by the flag or by PRIMIA_TORCH_PYTHON.
- `compile_seconds`: of the step as shipped, nothing being cached.
- `inference_ms`: of the network on one image.
- `inference_xla_ms`: the same with XLA's own convolution and pooling.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import time
from collections.abc import Callable
from typing import Any

from primia_jax import environment

environment.set_up_process()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from primia_jax import models  # noqa: E402
from primia_jax.config import ModelConfig  # noqa: E402

SHAPES = ((64, 16), (224, 8))  # side of the images, images of a batch
REPETITIONS, INFERENCES = 8, 30
PEER = pathlib.Path(__file__).parent / "peers_torch_step.py"
FORMATS = ("contiguous_format", "channels_last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", default=os.environ.get("PRIMIA_TORCH_PYTHON", ""))
    torch_python = parser.parse_args().torch_python
    jax.config.update("jax_enable_compilation_cache", False)
    for image_size, batch in SHAPES:
        with environment.memory_kept():  # as hospitals train
            line = measure(image_size, batch, torch_python)
        print(json.dumps(line), flush=True)


def measure(image_size: int, batch: int, torch_python: str) -> dict[str, Any]:
    """The JSON line of one shape."""
    noise = np.random.default_rng(0).normal(size=(batch, image_size, image_size, 3))
    images = jnp.asarray(noise, jnp.float32)
    labels = jnp.arange(batch) % 3
    auto, infer_auto, compile_seconds = jax_steps("auto", images, labels)
    xla, infer_xla, _ = jax_steps("xla", images, labels)
    steps = {"auto": auto, "xla": xla}
    peers = [start_peer(torch_python, image_size, batch, f) for f in FORMATS if torch_python]
    steps |= {f"torch {i}": functools.partial(peer_step, peer) for i, peer in enumerate(peers)}
    inferences = {"auto": infer_auto, "xla": infer_xla}
    best = fastest(steps, REPETITIONS)
    for peer in peers:
        peer.communicate("stop\n")
    best_inference = fastest(inferences, INFERENCES)
    line = {
        "benchmark": "train_step",
        "image_size": image_size,
        "batch": batch,
        "images_per_second": round(batch / best["auto"], 2),
        "over_xla_convolution": round(best["xla"] / best["auto"], 3),
        "compile_seconds": round(compile_seconds, 1),
        "inference_ms": round(best_inference["auto"] * 1e3, 2),
        "inference_xla_ms": round(best_inference["xla"] * 1e3, 2),
    }
    if peers:
        torch = min(seconds for name, seconds in best.items() if name.startswith("torch"))
        line["torch_images_per_second"] = round(batch / torch, 2)
        line["over_torch"] = round(torch / best["auto"], 3)
    return line


def fastest(actions: dict[str, Callable[[], float]], repetitions: int) -> dict[str, float]:
    """Seconds of the fastest repetition of each; they take turns. The first does not count."""
    rounds = [{name: act() for name, act in actions.items()} for _ in range(repetitions + 1)]
    return {name: min(seconds[name] for seconds in rounds[1:]) for name in actions}


def jax_steps(
    convolution: str, images: jax.Array, labels: jax.Array
) -> tuple[Callable[[], float], Callable[[], float], float]:
    """A timed training step, a timed inference of one image, and the seconds the first compiled."""
    module = models.build(ModelConfig(channels=3, convolution=convolution), 3)
    variables = models.init(module, jax.random.key(0), images.shape[1], 3)
    optimizer = optax.adam(1e-4)

    def step(variables: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            logits, moments = module.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), moments

        params = variables["params"]
        (value, moments), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return {"params": optax.apply_updates(params, updates), **moments}, state, value

    state = optimizer.init(variables["params"])
    start = time.perf_counter()
    compiled = (
        jax.jit(step, donate_argnums=(0, 1)).lower(variables, state, images, labels).compile()
    )
    compile_seconds = time.perf_counter() - start
    infer = jax.jit(lambda variables, image: module.apply(variables, image, train=False))
    held = [jax.tree.map(jnp.copy, variables), state]

    def train() -> float:
        start = time.perf_counter()
        held[0], held[1], value = compiled(*held, images, labels)
        jax.block_until_ready((held, value))
        return time.perf_counter() - start

    def predict() -> float:
        start = time.perf_counter()
        infer(variables, images[:1]).block_until_ready()
        return time.perf_counter() - start

    return train, predict, compile_seconds


def start_peer(python: str, image_size: int, batch: int, memory_format: str) -> subprocess.Popen:
    """A process that times one of PyTorch's steps for every line it is sent."""
    command = [python, str(PEER), str(image_size), str(batch), memory_format]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def peer_step(peer: subprocess.Popen) -> float:
    assert peer.stdin is not None and peer.stdout is not None
    peer.stdin.write("step\n")
    peer.stdin.flush()
    seconds = float(peer.stdout.readline())
    time.sleep(0.3)  # its idle threads spin for a while, at the expense of whose turn is next
    return seconds


if __name__ == "__main__":
    main()
