"""Deep leakage from gradients (Zhu et al. 2019, arXiv:1906.08935, algorithm 1).

L-BFGS, as its authors use it, but with a line search that evaluates once a step: an inner loop
would put convolutions into `lax.while_loop`, where they are an order slower on CPUs.

Axis letters: n images, s their side, k classes.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from primia_jax.errors import ConfigError
from primia_jax.inversion import labels, matching
from primia_jax.inversion.attack import Attack
from primia_jax.inversion.observed import Observed, n_classes, simulate

_LABELS = ("joint", "inferred")
_SUFFICIENT_DECREASE = 1e-4  # c₁ of Armijo's condition (Nocedal and Wright 2006, equation 3.4)
_BACKTRACKING = 0.5
_SHORTEST_STEP = 1e-6  # shorter ones mean that the direction is no good


@dataclasses.dataclass(frozen=True)
class DeepLeakage:
    """Settings of the attack.

    Attributes:
      labels: what is done about labels that are not known: 'joint' searches for them with the
        images; 'inferred' takes them from the update first (iDLG: Zhao et al. 2020).
      memory: pairs of differences that L-BFGS keeps.
      moments: weight of the batch-norm moments, where they are known.
      noise: standard deviation of the random start around mid-grey.
    """

    labels: str = "joint"
    memory: int = 50
    moments: float = 0.1
    noise: float = 0.25

    def __post_init__(self) -> None:
        if self.labels not in _LABELS:
            raise ConfigError(f"labels = {self.labels!r}: take {' | '.join(_LABELS)}")
        if self.memory < 1:
            raise ConfigError(f"memory = {self.memory}: L-BFGS needs at least 1")


class _Sought(NamedTuple):
    images: jax.Array  # [n s s 1], not bounded
    logits: jax.Array  # [n k] of the labels; not searched for where these are known or inferred


class _State(NamedTuple):
    images: jax.Array  # of the trial
    targets: jax.Array  # of the trial
    logits: jax.Array  # of the trial
    point: _Sought  # the last that was accepted
    value: jax.Array  # of the objective there
    gradient: _Sought  # there
    direction: _Sought
    length: jax.Array  # of the step that led to the trial, over the direction's
    memory: Any


@functools.cache
def deep_leakage(settings: DeepLeakage = DeepLeakage()) -> Attack:
    """Relative squared distance of updates, by L-BFGS over images and perhaps labels.

    Smooth activations suit it; behind ReLUs and max pooling it often stalls, as its authors say.
    """
    lbfgs = optax.scale_by_lbfgs(settings.memory)

    def is_joint(observed: Observed) -> bool:
        return observed.labels is None and settings.labels == "joint"

    def init(observed: Observed, shape: tuple[int, ...], key: jax.Array) -> _State:
        image_key, label_key = jax.random.split(key)
        images = 0.5 + settings.noise * jax.random.normal(image_key, shape)
        k = n_classes(observed.variables, observed.training, shape)
        if is_joint(observed):
            logits = jax.random.normal(label_key, (shape[0], k))
            targets = jax.nn.softmax(logits)
        else:
            logits = jnp.zeros((shape[0], k))
            targets = labels.assumed_targets(observed, shape)
        point = _Sought(images, logits)
        zero = jnp.zeros(())
        nowhere = jax.tree.map(jnp.zeros_like, point)
        return _State(
            images=images,
            targets=targets,
            logits=logits,
            point=point,
            value=zero + jnp.inf,
            gradient=nowhere,
            direction=nowhere,
            length=zero,
            memory=lbfgs.init(point),
        )

    def step(observed: Observed, state: _State, progress: jax.Array) -> tuple[_State, jax.Array]:
        del progress
        joint = is_joint(observed)

        def objective(trial: _Sought) -> tuple[jax.Array, jax.Array]:
            targets = jax.nn.softmax(trial.logits) if joint else state.targets
            update = simulate(observed.training, observed.variables, trial.images, targets)
            match = matching.squared_distance(update.params, observed.update)
            return match + settings.moments * matching.moments_distance(update, observed), match

        trial = _Sought(state.images, state.logits)
        (value, match), gradient = jax.value_and_grad(objective, has_aux=True)(trial)
        slope = optax.tree.vdot(state.gradient, state.direction)
        enough = state.value + _SUFFICIENT_DECREASE * state.length * slope
        accepted = jnp.isfinite(value) & (value <= enough)
        new = _where(accepted, _turn(lbfgs, state, trial, gradient, value), _shorten(lbfgs, state))
        ahead = jax.tree.map(lambda x, d: x + new.length * d, new.point, new.direction)
        targets = jax.nn.softmax(ahead.logits) if joint else state.targets
        return new._replace(images=ahead.images, logits=ahead.logits, targets=targets), match

    return Attack(init, step)


def _turn(
    lbfgs: optax.GradientTransformation,
    state: _State,
    trial: _Sought,
    gradient: _Sought,
    value: jax.Array,
) -> _State:
    """The state after the trial was accepted: the next direction, to be gone in full at first."""
    upwards, memory = lbfgs.update(gradient, state.memory, trial)
    # Without curvature conditions it may lead uphill: begin anew with steepest descent.
    sound = optax.tree.vdot(gradient, upwards) > 0  # never so for NaN
    upwards, memory = _where(sound, (upwards, memory), (_capped(gradient), lbfgs.init(trial)))
    return state._replace(
        point=trial,
        value=value,
        gradient=gradient,
        direction=jax.tree.map(jnp.negative, upwards),
        length=jnp.ones(()),
        memory=memory,
    )


def _shorten(lbfgs: optax.GradientTransformation, state: _State) -> _State:
    """The state after the trial was refused: a shorter step, or steepest descent in the end."""
    length = state.length * _BACKTRACKING
    steepest = state._replace(
        direction=jax.tree.map(jnp.negative, _capped(state.gradient)),
        length=jnp.ones(()),
        memory=lbfgs.init(state.point),
    )
    return _where(length < _SHORTEST_STEP, steepest, state._replace(length=length))


def _capped(gradient: _Sought) -> _Sought:
    """The gradient, at most 1 long."""
    shrink = 1 / jnp.maximum(1.0, optax.tree.norm(gradient))
    return jax.tree.map(lambda g: shrink * g, gradient)


def _where(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
