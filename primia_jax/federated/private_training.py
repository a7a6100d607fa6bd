"""DP-SGD (Abadi et al. 2016) at one hospital: clipped gradients of single units, and noise.

A unit is an image, or all images of a patient (`privacy_units`). A step draws every unit with the
same chance q, independently (Poisson sampling), clips the gradient of each drawn unit to the norm
C, sums them, adds Gaussian noise of deviation σ·C to every coordinate, and divides by the
*expected* number of units. A patient's gradient is that of the mean loss over its images, or over
`config.privacy.images_per_patient` of them where there are more. What follows (weight decay, Adam,
the proximal term) sees only the noised sum.

The sample's size varies. It is processed in microbatches of one shape, the last one filled up with
blanks that count nothing, as many as it takes: no sample is cut short, so the accountant's sampling
is the one that happens. Patients of several images go into microbatches of 2, 4, … images a unit.

A unit's contribution is a function of the model, its images and their own augmentation keys, and
of nothing else in the sample: neither its place, nor the blanks, nor the number of others. Batch
norm and MixUp, which mix images, are refused (`check`); nothing else in a step is random, since no
key for dropout is handed in.

All sums are of integers. A unit's clipped gradient is rounded to a grid of C / 2^17, and its norm
after rounding is still at most C: it is clipped to C less the most that rounding can add, √p/2 grid
units, and less 2^-10 of that for float32's error in the norm. The integers add up exactly in any
order, so that one unit more or less changes the sum by its own integers and by nothing else.

Axis letters: u units of a microbatch, i images of a unit there, s their side, k classes, n images,
m units of a sample, p parameters.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax_privacy.clipping import clip_pytree

from primia_jax.config import AugmentationConfig, ExperimentConfig
from primia_jax.data import Dataset
from primia_jax.data.augmentation import augment_each
from primia_jax.errors import ConfigError
from primia_jax.federated import discrete_noise, local_training, privacy_units
from primia_jax.federated.accounting import Release
from primia_jax.federated.local_training import Learner, Statistics
from primia_jax.federated.privacy_units import Sample, Units
from primia_jax.mpc import prg
from primia_jax.tasks import Task

GRID_BITS = 17  # the clip norm in grid units, as a power of two
MOST_NOISE = 1600.0  # largest noise multiplier whose noise fits 32 bits
_MIN_CLIP = 1e-6
_NORM_ERROR = 2.0**-10  # of float32 sums over a network, generously
_LARGE = 1 << 20  # parameters of a network whose gradients are computed singly on a CPU
_SOME, _MANY = 16, 32  # images at a time else, and on accelerators


class PrivateLearner(NamedTuple):
    """The jitted parts of a step."""

    task: Task
    # accumulate(variables, total, images [u i s s 1], targets [u i …], real [u i], keys [u i 2],
    #   statistics) -> total, integers in the parameters' shapes; `total` is consumed, `real` bool
    #   tells images from blanks.
    accumulate: Any
    # update(params, opt_state, anchor, total, noise, learning_rate) -> (params, opt_state); the
    #   first two arguments are consumed.
    update: Any
    # augmented(images [b s s 1], targets [b …], keys [b 2]) -> (pixels, encoded targets), as
    #   `accumulate` makes them of the same images
    augmented: Any


def make(
    config: ExperimentConfig, learner: Learner, expected: float, proximal_mu: float
) -> PrivateLearner:
    """The parts of a step of `learner`'s network; nothing is compiled before they are called.

    In one process the compiled functions serve all that train the same network in the same way.

    Args:
      config: of the experiment.
      learner: its network and optimiser.
      expected: mean number of units of a sample, q times their number.
      proximal_mu: weight of FedProx's proximal term.

    Raises:
      ConfigError: if a unit's gradient would depend on other units.
    """
    check(config)
    clip_norm = config.privacy.clip_norm
    accumulate, update, augmented = _parts(
        learner,
        config.augmentation,
        clip_norm,
        config.model.channels,
        proximal_mu,
    )
    scale = np.float32(clip_norm / 2**GRID_BITS / expected)
    return PrivateLearner(learner.task, accumulate, functools.partial(update, scale), augmented)


def check(config: ExperimentConfig) -> None:
    """Refuses what would make one unit's gradient depend on others."""
    if config.augmentation.mixup_p > 0:
        raise ConfigError(
            "config.augmentation.mixup_p mixes images, whose gradients cannot be clipped one by "
            "one then; set it to 0, or config.privacy.mode to another than 'record'"
        )
    if config.model.norm == "batch":
        raise ConfigError(
            "config.model.norm = 'batch' mixes images, whose gradients cannot be clipped one by "
            "one then; take 'group' or 'frozen'"
        )


