"""Attacker's view of a hospital: the model that went out and the update that came back.

An attack can only search for images whose update is the one observed, so it has to know how
updates come about. `LocalTraining` says that, `simulate` computes it and can be differentiated.

Axis letters: n images, b images of a local step, s their side, c channels, k classes.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from primia_jax.errors import ConfigError
from primia_jax.tasks import Classification, Task

PLAIN_SGD = optax.identity()  # one object, so that what is compiled for it is found again
_CONTENTS = ("gradient", "weights")


@dataclasses.dataclass(frozen=True)
class LocalTraining:
    """Procedure by which a hospital turns its images into an update; known to the attacker.

    Attributes:
      module: the network.
      content: 'gradient', of the mean loss over all images at the model that went out; or
        'weights', what `local_steps` steps add to the weights.
      train: whether batch norm takes the moments of the batch (else the running ones).
      local_steps: steps of one hospital; of 'weights' alone, as the next three.
      batch_size: b; step j takes images j·b up to (j+1)·b, from the beginning again after the
        last one; 0 takes all images at every step.
      learning_rate: of the local steps; several where it changes from step to step.
      optimizer: of the local steps, without its learning rate, from its first state. Adam's first
        step keeps little but signs, so that its derivative nearly vanishes: attacks that
        differentiate through it find little, which does not make it safe.
      proximal_mu: FedProx's weight of the distance from the model that went out.
      hospitals: whose updates are averaged, each from an equal share of the images, in order; what
        an attacker on a secure sum sees.
      weights: of the hospitals in that average; empty for equal ones.
      mean: of all pixels, by which the network's inputs are standardised.
      std: likewise.
      channels: of the network's input; grey images are repeated.
      class_weights: of the loss, one a class; empty for none.
      task: whose loss it is.
    """

    module: nn.Module
    content: str = "gradient"
    train: bool = True
    local_steps: int = 1
    batch_size: int = 0
    learning_rate: float | tuple[float, ...] = 0.01
    optimizer: optax.GradientTransformation = PLAIN_SGD
    proximal_mu: float = 0.0
    hospitals: int = 1
    weights: tuple[float, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    channels: int = 1
    class_weights: tuple[float, ...] = ()
    task: Task = Classification(())

    def __post_init__(self) -> None:
        if self.content not in _CONTENTS:
            raise ConfigError(
                f"content of the update = {self.content!r}: take {' | '.join(_CONTENTS)}"
            )
        for name in ("local_steps", "hospitals"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: take at least 1")
        if self.batch_size < 0:
            raise ConfigError(f"batch_size = {self.batch_size}: take 0 (all images) or more")
        if self.content == "gradient" and self.local_steps > 1:
            raise ConfigError(
                f"local_steps = {self.local_steps}: a gradient is of one step; observe 'weights'"
            )
        if self.weights and (len(self.weights) != self.hospitals or min(self.weights) <= 0):
            raise ConfigError(
                f"weights = {self.weights}: take one above 0 for each of {self.hospitals} hospitals"
            )
        if len(self.rates) != self.local_steps:
            raise ConfigError(
                f"learning_rate = {self.learning_rate}: take one, or one for each of "
                f"{self.local_steps} steps"
            )
        if not self.std > 0:
            raise ConfigError(f"std = {self.std}: the standard deviation of pixels must exceed 0")

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of each local step."""
        if isinstance(self.learning_rate, tuple):
            return self.learning_rate
        return (self.learning_rate,) * self.local_steps

    @property
    def shares(self) -> tuple[float, ...]:
        """Each hospital's part in the average; they sum to 1."""
        weights = self.weights or (1.0,) * self.hospitals
        return tuple(weight / sum(weights) for weight in weights)


class Update(NamedTuple):
    """Update that comes back from a hospital, or the mean of several hospitals."""

    params: Any  # the gradient, or the weights after less the weights before
    batch_stats: Any  # running moments after; empty where the network has none


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observed:
    """Everything that an attacker has.

    Attributes:
      variables: the model that went out: 'params', and 'batch_stats' where the norm has moments.
        Where the hospital keeps its moments to itself, the attacker's guess of them.
      update: tree like `variables['params']`.
      moments: running moments that came back, like `variables['batch_stats']`; None if unknown.
      labels: [n] int, in the order of the images sought; None if they are to be inferred.
      training: how the update came about; static under `jax.jit`.
    """

    variables: Any
    update: Any
    moments: Any
    labels: Any
    training: LocalTraining = dataclasses.field(metadata={"static": True})


def observe(
    training: LocalTraining,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    *,
    labels_known: bool = True,
    moments_known: bool = False,
    guessed_moments: Any = None,
) -> Observed:
    """Simulates an attacker's view of a hospital with these images.

    Args:
      training: how updates come about.
      variables: the model that went out.
      images: [n s s 1] in [0, 1].
      labels: [n] int.
      labels_known: whether the attacker knows them.
      moments_known: whether the running moments come back with the update.
      guessed_moments: what the attacker takes for the running moments before, where hospitals keep
        theirs to themselves; None where they are part of the model.

    Raises:
      ConfigError: if the images cannot be shared out evenly, or there are no moments to know.
    """
    labels = jnp.asarray(labels)
    targets = jax.nn.one_hot(labels, n_classes(variables, training, images.shape))
    update = _simulate(training, variables, jnp.asarray(images), targets)
    if moments_known and not jax.tree.leaves(update.batch_stats):
        raise ConfigError("the network has no batch norm whose moments could be known")
    visible = dict(variables)
    if guessed_moments is not None:
        visible["batch_stats"] = guessed_moments
    return Observed(
        variables=visible,
        update=update.params,
        moments=update.batch_stats if moments_known else None,
        labels=labels if labels_known else None,
        training=training,
    )


