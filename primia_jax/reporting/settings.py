"""The settings of a run beside their defaults and meanings, as rows for the report."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from primia_jax.config.sections import ExperimentConfig


class Setting(NamedTuple):
    """One row: a dotted name, the run's value, the default and what the setting means."""

    name: str
    value: str
    default: str
    doc: str


def settings_table(config: Mapping[str, Any]) -> tuple[list[Setting], list[Setting]]:
    """The settings of nested `config` that differ from their defaults, and all of them.

    A setting without a known default counts as different.
    """
    known = dict(_defaults(ExperimentConfig()))
    rows, changed = [], []
    for name, value in _flat(config):
        default, doc = known.get(name, (None, ""))
        row = Setting(name, _text(value), _text(default) if name in known else "–", doc)
        rows.append(row)
        if name not in known or value != default:
            changed.append(row)
    return changed, rows


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, list(value) if isinstance(value, tuple) else value


def _defaults(section: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, str]]]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _defaults(value, f"{path}{field.name}.")
        else:
            plain = list(value) if isinstance(value, tuple) else value  # as JSON gives it
            yield path + field.name, (plain, field.metadata.get("doc", ""))


def _text(value: Any) -> str:
    return "(empty)" if value == "" else str(value)
