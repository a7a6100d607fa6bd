"""Checks that need more than one setting, and choices that were left open."""

import dataclasses
import os
from typing import Any

from primia_jax.config.sections import ExperimentConfig
from primia_jax.core import objects
from primia_jax.core.names import user_path
from primia_jax.errors import ConfigError

_GROUP_NORM = (
    "config.model.norm = 'group' in place of 'batch': batch norm mixes the images of a batch, and "
    "no differential privacy could be proven"
)


def remarks(config: ExperimentConfig) -> tuple[str, ...]:
    """Lines for the user on what `resolved` will change in `config`."""
    turned = config.privacy.mode != "none" and config.model.norm == "batch"
    return (_GROUP_NORM,) if turned else ()


def resolved(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration, consistent as a whole and with its open choices made.

    Raises:
      ConfigError: naming the settings that do not go together.
    """
    config = _with_homes(_with_masks(config))
    fed, data, runtime = config.federated, config.data, config.runtime
    if objects.is_reference(config.model.name) and config.model.pretrained:
        raise ConfigError(
            "config.model.pretrained: torchvision's names fit the networks of this package, not "
            f"{config.model.name!r}; leave it empty"
        )
    if objects.is_reference(config.training.loss) and config.training.label_smoothing:
        raise ConfigError(
            f"config.training.label_smoothing = {config.training.label_smoothing:g} belongs to the "
            "task's own loss; set it to 0, and smooth the targets in config.training.loss = "
            f"{config.training.loss!r}"
        )
    if fed.mode == "federated_secure":
        _check_participants(fed.hospitals, config.secure_aggregation.min_participants)
    if fed.batch_norm == "fedbn" and config.model.norm != "batch":
        raise ConfigError(
            "config.federated.batch_norm = 'fedbn' needs config.model.norm = 'batch', not "
            f"{config.model.norm!r}"
        )
    if fed.update_noise and not fed.update_clip:
        raise ConfigError(
            f"config.federated.update_noise = {fed.update_noise:g} is relative to "
            "config.federated.update_clip, which is 0: set both"
        )
    if config.runtime.round_deadline_s and config.runtime.driver == "local":
        raise ConfigError(
            "config.runtime.round_deadline_s needs config.runtime.driver = 'ray': in one process "
            "nobody can be ended"
        )
    if runtime.hospital_actors > fed.hospitals:
        raise ConfigError(
            f"config.runtime.hospital_actors = {runtime.hospital_actors}: there are only "
            f"{fed.hospitals} hospitals to share them (config.federated.hospitals)"
        )
    if runtime.hospital_actors and "{site}" in runtime.hospital_resource:
        raise ConfigError(
            "config.runtime.hospital_resource names each hospital's own node, and "
            f"config.runtime.hospital_actors = {runtime.hospital_actors} lets several share one: "
            "set one of them"
        )
    secure = fed.mode == "federated_secure"
    if secure and config.secure_aggregation.word_bits == 32 and fed.optimizer_state == "average":
        raise ConfigError(
            "config.secure_aggregation.word_bits = 32 is too coarse for Adam's second moments: set "
            "config.federated.optimizer_state to keep or reset, or word_bits to 64"
        )
    if fed.mode == "local" and fed.participation < 1:
        raise ConfigError(
            f"config.federated.participation = {fed.participation:g} needs hospitals to draw from; "
            "mode 'local' has none"
        )
    if data.source != "phantom" and not data.path and not data.test_path:
        raise ConfigError(f"config.data.source = {data.source!r} needs config.data.path")
    if data.validation_fraction + data.test_fraction >= 1:
        raise ConfigError(
            "config.data.validation_fraction + config.data.test_fraction must stay below 1, not "
            f"{data.validation_fraction + data.test_fraction:g}"
        )
    if config.privacy.unit == "patient" and config.privacy.mode != "record":
        raise ConfigError(
            "config.privacy.unit = 'patient' says what config.privacy.mode = 'record' protects; "
            f"with mode {config.privacy.mode!r} leave it at 'image', or set mode to 'record'"
        )
    if config.privacy.mode != "none":
        config = _settled_privacy(config)
    if runtime.threads == 0:
        parties = 1 if fed.mode == "local" else runtime.hospital_actors or fed.hospitals
        threads = max(1, len(os.sched_getaffinity(0)) // parties)
        config = dataclasses.replace(config, runtime=dataclasses.replace(runtime, threads=threads))
    return config


def _with_masks(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration that reads what its task needs.

    Raises:
      ConfigError: if the network's outputs are not those of the task.
    """
    segments = config.task == "segmentation"
    custom = objects.is_reference(config.model.name)  # whose outputs its party checks
    if not custom and segments != (config.model.name == "unet"):
        better = "'unet'" if segments else "another, or config.task to 'segmentation'"
        raise ConfigError(
            f"config.model.name = {config.model.name!r} does not fit config.task = "
            f"{config.task!r}: set it to {better}"
        )
    if not segments:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, masks=True))


