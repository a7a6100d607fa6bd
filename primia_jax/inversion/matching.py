"""Distance of an update from the observed one, and priors for or against an image.

Axis letters: n images, s their side.
"""

from typing import Any

import jax
import jax.numpy as jnp

from primia_jax.inversion.observed import Observed, Update

_TINY = 1e-30  # keeps quotients of squares finite in float32


def _dot(a: Any, b: Any) -> jax.Array:
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), jnp.zeros(()))


def cosine_distance(update: Any, observed: Any) -> jax.Array:
    """One less the cosine between two updates, in [0, 2] (Geiping et al. 2020, equation 4)."""
    one, other = (jax.lax.rsqrt(jnp.maximum(_dot(u, u), _TINY)) for u in (update, observed))
    return 1 - _dot(update, observed) * one * other


def squared_distance(update: Any, observed: Any) -> jax.Array:
    """Squared distance between two updates (Zhu et al. 2019, equation 4) over the square of the
    observed one, so that its size does not depend on the loss's scale."""
    difference = jax.tree.map(jnp.subtract, update, observed)
    return _dot(difference, difference) / jnp.maximum(_dot(observed, observed), _TINY)


def total_variation(images: jax.Array) -> jax.Array:
    """Mean absolute difference of neighbouring pixels, over rows plus over columns; [n s s 1]."""
    rows = jnp.abs(jnp.diff(images, axis=1)).mean()
    return rows + jnp.abs(jnp.diff(images, axis=2)).mean()


def moments_distance(update: Update, observed: Observed) -> jax.Array:
    """Distance of the moments that would come back from those that did; 0 if unknown.

    The mean over all moments of a squared distance, relative to how far the observed ones moved.
    """
    if observed.moments is None:
        return jnp.zeros(())
    before = observed.variables["batch_stats"]

    def relative(computed: jax.Array, returned: jax.Array, old: jax.Array) -> jax.Array:
        moved = jnp.sum(jnp.square(returned - old))
        return jnp.sum(jnp.square(computed - returned)) / jnp.maximum(moved, _TINY)

    parts = jax.tree.leaves(jax.tree.map(relative, update.batch_stats, observed.moments, before))
    return jnp.stack(parts).mean()
