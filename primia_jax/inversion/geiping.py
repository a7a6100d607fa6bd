"""Inverting gradients (Geiping et al. 2020, arXiv:2003.14053, section 4).

Axis letters: n images, s their side, k classes.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from primia_jax.inversion import labels, matching
from primia_jax.inversion.attack import Attack
from primia_jax.inversion.observed import Observed, simulate

_DECAY_AT = (3 / 8, 5 / 8, 7 / 8)  # of the run, as in the authors' experiments
_DECAY = 0.1


@dataclasses.dataclass(frozen=True)
class InvertingGradients:
    """Settings of the attack.

    Attributes:
      learning_rate: at the start, in units of grey values: black is 0, white 1.
      total_variation: weight of the mean absolute difference of neighbouring pixels.
      moments: weight of the batch-norm moments, where they are known.
      signed: whether Adam is given the sign of the gradient alone.
      noise: standard deviation of the random start around mid-grey.
    """

    learning_rate: float = 0.1
    total_variation: float = 0.02
    moments: float = 0.1
    signed: bool = True
    noise: float = 0.25


class _State(NamedTuple):
    images: jax.Array  # [n s s 1]
    targets: jax.Array  # [n k]
    adam: Any


@functools.cache
def inverting_gradients(settings: InvertingGradients = InvertingGradients()) -> Attack:
    """Cosine distance and total variation, by signed Adam within [0, 1], the steps decaying."""
    adam = optax.scale_by_adam()

    def init(observed: Observed, shape: tuple[int, ...], key: jax.Array) -> _State:
        images = jnp.clip(0.5 + settings.noise * jax.random.normal(key, shape), 0, 1)
        return _State(images, labels.assumed_targets(observed, shape), adam.init(images))

    def step(observed: Observed, state: _State, progress: jax.Array) -> tuple[_State, jax.Array]:
        def objective(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            update = simulate(observed.training, observed.variables, images, state.targets)
            match = matching.cosine_distance(update.params, observed.update)
            prior = settings.total_variation * matching.total_variation(images)
            prior += settings.moments * matching.moments_distance(update, observed)
            return match + prior, match

        gradient, match = jax.grad(objective, has_aux=True)(state.images)
        if settings.signed:
            gradient = jnp.sign(gradient)
        direction, moments = adam.update(gradient, state.adam)
        decays = jnp.sum(progress >= jnp.asarray(_DECAY_AT))
        rate = settings.learning_rate * _DECAY**decays
        images = jnp.clip(state.images - rate * direction, 0, 1)
        return _State(images, state.targets, moments), match

    return Attack(init, step)
