"""Diagnosis without showing: the model's owner sees no image, the images' owner no model.

Three parties, each in a Ray actor of its own (or all in this process, with virtual clocks): the
data owner reads the images, the model owner reads the checkpoint, the crypto provider holds
neither. See `primia_jax.mpc.protocols.fss` for what each learns.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from primia_jax import models
from primia_jax.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    MpcConfig,
    to_plain,
)
from primia_jax.core.storage import read_json, write_json
from primia_jax.data import make_test_plan, read_inputs
from primia_jax.errors import ConfigError
from primia_jax.evaluation.timeline import plot_timeline
from primia_jax.experiment import checked, open_driver
from primia_jax.federated import local_training
from primia_jax.federated.trained_model import TrainedModel, load_trained
from primia_jax.mpc import inference, scaling
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.mpc.protocols.protocol import Protocol
from primia_jax.predictions import Predictions
from primia_jax.runtime import Locally, Steps, Trace

DESCRIPTION = "encrypted.json"  # in the workdir: what all parties may know of the model
_CALIBRATION_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class Description:
    """What all parties may know of a model: its architecture and the ranges of its layers.

    Attributes:
      model: the architecture.
      class_names: of the outputs.
      image_size: side of the images, in pixels.
      mpc: how it runs encrypted.
      ranges: largest magnitudes that the model owner saw on its own images.
      round: of the training, whose model it is.
    """

    model: ModelConfig
    class_names: tuple[str, ...]
    image_size: int
    mpc: MpcConfig
    ranges: scaling.Ranges
    round: int

    def _module(self) -> Any:
        config = dataclasses.replace(self.model, convolution="xla")  # whose jaxpr is plain
        return models.build(config, len(self.class_names))

    def apply_fn(self) -> Callable[[Any, jax.Array], jax.Array]:
        """(params, grey images [n s s 1] in [0, 1]) -> logits [n k]."""
        module, channels = self._module(), self.model.channels

        def apply_fn(params: Any, images: jax.Array) -> jax.Array:
            inputs = local_training.standardise(images, params["statistics"], channels)
            logits: Any = module.apply(params["variables"], inputs, train=False)
            return logits

        return apply_fn

    @property
    def protocol(self) -> Protocol:
        """How the parties compute."""
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
        return self.protocol.circuit(plan, self.ranges, self.mpc)


def params_of(model: TrainedModel) -> Any:
    """What `Description.apply_fn` takes as parameters."""
    statistics = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), model.statistics)
    return {"variables": jax.tree.map(np.asarray, model.variables), "statistics": statistics}


def describe(config: ExperimentConfig, workdir: pathlib.Path) -> Description:
    """The model in `workdir`, calibrated on the model owner's test images; kept in encrypted.json.

    Raises:
      CheckpointError: if there is no model, or another one than `config.model`.
      ConfigError: if the model owner has no images to calibrate with.
    """
    model = load_trained(workdir, config)
    path = workdir / DESCRIPTION
    draft = Description(
        model.config, model.class_names, model.image_size, config.mpc,
        scaling.Ranges(1.0, (), (), (), ()), model.round,
    )  # fmt: skip
    if path.exists():
        stored = read_json(path)
        ranges = stored.pop("ranges", {})
        if stored == _told(draft) and set(ranges) == set(scaling.Ranges._fields):
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
    ranges = inference.find_ranges(draft.apply_fn(), params_of(model), images, config.mpc)
    found = dataclasses.replace(draft, ranges=ranges._replace(image=1.0))
    write_json(path, {**_told(found), "ranges": found.ranges._asdict()})
    return found


def _told(description: Description) -> dict[str, Any]:
    """A description but for its ranges, as it is stored."""
    told = to_plain(dataclasses.replace(description, ranges=None))  # type: ignore[arg-type]
    del told["ranges"]
    return {**told, "class_names": list(description.class_names)}


def _ranges(found: dict[str, Any]) -> scaling.Ranges:
    kept: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()}
    return scaling.Ranges(**kept)


# --- the parties


@dataclasses.dataclass(frozen=True)
class _Client:
    """The data owner and its images."""

    protocol: Protocol
    party: Any  # its state
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]  # of the DICOM guard, one an image
    images: np.ndarray  # [n s s 1] float32 in [0, 1]


def _make_client(description: Description, data: DataConfig, input_path: str) -> _Client:
    names, images, skipped, remarks = read_inputs(input_path, description.image_size, data)
    pixels = np.asarray(local_training.to_unit(jnp.asarray(images)))
    party = description.protocol.data_owner(description.circuit())
    return _Client(description.protocol, party, tuple(names), tuple(skipped), remarks, pixels)


def _make_owner(description: Description, config: ExperimentConfig, workdir: pathlib.Path) -> Any:
    model = load_trained(workdir, config)
    return description.protocol.model_owner(description.circuit(), params_of(model))


def _make_provider(description: Description) -> Any:
    return description.protocol.provider(description.circuit())


def party_makers(
    description: Description, config: ExperimentConfig, workdir: pathlib.Path, input_path: str
) -> dict[str, Callable[[], Any]]:
    """What makes each party's state, in that party's own process."""
    return {
        DATA_OWNER: functools.partial(_make_client, description, config.data, input_path),
        MODEL_OWNER: functools.partial(_make_owner, description, config, workdir),
        CRYPTO_PROVIDER: functools.partial(_make_provider, description),
    }


def _inputs(client: _Client) -> tuple[_Client, Any]:
    return client, (client.names, client.skipped, client.remarks)


def _set_up_client(client: _Client) -> Steps:
    party, report = yield from client.protocol.set_up(client.party)
    return dataclasses.replace(client, party=party), report


def _infer_client(client: _Client, position: int) -> Steps:
    """The data owner's program for one image; it alone learns the probabilities [k]."""
    image = client.images[position : position + 1]
    infer = client.protocol.infer_data_owner(client.party, image, streamed=True)
    party, diagnosis = yield from infer
    (logits,) = diagnosis.outputs
    return dataclasses.replace(client, party=party), np.asarray(jax.nn.softmax(logits[0]))


