"""DP-SGD (Abadi et al. 2016) at one hospital: clipped gradients of single images, and noise.

A step draws every training image with the same chance q, independently (Poisson sampling), clips
the gradient of each drawn image to the norm C, sums them, adds Gaussian noise of deviation σ·C to
every coordinate, and divides by the *expected* number of images. What follows (weight decay, Adam,
the proximal term) sees only the noised sum.

The sample's size varies. It is worked off in microbatches of one shape, the last one filled up with
blanks that count nothing, as many as it takes: no sample is cut short, so the accountant's sampling
is the one that happens.

All sums are of integers. An image's clipped gradient is rounded to a grid of C / 2^17, and its norm
after rounding is still at most C: it is clipped to C less the most that rounding can add, √p/2 grid
units, and less 2^-10 of that for float32's error in the norm. The integers add up exactly in any
order, so that one image more or less changes the sum by its own integers and by nothing else.

Axis letters: b images of a microbatch, s their side, k classes, n records, m records of a sample,
p parameters.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax_privacy.clipping import clip_pytree

from primia_jax.config import ExperimentConfig
from primia_jax.data import Dataset
from primia_jax.federated import discrete_noise, local_training
from primia_jax.federated.accounting import Release
from primia_jax.federated.local_training import Learner, Statistics, Step
from primia_jax.mpc import prg

GRID_BITS = 17  # the clip norm in grid units, as a power of two
_NORM_ERROR = 2.0**-10  # of float32 sums over a network, generously
_LARGE = 1 << 20  # parameters of a network whose gradients are computed singly on a CPU
_SOME, _MANY = 16, 32  # images at a time else, and on accelerators
_CHUNKS = 1 << 14  # microbatches of a step that are told apart for augmentation


class PrivateLearner(NamedTuple):
    """The jitted halves of a step."""

    # accumulate(variables, total, images, labels, real, statistics, seed, at) -> total, integers in
    #   the parameters' shapes; `total` is consumed, `real` bool [b] tells images from blanks.
    accumulate: Any
    # update(params, opt_state, anchor, total, noise, learning_rate) -> (params, opt_state); the
    #   first two arguments are consumed.
    update: Any


def make(
    config: ExperimentConfig, learner: Learner, expected: float, proximal_mu: float
) -> PrivateLearner:
    """The halves of a step of `learner`'s network; nothing is compiled before they are called.

    In one process the compiled functions serve all that train the same network in the same way.

    Args:
      config: of the experiment.
      learner: its network, optimiser and augmentation.
      expected: images of a sample in the mean, q·n.
      proximal_mu: weight of FedProx's proximal term.
    """
    clip_norm = config.privacy.clip_norm
    accumulate, update = _halves(
        learner, clip_norm, config.training.label_smoothing, config.model.channels, proximal_mu
    )
    scale = np.float32(clip_norm / 2**GRID_BITS / expected)
    return PrivateLearner(accumulate, functools.partial(update, scale))


@functools.lru_cache(maxsize=4)
def _halves(
    learner: Learner, clip_norm: float, label_smoothing: float, channels: int, proximal_mu: float
) -> tuple[Any, Any]:
    """`PrivateLearner`'s functions; `update` is given what its integers stand for first."""

    def accumulate(
        variables: Any,
        total: Any,
        images: jax.Array,
        labels: jax.Array,
        real: jax.Array,
        statistics: Statistics,
        seed: jax.Array,
        at: Step,
    ) -> Any:
        pixels, targets = learner.enter(images, labels, seed, at)
        weights = targets @ statistics.class_weights
        targets = optax.smooth_labels(targets, label_smoothing)
        inputs = local_training.standardise(pixels, statistics, channels)
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def loss_of(params: Any, image: jax.Array, target: jax.Array, weight: jax.Array) -> Any:
            logits, _ = learner.module.apply(
                {"params": params, **rest}, image[None], train=True, mutable=list(rest)
            )
            return optax.softmax_cross_entropy(logits[0], target) * weight

        def integers_of(image: Any, target: Any, weight: Any, is_real: Any) -> Any:
            gradient = jax.grad(loss_of)(variables["params"], image, target, weight)
            return clipped_integers(gradient, clip_norm, is_real)

        if len(images) == 1:  # without `vmap`, under which convolutions run as grouped ones
            counted = integers_of(inputs[0], targets[0], weights[0], real[0])
            return jax.tree.map(jnp.add, total, counted)
        counted = jax.vmap(integers_of)(inputs, targets, weights, real)
        return jax.tree.map(lambda t, g: t + g.sum(0), total, counted)

    def update(
        scale: jax.Array,
        params: Any,
        opt_state: Any,
        anchor: Any,
        total: Any,
        noise: Any,
        learning_rate: jax.Array,
    ) -> tuple[Any, Any]:
        gradient = jax.tree.map(lambda t, z: (t + z).astype(jnp.float32) * scale, total, noise)
        if proximal_mu:
            gradient = jax.tree.map(
                lambda g, w, w0: g + proximal_mu * (w - w0), gradient, params, anchor
            )
        updates, opt_state = learner.optimizer.update(gradient, opt_state, params)
        return jax.tree.map(lambda w, u: w - learning_rate * u, params, updates), opt_state

    return jax.jit(accumulate, donate_argnums=1), jax.jit(update, donate_argnums=(1, 2))


