"""The interface of gradient-inversion attacks, and the loop that drives them.

An attack is a pair (init, step) of pure functions, made by a factory that closes over its settings;
`geiping.py` and `dlg.py` are two. The loop jits one step and calls it from Python: convolutions
within `lax.scan` or `lax.fori_loop` are an order slower on CPUs.

Axis letters: r restarts, o observed updates, n images, s their side, k classes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.errors import ConfigError
from primia_jax.inversion.observed import Observed


class Attack(NamedTuple):
    """A gradient-inversion attack.

    Its state is a pytree with two attributes that the loop reads: `images` [n s s 1], the present
    guess in grey values, which the loop clamps to [0, 1] at its end, and `targets` [n k], the
    probabilities of the labels, known or guessed.

    Attributes:
      init: (observed, shape, key) -> state, with random images of `shape` [n s s 1]; the key is
        consumed.
      step: (observed, state, progress) -> (state, loss): one step on, and how badly the images
        *before* the step match what was observed. `progress` in [0, 1) says where in the run the
        step stands. Neither may use anything about the true images beyond `observed`.
    """

    init: Callable[[Observed, tuple[int, ...], jax.Array], Any]
    step: Callable[[Observed, Any, jax.Array], tuple[Any, jax.Array]]


class Inversion(NamedTuple):
    """Result of an attack.

    The images stand in the order of the attack's own; match them with `similarity.match` before
    comparing.
    """

    images: np.ndarray  # [n s s 1] float32 in [0, 1]: the restart whose update matches best
    targets: np.ndarray  # [n k] float32, labels assumed or found
    loss: float  # its matching loss; infinite if no restart ever had a finite one
    restart_losses: np.ndarray  # [r] float32
    restart_images: np.ndarray  # [r n s s 1] float32


def invert(
    attack: Attack,
    observed: Observed,
    shape: tuple[int, ...],
    key: jax.Array,
    *,
    steps: int,
    restarts: int = 1,
    vectorised: bool | None = None,
) -> Inversion:
    """Runs an attack on one observed update; see `invert_all`."""
    return invert_all(
        attack, [observed], shape, key, steps=steps, restarts=restarts, vectorised=vectorised
    )[0]


def invert_all(
    attack: Attack,
    observed: Sequence[Observed],
    shape: tuple[int, ...],
    key: jax.Array,
    *,
    steps: int,
    restarts: int = 1,
    vectorised: bool | None = None,
) -> list[Inversion]:
    """Runs an attack on several observed updates of one model, each from several starts.

    The best images of a start are those with the lowest matching loss on its way, and the best
    start is the one with the lowest of these: the truth has no say. Losses that are not finite
    count as infinite. Every run depends on `key`, its own number and its restart alone.

    Args:
      attack: made by a factory such as `geiping.inverting_gradients`.
      observed: updates of one model under one `LocalTraining`.
      shape: [n s s 1] of the images sought behind each.
      key: a key of `jax.random`; consumed.
      steps: of each run.
      restarts: runs for each update.
      vectorised: whether all runs advance in one `vmap`; None does so on accelerators alone. On
        CPUs each run's own weight gradients become a grouped convolution: four runs of the small
        CNN at 32×32 took 17 times as long as one by one (`benchmarks/audit.py`).

    Raises:
      ConfigError: if steps, restarts or shape are impossible, labels do not fit the shape, or
        vectorised runs are of different models.
    """
    if steps < 1 or restarts < 1:
        raise ConfigError(f"steps = {steps}, restarts = {restarts}: an attack takes at least 1")
    shape = tuple(shape)
    if len(shape) != 4 or shape[-1] != 1 or min(shape) < 1:
        raise ConfigError(f"shape = {shape}: images sought are [n s s 1]")
    for view in observed:
        if view.labels is not None and len(view.labels) != shape[0]:
            raise ConfigError(f"shape = {shape}: {len(view.labels)} labels are known")
    if not observed:
        return []
    if vectorised is None:
        vectorised = jax.default_backend() != "cpu"
    keys = [
        jax.random.fold_in(jax.random.fold_in(key, i), restart)
        for i in range(len(observed))
        for restart in range(restarts)
    ]
    views = [view for view in observed for _ in range(restarts)]
    if vectorised:
        best = _run_together(attack, views, shape, jnp.stack(keys), steps)
    else:
        runs = [_run(attack, view, shape, k, steps) for view, k in zip(views, keys)]
        best = _Best(*(np.stack(parts) for parts in zip(*runs)))
    starts = range(0, len(views), restarts)
    return [_choose(_Best(*(part[i : i + restarts] for part in best))) for i in starts]


class _Best(NamedTuple):
    """The best guess of a run so far."""

    images: Any  # [n s s 1]
    targets: Any  # [n k]
    loss: Any  # scalar


def _choose(runs: _Best) -> Inversion:
    winner = int(np.argmin(runs.loss))
    images = np.clip(runs.images, 0, 1)
    return Inversion(
        images=images[winner],
        targets=runs.targets[winner],
        loss=float(runs.loss[winner]),
        restart_losses=runs.loss,
        restart_images=images,
    )


def _run(
    attack: Attack, observed: Observed, shape: tuple[int, ...], key: jax.Array, steps: int
) -> _Best:
    state = _init(attack, shape, observed, key)
    best = _Best(state.images, state.targets, np.float32(np.inf))
    for i in range(steps + 1):  # the last one only judges
        state, best = _advance(attack, observed, state, best, np.float32(min(i, steps - 1) / steps))
    return _Best(*map(np.asarray, best))


def _run_together(
    attack: Attack,
    views: Sequence[Observed],
    shape: tuple[int, ...],
    keys: jax.Array,
    steps: int,
) -> _Best:
    """As `_run`, all at once."""
    observed = _stack(views)
    state = _init_together(attack, shape, observed, keys)
    best = _Best(state.images, state.targets, jnp.full(len(views), jnp.inf))
    for i in range(steps + 1):
        progress = np.float32(min(i, steps - 1) / steps)
        state, best = _advance_together(attack, observed, state, best, progress)
    return _Best(*map(np.asarray, best))


def _stack(views: Sequence[Observed]) -> Observed:
    """One `Observed` whose arrays have an axis of runs in front, but for the model's."""
    first = views[0]
    for view in views[1:]:
        same = jax.tree.map(np.array_equal, view.variables, first.variables)
        if view.training != first.training or not all(jax.tree.leaves(same)):
            raise ConfigError("updates attacked together must be of one model and local training")
    update, moments, labels = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *((v.update, v.moments, v.labels) for v in views)
    )
    return Observed(first.variables, update, moments, labels, first.training)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(attack: Attack, shape: tuple[int, ...], observed: Observed, key: jax.Array) -> Any:
    return attack.init(observed, shape, key)


@functools.partial(jax.jit, static_argnums=0)
def _advance(
    attack: Attack, observed: Observed, state: Any, best: _Best, progress: jax.Array
) -> tuple[Any, _Best]:
    after, loss = attack.step(observed, state, progress)
    better = loss < best.loss  # never so for NaN
    now = _Best(state.images, state.targets, loss)
    return after, jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)


def _axes(observed: Observed) -> Observed:
    return Observed(None, 0, 0, 0, observed.training)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_together(
    attack: Attack, shape: tuple[int, ...], observed: Observed, keys: jax.Array
) -> Any:
    return jax.vmap(lambda view, key: attack.init(view, shape, key), (_axes(observed), 0))(
        observed, keys
    )


@functools.partial(jax.jit, static_argnums=0)
def _advance_together(
    attack: Attack, observed: Observed, state: Any, best: _Best, progress: jax.Array
) -> tuple[Any, _Best]:
    advance = functools.partial(_advance, attack)
    return jax.vmap(advance, (_axes(observed), 0, 0, None))(observed, state, best, progress)
