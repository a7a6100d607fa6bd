"""Checks that need more than one setting, and choices that were left open."""

import dataclasses
import os

from primia_jax.config.sections import ExperimentConfig
from primia_jax.errors import ConfigError


def settled(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration, consistent as a whole and with its open choices made.

    Raises:
      ConfigError: naming the settings that do not go together.
    """
    fed, data, runtime = config.federated, config.data, config.runtime
    if fed.mode == "federated_secure" and fed.hospitals < 2:
        raise ConfigError(
            "config.federated.hospitals = 1: a secure sum over one hospital hides nothing; take at "
            "least 2, or config.federated.mode = local"
        )
    if fed.batch_norm == "fedbn" and config.model.norm != "batch":
        raise ConfigError(
            "config.federated.batch_norm = 'fedbn' needs config.model.norm = 'batch', not "
            f"{config.model.norm!r}"
        )
    if data.source != "phantom" and not data.path:
        raise ConfigError(f"config.data.source = {data.source!r} needs config.data.path")
    if data.validation_fraction + data.test_fraction >= 1:
        raise ConfigError(
            "config.data.validation_fraction + config.data.test_fraction must stay below 1, not "
            f"{data.validation_fraction + data.test_fraction:g}"
        )
    if runtime.threads == 0:
        parties = 1 if fed.mode == "local" else fed.hospitals
        threads = max(1, len(os.sched_getaffinity(0)) // parties)
        config = dataclasses.replace(config, runtime=dataclasses.replace(runtime, threads=threads))
    return config
