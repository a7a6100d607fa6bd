"""The verbs `load` and `export`: the trained model of a run, for other programs."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Literal

import jax
import numpy as np

import primia_jax
from primia_jax.config import to_plain
from primia_jax.core import storage
from primia_jax.core.arrays import write_tensors
from primia_jax.core.names import user_path
from primia_jax.errors import ConfigError
from primia_jax.federated import checkpoints
from primia_jax.federated.trained_model import TrainedModel, load_trained
from primia_jax.models.torch_import import to_torch
from primia_jax.watch.heartbeat import only_writer
from primia_jax.workdir import EXPORTS, recorded_config

Format = Literal["safetensors", "orbax"]


def load(workdir: str | os.PathLike[str]) -> TrainedModel:
    """The best model of the run in `workdir`, as `evaluate` and `predict` use it.

    After FedBN it has the hospitals' averaged batch norms, not those of one hospital.

    Raises:
      CheckpointError: if no model was trained there, or the run is damaged.
    """
    folder = user_path(workdir)
    checkpoints.check_begun(folder / "checkpoints")
    return load_trained(folder, recorded_config(folder))


def export(workdir: str | os.PathLike[str], kind: Format = "safetensors") -> pathlib.Path:
    """Writes the best model of the run in `workdir` there, for other programs; returns the path.

    An earlier export of that kind is replaced.

    Args:
      workdir: of the training.
      kind: "safetensors" for a file, with torchvision's names and layouts where the network has
        them, else with Flax's; "orbax" for a folder with the tree of Flax's variables. Both have
        the metadata that `metadata` gives.

    Raises:
      CheckpointError: if no model was trained there, or the run is damaged.
      ConfigError: for another kind.
      StorageError: if it cannot be written; the former export is still there.
    """
    if kind not in EXPORTS:
        raise ConfigError(f"an export of kind {kind!r}; take one of {', '.join(EXPORTS)}")
    model = load(workdir)
    folder = user_path(workdir)
    path = folder / EXPORTS[kind]
    with only_writer(folder, "an export"):
        if kind == "safetensors":
            tensors = to_torch(model.config, model.variables)
            facts = metadata(model, "flax" if tensors is None else "torchvision")
            if tensors is None:
                tensors = checkpoints.by_path(model.variables)
            with storage.replacing(path) as partial:
                write_tensors(partial, tensors, facts)
        else:
            _write_orbax(path, model)
    return path


def metadata(model: TrainedModel, names: Literal["torchvision", "flax"]) -> Mapping[str, str]:
    """Facts about an exported model, as texts; those that are no plain words are JSON.

    Args:
      model: the model.
      names: the naming and layout of its tensors.
    """
    return {
        "format": "pt" if names == "torchvision" else "flax",
        "names": names,
        "written_by": f"primia_jax {primia_jax.__version__}",
        "task": model.task_name,
        "class_names": json.dumps(model.class_names),
        "preprocessing": json.dumps(dataclasses.asdict(model.preprocessing)),
        "model": json.dumps(to_plain(model.config)),
        "round": json.dumps(model.round),
    }


def _write_orbax(path: pathlib.Path, model: TrainedModel) -> None:
    from orbax import checkpoint  # its import takes seconds, and only this needs it

    with storage.replacing_folder(path) as partial, checkpoint.StandardCheckpointer() as writer:
        tree = jax.tree.map(np.asarray, model.variables)
        writer.save(partial, tree, force=True, custom_metadata=dict(metadata(model, "flax")))
        writer.wait_until_finished()
        for inner, _, _ in os.walk(partial):
            storage.private_folder(pathlib.Path(inner))
