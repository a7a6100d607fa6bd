"""Public description of a model for an encrypted diagnosis; its owner makes it."""

import dataclasses
import hashlib
import json
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax import models
from primia_jax.config import (
    ExperimentConfig,
    ModelConfig,
    MpcConfig,
    from_config_dict,
    to_plain,
)
from primia_jax.core import objects
from primia_jax.core.storage import read_json, write_json
from primia_jax.data import make_test_plan
from primia_jax.errors import ConfigError, ProtocolError
from primia_jax.federated import local_training
from primia_jax.federated.trained_model import TrainedModel, load_trained
from primia_jax.mpc import inference, scaling
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.mpc.protocols.protocol import Protocol
from primia_jax.tasks import TASKS, Task

FILE = "encrypted.json"  # in the model owner's folder
_DIGEST = "digest"  # in it: of the weights and of all else in the file
_REMARKS = "remarks"  # in it: for the model owner alone, see `inference.calibrated`
_CALIBRATION_IMAGES = 64
_MAX_BYTES = 1 << 20
_MAX_SIZE = 4096  # pixels of a side
_MAX_CLASSES = 4096
_MAX_RANGE = 1e30


@dataclasses.dataclass(frozen=True)
class Description:
    """Public description of a model: its architecture and the ranges of its layers.

    Attributes:
      task: that it is for, see `tasks.TASKS`.
      model: the architecture.
      class_names: of the outputs.
      image_size: side of the images, in pixels.
      mpc: how it runs encrypted.
      ranges: largest magnitudes on the model owner's own images.
      round: of the training, whose model it is.
    """

    task: str
    model: ModelConfig
    class_names: tuple[str, ...]
    image_size: int
    mpc: MpcConfig
    ranges: scaling.Ranges
    round: int

    def _module(self) -> Any:
        config = dataclasses.replace(self.model, convolution="xla")  # whose jaxpr is plain
        return models.build(config, len(self.class_names))

    def make_task(self) -> Task:
        """The task with the model's classes."""
        return TASKS[self.task](self.class_names)

    def apply_fn(self) -> Callable[[Any, jax.Array], jax.Array]:
        """(params, grey images [n s s 1] in [0, 1]) -> logits [n … k]."""
        module, channels = self._module(), self.model.channels

        def apply_fn(params: Any, images: jax.Array) -> jax.Array:
            inputs = local_training.standardise(images, params["statistics"], channels)
            logits: Any = module.apply(params["variables"], inputs, train=False)
            return logits

        return apply_fn

    @property
    def protocol(self) -> Protocol:
        """Protocol by which the parties compute."""
        return PROTOCOLS[self.mpc.protocol]

    def circuit(self) -> Any:
        """The network as all parties know it, for one image at a time."""
        size = self.image_size
        shapes = local_training.template(self._module(), size, self.model.channels)
        number: Any = jax.ShapeDtypeStruct((), np.float32)
        weights: Any = jax.ShapeDtypeStruct((len(self.class_names),), np.float32)
        statistics = local_training.Statistics(number, number, weights)
        example = jax.ShapeDtypeStruct((1, size, size, 1), np.float32)
        params = {"variables": shapes, "statistics": statistics}
        plan = inference.lower_network(self.apply_fn(), params, example, self.mpc)
        _check_lengths(plan, self.ranges)
        return self.protocol.circuit(plan, self.ranges, self.mpc)

    def to_plain(self) -> dict[str, Any]:
        """The description as JSON holds it."""
        plain = to_plain(dataclasses.replace(self, ranges=None))  # type: ignore[arg-type]
        return {
            **plain,
            "class_names": list(self.class_names),
            "model": {**plain["model"], "pretrained": ""},  # a path of the model owner's
            "ranges": {name: _listed(value) for name, value in self.ranges._asdict().items()},
        }

    def message(self) -> dict[str, np.ndarray]:
        """The description as the model owner sends it: JSON, uint8 [n]."""
        return {"description": np.frombuffer(json.dumps(self.to_plain()).encode(), np.uint8)}


