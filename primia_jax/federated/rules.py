"""Aggregation rules: what the model owner makes of the hospitals' average.

A rule is a pair of pure functions over the parameters, a tuple of vectors [p_j] float32:

    rule = make(config.federated)
    state = rule.init(params)
    params, state = rule.apply(state, params, average)

FedAvg: McMahan et al. 2017. FedProx: Li et al. 2020 (a proximal term at the hospitals, the same
average). FedAdam and FedYogi: Reddi et al. 2021, algorithm 2, with the average as pseudo-gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from primia_jax.config import FederatedConfig
from primia_jax.core import objects
from primia_jax.errors import ConfigError

WHERE = "config.federated.rule"
_BETA1, _BETA2 = 0.9, 0.99  # Reddi et al. 2021, section 5


Params = tuple[np.ndarray, ...]


class Rule(NamedTuple):
    """See the module's docstring; `proximal_mu` is what the hospitals add to their loss."""

    init: Callable[[Params], Any]
    apply: Callable[[Any, Params, Params], tuple[Params, Any]]
    proximal_mu: float = 0.0


class Moments(NamedTuple):
    """State of the adaptive rules."""

    first: Params  # [p_j] float32
    second: Params  # [p_j] float32


def make(config: FederatedConfig) -> Rule:
    """The rule that `config.rule` names; a user's own is imported by those alone who apply it."""
    if objects.is_reference(config.rule):
        return _custom(config)
    if config.rule in ("fedadam", "fedyogi"):
        return _adaptive(config.server_learning_rate, config.server_tau, config.rule == "fedyogi")
    return Rule(
        init=lambda params: (),
        apply=lambda state, params, average: (tuple(a.astype(np.float32) for a in average), state),
        proximal_mu=config.proximal_mu if config.rule == "fedprox" else 0.0,
    )


def _custom(config: FederatedConfig) -> Rule:
    """A user's own rule, whose results are checked."""
    start = f"{WHERE} = {config.rule!r}:"

    def call(position: int, *arguments: Any) -> Any:
        factory = objects.load(config.rule, WHERE)
        try:
            return tuple(factory(config))[position](*arguments)
        except Exception as error:
            raise ConfigError(
                f"{start} fails with {type(error).__name__}: {objects.first_line(error)} "
                "(docs/own_parts.md)"
            ) from None

    def apply(state: Any, params: Params, average: Params) -> tuple[Params, Any]:
        average = tuple(vector.astype(np.float32) for vector in average)
        result = call(1, state, params, average)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ConfigError(f"{start} apply must return (params, state) (docs/own_parts.md)")
        new = tuple(np.asarray(vector, np.float32) for vector in result[0])
        if [vector.shape for vector in new] != [vector.shape for vector in params]:
            raise ConfigError(
                f"{start} apply gives vectors of other lengths than it is given (docs/own_parts.md)"
            )
        return new, result[1]

    return Rule(lambda params: call(0, params), apply)


def _adaptive(learning_rate: float, tau: float, yogi: bool) -> Rule:
    def init(params: Params) -> Moments:
        return Moments(
            tuple(np.zeros_like(w) for w in params),
            tuple(np.full_like(w, tau**2) for w in params),
        )

    def apply(state: Moments, params: Params, average: Params) -> tuple[Params, Moments]:
        moved = [one(*leaf) for leaf in zip(params, average, *state)]
        new, first, second = zip(*moved)
        return new, Moments(first, second)

    def one(
        params: np.ndarray, average: np.ndarray, first: np.ndarray, second: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One leaf: its new values and moments."""
        delta = average.astype(np.float32) - params
        square = delta**2
        first = np.float32(_BETA1) * first + np.float32(1 - _BETA1) * delta
        if yogi:
            second = second - np.float32(1 - _BETA2) * square * np.sign(second - square)
        else:
            second = np.float32(_BETA2) * second + np.float32(1 - _BETA2) * square
        step = np.float32(learning_rate) * first / (np.sqrt(second) + np.float32(tau))
        return params + step, first, second

    return Rule(init, apply)
