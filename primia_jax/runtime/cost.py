"""Counts the messages, bytes and round trips of party programs without computing anything."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from primia_jax.runtime.local_driver import run_local
from primia_jax.runtime.party import Steps
from primia_jax.runtime.trace import Trace


def count(make_parties: Callable[..., Mapping[str, Steps]], *example: Any) -> Trace:
    """The trace of `run_local(make_parties(*example))` with arrays replaced by their shapes.

    Args:
      make_parties: makes the generators from arrays; their leaves must be traceable by JAX.
      *example: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      a trace whose bytes, messages and round trips are exact and whose seconds mean nothing.
    """
    traces = []

    def traced(*arguments: Any) -> None:
        traces.append(run_local(make_parties(*arguments))[1])

    jax.eval_shape(traced, *example)
    return traces[0]
