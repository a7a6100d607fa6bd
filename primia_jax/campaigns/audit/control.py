"""Control of the attack: the gradient of one image at an untrained network.

There, in evaluation mode, inverting gradients is known to succeed. Where it does not here, the
attack is broken, and no figure of the audit means anything.

Axis letters: s side of the images.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax import models
from primia_jax.campaigns.audit.attacking import make_attack
from primia_jax.config import AuditConfig, ModelConfig
from primia_jax.inversion import LocalTraining, compare, invert, observe

RECOVERED_DB = 20.0
SIDE = 32
_CLASSES = 3
_STARTS = 3  # a single one fails now and then


def control(
    image: np.ndarray, mean: float, std: float, audit: AuditConfig, seed: int
) -> dict[str, Any]:
    """Attacks one image behind the small CNN; JSON-able, but for the two pictures in it.

    Args:
      image: [s s 1] in [0, 1], brought to 32×32.
      mean: of the pixels of all hospitals together, which is all that the attacker knows of them.
      std: likewise.
      audit: the attack; its `control_steps` are taken, from three starts at least.
      seed: of the network and of the attack.
    """
    original = jax.image.resize(jnp.asarray(image), (SIDE, SIDE, 1), "linear")[None]
    module = models.build(ModelConfig(name="simple"), _CLASSES)
    network_key, attack_key = jax.random.split(jax.random.key(seed))
    variables = models.init(module, network_key, SIDE, 1)
    training = LocalTraining(module, train=False, mean=mean, std=std)
    observed = observe(training, variables, original, jnp.zeros(1, jnp.int32), labels_known=False)
    reconstruction = invert(
        make_attack(audit),
        observed,
        original.shape,
        attack_key,
        steps=audit.control_steps,
        restarts=max(_STARTS, audit.restarts),
    ).images
    psnr = float(compare(original, reconstruction).psnr[0])
    return {
        "psnr": psnr,
        "recovered": psnr >= RECOVERED_DB,
        "needed": RECOVERED_DB,
        "steps": audit.control_steps,
        "original": np.asarray(original[0]),
        "found": reconstruction[0],
    }
