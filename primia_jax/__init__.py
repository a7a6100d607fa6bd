"""Privacy-preserving medical image analysis in JAX.

import primia_jax
result = primia_jax.train(config, workdir)      # a ConfigDict, e.g. from configs/demo.py
scores = primia_jax.evaluate(config, workdir)
found = primia_jax.predict(config, workdir, "films/")
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Predictions", "Result", "evaluate", "predict", "train"]


def __getattr__(name: str) -> Any:
    """The API, imported on first use: parts of the package need neither JAX nor Ray."""
    if name in __all__:
        from primia_jax import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module 'primia_jax' has no attribute '{name}'")