def _check_participants(n_hospitals: int, min_participants: int) -> None:
    """Refuses secure sums over so few hospitals that single updates can be learnt."""
    if n_hospitals < 2:
        raise ConfigError(
            f"config.federated.hospitals = {n_hospitals}: a secure sum over one hospital hides "
            "nothing; take at least 3, or config.federated.mode = local"
        )
    if min_participants == 1:
        raise ConfigError(
            "config.secure_aggregation.min_participants = 1: a secure sum over one hospital hides "
            "nothing; take at least 2"
        )
    if n_hospitals == 2 and not min_participants:
        raise ConfigError(
            "config.federated.hospitals = 2: of a secure sum over two hospitals each learns the "
            "other's update up to a scalar; take at least 3, or accept that by "
            "config.secure_aggregation.min_participants = 2"
        )
    if n_hospitals < min_participants:
        raise ConfigError(
            f"config.secure_aggregation.min_participants = {min_participants}: there are only "
            f"{n_hospitals} hospitals (config.federated.hospitals)"
        )


def _with_homes(section: Any) -> Any:
    """`section` and those in it with `~` expanded in their paths."""
    changes = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _with_homes(value)
        elif field.metadata.get("is_path") and value.startswith("~"):
            changes[field.name] = str(user_path(value))
    return dataclasses.replace(section, **changes)


def _settled_privacy(config: ExperimentConfig) -> ExperimentConfig:
    """`config` with group norm for batch norm; refuses what no guarantee could be given for."""
    fed, mode = config.federated, config.privacy.mode
    refused = (
        (fed.early_stopping.enabled, "federated.early_stopping.enabled", "tells of single images"),
        (fed.update_clip > 0, "federated.update_clip", "would clip a second time"),
        (fed.batch_norm == "fedbn", "federated.batch_norm = fedbn", "needs batch norm"),
        (
            mode == "record" and config.augmentation.mixup_p > 0,
            "augmentation.mixup_p",
            "mixes images, whose gradients cannot be clipped one by one then",
        ),
        (
            mode == "client" and fed.optimizer_state == "average",
            "federated.optimizer_state = average",
            "sends out more than the noised update",
        ),
    )
    for is_set, name, why in refused:
        if is_set:
            raise ConfigError(
                f"config.{name} does not go with config.privacy.mode = {mode!r}: it {why}; leave "
                "one of the two out"
            )
    if mode == "client":
        if fed.mode != "federated_secure":
            raise ConfigError(
                "config.privacy.mode = 'client' noises the secure sum: it needs "
                f"config.federated.mode = 'federated_secure', not {fed.mode!r}"
            )
        if config.privacy.missing_hospitals >= fed.hospitals:
            raise ConfigError(
                f"config.privacy.missing_hospitals = {config.privacy.missing_hospitals}: of "
                f"{fed.hospitals} hospitals none would be left to add noise"
            )
    if config.model.norm != "batch":
        return config
    if config.model.pretrained:
        raise ConfigError(
            f"config.model.norm = 'batch' does not go with config.privacy.mode = {mode!r}; take "
            "config.model.norm = 'frozen', which keeps the pretrained moments, or 'group'"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, norm="group"))
