"""A network's variables as the vectors that hospitals and model owner exchange.

Batch-norm moments travel as (mean, second moment) in float64: the sample-weighted average of second
moments is exactly the pooled second moment, which the average of variances is not.

Axis letters: p parameters, c channels of all batch norms together.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.flatten_util import ravel_pytree

Variables = Mapping[str, Any]  # {"params": tree} and perhaps {"batch_stats": tree}


class Vectors(NamedTuple):
    """A network as two vectors."""

    params: np.ndarray  # [p] float32
    moments: np.ndarray  # [2c] float64: for each batch norm, in order of its path, mean then E[x²]


def to_vectors(variables: Variables) -> Vectors:
    """The vectors of `variables`."""
    params, _ = ravel_pytree(variables["params"])
    parts = []
    for mean, var in _batch_norms(variables).values():
        mean, var = np.asarray(mean, np.float64), np.asarray(var, np.float64)
        parts += [mean, var + mean**2]
    moments = np.concatenate(parts) if parts else np.zeros(0)
    return Vectors(np.asarray(params), moments)


def from_vectors(template: Variables, vectors: Vectors) -> dict[str, Any]:
    """Variables of `template`'s structure (its values do not matter) from `vectors`.

    A pooled variance that rounding made negative becomes 0.
    """
    _, unravel = ravel_pytree(template["params"])
    variables = {"params": unravel(jax.numpy.asarray(vectors.params, np.float32))}
    if "batch_stats" in template:
        flat, at = {}, 0
        for path, (mean, _) in _batch_norms(template).items():
            width = mean.shape[0]
            mean, second = vectors.moments[at : at + width], vectors.moments[at + width :][:width]
            flat[*path, "mean"] = np.asarray(mean, np.float32)
            flat[*path, "var"] = np.asarray(np.maximum(second - mean**2, 0), np.float32)
            at += 2 * width
        variables["batch_stats"] = traverse_util.unflatten_dict(flat)
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
