"""The settings that are compared: a name, and what its run does otherwise than the configuration.

A setting is written "NAME: KEY=VALUE KEY=VALUE"; anything that can be configured can be compared.
"""

import ast
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from primia_jax.config import AuditConfig, ExperimentConfig, from_config_dict, resolved, to_plain
from primia_jax.errors import ConfigError

_WORDS = {"true": True, "false": False}


class Setting(NamedTuple):
    """One row of the audit's tables."""

    name: str
    overrides: tuple[str, ...]  # "KEY=VALUE"
    images: int  # attacked, at least
    is_defence: bool


class Run(NamedTuple):
    """A run that is attacked."""

    setting: Setting
    folder: pathlib.Path
    config: ExperimentConfig
    is_own: bool = False  # to be trained by the audit


def parse(audit: AuditConfig) -> tuple[Setting, ...]:
    """All settings of the configuration, those of `settings` first.

    Raises:
      ConfigError: for one that cannot be read, a name given twice, or a reference that is none.
    """
    settings = [_parse(text, "settings", audit.images, False) for text in audit.settings]
    settings += [_parse(text, "defences", audit.defence_images, True) for text in audit.defences]
    names = [setting.name for setting in settings]
    if not names:
        raise ConfigError("config.audit.settings is empty: name at least one run to attack")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"config.audit: two settings are named {name!r}")
    if audit.defences and audit.reference not in names:
        raise ConfigError(
            f"config.audit.reference = {audit.reference!r} is none of {', '.join(names)}"
        )
    return tuple(settings)


def _parse(text: str, where: str, images: int, is_defence: bool) -> Setting:
    name, colon, rest = text.partition(":")
    name, words = name.strip(), tuple(rest.split())
    if not colon or not name or "/" in name or name.startswith("."):
        raise ConfigError(
            f"config.audit.{where}: {text!r} is not of the form 'NAME: KEY=VALUE KEY=VALUE'"
        )
    for word in words:
        _split(word, f"config.audit.{where}, {name}")
    return Setting(name, words, images, is_defence)


def overridden(config: ExperimentConfig, overrides: Sequence[str], where: str) -> ExperimentConfig:
    """`config` with settings changed, checked as at the door.

    Args:
      config: of the experiment.
      overrides: "KEY=VALUE", the key being dotted, such as "training.batch_size".
      where: what the overrides stand in, for messages.

    Raises:
      ConfigError: for a key that there is not, or a value that it does not take.
    """
    plain = to_plain(config)
    for word in overrides:
        key, value = _split(word, where)
        *path, last = key.split(".")
        section = plain
        for part in path:
            section = section.get(part)
            if not isinstance(section, dict):
                raise ConfigError(f"{where}: there is no config.{key}")
        section[last] = value
    # Threads were chosen for the parties of `config`; runs of other modes have others.
    return resolved(from_config_dict(ExperimentConfig, plain))


def _split(word: str, where: str) -> tuple[str, Any]:
    key, sign, text = word.partition("=")
    if not sign or not key:
        raise ConfigError(f"{where}: {word!r} is not of the form KEY=VALUE")
    if text.lower() in _WORDS:
        return key, _WORDS[text.lower()]
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return key, text


def run_config(config: ExperimentConfig, setting: Setting) -> ExperimentConfig:
    """The configuration of the run that `setting` asks for, which records its updates.

    In mode `local` a step takes the batches of all hospitals together, unless the setting names
    `training.batch_size`: so it is of as many images as a round of one step elsewhere.
    """
    requested = overridden(config, setting.overrides, f"config.audit, {setting.name}")
    training = requested.training
    named = any(word.partition("=")[0] == "training.batch_size" for word in setting.overrides)
    if requested.federated.mode == "local" and not named:
        pooled = training.batch_size * requested.federated.hospitals
        training = dataclasses.replace(training, batch_size=pooled)
    return dataclasses.replace(
        requested,
        name=f"{config.name}: {setting.name}",
        training=training,
        federated=dataclasses.replace(requested.federated, record_updates=True),
        audit=AuditConfig(),  # how a run is attacked is not of the run
    )