def n_classes(variables: Any, training: LocalTraining, shape: tuple[int, ...]) -> int:
    """The network's number of outputs for images of `shape` [n s s 1]."""
    inputs = jax.ShapeDtypeStruct((*shape[:3], training.channels), jnp.float32)
    apply = training.module.apply
    logits: Any = jax.eval_shape(lambda v, x: apply(v, x, train=False), variables, inputs)
    return int(logits.shape[-1])


def simulate(
    training: LocalTraining, variables: Any, images: jax.Array, targets: jax.Array
) -> Update:
    """The update of these images; differentiable in images and targets.

    Local steps are unrolled: on CPUs convolutions within `lax.scan` are an order slower.

    Args:
      training: how updates come about.
      variables: the model before.
      images: [n s s 1] in [0, 1].
      targets: [n k] probabilities of the labels.

    Raises:
      ConfigError: if the images cannot be shared out evenly.
    """
    n, h = len(images), training.hospitals
    if n % h:
        raise ConfigError(f"{n} images cannot be shared out evenly over {h} hospitals")
    if training.batch_size > n // h:
        raise ConfigError(
            f"batch_size = {training.batch_size}: more than a hospital's {n // h} images"
        )
    share = n // h
    alone = not training.train or "batch_stats" not in variables  # no image acts on another
    if training.content == "gradient" and alone:
        weights = jnp.repeat(jnp.asarray(training.shares), share, total_repeat_length=n) * h
        params, rest = _gradient(training, *_split(variables), images, targets, weights)
        return Update(params, rest.get("batch_stats", {}))
    updates = [
        _of_hospital(training, variables, images[i : i + share], targets[i : i + share])
        for i in range(0, n, share)
    ]
    return _average(updates, training.shares)


def _split(variables: Any) -> tuple[Any, Any]:
    """The weights, and all variables that are none."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return variables["params"], rest


def _average(updates: list[Update], shares: tuple[float, ...]) -> Update:
    """Averages the hospitals' updates as the model owner does; moments are pooled instead."""

    def mean(*leaves: jax.Array) -> jax.Array:
        return sum((share * leaf for share, leaf in zip(shares, leaves)), jnp.zeros(()))

    if len(updates) == 1:
        return updates[0]
    params = jax.tree.map(mean, *(update.params for update in updates))
    moments: dict[tuple[str, ...], jax.Array] = {}
    flat = [traverse_util.flatten_dict(dict(update.batch_stats)) for update in updates]
    for path in flat[0]:
        if path[-1] == "mean":
            means = [one[path] for one in flat]
            spreads = [one[*path[:-1], "var"] for one in flat]
            moments[path] = mean(*means)
            second = mean(*(var + jnp.square(m) for var, m in zip(spreads, means)))
            moments[*path[:-1], "var"] = second - jnp.square(moments[path])
    return Update(params, traverse_util.unflatten_dict(moments))


_simulate = jax.jit(simulate, static_argnums=0)


def _of_hospital(
    training: LocalTraining, variables: Any, images: jax.Array, targets: jax.Array
) -> Update:
    before, rest = _split(variables)
    if training.content == "gradient":
        gradient, rest = _gradient(training, before, rest, images, targets)
        return Update(gradient, rest.get("batch_stats", {}))
    params, state = before, training.optimizer.init(before)
    n = len(images)
    b = training.batch_size or n
    for step, rate in enumerate(training.rates):
        taken = (step * b + jnp.arange(b)) % n
        batch, labels = (images, targets) if b == n else (images[taken], targets[taken])
        gradient, rest = _gradient(training, params, rest, batch, labels)
        if training.proximal_mu and step:
            away = jax.tree.map(jnp.subtract, params, before)
            gradient = optax.tree.add_scale(gradient, training.proximal_mu, away)
        steps, state = training.optimizer.update(gradient, state, params)
        params = optax.tree.add_scale(params, -rate, steps)
    return Update(jax.tree.map(jnp.subtract, params, before), rest.get("batch_stats", {}))


def _gradient(
    training: LocalTraining,
    params: Any,
    rest: Any,
    images: jax.Array,
    targets: jax.Array,
    weights: jax.Array | float = 1.0,
) -> tuple[Any, Any]:
    """The gradient of the mean loss, and the variables that are not weights, updated.

    `weights` [n], of mean 1, are of the images.
    """
    inputs = jnp.repeat((images - training.mean) / training.std, training.channels, axis=-1)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, updated = training.module.apply(
            {"params": params, **rest}, inputs, train=training.train, mutable=list(rest)
        )
        of_classes = jnp.asarray(training.class_weights or (1.0,) * targets.shape[-1])
        losses = training.task.training_loss(logits, targets, of_classes)
        return (weights * losses).mean(), updated

    gradient, updated = jax.grad(loss, has_aux=True)(params)
    return gradient, {**rest, **updated}
