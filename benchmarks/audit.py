"""A step of the gradient-inversion attack, beside a plain training step.

    python -m benchmarks.audit [--batch=1] [--networks simple resnet18] [--sizes 32 64]
                               [--together=4]

The attack is that of Geiping et al. on the gradient of one batch; a training step is forward,
backward and Adam for the same network and batch, both in training mode with batch norm, float32
and three classes. The two take turns, so that a busy machine slows both alike, and the fastest
repetition of each counts. Prints one JSON line for each network and side of the images:

- `iterations_per_second`: of the attack.
- `training_steps_per_second`: of the training step.
- `over_training_step`: time of the attack's step over the training step's; 4 is the aim at most.
- `together_over_in_turn`: time of `--together` attacks advanced in one `vmap` over the time of as
  many one by one; absent where `--together` is 0.
- `compile_seconds`: of the attack's step.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from typing import Any

from primia_jax import environment

environment.set_up_process()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from benchmarks.flags import at_least  # noqa: E402
from primia_jax import models  # noqa: E402
from primia_jax.config import ModelConfig  # noqa: E402
from primia_jax.inversion import LocalTraining, Observed, inverting_gradients, observe  # noqa: E402

CLASSES = 3
REPETITIONS = 12
ATTACK = inverting_gradients()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=at_least(1), default=1)
    (name,) = [field for field in dataclasses.fields(ModelConfig) if field.name == "name"]
    networks = name.metadata["choices"]
    parser.add_argument("--networks", nargs="+", default=["simple", "resnet18"], choices=networks)
    parser.add_argument("--sizes", type=at_least(16), nargs="+", default=[32, 64])
    parser.add_argument("--together", type=at_least(0), default=0)
    return parser.parse_args(arguments)


def main() -> None:
    """Measures and prints, as the module's docstring says."""
    args = parse()
    jax.config.update("jax_enable_compilation_cache", False)
    for network in args.networks:
        for size in args.sizes:
            with environment.memory_kept():
                line = measure(network, size, args.batch, args.together)
            print(json.dumps(line), flush=True)


def measure(network: str, size: int, batch: int, together: int) -> dict[str, Any]:
    """The JSON line of one network and size."""
    module = models.build(ModelConfig(name=network), CLASSES)
    variables = models.init(module, jax.random.key(0), size, 1)
    noise = np.random.Generator(np.random.Philox(0)).random((batch, size, size, 1))
    images, labels = jnp.asarray(noise, jnp.float32), jnp.arange(batch) % CLASSES
    training = LocalTraining(module, mean=0.5, std=0.25)
    seen = observe(training, variables, images, labels)

    start = time.perf_counter()
    actions = {"attack": attack_step(seen, images.shape)}
    compile_seconds = time.perf_counter() - start
    actions["training"] = training_step(training, variables, images, labels)
    if together:
        actions["together"] = attack_together(seen, images.shape, together)
    best = fastest(actions)
    line = {
        "benchmark": "audit",
        "network": network,
        "image_size": size,
        "batch": batch,
        "iterations_per_second": round(1 / best["attack"], 2),
        "training_steps_per_second": round(1 / best["training"], 2),
        "over_training_step": round(best["attack"] / best["training"], 2),
    }
    if together:
        ratio = best["together"] / (together * best["attack"])
        line |= {"together": together, "together_over_in_turn": round(ratio, 2)}
    return line | {"compile_seconds": round(compile_seconds, 1)}


def fastest(actions: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds of the fastest repetition of each; they take turns. The first does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(REPETITIONS + 1):
        for name, act in actions.items():
            start = time.perf_counter()
            act()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(times[1:]) for name, times in seconds.items()}


def repeated(step: Callable[[Any], Any], state: Any) -> Callable[[], None]:
    """A function that takes the state one compiled step on and waits for it."""
    held = [state]

    def act() -> None:
        held[0] = jax.block_until_ready(step(held[0]))

    return act


def attack_step(seen: Observed, shape: tuple[int, ...]) -> Callable[[], None]:
    state = ATTACK.init(seen, shape, jax.random.key(1))
    step = jax.jit(lambda seen, state: ATTACK.step(seen, state, jnp.zeros(()))[0])
    compiled = step.lower(seen, state).compile()
    return repeated(functools.partial(compiled, seen), state)


def attack_together(seen: Observed, shape: tuple[int, ...], runs: int) -> Callable[[], None]:
    keys = jax.random.split(jax.random.key(1), runs)
    state = jax.vmap(lambda key: ATTACK.init(seen, shape, key))(keys)
    step = jax.jit(
        jax.vmap(lambda seen, state: ATTACK.step(seen, state, jnp.zeros(()))[0], (None, 0))
    )
    compiled = step.lower(seen, state).compile()
    return repeated(functools.partial(compiled, seen), state)


def training_step(
    training: LocalTraining, variables: Any, images: jax.Array, labels: jax.Array
) -> Callable[[], None]:
    optimizer = optax.adam(1e-4)
    inputs = (images - training.mean) / training.std

    def step(state: Any, inputs: jax.Array, labels: jax.Array) -> Any:
        variables, optimizer_state = state

        def loss(params: Any) -> Any:
            logits, moments = training.module.apply(
                {**variables, "params": params}, inputs, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), moments

        params = variables["params"]
        gradient, moments = jax.grad(loss, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return {"params": optax.apply_updates(params, updates), **moments}, optimizer_state

    state = jax.tree.map(jnp.copy, variables), optimizer.init(variables["params"])
    compiled = jax.jit(step, donate_argnums=0).lower(state, inputs, labels).compile()
    return repeated(lambda state: compiled(state, inputs, labels), state)


if __name__ == "__main__":
    main()
