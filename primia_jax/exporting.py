"""The verbs `load` and `export`: the trained model of a run, for other programs."""

import os

from primia_jax.core.names import user_path
from primia_jax.federated import checkpoints
from primia_jax.federated.trained_model import TrainedModel, load_trained
from primia_jax.workdir import recorded_config


def load(workdir: str | os.PathLike[str]) -> TrainedModel:
    """The best model of the run in `workdir`, as `evaluate` and `predict` use it.

    After FedBN it has the hospitals' averaged batch norms, not those of one hospital.

    Raises:
      CheckpointError: if no model was trained there, or the run is damaged.
    """
    folder = user_path(workdir)
    checkpoints.check_begun(folder / "checkpoints")
    return load_trained(folder, recorded_config(folder))