@dataclasses.dataclass(frozen=True)
class EncryptedPredictions(Predictions):
    """Diagnoses of images that their model never saw, and what each of them cost."""

    traces: tuple[Trace, ...] = ()


def predict_encrypted(
    config: ConfigDict | ExperimentConfig,
    workdir: str | os.PathLike[str],
    input_path: str | os.PathLike[str],
    *,
    ray_address: str | None = None,
    progress: Callable[[int, int, Trace | None], None] = lambda done, total, trace: None,
) -> EncryptedPredictions:
    """Diagnoses an image, a DICOM file or a folder of them; image and model stay with their owners.

    Writes predictions.csv (file, class, a probability for each class) and trace.json (the messages
    and the computing of the first image, by party and layer, to be opened in a trace viewer, with
    the totals of every image).

    Args:
      config: of the experiment; `config.mpc` says how it runs encrypted, `config.runtime` where.
      workdir: of the training.
      input_path: the data owner's images.
      ray_address: a running Ray cluster; else one is started.
      progress: called with the images done, their number, and the trace of the one done last.

    Raises:
      CheckpointError: if there is no model, or another one than `config.model`.
      ConfigError: if the model owner has no images to calibrate with.
      DataError: if nothing readable is at `input_path`.
      ClusterError: if a party is lost; its name is told.
    """
    config = checked(config)
    directory = pathlib.Path(workdir).absolute()
    class_names: tuple[str, ...] = ()

    def makers() -> dict[str, Callable[[], Any]]:
        nonlocal class_names
        description = describe(config, directory)
        class_names = description.class_names
        return party_makers(description, config, directory, str(input_path))

    placements = {
        DATA_OWNER: {"with_driver": True},
        MODEL_OWNER: {"with_driver": True},
        CRYPTO_PROVIDER: {},
    }
    protocol = PROTOCOLS[config.mpc.protocol]
    probabilities, traces = [], []
    with open_driver(config, makers, placements, ray_address, sealed=True) as driver:
        names, skipped, remarks = driver.run({DATA_OWNER: Locally(_inputs)})[0][DATA_OWNER]
        progress(0, len(names), None)
        driver.run(_set_up(protocol))
        for position in range(len(names)):
            reports, trace = driver.run(_inference(protocol, position))
            probabilities.append(reports[DATA_OWNER])
            traces.append(trace)
            progress(position + 1, len(names), trace)
        driver.close()
    found = EncryptedPredictions(
        list(names),
        np.stack(probabilities),
        class_names,
        list(skipped),
        remarks=remarks,
        traces=tuple(traces),
    )
    found.write(directory / "predictions.csv")
    summary = [
        {
            "file": name,
            "seconds": trace.seconds,
            "bytes_sent": trace.bytes_sent,
            "round_trips": trace.round_trips,
        }
        for name, trace in zip(names, traces)
    ]
    chrome = {**traces[0].chrome_trace(), "otherData": {"images": summary}}
    write_json(directory / "trace.json", chrome)
    plot_timeline(traces[0], directory / "trace.png")
    return found


def _set_up(protocol: Protocol) -> dict[str, Any]:
    return {
        DATA_OWNER: _set_up_client,
        MODEL_OWNER: protocol.set_up,
        CRYPTO_PROVIDER: protocol.set_up,
    }


def _inference(protocol: Protocol, position: int) -> dict[str, Any]:
    return {
        DATA_OWNER: functools.partial(_infer_client, position=position),
        MODEL_OWNER: functools.partial(protocol.infer_model_owner, streamed=True),
        CRYPTO_PROVIDER: functools.partial(protocol.infer_provider, streamed=True),
    }
