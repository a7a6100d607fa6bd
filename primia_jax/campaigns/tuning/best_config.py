"""The best options of a search as a configuration file, like those in configs/."""

import dataclasses
import pathlib
import textwrap
import time
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from primia_jax.config import ExperimentConfig
from primia_jax.core.storage import write_text
from primia_jax.reporting import page

_LEFT_OUT = ("name", "tuning")


def write(
    path: pathlib.Path, config: ExperimentConfig, best: FrozenTrial, counts: Mapping[str, int]
) -> None:
    """Writes a configuration for `--config` and `--mode=train`: the options that are not default.

    Args:
      path: of the file.
      config: of the search.
      best: its best trial.
      counts: number of trials by their end.

    Raises:
      StorageError: if it cannot be written.
    """
    total = sum(counts.values())
    story = (
        f"Trial {best.number} of {total}: MCC {best.value:.4f} over all hospitals' validation "
        f"images, in round {best.user_attrs.get('best_round')} of {config.federated.rounds}. It "
        "was chosen as the best of all, so expect a little less; it was not evaluated on test "
        "images."
    )
    environment = page.environment(autoescape=False)
    environment.filters |= {"literal": _literal, "words": _in_docstring}
    environment.keep_trailing_newline = True
    template = environment.get_template("best_config.py.jinja")
    text = template.render(
        name=config.name,
        total=total,
        story=textwrap.fill(story, 100),
        path=path,
        trial=path.parent / "trials" / f"{best.number:04d}",
        written=time.strftime("%Y-%m-%d %H:%M"),
        others=[option for option in _changed(config) if option[0] not in best.params],
        chosen=sorted(best.params.items()),
    )
    write_text(path, text)


def _changed(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The options that are not the default ones, with their dotted names."""
    for field in dataclasses.fields(config):
        name, value = path + field.name, getattr(config, field.name)
        if name in _LEFT_OUT:
            continue
        if dataclasses.is_dataclass(value):
            yield from _changed(value, f"{name}.")
        elif value != field.default:
            yield name, value


def _literal(value: Any) -> str:
    """Python source of a value; strings in double quotes where that is simple."""
    simple = isinstance(value, str) and value.isprintable() and not {'"', "\\"} & set(value)
    return f'"{value}"' if simple else repr(value)


def _in_docstring(value: Any) -> str:
    """One line without anything that would end or change a docstring."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text.replace("\\", "\\\\").replace('"', "'")
