"""Random changes of training images, drawn anew at every step, inside the compiled step.

`augment` is a pure function of a key and a batch: one key for all, so that what an image gets
depends on its place in the batch. `augment_each` gives every image a key of its own, and what it
gets depends on that key alone. The operations and their strengths come from an
`AugmentationConfig`, which is static: an operation of probability 0 leaves no trace in the compiled
program.

Axis letters: b images of a batch, s image side, c channels, k classes.
"""

import jax
import jax.numpy as jnp

from primia_jax.config.sections import AugmentationConfig
from primia_jax.data.augmentation import geometry, intensity
from primia_jax.data.augmentation.draws import draw, probabilities

__all__ = ["augment", "augment_each"]


def augment(
    key: jax.Array, images: jax.Array, labels_onehot: jax.Array, config: AugmentationConfig
) -> tuple[jax.Array, jax.Array]:
    """A batch, changed at random. Labels of pixels are resampled with their image.

    In this order: rotation, zoom, shift, flip, elastic and grid distortion in one resampling, whose
    border repeats the image's edge; blur; equalisation; gamma; brightness; noise; MixUp. With all
    probabilities 0 the very arrays given are returned; an image that no operation picked keeps its
    bits (MixUp picks whole batches).

    Args:
      key: a key of `jax.random`; consumed.
      images: [b s s c] float32 in [0, 1].
      labels_onehot: [b k] float32; or [b s s k], of each pixel.
      config: static under `jax.jit`.

    Returns:
      Images, again float32 in [0, 1], and labels, of the shapes given. Only MixUp changes labels of
      images; those of pixels change with any geometric operation, to shares between 0 and 1.
    """
    if not any(probability > 0 for probability in probabilities(config).values()):
        return images, labels_onehot
    draw_key, field_key, noise_key, mix_key = jax.random.split(key, 4)
    draws = draw(draw_key, images.shape[0], config)
    if labels_onehot.ndim == images.ndim:
        both = jnp.concatenate([images, labels_onehot], -1)
        both = geometry.random_warp(field_key, both, draws, config)
        images, labels_onehot = jnp.split(both, [images.shape[-1]], -1)
    else:
        images = geometry.random_warp(field_key, images, draws, config)
    if config.blur_p > 0:
        images = intensity.random_blur(images, draws["blur"], config.blur_pixels)
    if config.equalise_p > 0:
        images = intensity.random_equalisation(images, draws["equalise"], config.equalise_clip)
    if config.gamma_p > 0:
        images = intensity.random_gamma(images, draws["gamma"], config.gamma)
    if config.brightness_p > 0:
        images = intensity.random_brightness(images, draws["brightness"], config.brightness)
    if config.noise_p > 0:
        images = intensity.random_noise(noise_key, images, draws["noise"], config.noise)
    if config.mixup_p > 0:
        images, labels_onehot = mixup(
            mix_key, images, labels_onehot, config.mixup_p, config.mixup_alpha
        )
    return images, labels_onehot


def augment_each(
    keys: jax.Array, images: jax.Array, labels_onehot: jax.Array, config: AugmentationConfig
) -> tuple[jax.Array, jax.Array]:
    """A batch, each image changed by `augment` as a batch of its own.

    An image's pixels are a function of itself and its key: neither its place, nor the size of the
    batch, nor any other image changes a bit of them. MixUp, which mixes images, has nothing to mix
    here and changes nothing.

    Args:
      keys: [b] keys of `jax.random`; consumed.
      images: [b s s c] float32 in [0, 1].
      labels_onehot: [b k] float32.
      config: static under `jax.jit`.
    """

    def one(key: jax.Array, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        changed, target = augment(key, image[None], label[None], config)
        return changed[0], target[0]

    return jax.vmap(one)(keys, images, labels_onehot)


def mixup(
    key: jax.Array, images: jax.Array, labels_onehot: jax.Array, probability: float, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """MixUp (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", eq. 1).

    With `probability`, blends the whole batch [b s s c] and its labels [b k] with a permutation of
    itself, in shares λ and 1 - λ, λ ~ Beta(alpha, alpha).
    """
    choice_key, share_key, order_key = jax.random.split(key, 3)
    mixed = jax.random.uniform(choice_key) < probability
    share = jnp.where(mixed, jax.random.beta(share_key, alpha, alpha), 1.0)
    order = jax.random.permutation(order_key, images.shape[0])

    def blend(x: jax.Array) -> jax.Array:
        return (share * x + (1.0 - share) * x[order]).astype(x.dtype)

    return jnp.clip(blend(images), 0.0, 1.0), blend(labels_onehot)
