"""Changes of grey values: brightness, gamma, noise, blur, local equalisation.

Every function takes images [b s s c] float32 in [0, 1] and keeps them there; an image that is not
picked keeps its bits.

Axis letters: b images of a batch, s image side, c channels, t tiles along a side.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.data.augmentation.draws import Draw

TILES = 8  # along a side; fewer where tiles would get smaller than SMALLEST_TILE
SMALLEST_TILE = 8  # pixels
BINS = 128


def random_brightness(images: jax.Array, draw: Draw, limit: float) -> jax.Array:
    """Adds a number drawn from ±limit."""
    return jnp.clip(images + _per_image(draw.picked, draw.amount * limit), 0.0, 1.0)


def random_gamma(images: jax.Array, draw: Draw, limit: float) -> jax.Array:
    """Raises to a power exp(g), g drawn from ±limit."""
    exponent = _per_image(draw.picked, draw.amount * limit)
    return jnp.where(exponent == 0.0, images, images ** jnp.exp(exponent))


def random_noise(key: jax.Array, images: jax.Array, draw: Draw, limit: float) -> jax.Array:
    """Adds Gaussian noise of a standard deviation drawn from [0, limit]; `key` is consumed."""
    deviation = _per_image(draw.picked, jnp.abs(draw.amount) * limit)
    noise = jax.random.normal(key, images.shape, images.dtype)
    return jnp.clip(images + deviation * noise, 0.0, 1.0)


def random_blur(images: jax.Array, draw: Draw, limit: float) -> jax.Array:
    """A Gaussian blur whose standard deviation, in pixels, is drawn from [0, limit]."""
    deviation = _per_image(draw.picked, jnp.abs(draw.amount) * limit)
    return blur(images, deviation, math.ceil(3.0 * limit))


def random_equalisation(images: jax.Array, draw: Draw, clip: float) -> jax.Array:
    """Contrast-limited adaptive histogram equalisation of the images picked."""
    return jnp.where(draw.picked[:, None, None, None], equalise(images, clip), images)


def _per_image(picked: jax.Array, value: jax.Array) -> jax.Array:
    """[b 1 1 1] the value [b] of the images picked, 0 for the others."""
    return jnp.where(picked, value, 0.0)[:, None, None, None]


def blur(images: jax.Array, deviation: jax.Array, radius: int) -> jax.Array:
    """Separable Gaussian blur with a standard deviation [b 1 1 1] an image; edges are repeated."""
    steps = jnp.arange(-radius, radius + 1, dtype=images.dtype)
    spread = jnp.maximum(deviation, 1e-3)[..., 0]  # so narrow that only the centre weighs
    weights = jnp.exp(-0.5 * (steps / spread) ** 2)  # [b 1 taps]
    weights = weights / weights.sum(axis=-1, keepdims=True)
    s = images.shape[1]
    for axis in (1, 2):
        margins = [(0, 0)] * 4
        margins[axis] = (radius, radius)
        padded = jnp.pad(images, margins, mode="edge")
        blurred = jnp.zeros_like(images)
        for tap in range(2 * radius + 1):
            shifted = jax.lax.slice_in_dim(padded, tap, tap + s, axis=axis)
            blurred += shifted * weights[:, :, tap, None, None]
        images = blurred
    return jnp.clip(images, 0.0, 1.0)


def equalise(images: jax.Array, clip: float) -> jax.Array:
    """CLAHE (Zuiderveld 1994, "Contrast Limited Adaptive Histogram Equalization"), by channel.

    The image is cut into tiles. Each has a histogram, cut off at `clip` times a flat one's height
    with the excess spread evenly once, whose cumulative sum maps grey values. A pixel's mapping is
    interpolated between those of the four nearest tiles, and linear within a bin.
    """
    b, s, _, c = images.shape
    t = max(1, min(TILES, s // SMALLEST_TILE))
    planes = jnp.moveaxis(images, 3, 1).reshape(b * c, s, s)
    bins = jnp.clip((planes * BINS).astype(jnp.int32), 0, BINS - 1)

    owner = (np.arange(s) * t) // s  # the tile of each row and column; sizes differ by one at most
    tile = owner[:, None] * t + owner[None, :]
    plane = np.arange(b * c, dtype=np.int32)[:, None, None] * (t * t)
    counts = jnp.zeros(b * c * t * t * BINS, images.dtype)
    counts = counts.at[(plane + tile) * BINS + bins].add(1.0, mode="promise_in_bounds")
    shares = counts.reshape(b * c, t * t, BINS) / np.bincount(tile.ravel())[:, None].astype(
        np.float32
    )
    excess = jnp.maximum(shares - clip / BINS, 0.0).sum(axis=-1, keepdims=True)
    shares = jnp.minimum(shares, clip / BINS) + excess / BINS
    mapping = jnp.pad(jnp.cumsum(shares, axis=-1), ((0, 0), (0, 0), (1, 0)))  # at the bins' edges

    centres = (np.arange(s) + 0.5) * t / s - 0.5
    before = np.clip(np.floor(centres), 0, t - 1).astype(np.int32)
    after = np.minimum(before + 1, t - 1)
    part = np.clip(centres - before, 0.0, 1.0).astype(np.float32)
    within = planes * BINS - bins
    flat = mapping.reshape(-1)

    def mapped(rows: np.ndarray, columns: np.ndarray) -> jax.Array:
        index = (plane + rows[:, None] * t + columns[None, :]) * (BINS + 1) + bins
        low = flat.at[index].get(mode="promise_in_bounds")
        high = flat.at[index + 1].get(mode="promise_in_bounds")
        return low + (high - low) * within

    down, across = part[:, None], part[None, :]
    upper = mapped(before, before) * (1 - across) + mapped(before, after) * across
    lower = mapped(after, before) * (1 - across) + mapped(after, after) * across
    result = jnp.clip(upper * (1 - down) + lower * down, 0.0, 1.0)
    return jnp.moveaxis(result.reshape(b, c, s, s), 1, 3)
