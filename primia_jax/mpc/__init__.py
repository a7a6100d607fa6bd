"""Secret sharing, its arithmetic, and encrypted inference built from it.

from primia_jax import mpc
program = mpc.encrypt(apply_fn, params, example, calibration=images)
logits, trace = program.run(images, latency_s=0.01)

Words have up to 64 bits, which JAX keeps only inside `ring.x64()`; the global flag would turn the
float32 defaults of training into float64.
"""

from typing import Any

__all__ = [
    "OutOfRangeWarning",
    "Overflow",
    "PrecisionWarning",
    "SecureProgram",
    "calibrate",
    "encrypt",
]


def __getattr__(name: str) -> Any:
    """Encrypted inference, imported on first use: secure aggregation needs only the leaves."""
    if name in __all__:
        from primia_jax.mpc import inference

        return getattr(inference, name)
    raise AttributeError(f"module 'primia_jax.mpc' has no attribute '{name}'")
