"""Sources of the pixels: affine maps and distortions, composed into one resampling.

Coordinates count pixels from the image's centre, x to the right and y downwards. A map says, for
each pixel of the new image, which place of the old one it shows; outside it, the nearest edge.

Axis letters: b images of a batch, s image side, c channels, g knots of a lattice.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.config.sections import AugmentationConfig
from primia_jax.data.augmentation.draws import Draw

GEOMETRIC = ("rotation", "scale", "translation", "flip", "elastic", "grid")
ELASTIC_KNOTS = 9  # of the lattice of random displacements, along either side
MOST_CELLS = 5  # of a distorted grid, along either side


def random_warp(
    key: jax.Array, images: jax.Array, draws: Mapping[str, Draw], config: AugmentationConfig
) -> jax.Array:
    """The geometric operations among `draws` on images [b s s c]; `key` is consumed."""
    if not any(name in draws for name in GEOMETRIC):
        return images
    b, s = images.shape[0], images.shape[1]
    elastic_key, grid_key = jax.random.split(key)
    x, y = centred_grid(s)
    if "elastic" in draws:
        on = draws["elastic"].picked[:, None, None]
        dx, dy = elastic_displacement(elastic_key, b, s, config.elastic * s)
        x, y = x + jnp.where(on, dx, 0.0), y + jnp.where(on, dy, 0.0)
    if "grid" in draws:
        on = draws["grid"].picked[:, None]
        dx, dy = grid_displacement(grid_key, b, s, config.grid)
        x = x + jnp.where(on, dx, 0.0)[:, None, :]
        y = y + jnp.where(on, dy, 0.0)[:, :, None]
    if "rotation" in draws:
        picked, amount, _ = draws["rotation"]
        angle = jnp.where(picked, amount * (config.rotation_degrees * np.pi / 180.0), 0.0)
        x, y = rotate(x, y, angle)
    if "scale" in draws:
        picked, amount, _ = draws["scale"]
        shrink = (1.0 / (1.0 + jnp.where(picked, amount * config.scale, 0.0)))[:, None, None]
        x, y = x * shrink, y * shrink
    if "translation" in draws:
        picked, *amounts = draws["translation"]
        dx, dy = (jnp.where(picked, a * (config.translation * s), 0.0) for a in amounts)
        x, y = x - dx[:, None, None], y - dy[:, None, None]
    if "flip" in draws:
        x = jnp.where(draws["flip"].picked[:, None, None], -x, x)
    return sample(images, x, y)


def centred_grid(s: int) -> tuple[jax.Array, jax.Array]:
    """The pixels' own coordinates, x [1 1 s] and y [1 s 1]."""
    line = jnp.arange(s, dtype=jnp.float32) - (s - 1) / 2
    return line[None, None, :], line[None, :, None]


def rotate(x: jax.Array, y: jax.Array, angle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The map that turns the image counter-clockwise by `angle` [b] radians."""
    cos, sin = jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None]
    return cos * x - sin * y, sin * x + cos * y


def elastic_displacement(
    key: jax.Array, b: int, s: int, limit: float
) -> tuple[jax.Array, jax.Array]:
    """Smooth random displacements [b s s] of x and y, at most `limit` pixels.

    After Simard et al. 2003 ("Best practices for convolutional neural networks", section 2), with a
    cubic B-spline through a coarse random lattice in place of a Gaussian filter over every pixel.
    """
    lattice = jax.random.uniform(
        key, (2, b, ELASTIC_KNOTS, ELASTIC_KNOTS), minval=-limit, maxval=limit
    )
    weights = _spline_weights(ELASTIC_KNOTS, s)
    field = jnp.einsum("yi,xj,abij->abyx", weights, weights, lattice, precision="highest")
    return field[0], field[1]


def _spline_weights(g: int, s: int) -> np.ndarray:
    """[s g] each pixel's weights on the knots of a uniform cubic B-spline; rows sum to one."""
    position = (np.arange(s) + 0.5) / s * (g - 3) + 1.0
    distance = np.abs(position[:, None] - np.arange(g)[None, :])
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = np.clip(2.0 - distance, 0.0, None) ** 3 / 6
    return np.where(distance < 1, inner, outer).astype(np.float32)


def grid_displacement(key: jax.Array, b: int, s: int, limit: float) -> tuple[jax.Array, jax.Array]:
    """Displacements [b s] of columns and of rows as a grid's inner lines move, in pixels.

    Every inner line moves by at most `limit` of the side, and the outer ones stay. The grid has at
    most MOST_CELLS cells a side, and fewer for a larger limit, so that lines never meet: the image
    is stretched and squeezed, not folded.
    """
    cells = MOST_CELLS if limit == 0 else max(2, min(MOST_CELLS, int(0.35 / limit)))
    shift = jax.random.uniform(key, (2, b, cells - 1), minval=-limit, maxval=limit)
    shift = jnp.pad(shift, ((0, 0), (0, 0), (1, 1))) * (s - 1)
    place = np.arange(s, dtype=np.float32) * (cells / max(s - 1, 1))
    cell = np.minimum(place.astype(np.int32), cells - 1)
    part = place - cell
    displacement = shift[:, :, cell] * (1.0 - part) + shift[:, :, cell + 1] * part
    return displacement[0], displacement[1]


def sample(images: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Bilinear samples of images [b s s c] at centred coordinates broadcastable to [b s s].

    Places outside the image show its nearest edge. At whole pixels the samples are exact.
    """
    b, s, _, c = images.shape
    if s == 1:
        return images
    centre = (s - 1) / 2
    x, y = jnp.broadcast_arrays(x, y)
    shape = (b, s, s)
    column, fx = _cell(jnp.broadcast_to(x, shape) + centre, s)
    row, fy = _cell(jnp.broadcast_to(y, shape) + centre, s)
    first = (jnp.arange(b, dtype=jnp.int32)[:, None, None] * s + row) * s + column
    pixels = images.reshape(b * s * s, c)

    def at(offset: int) -> jax.Array:
        return pixels.at[first + offset].get(mode="promise_in_bounds")

    fx, fy = fx[..., None], fy[..., None]
    above = at(0) * (1.0 - fx) + at(1) * fx
    below = at(s) * (1.0 - fx) + at(s + 1) * fx
    return above * (1.0 - fy) + below * fy


def _cell(place: jax.Array, s: int) -> tuple[jax.Array, jax.Array]:
    """The pixel before `place`, at most s - 2, and how far `place` lies beyond it, in [0, 1]."""
    place = jnp.clip(place, 0.0, s - 1.0)
    before = jnp.minimum(jnp.floor(place), s - 2.0)
    return before.astype(jnp.int32), place - before
