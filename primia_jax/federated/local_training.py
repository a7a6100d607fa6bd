"""Local training and evaluation of a hospital: jitted steps, and the loop over them.

Axis letters: b images of a batch, s their side, c channels, k classes, n records, m summed numbers.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from primia_jax import models
from primia_jax.config import AugmentationConfig, ExperimentConfig, ModelConfig, TrainingConfig
from primia_jax.data import Dataset
from primia_jax.data.augmentation import augment
from primia_jax.tasks import Task

_ORDER, _AUGMENT = 0, 1  # purposes of the seed, folded in first


class Statistics(NamedTuple):
    """Statistics of all hospitals' data, pooled by one secure sum."""

    mean: Any  # float32 scalar, of all pixels of all training images, black 0 to white 1
    std: Any  # float32 scalar
    class_weights: Any  # [k] float32, mean 1 over the records


class Step(NamedTuple):
    """Place of a local step in a run."""

    round: np.uint32
    site: np.uint32
    step: np.uint32


class Learner(NamedTuple):
    """The jitted functions of one network under one configuration."""

    task: Task
    module: nn.Module
    optimizer: optax.GradientTransformation
    # train(variables, opt_state, anchor, images, targets, statistics, seed, step, learning_rate)
    #   -> (variables, opt_state, loss); the first two arguments are consumed.
    train: Any
    # predict(variables, images, statistics) -> [b …], see `Task.predictions`
    predict: Any
    # enter(images, targets, seed, step) -> (pixels [b s s 1] in [0, 1], encoded targets): what a
    # step of `train` augments its images and stored targets to
    enter: Any


def make_learner(config: ExperimentConfig, task: Task, proximal_mu: float = 0.0) -> Learner:
    """The learner of `config`; nothing is compiled before it is called.

    In one process there is one for all that train the same network in the same way, so that it is
    compiled once.
    """
    return _learner(config.model, config.training, config.augmentation, task, proximal_mu)


@functools.lru_cache(maxsize=4)
def _learner(
    model: ModelConfig,
    training: TrainingConfig,
    augmentation: AugmentationConfig,
    task: Task,
    proximal_mu: float,
) -> Learner:
    module = models.build(model, task.n_outputs)
    optimizer = make_optimizer(training)
    train = functools.partial(
        _train_step,
        task=task,
        module=module,
        optimizer=optimizer,
        channels=model.channels,
        augmentation=augmentation,
        proximal_mu=proximal_mu,
    )
    predict = functools.partial(_predict_step, task=task, module=module, channels=model.channels)
    enter = functools.partial(_enter, task=task, augmentation=augmentation)
    step = jax.jit(train, donate_argnums=(0, 1))
    return Learner(task, module, optimizer, step, jax.jit(predict), jax.jit(enter))


def template(module: nn.Module, image_size: int, channels: int) -> dict[str, Any]:
    """Shapes and types of the network's variables."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), np.float32)
    init = functools.partial(module.init, train=False)
    return dict(jax.eval_shape(init, jax.random.key(0), image))


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """The optimiser without its learning rate, which every step is given."""
    decay = optax.add_decayed_weights(config.weight_decay) if config.weight_decay else None
    if config.optimizer == "sgd":
        parts = [decay, optax.trace(config.beta1)]
    else:
        adam = optax.scale_by_adam(config.beta1, config.beta2)
        parts = [decay, adam] if config.optimizer == "adam" else [adam, decay]
    return optax.chain(*(part for part in parts if part is not None))


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """The learning rate at `progress` in [0, 1) of the whole run."""
    if config.schedule == "constant":
        return config.learning_rate
    position = (progress * (config.restarts + 1)) % 1.0
    start, end = config.learning_rate, config.end_learning_rate
    if config.schedule == "cosine":
        return end + (start - end) * 0.5 * (1 + float(np.cos(np.pi * position)))
    return float(start * (max(end, 1e-12) / max(start, 1e-12)) ** position)


def standardise(images: jax.Array, statistics: Statistics, channels: int) -> jax.Array:
    """Grey images [b s s 1] in [0, 1] -> the network's input [b s s c]."""
    scaled = (images - statistics.mean) / statistics.std
    return jnp.repeat(scaled, channels, axis=-1)


def to_unit(images: jax.Array) -> jax.Array:
    """Stored grey levels (uint8 or uint16) -> float32 in [0, 1].

    A level x of 8 bits and 257 x of 16 bits give the same bits, so that one image of 16 bits, with
    which all of a set are stored in 16 bits, changes no other.
    """
    if images.dtype == jnp.uint16:
        whole, rest = images // 257, images % 257
        levels = whole.astype(jnp.float32) + rest.astype(jnp.float32) / 257
    else:
        levels = images.astype(jnp.float32)
    return levels / 255


