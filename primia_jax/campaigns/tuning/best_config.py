"""The best settings of a search as a configuration file, like those in configs/."""

import dataclasses
import pathlib
import textwrap
import time
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from primia_jax.config import ExperimentConfig
from primia_jax.core.storage import write_text

_LEFT_OUT = ("name", "tuning")


def write(
    path: pathlib.Path, config: ExperimentConfig, best: FrozenTrial, counts: Mapping[str, int]
) -> None:
    """Writes what `--config` and `--mode=train` take.

    Args:
      path: of the file.
      config: of the search.
      best: its best trial.
      counts: of its trials by what became of them.

    Raises:
      StorageError: if it cannot be written.
    """
    write_text(path, render(path, config, best, counts))


def render(
    path: pathlib.Path, config: ExperimentConfig, best: FrozenTrial, counts: Mapping[str, int]
) -> str:
    """The text of the file: every setting that is not the default one, those of the search last."""
    chosen = best.params
    others = [(name, value) for name, value in _changed(config) if name not in chosen]
    total = sum(counts.values())
    kept = best.user_attrs.get("best_round")
    trial = path.parent / "trials" / f"{best.number:04d}"
    story = (
        f"Trial {best.number} of {total}: MCC {best.value:.4f} over all hospitals' validation "
        f"images, in round {kept} of {config.federated.rounds}. It was chosen as the best of all, "
        "so that expect a little less; it was not judged on test images."
    )
    lines = [
        f'"""The best of {total} trainings of "{_in_docstring(config.name)}".',
        "",
        *textwrap.wrap(story, 100),
        "",
        f"python -m primia_jax.launch --config={_in_docstring(path)} --mode=train \\\\",
        "    --workdir=runs/best",
        "",
        "The model of that trial itself, without training it again:",
        "",
        f"python -m primia_jax.launch --config={_in_docstring(path)} --mode=evaluate \\\\",
        f"    --workdir={_in_docstring(trial)}",
        "",
        f"Written {time.strftime('%Y-%m-%d %H:%M')}.",
        '"""',
        "",
        "from ml_collections import ConfigDict",
        "",
        "from primia_jax.config import ExperimentConfig, to_config_dict",
        "",
        "",
        "def get_config() -> ConfigDict:",
        "    config = to_config_dict(ExperimentConfig())",
        f"    config.name = {_literal(f'{config.name}, best of {total} trials')}",
    ]
    if others:
        lines += ["    # Of the experiment that was searched.", *map(_assignment, others)]
    lines += ["    # Found by the search.", *map(_assignment, sorted(chosen.items()))]
    return "\n".join([*lines, "    return config", ""])


def _changed(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The settings that are not the default ones, with their dotted names."""
    for field in dataclasses.fields(config):
        name, value = path + field.name, getattr(config, field.name)
        if name in _LEFT_OUT:
            continue
        if dataclasses.is_dataclass(value):
            yield from _changed(value, f"{name}.")
        elif value != field.default:
            yield name, value


def _assignment(setting: tuple[str, Any]) -> str:
    return f"    config.{setting[0]} = {_literal(setting[1])}"


def _literal(value: Any) -> str:
    """As Python source; strings in double quotes where that is simple."""
    plain = (
        isinstance(value, str) and '"' not in value and value.isprintable() and "\\" not in value
    )
    return f'"{value}"' if plain else repr(value)


def _in_docstring(value: Any) -> str:
    """On one line, and without what would end or change a docstring."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text.replace("\\", "\\\\").replace('"', "'")
