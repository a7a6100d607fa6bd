"""Clipping and noise on what a hospital gives away, the plainest of defences.

Each round's change of the weights is shortened to `config.federated.update_clip` and given Gaussian
noise of `update_noise` times that. Nothing is accounted for: this makes attacks on an update
harder, and proves no privacy.

Axis letters: p_j elements of the j-th leaf.
"""

from collections.abc import Sequence

import numpy as np

from primia_jax.config import FederatedConfig


def perturbed(
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    config: FederatedConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, ...]:
    """The weights [p_j] that go out in place of `after`; these very ones without a clip.

    Args:
      before: [p_j] weights at the beginning of the round.
      after: [p_j] after the local steps.
      config: how much.
      rng: of the noise. Whoever knows its seed can take the noise off again.
    """
    if not config.update_clip:
        return tuple(after)
    changes = [np.asarray(new, np.float64) - old for old, new in zip(before, after, strict=True)]
    length = np.sqrt(sum(float(change @ change) for change in changes))
    scale = min(1.0, config.update_clip / length) if length else 1.0
    deviation = config.update_noise * config.update_clip
    return tuple(
        (old + scale * change + deviation * rng.standard_normal(len(old))).astype(np.float32)
        for old, change in zip(before, changes, strict=True)
    )