@functools.lru_cache(maxsize=4)
def _parts(
    learner: Learner,
    augmentation: AugmentationConfig,
    clip_norm: float,
    channels: int,
    proximal_mu: float,
) -> tuple[Any, Any, Any]:
    """`PrivateLearner`'s functions; the first argument of `update` is a grid unit's worth."""
    task = learner.task

    def augmented(
        images: jax.Array, targets: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        typed = jax.random.wrap_key_data(keys, impl="threefry2x32")
        pixels = local_training.to_unit(images)
        return augment_each(typed, pixels, task.encode(targets), augmentation)

    def accumulate(
        variables: Any,
        total: Any,
        images: jax.Array,
        targets: jax.Array,
        real: jax.Array,
        keys: jax.Array,
        statistics: Statistics,
    ) -> Any:
        u, i = real.shape
        # A blank is a black image: what stands in its place must not reach its unit, not as NaN.
        images = jnp.where(real[..., None, None, None], images, 0)
        targets = jnp.where(real.reshape(u, i, *[1] * (targets.ndim - 2)), targets, 0)
        pixels, encoded = augmented(
            images.reshape(u * i, *images.shape[2:]),
            targets.reshape(u * i, *targets.shape[2:]),
            keys.reshape(u * i, 2),
        )
        encoded = encoded.reshape(u, i, *encoded.shape[1:])
        inputs = local_training.standardise(pixels, statistics, channels)
        inputs = inputs.reshape(u, i, *inputs.shape[1:])
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def loss_of(params: Any, image: Any, target: Any, is_real: Any) -> Any:
            outputs, _ = learner.module.apply(
                {"params": params, **rest}, image, train=True, mutable=list(rest)
            )
            losses = task.training_loss(outputs, target, statistics.class_weights)
            return jnp.where(is_real, losses, 0.0).sum() / jnp.maximum(is_real.sum(), 1)

        def integers_of(image: Any, target: Any, is_real: Any) -> Any:
            gradient = jax.grad(loss_of)(variables["params"], image, target, is_real)
            return clipped_integers(gradient, clip_norm, is_real.any())

        if u == 1:  # without `vmap`, under which convolutions run as grouped ones
            counted = integers_of(inputs[0], encoded[0], real[0])
            return jax.tree.map(jnp.add, total, counted)
        counted = jax.vmap(integers_of)(inputs, encoded, real)
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

    return (
        jax.jit(accumulate, donate_argnums=1),
        jax.jit(update, donate_argnums=(1, 2)),
        jax.jit(augmented),
    )


def clipped_integers(gradient: Any, clip_norm: float, is_real: Any = True) -> Any:
    """One unit's gradient in grid units of `clip_norm` / 2^17, of norm at most 2^17.

    Args:
      gradient: tree of float32.
      clip_norm: C, at least that which `config.privacy.clip_norm` allows.
      is_real: bool scalar; of a blank all is zero. So it is of what is no finite number.

    Returns:
      The tree as int32.

    Raises:
      ValueError: if squares of numbers as small as C underflow, so that no norm can be trusted.
    """
    if not clip_norm >= _MIN_CLIP:
        raise ValueError(f"clip_norm = {clip_norm:g}: must be at least {_MIN_CLIP:g}")
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
    units: Units,
    statistics: Statistics,
    release: Release,
    config: ExperimentConfig,
    learning_rate: Callable[[int], float],
    drawn: Callable[[Sample], None] = lambda sample: None,
) -> tuple[Any, Any]:
    """The local steps of a round.

    Args:
      learner: made by `make`.
      variables: of the network, at the beginning of the round; left as they are.
      opt_state: likewise.
      data: the training images [n s s 1].
      units: of `data`.
      statistics: what is known of all data.
      release: noise multiplier, sampling rate, and number of steps.
      config: of the experiment.
      learning_rate: of a step's number.
      drawn: called with the sample of every step; what it is must stay at the hospital.

    Returns:
      Variables and optimiser state.
    """
    anchor, targets = variables["params"], learner.task.targets(data)
    params, opt_state = jax.tree.map(lambda x: jnp.array(x, copy=True), (anchor, opt_state))
    size = microbatch_size(config, sum(leaf.size for leaf in jax.tree.leaves(anchor)))
    for step in range(release.steps):
        sample = privacy_units.draw(units, release.sampling_rate)
        drawn(sample)
        total = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), anchor)
        for index, real in microbatches(sample, size):
            total = learner.accumulate(
                {**variables, "params": params},
                total,
                data.images[index],
                targets[index],
                real,
                sample.keys[index],
                statistics,
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


def microbatches(sample: Sample, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The microbatches of a sample: images [u i], and which of them are no blanks.

    Units of 1, 2, 3 to 4, 5 to 8, … images go into microbatches of their own, so that few shapes
    are compiled and little is computed for blanks. A unit's shape depends on itself alone.

    Args:
      sample: drawn for a step.
      size: images of a microbatch; more where a unit has more.
    """
    by_slots: dict[int, list[np.ndarray]] = {}
    for images in sample.images:
        by_slots.setdefault(1 << (len(images) - 1).bit_length(), []).append(images)
    for slots, units in sorted(by_slots.items()):
        u = max(1, size // slots)
        for start in range(0, len(units), u):
            index = np.zeros((u, slots), np.int64)
            real = np.zeros((u, slots), bool)
            for row, images in enumerate(units[start : start + u]):
                index[row, : len(images)] = images
                real[row, : len(images)] = True
            yield index, real


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
