"""Labels from the gradient of the last layer's bias.

For one image that gradient is p - y: the probabilities less the one-hot label. Only the true
label's entry is negative (iDLG: Zhao et al. 2020, arXiv:2001.02610, section 3), so the label is
certain. For a batch it is the mean of these, from which labels can only be guessed.

Axis letters: n images, s their side, k classes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from primia_jax.inversion.layers import output_layer
from primia_jax.inversion.observed import Observed, n_classes

_NOISE_IMAGES = 8


def assumed_targets(observed: Observed, shape: tuple[int, ...]) -> jax.Array:
    """[n k] one-hot labels: the known ones, or those that `infer` takes from the update.

    Args:
      observed: what the attacker sees.
      shape: [n s s 1] of the images sought.
    """
    k = n_classes(observed.variables, observed.training, shape)
    known = observed.labels is not None
    return jax.nn.one_hot(observed.labels if known else infer(observed, shape), k)


@functools.partial(jax.jit, static_argnums=1)
def infer(observed: Observed, shape: tuple[int, ...]) -> jax.Array:
    """The labels [n] int32 of the images behind an update, in ascending order.

    For one image the label is exact, if the local optimiser keeps the gradient's signs. For more it
    is a heuristic: see `infer_from_bias_gradient`, which is told what the network makes of noise.
    Weights of several steps are taken for the mean of their gradients.

    Args:
      observed: what the attacker sees; known labels are not looked at.
      shape: [n s s 1] of the images sought.

    Raises:
      ConfigError: if the network does not end in a dense layer with a bias.
    """
    training = observed.training
    k = n_classes(observed.variables, training, shape)
    gradient = output_layer(observed.update, k).bias
    if training.content == "weights":
        gradient = -gradient / max(sum(training.rates), 1e-30)
    noise = jax.random.normal(jax.random.key(0), (_NOISE_IMAGES, *shape[1:3], 1))
    inputs = jnp.repeat(noise, training.channels, axis=-1)
    state = [name for name in observed.variables if name != "params"]
    logits, _ = training.module.apply(
        observed.variables, inputs, train=training.train, mutable=state
    )
    weights = jnp.asarray(training.class_weights) if training.class_weights else None
    return infer_from_bias_gradient(gradient, shape[0], jax.nn.softmax(logits).mean(0), weights)


def infer_from_bias_gradient(
    gradient: Any, n: int, probabilities: Any, class_weights: Any = None
) -> jax.Array:
    """Labels [n] int32, ascending, from the gradient [k] of the last bias.

    For one image, the class with the lowest entry. For more, a heuristic: if the network gave every
    image the same probabilities p, then n_c images of class c with weight w_c would give entry
    p_c s - n_c w_c / n, s being the images' mean weight. As all n_c sum to n, this can be solved
    for s and every n_c; they are then rounded, the sorted remainders deciding. An untrained network
    is about so; a trained one may deceive it. (In the spirit of Wainakh et al. 2022,
    arXiv:2105.09369, who estimate from dummy images what one label adds to the gradient.)

    Args:
      gradient: of the mean loss over n images.
      n: number of images.
      probabilities: [k] that the network gives an image of unknown class.
      class_weights: [k] of the loss; None for none.
    """
    gradient, p = jnp.asarray(gradient), jnp.asarray(probabilities)
    if n == 1:
        return jnp.argmin(gradient, keepdims=True).astype(jnp.int32)
    w = jnp.ones_like(gradient) if class_weights is None else jnp.asarray(class_weights)
    s = (1 + jnp.sum(gradient / w)) / jnp.sum(p / w)
    expected = n * (s * p - gradient) / w

    def take(left: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        label = jnp.argmax(left)
        return left.at[label].add(-1), label

    return jnp.sort(jax.lax.scan(take, expected, None, length=n)[1]).astype(jnp.int32)
