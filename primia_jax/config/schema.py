"""Turns a loose ConfigDict into a frozen, typed dataclass: everything is checked at the door.

A section is a frozen dataclass whose fields are made by `setting`; the schema is the class itself,
so that a key cannot exist without a type, a default, allowed values and a sentence of explanation.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from primia_jax.core import objects
from primia_jax.errors import ConfigError

Section = TypeVar("Section")


def setting(
    default: Any,
    doc: str,
    *,
    choices: tuple[Any, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    is_path: bool = False,
    custom: bool = False,
) -> Any:
    """A field of a section: default, meaning, and which values it may take (inclusive).

    In a path (`is_path`) a leading `~` is expanded. With `custom` a user's own `module:object`
    is allowed beside the choices.
    """
    metadata = {
        "doc": doc, "choices": choices, "low": low, "high": high, "is_path": is_path,
        "custom": custom,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type[Section]) -> Any:
    """A field that holds a nested section with its own defaults."""
    return dataclasses.field(default_factory=cls)


def to_config_dict(value: Any) -> ConfigDict:
    """The ConfigDict with every key of the dataclass instance `value`, nested sections included."""
    return ConfigDict(to_plain(value))


def to_plain(value: Any) -> Any:
    """`value` as nested dicts of plain Python values, fit for JSON."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def from_config_dict(
    cls: type[Section], config: Mapping[str, Any] | ConfigDict, path: str = ""
) -> Section:
    """Checks `config` against the section class `cls` and returns a frozen instance.

    Args:
      cls: a dataclass made of `setting` and `section` fields.
      config: a mapping (a ConfigDict, or what `json.load` gave); absent keys take their defaults.
      path: the dotted name of this section, for messages.

    Raises:
      ConfigError: for an unknown key (naming the nearest one), a wrong type or a value outside the
        allowed ones; one line that names the key, the value and what is allowed.
    """
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in config:
        if key not in fields:
            raise ConfigError(_unknown_key(path + key, key, list(fields)))
    values = {}
    for name, field in fields.items():
        if name not in config:
            continue
        value, hint, where = config[name], hints[name], path + name
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ConfigError(f"config.{where} = {value!r}: expected a section of settings")
            values[name] = from_config_dict(typing.cast(Any, hint), value, where + ".")
        else:
            values[name] = _checked(value, hint, field.metadata, where)
    return cls(**values)


def check_section(value: Any, path: str = "") -> None:
    """Checks the values of a section that was made without `from_config_dict`.

    Args:
      value: an instance of a dataclass made of `setting` fields.
      path: the dotted name of the section, for messages.

    Raises:
      ConfigError: as `from_config_dict` does.
    """
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        _checked(getattr(value, field.name), hints[field.name], field.metadata, path + field.name)


def _unknown_key(where: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(known)}"
    return f"config.{where}: no such setting; {hint}"


def _checked(value: Any, hint: Any, metadata: Mapping[str, Any], where: str) -> Any:
    value = _coerced(value, hint, where)
    choices, low, high = metadata.get("choices"), metadata.get("low"), metadata.get("high")
    if metadata.get("custom") and objects.is_reference(value):
        objects.check_reference(value, f"config.{where}")
        return value
    if choices is not None and value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
        extra = f" (did you mean '{near[0]}'?)" if near else ""
        more = ("module:object",) if metadata.get("custom") else ()
        allowed = " | ".join(str(c) for c in (*choices, *more))
        raise ConfigError(f"config.{where} = {value!r}: allowed are {allowed}{extra}")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        if not math.isfinite(number):
            raise ConfigError(f"config.{where} = {value!r}: must be a finite number")
        if (low is not None and number < low) or (high is not None and number > high):
            bounds = f"[{'-∞' if low is None else low}, {'∞' if high is None else high}]"
            raise ConfigError(f"config.{where} = {value!r}: must lie in {bounds}")
    return value


def _coerced(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`; an int passes for a float, a list for a tuple, nothing else."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _coerced(value, next(t for t in typing.get_args(hint) if t is not type(None)), where)
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            item = typing.get_args(hint)[0]
            return tuple(_coerced(v, item, where) for v in value)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, hint):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"config.{where} = {value!r}: expected {name}, got {type(value).__name__}")