def clipped_integers(gradient: Any, clip_norm: float, is_real: Any = True) -> Any:
    """One image's gradient in grid units of `clip_norm` / 2^17, of norm at most 2^17.

    Args:
      gradient: tree of float32.
      clip_norm: C.
      is_real: bool scalar; of a blank all is zero. So it is of what is no finite number.

    Returns:
      The tree as int32.
    """
    n_params = sum(leaf.size for leaf in jax.tree.leaves(gradient))
    inner = (1 - math.sqrt(n_params) / 2 ** (GRID_BITS + 1)) * (1 - _NORM_ERROR)
    # A norm of NaN or infinity, and with it every coordinate, is dealt with in the one pass below.
    clipped, norm = clip_pytree(gradient, inner * clip_norm, nan_safe=False)
    counts = jnp.logical_and(jnp.isfinite(norm), is_real)
    units = 2.0**GRID_BITS / clip_norm
    return jax.tree.map(
        lambda g: jnp.round(jnp.where(counts, g * units, 0.0)).astype(jnp.int32), clipped
    )


def microbatch_size(config: ExperimentConfig, n_params: int) -> int:
    """Images whose gradients are computed at a time.

    On a CPU a large network's gradients are best taken singly: together they neither fit the caches
    nor run as plain convolutions. (ResNet-18 at 64×64: singly 90 to 120 ms an image, by twos, fours
    and eights 150 to 250, on a machine where a plain step takes 25.)
    """
    if config.privacy.microbatch_size:
        return config.privacy.microbatch_size
    if jax.default_backend() != "cpu":
        return _MANY
    return 1 if n_params > _LARGE else _SOME


def train(
    learner: PrivateLearner,
    variables: Any,
    opt_state: Any,
    data: Dataset,
    statistics: Statistics,
    release: Release,
    config: ExperimentConfig,
    at: tuple[int, int],
    learning_rate: Callable[[int], float],
    drawn: Callable[[np.ndarray], None] = lambda sample: None,
) -> tuple[Any, Any]:
    """The local steps of a round.

    Args:
      learner: made by `make`.
      variables: of the network, at the beginning of the round; left as they are.
      opt_state: likewise.
      data: the training images [n s s 1].
      statistics: what is known of all data.
      release: noise multiplier, sampling rate, and number of steps.
      config: of the experiment.
      at: number of the round and of the hospital, for augmentation.
      learning_rate: of a step's number.
      drawn: called with the sample [m] of every step; what it is must stay at the hospital.

    Returns:
      Variables and optimiser state.
    """
    anchor = variables["params"]
    params, opt_state = jax.tree.map(lambda x: jnp.array(x, copy=True), (anchor, opt_state))
    size = microbatch_size(config, sum(leaf.size for leaf in jax.tree.leaves(anchor)))
    for step in range(release.steps):
        sample = discrete_noise.poisson_sample(prg.new_seed(), len(data), release.sampling_rate)
        drawn(sample)
        total = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), anchor)
        for index, real, place in microbatches(sample, size, at, step):
            total = learner.accumulate(
                {**variables, "params": params},
                total,
                data.images[index],
                data.labels[index],
                real,
                statistics,
                np.uint32(config.seed),
                place,
            )
        params, opt_state = learner.update(
            params,
            opt_state,
            anchor,
            total,
            _noise(anchor, release.noise_multiplier),
            np.float32(learning_rate(step)),
        )
    return {**variables, "params": params}, opt_state


def microbatches(
    sample: np.ndarray, size: int, at: tuple[int, int], step: int
) -> Iterator[tuple[np.ndarray, np.ndarray, Step]]:
    """The microbatches of a sample [m]: records [b], which of them are no blanks, and the place."""
    for chunk, start in enumerate(range(0, len(sample), size)):
        part = sample[start : start + size]
        index = np.pad(part, (0, size - len(part)))
        place = np.uint32((step * _CHUNKS + chunk) % 2**32)
        real = np.arange(size) < len(part)
        yield index, real, Step(np.uint32(at[0]), np.uint32(at[1]), place)


def _noise(like: Any, noise_multiplier: float) -> Any:
    """Fresh noise in grid units, in the shapes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    sizes = [leaf.size for leaf in leaves]
    noise = discrete_noise.rounded_gaussian(
        prg.new_seed(), sum(sizes), noise_multiplier * 2**GRID_BITS
    )
    parts = np.split(noise, np.cumsum(sizes)[:-1])
    return jax.tree.unflatten(
        structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)]
    )
