"""Attacks all chosen updates of a run, and keeps what was found so that it need not be done again.

Axis letters: n images of a setting, s their side, u updates.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from primia_jax.campaigns.audit.views import Case, Views, decoys, gallery_size
from primia_jax.config import AuditConfig, ExperimentConfig, to_plain
from primia_jax.core.arrays import read_archive
from primia_jax.core.storage import replacing
from primia_jax.errors import CheckpointError
from primia_jax.inversion import (
    Attack,
    DeepLeakage,
    InvertingGradients,
    compare,
    deep_leakage,
    identify,
    invert,
    inverting_gradients,
)

Progress = Callable[[str, int, int], None]  # (setting, updates attacked, updates)
_PURPOSE = 17  # folded into the seed, so that no other keys are these


@dataclasses.dataclass(frozen=True)
class Found:
    """Reconstructions by the attacks on one run, image by image, beside the truth."""

    originals: np.ndarray  # [n s s 1] float32
    images: np.ndarray  # [n s s 1] float32; images[i] is matched with originals[i]
    mse: np.ndarray  # [n]
    psnr: np.ndarray  # [n] dB
    ssim: np.ndarray  # [n]; NaN for images below 11 pixels
    ranks: np.ndarray  # [n] of the true image in its gallery; see `inversion.identify`
    gallery: np.ndarray  # scalar: images in each gallery
    losses: np.ndarray  # [u] matching losses
    labels_right: np.ndarray  # [n] bool: whether the label was known or inferred rightly
    rounds: np.ndarray  # [n]
    updates: np.ndarray  # [n] number of the update that each image stands behind
    hospitals: np.ndarray  # [n] str, whose it is
    records: np.ndarray  # [n] which of that hospital's images

    def write(self, path: pathlib.Path, fingerprint: str) -> None:
        """Keeps it, with what it depends on.

        Raises:
          StorageError: if it cannot be written.
        """
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez(file, fingerprint=np.asarray(fingerprint), **vars(self))

    @classmethod
    def read(cls, path: pathlib.Path, fingerprint: str) -> "Found | None":
        """Reads the file of `write`, if it exists and has the same dependencies; else None."""
        try:
            arrays = read_archive(path)
        except CheckpointError:
            return None
        known = {field.name for field in dataclasses.fields(cls)}
        if str(arrays.pop("fingerprint", "")) != fingerprint or set(arrays) != known:
            return None
        return cls(**arrays)


def make_attack(audit: AuditConfig) -> Attack:
    """The attack that the configuration names."""
    if audit.attack == "deep_leakage":
        return deep_leakage(DeepLeakage(labels="inferred"))
    return inverting_gradients(
        InvertingGradients(learning_rate=audit.learning_rate, total_variation=audit.total_variation)
    )


def fingerprint(run: Any, audit: AuditConfig, wanted: int, seed: int) -> str:
    """Everything that the findings of a run depend on, as text.

    Args:
      run: the run's own settings, nested.
      audit: the threat model.
      wanted: images attacked, at least.
      seed: of the attack.
    """
    unrelated = {"settings", "defences", "reference", "overrides", "images", "defence_images"}
    unrelated |= {"features", "splits", "bootstrap", "control_steps"}
    attack = {key: value for key, value in to_plain(audit).items() if key not in unrelated}
    return json.dumps([run, attack, wanted, seed], sort_keys=True)


def attack_all(
    name: str,
    config: ExperimentConfig,
    views: Views,
    audit: AuditConfig,
    seed: int,
    progress: Progress,
) -> Found:
    """Attacks every update, and compares what is found with the truth.

    Args:
      name: of the setting, for `progress`.
      config: of the run.
      views: its updates.
      audit: the attack.
      seed: of its starts.
      progress: see `Progress`.
    """
    attack, cases = make_attack(audit), views.cases
    key = jax.random.fold_in(jax.random.key(seed), _PURPOSE)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _PURPOSE])))
    size = gallery_size(views, audit.gallery)
    parts: list[dict[str, Any]] = []
    progress(name, 0, len(cases))
    for u, case in enumerate(cases):
        result = invert(
            attack,
            case.observed,
            case.images.shape,
            jax.random.fold_in(key, u),
            steps=audit.steps,
            restarts=audit.restarts,
        )
        similar = compare(case.images, result.images)
        reconstructions = result.images[similar.order]
        ranks, owners = np.zeros(len(reconstructions)), np.asarray(case.hospitals)
        for hospital in dict.fromkeys(case.hospitals):
            others = decoys(views, config, case, hospital, size - 1, rng)
            own = owners == hospital
            ranks[own] = identify(reconstructions, case.images[own], others)
        parts.append(
            {
                "originals": case.images,
                "images": reconstructions,
                "mse": similar.mse,
                "psnr": similar.psnr,
                "ssim": similar.ssim,
                "ranks": ranks,
                "losses": np.asarray([result.loss]),
                "labels_right": _right(case, result.targets.argmax(-1)),
                "rounds": np.full(len(reconstructions), case.round),
                "updates": np.full(len(reconstructions), u),
                "hospitals": owners,
                "records": case.records,
            }
        )
        progress(name, u + 1, len(cases))
    together = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Found(gallery=np.asarray(size), **together)


def _right(case: Case, assumed: np.ndarray) -> np.ndarray:
    """For each image whether its label is among those assumed, each of which counts once."""
    left = list(assumed)
    right = np.zeros(len(case.labels), bool)
    for i, label in enumerate(case.labels):
        if label in left:
            left.remove(label)
            right[i] = True
    return right
