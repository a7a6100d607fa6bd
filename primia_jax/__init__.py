"""Privacy-preserving medical image analysis in JAX.

import primia_jax
result = primia_jax.train(config, workdir)      # a ConfigDict, e.g. from configs/demo.py
scores = primia_jax.evaluate(config, workdir)
predictions = primia_jax.predict(config, workdir, "films/")
done = primia_jax.predict_encrypted(config, workdir, "films/")      # neither side sees the other's
diagnoses = primia_jax.read_predictions(done.folder)                # as the data owner
model = primia_jax.load(workdir)                # probabilities = model(images)
leakage = primia_jax.audit(config, workdir)     # what can be stolen from model updates
best = primia_jax.tune(config, workdir)         # a search, e.g. of configs/tune.py
results = primia_jax.study(config, workdir)     # the paper's tables, e.g. of configs/study.py

Any Flax network: primia_jax.mpc.encrypt(apply_fn, params, example, calibration=images).
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "experiment": ("Result", "evaluate", "predict", "train"),
    "predictions": ("Predictions", "read_predictions"),
    "encrypted": ("EncryptedDiagnosis", "predict_encrypted"),
    "campaigns.audit": ("audit",),
    "exporting": ("export", "load"),
    "federated.trained_model": ("TrainedModel",),
    "judging": ("evaluate_federated",),
    "campaigns.tuning": ("tune",),
    "campaigns.study": ("study",),
}
__all__ = [
    "EncryptedDiagnosis",
    "Predictions",
    "Result",
    "TrainedModel",
    "audit",
    "evaluate",
    "evaluate_federated",
    "export",
    "load",
    "predict",
    "predict_encrypted",
    "read_predictions",
    "study",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """The API, imported on first use: parts of the package need neither JAX nor Ray."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"primia_jax.{module}"), name)
    raise AttributeError(f"module 'primia_jax' has no attribute '{name}'")
