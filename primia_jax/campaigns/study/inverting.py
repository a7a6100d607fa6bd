"""The study's table of inversions, made by the audit."""

import pathlib
from collections.abc import Callable
from typing import Any

from primia_jax.campaigns import audit as leakage
from primia_jax.config import ExperimentConfig

Progress = Callable[[str, int, int], None]  # (what, done, of how many)


def attack(
    config: ExperimentConfig, folder: pathlib.Path, resume: bool, progress: Progress
) -> dict[str, Any]:
    """Images recovered from the updates of each mode: see `leakage.inversion_table`.

    The audit trains short runs of its own for this, as `config.audit` says; it says so in "note".
    Paths of "panels" are relative to `folder`.
    """
    return leakage.inversion_table(config, folder, resume=resume, progress=progress)
