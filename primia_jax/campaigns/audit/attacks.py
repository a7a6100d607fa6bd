"""Attacks all chosen updates of a run, and keeps the reconstructions for later audits.

Axis letters: n images of a scenario, s their side, u updates.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax import models
from primia_jax.campaigns.audit.views import Case, Views, decoys, gallery_size
from primia_jax.campaigns.engine import Progress
from primia_jax.config import AuditConfig, ExperimentConfig, ModelConfig, to_plain
from primia_jax.core.arrays import read_archive
from primia_jax.core.storage import replacing
from primia_jax.errors import CheckpointError
from primia_jax.inversion import (
    Attack,
    DeepLeakage,
    InvertingGradients,
    LocalTraining,
    compare,
    deep_leakage,
    identify,
    invert,
    inverting_gradients,
    observe,
)

RECOVERED_DB = 20.0
_PURPOSE = 17  # folded into the seed, so that no other keys are these
_CONTROL_SIDE, _CONTROL_CLASSES, _CONTROL_STARTS = 32, 3, 3  # a single start fails now and then
# Options of an audit that change no reconstruction.
_UNRELATED = frozenset(
    ("settings", "defences", "reference", "overrides", "images", "defence_images",
     "features", "splits", "bootstrap", "control_steps")
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reconstructions:
    """The images that the attacks on one run reconstructed, beside the true ones."""

    originals: np.ndarray  # [n s s 1] float32
    images: np.ndarray  # [n s s 1] float32; images[i] is matched with originals[i]
    mse: np.ndarray  # [n]
    psnr: np.ndarray  # [n] dB
    ssim: np.ndarray  # [n]; NaN for images below 11 pixels
    ranks: np.ndarray  # [n] of the true image in its gallery; see `inversion.identify`
    gallery: np.ndarray  # scalar: images in each gallery
    losses: np.ndarray  # [u] matching losses
    labels_right: np.ndarray  # [n] bool: whether the label was known or inferred correctly
    rounds: np.ndarray  # [n]
    updates: np.ndarray  # [n] number of the update that each image stands behind
    hospitals: np.ndarray  # [n] str, whose it is
    records: np.ndarray  # [n] which of that hospital's images

    def write(self, path: pathlib.Path, fingerprint: str) -> None:
        """Keeps them, with everything that they depend on.

        Raises:
          StorageError: if they cannot be written.
        """
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez(file, fingerprint=np.asarray(fingerprint), **vars(self))

    @classmethod
    def read(cls, path: pathlib.Path, fingerprint: str) -> "Reconstructions | None":
        """Those of `write`, if they are there and depend on the very same things."""
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
    """Everything that the reconstructions of a run depend on, as text.

    Args:
      run: the run's own options, nested.
      audit: the threat model.
      wanted: images attacked, at least.
      seed: of the attack.
    """
    attack = {key: value for key, value in to_plain(audit).items() if key not in _UNRELATED}
    return json.dumps([run, attack, wanted, seed], sort_keys=True)


def attack_all(
    name: str,
    config: ExperimentConfig,
    views: Views,
    audit: AuditConfig,
    seed: int,
    progress: Progress,
) -> Reconstructions:
    """Attacks every update, and compares the reconstructions with the truth.

    Args:
      name: of the scenario, for `progress`.
      config: of the run.
      views: its updates.
      audit: the attack.
      seed: of its starts.
      progress: called with the name, the updates attacked, and of how many.
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
        images = result.images[similar.order]
        ranks, owners = np.zeros(len(images)), np.asarray(case.hospitals)
        for hospital in dict.fromkeys(case.hospitals):
            others = decoys(views, config, case, hospital, size - 1, rng)
            mine = owners == hospital
            ranks[mine] = identify(images, case.images[mine], others)
        parts.append(
            {
                "originals": case.images,
                "images": images,
                "mse": similar.mse,
                "psnr": similar.psnr,
                "ssim": similar.ssim,
                "ranks": ranks,
                "losses": np.asarray([result.loss]),
                "labels_right": _correct(case, result.targets.argmax(-1)),
                "rounds": np.full(len(images), case.round),
                "updates": np.full(len(images), u),
                "hospitals": owners,
                "records": case.records,
            }
        )
        progress(name, u + 1, len(cases))
    together = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Reconstructions(gallery=np.asarray(size), **together)


def _correct(case: Case, assumed: np.ndarray) -> np.ndarray:
    """For each image whether its label is among those assumed, each of which counts once."""
    left = list(assumed)
    correct = np.zeros(len(case.labels), bool)
    for i, label in enumerate(case.labels):
        if label in left:
            left.remove(label)
            correct[i] = True
    return correct


def control(
    image: np.ndarray, mean: float, std: float, audit: AuditConfig, seed: int
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Attacks the gradient of one image at an untrained network, where the attack must succeed.

    In evaluation mode inverting gradients is known to recover the image there. If it does not, the
    attack is broken, and no figure of the audit means anything.

    Args:
      image: [s s 1] in [0, 1], brought to 32×32.
      mean: of the pixels of all hospitals together, which is all that the attacker knows of them.
      std: likewise.
      audit: the attack; its `control_steps` are taken, from three starts at least.
      seed: of the network and of the attack.

    Returns:
      a JSON-able result, the original and its reconstruction, both [32 32 1].
    """
    shape = (_CONTROL_SIDE, _CONTROL_SIDE, 1)
    original = jax.image.resize(jnp.asarray(image), shape, "linear")[None]
    module = models.build(ModelConfig(name="simple"), _CONTROL_CLASSES)
    network_key, attack_key = jax.random.split(jax.random.key(seed))
    variables = models.init(module, network_key, _CONTROL_SIDE, 1)
    training = LocalTraining(module, train=False, mean=mean, std=std)
    observed = observe(training, variables, original, jnp.zeros(1, jnp.int32), labels_known=False)
    images = invert(
        make_attack(audit),
        observed,
        original.shape,
        attack_key,
        steps=audit.control_steps,
        restarts=max(_CONTROL_STARTS, audit.restarts),
    ).images
    psnr = float(compare(original, images).psnr[0])
    result = {
        "psnr": psnr,
        "recovered": psnr >= RECOVERED_DB,
        "needed": RECOVERED_DB,
        "steps": audit.control_steps,
    }
    return result, np.asarray(original[0]), images[0]
