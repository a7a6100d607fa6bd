"""Values that the model owner alone knows, as expressions that are evaluated on demand.

While a network is lowered, a value known without the image is *public*, a NumPy array that follows
from the architecture, or *private*, a `Weight` that follows from the parameters too. A weight is a
function of the parameters; the expressions that it is made of are evaluated once a call each.

Arrays broadcast as in JAX: an axis of size 1, or a scalar, stands for any size.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.mpc.plan import Shape, Weight

Known = Any  # np.ndarray (public) | Weight (private)


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """One call: the leaves of the parameters, and the expressions evaluated so far."""

    leaves: Sequence[Any]
    values: dict[Any, Any]


def weight(shape: Sequence[int], axes: Iterable[int], compute: Callable[[Any], Any]) -> Weight:
    """A weight that `compute` evaluates.

    Args:
      shape: of the value.
      axes: along which it may vary; those of size 1 are left out.
      compute: function of an evaluation, which it passes on as the parameters of other weights.
    """

    def value(params: Any) -> Any:
        if not isinstance(params, _Evaluation):
            params = _Evaluation(jax.tree.leaves(params), {})
        if value not in params.values:
            params.values[value] = compute(params)
        return params.values[value]

    shape = tuple(shape)
    return Weight(shape, value, frozenset(axis for axis in axes if shape[axis] > 1))


def parameter(index: int, shape: Sequence[int], dtype: Any) -> Weight:
    """The leaf number `index` of the parameters."""
    return weight(shape, range(len(shape)), lambda params: jnp.asarray(params.leaves[index], dtype))


def captured(array: Any) -> Weight:
    """An array that the network's function holds: it may well come from training."""
    return weight(array.shape, range(array.ndim), lambda _: array)


def derived(
    compute: Callable[..., Any], knowns: Sequence[Known], shape: Sequence[int], axes: Iterable[int]
) -> Weight:
    """compute(values of the knowns)."""
    return weight(
        shape, axes, lambda params: compute(*(evaluated(known, params) for known in knowns))
    )


def evaluated(known: Known, params: Any) -> Any:
    """The value of what is known."""
    return known.value(params) if isinstance(known, Weight) else known


def as_weight(known: Known, n_axes: int) -> Weight:
    """`known` as a weight with `n_axes` axes; the model owner's even if its values are public."""
    if isinstance(known, Weight):
        if len(known.shape) == n_axes:
            return known
        return derived(lambda v: v.reshape((1,) * n_axes), [known], (1,) * n_axes, ())
    array = np.asarray(known)
    if array.ndim != n_axes:
        array = array.reshape((1,) * n_axes)
    return weight(array.shape, _varying(array), lambda _: array)


def _varying(array: np.ndarray) -> list[int]:
    """The axes along which the values of an array differ."""
    return [
        axis
        for axis in range(array.ndim)
        if not np.array_equal(array, np.broadcast_to(array.take([0], axis), array.shape))
    ]


def combine(function: Callable[..., Any], *knowns: Known) -> Known:
    """An element-wise function of what is known; public if all of it is."""
    if not any(isinstance(known, Weight) for known in knowns):
        return np.asarray(function(*knowns))
    axes = [known.axes if isinstance(known, Weight) else _varying(known) for known in knowns]
    shape = np.broadcast_shapes(*(known.shape for known in knowns))
    return derived(function, knowns, shape, {axis for some in axes for axis in some})


def combine_to(shape: Sequence[int], function: Callable[[Any], Any], known: Known) -> Known:
    """A function of what is known, which gives an array of another shape."""
    if not isinstance(known, Weight):
        return np.asarray(function(known))
    return derived(function, [known], shape, range(len(shape)))


def product(left: Known, right: Known) -> Known:
    """left · right, element by element."""
    return combine(lambda a, b: a * b, left, right)


def spread(known: Weight, shape: Shape) -> Weight:
    """`known` broadcast to `shape`."""
    if known.shape == shape:
        return known
    return derived(lambda v: jnp.broadcast_to(v, shape), [known], shape, known.axes)


def shrunk(known: Weight) -> Weight:
    """`known` with size 1 along the axes along which it does not vary."""
    if all(size == 1 or axis in known.axes for axis, size in enumerate(known.shape)):
        return known
    return moved(known, {axis: axis for axis in known.axes}, len(known.shape))


def moved(factor: Weight, target: Mapping[int, int], n_axes: int) -> Weight:
    """A factor along other axes: [… a …] -> [1 … a … 1].

    Args:
      factor: the axes along which it varies are all keys of `target`.
      target: axis of the factor -> axis of the result.
      n_axes: of the result.
    """
    pairs = sorted((target[axis], axis) for axis in factor.axes)
    shape = [1] * n_axes
    for to, axis in pairs:
        shape[to] = factor.shape[axis]

    def compute(value: Any) -> Any:
        value = value[tuple(slice(None) if i in factor.axes else 0 for i in range(value.ndim))]
        kept = sorted(axis for _, axis in pairs)
        order = [kept.index(axis) for _, axis in pairs]
        return jnp.transpose(value, order).reshape(shape)

    return derived(compute, [factor], shape, [to for to, _ in pairs])


def untouched_by_reshape(before: Sequence[int], after: Sequence[int]) -> dict[int, int]:
    """Axes that a reshape keeps: axis after -> axis before."""
    starts, total = {}, 1
    for axis, size in enumerate(before):
        if size > 1:
            starts[total] = axis
        total *= size
    kept, total = {}, 1
    for axis, size in enumerate(after):
        if size > 1 and total in starts and before[starts[total]] == size:
            kept[axis] = starts[total]
        total *= size
    return kept