def received(message: Any, mpc: MpcConfig, network: str = "") -> Description:
    """The description in a message of the model owner.

    Args:
      message: see `Description.message`.
      mpc: how this party computes; the model owner must say the same.
      network: `config.model.name` of this party. A network of somebody's own module must be the
        one named here: a description has nothing else imported.

    Raises:
      ProtocolError: if it is no description, or of another way to compute.
    """
    try:
        content = np.asarray(message["description"], np.uint8)
        if content.ndim != 1 or content.size > _MAX_BYTES:
            raise ValueError(f"an array of shape {content.shape}")
        description = _from_plain(json.loads(content.tobytes()))
    except (ConfigError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ProtocolError(f"the model owner's description cannot be used: {error}") from None
    if description.mpc != mpc:
        raise ProtocolError(
            "the model owner describes a computation by another config.mpc than this party's"
        )
    name = description.model.name
    if objects.is_reference(name) and name != network:
        raise ProtocolError(
            f"the model owner describes its own network {name!r}, and config.model.name = "
            f"{network!r} of this party names another; set it to that if you trust the module"
        )
    return description


def _from_plain(plain: Mapping[str, Any]) -> Description:
    names, size = plain["class_names"], plain["image_size"]
    if not all(type(name) is str for name in names) or not 2 <= len(names) <= _MAX_CLASSES:
        raise ValueError("its class names are no list of texts")
    if type(size) is not int or not 1 <= size <= _MAX_SIZE or type(plain["round"]) is not int:
        raise ValueError("its image size and round must be whole numbers")
    if plain["task"] not in TASKS:
        raise ValueError(f"its task {plain['task']!r} is not known here")
    return Description(
        task=plain["task"],
        model=from_config_dict(ModelConfig, plain["model"]),
        class_names=tuple(names),
        image_size=size,
        mpc=from_config_dict(MpcConfig, plain["mpc"]),
        ranges=_ranges(plain["ranges"]),
        round=plain["round"],
    )


def _ranges(plain: Mapping[str, Any]) -> scaling.Ranges:
    """The ranges in a description.

    Raises:
      ValueError, TypeError: unless they are numbers, finite and not negative, and lists of such.
    """
    kept: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in plain.items()}
    ranges = scaling.Ranges(**kept)
    for name, value in ranges._asdict().items():
        if isinstance(value, tuple) == (name == "image"):
            raise ValueError(f"its ranges have no usable '{name}'")
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) not in (int, float) or not 0 <= number < _MAX_RANGE:
                raise ValueError("its ranges must be numbers from 0 to 10^30")
    if not all(type(bits) is int for bits in ranges.headroom):
        raise ValueError("its headroom must be whole numbers")
    return ranges


def _check_lengths(plan: Any, ranges: scaling.Ranges) -> None:
    """ProtocolError unless `ranges` has an entry for each layer of the plan."""
    gates, outputs = len(plan.gates), len(plan.outputs)
    lengths = {
        "gates": (gates,), "spreads": (gates,), "products": (len(plan.products()),),
        "outputs": (outputs,), "headroom": (0, gates + outputs),
    }  # fmt: skip
    for name, allowed in lengths.items():
        if len(getattr(ranges, name)) not in allowed:
            raise ProtocolError(f"the description's ranges of {name} are not those of its network")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def params_of(model: TrainedModel) -> Any:
    """The parameters that `Description.apply_fn` takes."""
    statistics = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), model.statistics)
    return {"variables": jax.tree.map(np.asarray, model.variables), "statistics": statistics}


def describe(
    config: ExperimentConfig, workdir: pathlib.Path, model: TrainedModel | None = None
) -> Description:
    """The model of `workdir`, calibrated on its owner's test images. The model owner calls it.

    Kept in encrypted.json among the model owner's checkpoints, and read from there the next time,
    unless the weights or the file have changed since. Warns (`PrecisionWarning`) each time if the
    encrypted results differ from the model's own; how far stays in the file.

    Args:
      config: of the experiment.
      workdir: of the training.
      model: the model in it; read from there by default.

    Raises:
      CheckpointError: if there is no model, or another one than `config.model`, or if
        encrypted.json is no JSON object.
      ConfigError: if the model owner has no images to calibrate with.
    """
    model = model or load_trained(workdir, config)
    path = workdir / "checkpoints" / FILE
    draft = Description(
        config.task, model.config, model.class_names, model.image_size, config.mpc,
        scaling.Ranges(1.0, (), (), (), ()), model.round,
    )  # fmt: skip
    params = params_of(model)
    if path.exists():
        stored = read_json(path)
        digest = stored.pop(_DIGEST, "")
        if digest == _digest(params, stored):  # written here, for these weights
            ranges, remarks = stored["ranges"], stored.pop(_REMARKS, None)
            if remarks is not None and stored == {**draft.to_plain(), "ranges": ranges}:
                _warn(remarks, path)
                return dataclasses.replace(draft, ranges=_ranges(ranges))
    plan = make_test_plan(config)
    if not len(plan.test):
        raise ConfigError(
            "the layers' ranges are found on the model owner's test images, and there are none: "
            "set config.data.test_path or test_fraction"
        )
    data = plan.load_test(model.image_size)
    chosen = np.linspace(0, len(data) - 1, min(len(data), _CALIBRATION_IMAGES)).astype(int)
    images = np.asarray(local_training.to_unit(jnp.asarray(data.images[chosen])))
    ranges, remarks = inference.calibrated(
        draft.apply_fn(), params, images, config.mpc, image_range=1.0
    )
    description = dataclasses.replace(draft, ranges=ranges)
    plain = {**description.to_plain(), _REMARKS: remarks}
    write_json(path, {**plain, _DIGEST: _digest(params, plain)})
    _warn(remarks, path)
    return description


def _warn(remarks: list[str], path: pathlib.Path) -> None:
    """Tells the operator that there are remarks; what they say stays in the owner's folder."""
    if remarks:
        warnings.warn(
            f"encrypted results of this model may be wrong or coarse: see {_REMARKS} in {path}",
            inference.PrecisionWarning,
            stacklevel=3,
        )


def _digest(params: Any, plain: Any) -> str:
    """SHA-256 of the weights and the description of them; it stays with the model owner."""
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
