"""The search space: which settings are searched, between which bounds.

Each dimension is one string, checked against the schema of the configuration:

  training.learning_rate log 1e-5 1e-3         drawn evenly over its logarithm
  augmentation.rotation_degrees uniform 0 30   drawn evenly; a whole number where the setting is one
  training.optimizer choice adam sgd           one of these
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from primia_jax.config import ExperimentConfig, from_config_dict, to_plain
from primia_jax.errors import ConfigError

_KINDS = ("log", "uniform", "choice")
_SECTIONS = ("augmentation", "model", "training", "federated", "secure_aggregation", "privacy")
_FIXED = {
    "federated.mode": "it decides what a trial may see",
    "federated.hospitals": "trials with other hospitals cannot be compared",
    "model.pretrained": "name it in the configuration of the search",
    **dict.fromkeys(
        ("privacy.mode", "privacy.epsilon", "privacy.delta", "privacy.validation"),
        "trials under other guarantees cannot be compared",
    ),
    **dict.fromkeys(
        ("privacy.budget", "privacy.ledger"), "all trials are charged to one ledger and budget"
    ),
}
_BOOLS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One setting that is searched."""

    name: str  # dotted, without the leading "config."
    distribution: BaseDistribution

    @property
    def is_log(self) -> bool:
        """True if it is drawn evenly over its logarithm."""
        return bool(getattr(self.distribution, "log", False))


def parse(space: Sequence[str]) -> tuple[Dimension, ...]:
    """The dimensions that the strings of `config.tuning.space` describe.

    Raises:
      ConfigError: naming the dimension, what is wrong with it and what is allowed.
    """
    if not space:
        raise ConfigError(
            "config.tuning.space is empty: name what is to be searched, e.g. "
            "('training.learning_rate log 1e-5 1e-3', 'training.optimizer choice adam sgd')"
        )
    dimensions = tuple(_parse(text) for text in space)
    names = [dimension.name for dimension in dimensions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"config.tuning.space names {twice[0]} more than once")
    return dimensions


def _parse(text: str) -> Dimension:
    where = f"config.tuning.space: '{text}'"
    name, *words = text.split() or [""]
    name = name.removeprefix("config.")
    if not words or words[0] not in _KINDS:
        raise ConfigError(f"{where}: expected SETTING {'|'.join(_KINDS)} VALUE VALUE …")
    kind, values = words[0], words[1:]
    current = _current(name, where)
    if reason := _FIXED.get(name):
        raise ConfigError(f"{where}: {name} cannot be searched: {reason}")
    if name.partition(".")[0] not in _SECTIONS:
        raise ConfigError(
            f"{where}: {name} cannot be searched, as it does not belong to the training; settings "
            f"of {', '.join(_SECTIONS)} can"
        )
    if kind == "choice":
        options = tuple(_checked(name, _value(word, current, where), where) for word in values)
        if len(set(options)) < max(2, len(options)):
            raise ConfigError(f"{where}: name at least two values, and each of them once")
        return Dimension(name, CategoricalDistribution(options))
    return Dimension(name, _range(name, kind, values, current, where))


def _range(
    name: str, kind: str, values: Sequence[str], current: Any, where: str
) -> FloatDistribution | IntDistribution:
    if isinstance(current, bool) or not isinstance(current, (int, float)):
        raise ConfigError(f"{where}: {name} is no number; use choice")
    if len(values) != 2:
        raise ConfigError(f"{where}: {kind} takes a lowest and a highest value")
    low, high = (_checked(name, _value(word, current, where), where) for word in values)
    if low >= high:
        raise ConfigError(f"{where}: the lowest value must lie below the highest one")
    if kind == "log" and low <= 0:
        raise ConfigError(f"{where}: the logarithm needs a lowest value above 0")
    kind_of = IntDistribution if isinstance(current, int) else FloatDistribution
    return kind_of(low, high, log=kind == "log")


def _current(name: str, where: str) -> Any:
    """The default of the setting, which tells its type."""
    value: Any = ExperimentConfig()
    for part in name.split("."):
        if not dataclasses.is_dataclass(value) or not hasattr(value, part):
            _checked(name, None, where)  # says which part there is not, and which one is near
            raise ConfigError(f"{where}: {name} is no setting")
        value = getattr(value, part)
    if dataclasses.is_dataclass(value):
        raise ConfigError(f"{where}: {name} is a section; name one of its settings")
    if isinstance(value, tuple):
        raise ConfigError(f"{where}: {name} holds several values and cannot be searched")
    return value


def _value(word: str, current: Any, where: str) -> Any:
    """`word` as the type of the setting."""
    try:
        if isinstance(current, bool):
            return _BOOLS[word.lower()]
        if isinstance(current, int):
            return int(word)
        if isinstance(current, float):
            number = float(word)
            if not math.isfinite(number):
                raise ValueError
            return number
    except (ValueError, KeyError) as error:
        kind = {bool: "true or false", int: "a whole number", float: "a finite number"}
        raise ConfigError(f"{where}: '{word}' is not {kind[type(current)]}") from error
    return word


def _checked(name: str, value: Any, where: str) -> Any:
    """`value` as the schema takes it for the setting `name`."""
    nested = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    try:
        current: Any = from_config_dict(ExperimentConfig, nested)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for part in name.split("."):
        current = getattr(current, part)
    return current


def with_settings(config: ExperimentConfig, values: Mapping[str, Any]) -> ExperimentConfig:
    """`config` with the settings of `values` ({dotted name: value}) in place of its own.

    Raises:
      ConfigError: if there is no such setting, or it does not take the value.
    """
    plain = to_plain(config)
    for name, value in values.items():
        *sections, last = name.split(".")
        section = plain
        for part in sections:
            section = section[part]
        section[last] = value
    return from_config_dict(ExperimentConfig, plain)
