"""A network's variables as the vectors that hospitals and model owner exchange.

The vectors are views of the leaves, so that no second copy of a network is made. Batch-norm
moments travel as (mean, second moment) in float64: the sample-weighted average of second moments
is exactly the pooled second moment, which the average of variances is not.

Axis letters: p_j elements of the j-th leaf, c channels of all batch norms together.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

Variables = Mapping[str, Any]  # {"params": tree} and perhaps {"batch_stats": tree}


class Vectors(NamedTuple):
    """A network without its structure."""

    params: tuple[np.ndarray, ...]  # [p_j] float32, in JAX's order of the leaves
    moments: np.ndarray  # [2c] float64: for each batch norm, in order of its path, mean then E[x²]


def to_vectors(variables: Variables) -> Vectors:
    """The vectors of `variables`."""
    parts = []
    for mean, var in _batch_norms(variables).values():
        mean, var = np.asarray(mean, np.float64), np.asarray(var, np.float64)
        parts += [mean, var + mean**2]
    moments = np.concatenate(parts) if parts else np.zeros(0)
    return Vectors(flat(variables["params"]), moments)


def flat(tree: Any) -> tuple[np.ndarray, ...]:
    """The leaves of `tree` as vectors [p_j]."""
    return tuple(np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree))


def unflat(template: Any, vectors: Sequence[np.ndarray]) -> Any:
    """The tree of `template`'s structure, shapes and types with the values of `vectors`.

    Its leaves are views of the vectors where their types are the same, so that parties of one
    process that were sent one model hold it once.
    """
    leaves, structure = jax.tree.flatten(template)
    return jax.tree.unflatten(
        structure,
        [
            np.asarray(np.reshape(vector, leaf.shape), leaf.dtype)
            for leaf, vector in zip(leaves, vectors, strict=True)
        ],
    )


def from_vectors(template: Variables, vectors: Vectors) -> dict[str, Any]:
    """Variables of `template`'s structure, shapes and types from `vectors`.

    A pooled variance that rounding made negative becomes 0.
    """
    variables = {"params": unflat(template["params"], vectors.params)}
    if "batch_stats" in template:
        moments, at = {}, 0
        for path, (like, _) in _batch_norms(template).items():
            width = like.shape[0]
            mean, second = vectors.moments[at : at + width], vectors.moments[at + width :][:width]
            moments[*path, "mean"] = np.asarray(mean, np.float32)
            moments[*path, "var"] = np.asarray(np.maximum(second - mean**2, 0), np.float32)
            at += 2 * width
        variables["batch_stats"] = traverse_util.unflatten_dict(moments)
    return variables


def keep_batch_norm(new: Variables, own: Variables) -> dict[str, Any]:
    """`new` with the batch norms (scale, bias, moments) of `own`: what FedBN trains with."""
    batch_norms = set(_batch_norms(own))
    new_params = traverse_util.flatten_dict(dict(new["params"]))
    own_params = traverse_util.flatten_dict(dict(own["params"]))
    merged = {
        path: own_params[path] if path[:-1] in batch_norms else leaf
        for path, leaf in new_params.items()
    }
    result = dict(new, params=traverse_util.unflatten_dict(merged))
    if "batch_stats" in own:
        result["batch_stats"] = own["batch_stats"]
    return result


def _batch_norms(variables: Variables) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """{path of a batch norm: (mean, var)}, in the order of the paths."""
    flat = traverse_util.flatten_dict(dict(variables.get("batch_stats", {})))
    paths = sorted({path[:-1] for path in flat})
    return {path: (flat[*path, "mean"], flat[*path, "var"]) for path in paths}