def _enter(
    images: jax.Array,
    targets: jax.Array,
    seed: jax.Array,
    at: Step,
    *,
    task: Task,
    augmentation: AugmentationConfig,
) -> tuple[jax.Array, jax.Array]:
    """Images and targets of a batch as a local step is given them; see `Learner.enter`."""
    key = jax.random.key(seed)
    for number in (_AUGMENT, *at):
        key = jax.random.fold_in(key, number)
    return augment(key, to_unit(images), task.encode(targets), augmentation)


def _train_step(
    variables: Any,
    opt_state: Any,
    anchor: Any,
    images: jax.Array,
    targets: jax.Array,
    statistics: Statistics,
    seed: jax.Array,
    at: Step,
    learning_rate: jax.Array,
    *,
    task: Task,
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    channels: int,
    augmentation: AugmentationConfig,
    proximal_mu: float,
) -> tuple[Any, Any, jax.Array]:
    """One local step; see `Learner.train`."""
    pixels, encoded = _enter(images, targets, seed, at, task=task, augmentation=augmentation)
    inputs = standardise(pixels, statistics, channels)
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        outputs, updated = module.apply(
            {"params": params, **rest}, inputs, train=True, mutable=list(rest)
        )
        loss = task.training_loss(outputs, encoded, statistics.class_weights).mean()
        if proximal_mu:
            gaps = jax.tree.map(lambda w, w0: jnp.sum((w - w0) ** 2), params, anchor)
            loss += 0.5 * proximal_mu * sum(jax.tree.leaves(gaps))
        return loss, updated

    (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(gradients, opt_state, variables["params"])
    params = jax.tree.map(lambda w, u: w - learning_rate * u, variables["params"], updates)
    return {"params": params, **updated}, opt_state, loss


def _predict_step(
    variables: Any,
    images: jax.Array,
    statistics: Statistics,
    *,
    task: Task,
    module: nn.Module,
    channels: int,
) -> jax.Array:
    outputs: Any = module.apply(
        variables, standardise(to_unit(images), statistics, channels), train=False
    )
    return task.predictions(outputs)


def predict(
    learner: Learner, variables: Any, images: np.ndarray, statistics: Statistics, batch_size: int
) -> np.ndarray:
    """Predictions [n …] of images [n s s 1], in batches of one shape.

    Fewer images than a batch are filled up to a power of two, so that the sets of many hospitals
    come in few shapes, each of which is compiled.
    """
    results = []
    variables = jax.device_put(variables)
    batch_size = min(batch_size, 1 << max(0, len(images) - 1).bit_length())
    for start in range(0, max(1, len(images)), batch_size):
        batch = images[start : start + batch_size]
        padding = batch_size - len(batch)
        padded = np.pad(batch, ((0, padding), (0, 0), (0, 0), (0, 0)))
        results.append(np.asarray(learner.predict(variables, padded, statistics))[: len(batch)])
    return np.concatenate(results)


class Score(NamedTuple):
    """Performance of a model on a site's validation images."""

    loss: float  # mean of `Task.errors`
    rows: np.ndarray  # [n m] int64: what each image adds to the sum, see `Task.summable`

    @property
    def summed(self) -> np.ndarray:
        """[m] int64: the sum over the images."""
        return np.sum(self.rows, axis=0)


def score(
    learner: Learner, variables: Any, data: Dataset, statistics: Statistics, batch_size: int
) -> Score:
    """The score on `data`."""
    predictions = predict(learner, variables, data.images, statistics, batch_size)
    targets = learner.task.targets(data)
    loss = float(learner.task.errors(predictions, targets).mean())
    return Score(loss, learner.task.summable(predictions, targets))


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Batches that see each of `n` records about once."""
    return -(-n // min(batch_size, n))


def batches(seed: int, site: int, n: int, batch_size: int, first: int) -> Iterator[np.ndarray]:
    """Indices [b] of the batches of a site, from its `first` local step on, without end.

    Every epoch is a permutation drawn from (seed, site, epoch); its last batch is filled up from
    its own beginning, so that all batches have one shape. The order depends on nothing else: a run
    that goes on at step `first` sees what an unbroken run would have seen.
    """
    batch_size = min(batch_size, n)
    per_epoch = steps_per_epoch(n, batch_size)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _ORDER), site)
    epoch, at = divmod(first, per_epoch)
    while True:
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), n))
        order = np.concatenate([order, order[: per_epoch * batch_size - n]])
        for step in range(at, per_epoch):
            yield order[step * batch_size : (step + 1) * batch_size]
        epoch, at = epoch + 1, 0
