"""Maxima over windows as tournaments of max(a, b) = b + max(a − b, 0).

A tournament over m values takes ceil(log2 m) levels and m − 1 comparisons. The largest of each
window and 0, which is both pool(relu(z)) and relu(pool(z)), is one tournament with 0 among the
values: a value without an opponent meets 0 by a ReLU, on the level of the others' comparisons.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax

from primia_jax.mpc.lowering_gates import Builder
from primia_jax.mpc.lowering_nodes import Affine, Moves, UnsupportedError
from primia_jax.mpc.plan import Shape


@dataclasses.dataclass(frozen=True)
class Window:
    """A window that slides along one axis.

    Attributes:
      axis: of the array.
      size: elements in the window.
      stride: between the windows.
      padding: elements before and after, which never win.
      base_dilation: distance of the array's elements.
      dilation: distance of the window's elements.
    """

    axis: int
    size: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    base_dilation: int = 1
    dilation: int = 1

    @property
    def is_trivial(self) -> bool:
        """True if the result is the array itself."""
        return self == Window(self.axis, 1)

    def positions(self, length: int) -> np.ndarray:
        """[outputs size]: where each window's elements lie in an axis of `length`; −1 outside."""
        spread = (length - 1) * self.base_dilation + 1
        reach = (self.size - 1) * self.dilation + 1
        outputs = max(0, (spread + sum(self.padding) - reach) // self.stride + 1)
        first = np.arange(outputs)[:, None] * self.stride - self.padding[0]
        at = first + np.arange(self.size) * self.dilation
        inside = (at >= 0) & (at < spread) & (at % self.base_dilation == 0)
        return np.where(inside, at // self.base_dilation, -1)


def maximum(
    builder: Builder, a: Affine, windows: Sequence[Window], separable: bool, with_zero: bool = False
) -> Affine:
    """The maximum of each window of `a`.

    Args:
      builder: makes nodes and gates.
      a: the values. Where they come out of a ReLU, that is left to the tournament.
      windows: one for each axis along which there is a window.
      separable: whether one axis follows another, or all elements of a window meet at once. One
        axis after another takes fewer comparisons where windows overlap.
      with_zero: whether 0 is among the values.

    Raises:
      UnsupportedError: where a window holds nothing but padding.
    """
    windows = [window for window in windows if not window.is_trivial]
    if not windows:
        return builder.relu(a) if with_zero else a
    before = builder.before_relu(a)
    if before is not None:
        a, with_zero = before, True
    separable = separable and not _at_once_is_better(a.shape, windows, with_zero)
    pooled = _tournaments(builder, a, windows, separable, with_zero)
    if not with_zero:
        cached: list[Affine] = []

        def again() -> Affine:
            if not cached:
                cached.append(_tournaments(builder, a, windows, separable, True))
            return cached[0]

        builder.with_zero[pooled] = again
    return pooled


def mapped(builder: Builder, pooled: Affine, function: Callable[[Affine], Affine]) -> Affine:
    """function(pooled), a reshape; its maximum with 0 is still one tournament with its own."""
    result = function(pooled)
    if pooled in builder.with_zero:
        again = builder.with_zero[pooled]
        builder.with_zero[result] = lambda: function(again())
    return result


def _tournaments(
    builder: Builder, a: Affine, windows: Sequence[Window], separable: bool, with_zero: bool
) -> Affine:
    if not separable:
        return _tournament(builder, _elements(builder, a, windows), with_zero)
    if with_zero:
        # 0 enters where it costs no level, the later the better.
        windows = list(windows)
        last = min(
            reversed(windows),
            key=lambda window: _n_levels(window.size, True) - _n_levels(window.size, False),
        )
        windows.append(windows.pop(windows.index(last)))
    for window in windows[:-1]:
        a = _tournament(builder, _elements(builder, a, [window]), False)
    return _tournament(builder, _elements(builder, a, windows[-1:]), with_zero)


def _n_levels(size: int, with_zero: bool) -> int:
    return math.ceil(math.log2(size + with_zero))


def _at_once_is_better(shape: Shape, windows: Sequence[Window], with_zero: bool) -> bool:
    """True if all elements of a window at once take fewer levels, and no more comparisons."""
    sizes = [window.size for window in windows]
    outputs = [len(window.positions(shape[window.axis])) for window in windows]
    levels = sum(_n_levels(size, False) for size in sizes)
    if with_zero:
        levels += min((_n_levels(s, True) - _n_levels(s, False) for s in sizes), default=1)
    left = [shape[window.axis] for window in windows]
    comparisons = 0
    for i, size in enumerate(sizes):
        left[i] = outputs[i]
        comparisons += math.prod(left) * (size - 1)
    at_once = math.prod(outputs) * (math.prod(sizes) - 1)
    return _n_levels(math.prod(sizes), with_zero) < levels and at_once <= comparisons


def _tournament(builder: Builder, values: Sequence[Affine], with_zero: bool) -> Affine:
    values = list(values)
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2])
        winners = [builder.maximum(a, b) for a, b in pairs]
        if len(values) % 2:
            unpaired = values[-1]
            if with_zero:
                unpaired, with_zero = builder.relu(unpaired), False
            winners.append(unpaired)
        values = winners
    return builder.relu(values[0]) if with_zero else values[0]


def _elements(builder: Builder, a: Affine, windows: Sequence[Window]) -> list[Affine]:
    """The first elements of all windows, the second ones, and so on.

    In the place of an element outside the array stands another one of the same window.
    """
    elements = [a]
    for window in windows:
        at = window.positions(a.shape[window.axis])
        if np.any(np.all(at < 0, axis=1)):
            raise UnsupportedError("a maximum over windows that hold nothing but padding")
        for j in range(window.size):
            by_distance = np.argsort(np.abs(np.arange(window.size) - j), kind="stable")
            for other in by_distance:
                at[:, j] = np.where(at[:, j] < 0, at[:, other], at[:, j])
        columns = list(dict.fromkeys(tuple(column) for column in at.T))
        elements = [
            take(builder, part, window.axis, column)
            for part, column in itertools.product(elements, columns)
        ]
    return elements


def take(builder: Builder, a: Affine, axis: int, positions: Sequence[int]) -> Affine:
    """The slices of `a` at `positions` along an axis, as few strided ones put together."""
    runs = _runs(positions)
    shape = (*a.shape[:axis], len(positions), *a.shape[axis + 1 :])

    def apply(x: Any) -> Any:
        slices = [lax.slice_in_dim(x, run.start, run[-1] + 1, run.step, axis=axis) for run in runs]
        return slices[0] if len(slices) == 1 else lax.concatenate(slices, axis)

    kept = {i: i for i in range(len(shape)) if i != axis}
    return builder.public([a], apply, shape, Moves(kept, selects=True))


def _runs(positions: Sequence[int]) -> list[range]:
    """Positions as arithmetic progressions that rise."""
    runs: list[range] = []
    start = 0
    while start < len(positions):
        first, step, stop = int(positions[start]), 1, start + 1
        if stop < len(positions) and positions[stop] > first:
            step = int(positions[stop]) - first
            while stop < len(positions) and positions[stop] - positions[stop - 1] == step:
                stop += 1
            longer = stop + 1 < len(positions) and stop == start + 2
            if longer and positions[stop] > positions[stop - 1]:
                # A first element that stands in for padding is a run of its own.
                stop = start + 1
        runs.append(range(first, first + (stop - start - 1) * step + 1, step))
        start = stop
    return runs
