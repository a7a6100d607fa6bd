"""The three parties of an encrypted diagnosis: their states and programs.

Each has a folder of its own. The data owner's gets the diagnoses; the model owner's holds the
checkpoints and the calibration. Whoever operates the run is told how many images there are and
nothing else (`Received`).
"""

import contextlib
import dataclasses
import functools
import pathlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from primia_jax import environment
from primia_jax.config import DataConfig, ExperimentConfig, MpcConfig
from primia_jax.core import storage
from primia_jax.core.locks import Hold
from primia_jax.core.records import Only, Record
from primia_jax.data import read_inputs
from primia_jax.data.sources import NoUsableImages
from primia_jax.encrypted.description import Description, describe, params_of, received
from primia_jax.errors import DataError, ProtocolError, UserError
from primia_jax.federated import local_training
from primia_jax.federated.trained_model import TrainedModel, load_trained
from primia_jax.mpc.circuit import check_image
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER
from primia_jax.predictions import FILE, MASKS
from primia_jax.runtime import Receive, Send, Stage, Steps
from primia_jax.runtime.party import Program
from primia_jax.tasks import Inputs

ERRORS = "errors.txt"  # in the data owner's folder: why the run failed
_LOCK = ".data_owner.lock"
_NOT_YET = "not diagnosed: the run ended before"


@dataclasses.dataclass(frozen=True)
class Received(Record):
    """The data owner has read its images.

    Attributes:
      images: number of those to diagnose.
    """

    images: int


REPORTS = Only({DATA_OWNER: (Received,)})  # all that any party may report


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """Diagnosis of one image."""

    prediction: np.ndarray  # […], see `Task.predictions`
    out_of_range: tuple[str, ...] | None  # names of layers; None if the protocol cannot tell


@dataclasses.dataclass(frozen=True)
class DataOwner:
    """The data owner, its images, and what it learnt of them."""

    folder: pathlib.Path  # its own
    input_path: str
    data: DataConfig
    mpc: MpcConfig
    run: str = ""
    network: str = ""  # `config.model.name`
    description: Description | None = None
    party: Any = None  # its state in the protocol
    names: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()  # of the pictures as they came
    skipped: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()  # of the DICOM guard, one an image
    images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 1, 1, 1)))
    outcomes: tuple[_Outcome, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelOwner:
    """The model owner and its model; `workdir` is the training's, where its checkpoints lie."""

    config: ExperimentConfig
    workdir: pathlib.Path
    model: TrainedModel
    description: Description | None = None
    party: Any = None


@dataclasses.dataclass(frozen=True)
class CryptoProvider:
    """The crypto provider, which has neither images nor a model."""

    mpc: MpcConfig
    network: str = ""  # `config.model.name`
    description: Description | None = None
    party: Any = None


Party = DataOwner | ModelOwner | CryptoProvider


def party_makers(
    config: ExperimentConfig,
    workdir: pathlib.Path,
    input_path: str,
    folder: pathlib.Path,
    run: str,
) -> dict[str, Callable[[], Any]]:
    """Makers of each party's state, in its own process.

    Args:
      config: of the experiment.
      workdir: of the training.
      input_path: the data owner's images.
      folder: the data owner's.
      run: names this run.
    """
    network = config.model.name
    data_owner = functools.partial(
        DataOwner, folder, input_path, config.data, config.mpc, run, network
    )
    return {
        DATA_OWNER: data_owner,
        MODEL_OWNER: functools.partial(_make_owner, config, workdir),
        CRYPTO_PROVIDER: functools.partial(CryptoProvider, config.mpc, network),
    }


def _make_owner(config: ExperimentConfig, workdir: pathlib.Path) -> ModelOwner:
    return ModelOwner(config, workdir, load_trained(workdir, config))


# --- the programs, in their order


def introduction() -> dict[str, Program]:
    """The model owner calibrates its model and describes it to the others."""
    return {DATA_OWNER: _read, MODEL_OWNER: _describe, CRYPTO_PROVIDER: _prepare}


def set_up() -> dict[str, Program]:
    """The protocol's set-up."""
    return dict.fromkeys((DATA_OWNER, MODEL_OWNER, CRYPTO_PROVIDER), _set_up)


def inference() -> dict[str, Program]:
    """The diagnosis of the data owner's next image."""
    return {DATA_OWNER: _infer, MODEL_OWNER: _serve, CRYPTO_PROVIDER: _provide}


def _describe(owner: ModelOwner) -> Steps:
    yield Stage("calibration")
    description = describe(owner.config, owner.workdir, owner.model)
    label = "description of the model | in the clear"
    yield Send((DATA_OWNER, CRYPTO_PROVIDER), description.message(), label)
    party = description.protocol.model_owner(description.circuit(), params_of(owner.model))
    return dataclasses.replace(owner, description=description, party=party), None


def _prepare(provider: CryptoProvider) -> Steps:
    description = received((yield Receive(MODEL_OWNER)), provider.mpc, provider.network)
    party = description.protocol.provider(description.circuit())
    return dataclasses.replace(provider, description=description, party=party), None


def _read(owner: DataOwner) -> Steps:
    """Reads the images at the size that the model takes; moves the files of an earlier run aside.

    Raises:
      StorageError: if another run holds the folder.
      DataError: if there are none. What was wrong with which file stays in this party's folder,
        in `ERRORS` and, if no file can be used, in predictions.csv.
    """
    if owner.run not in _held:
        _held[owner.run] = Hold(
            owner.folder / _LOCK,
            f"another encrypted diagnosis writes into {owner.folder}; wait until it has ended, or "
            "name another folder by config.runtime.data_owner_folder",
        )
    if not pathlib.Path(owner.input_path).expanduser().exists():
        raise DataError(f"input {owner.input_path}: no such file or folder")
    storage.move_aside(owner.folder, (FILE, MASKS, ERRORS))
    description = received((yield Receive(MODEL_OWNER)), owner.mpc, owner.network)
    circuit = description.circuit()
    with _confidential(owner, f"input {owner.input_path}: no image can be used"):
        try:
            inputs = read_inputs(owner.input_path, description.image_size, owner.data)
        except NoUsableImages as error:
            unread = Inputs((), skipped=error.skipped)
            task = description.make_task()
            task.diagnoses(np.zeros(0), unread).write(owner.folder / FILE)
            raise
        pixels = np.asarray(local_training.to_unit(jnp.asarray(inputs.images)))
        for position in range(len(pixels)):
            check_image(circuit, pixels[position : position + 1])
    party = description.protocol.data_owner(circuit)
    owner = dataclasses.replace(
        owner,
        description=description, party=party,
        names=tuple(inputs.names), sizes=tuple(inputs.sizes),
        skipped=tuple(inputs.skipped), remarks=inputs.remarks,
        images=pixels,
    )  # fmt: skip
    return owner, Received(len(inputs.names))


_held: dict[str, Hold] = {}  # by run, in the data owner's process


def release(run: str) -> None:
    """Lets other runs write into the data owner's folder, if its party was in this process.

    The end of any other process releases it.
    """
    if run in _held:
        _held.pop(run).close()


def _set_up(state: Party) -> Steps:
    environment.keep_memory()  # in an actor until its end; `predict_encrypted` restores its own
    party, _ = yield from _described(state).protocol.set_up(state.party)
    return dataclasses.replace(state, party=party), None


def _infer(owner: DataOwner) -> Steps:
    """Diagnoses the next image; the outcome stays in this party's state."""
    description, position = _described(owner), len(owner.outcomes)
    image = owner.images[position : position + 1]
    with _confidential(owner, f"image {position + 1} cannot be diagnosed"):
        infer = description.protocol.infer_data_owner(owner.party, image, streamed=True)
        party, diagnosis = yield from infer
        (logits,) = diagnosis.outputs
        prediction = description.make_task().predictions(logits)[0]
        outcome = _Outcome(np.asarray(prediction), diagnosis.out_of_range)
    return dataclasses.replace(owner, party=party, outcomes=(*owner.outcomes, outcome)), None


def _serve(owner: ModelOwner) -> Steps:
    infer = _described(owner).protocol.infer_model_owner(owner.party, streamed=True)
    party, _ = yield from infer
    return dataclasses.replace(owner, party=party), None


def _provide(provider: CryptoProvider) -> Steps:
    infer = _described(provider).protocol.infer_provider(provider.party, streamed=True)
    party, _ = yield from infer
    return dataclasses.replace(provider, party=party), None


def write(owner: DataOwner) -> tuple[DataOwner, None]:
    """Writes the diagnoses so far into the data owner's folder: predictions.csv, and masks."""
    outcomes, names = owner.outcomes, owner.names
    done = len(outcomes)
    with _confidential(owner, "the predictions cannot be written"):
        inputs = Inputs(
            names=names[:done],
            sizes=owner.sizes[:done],
            skipped=[*owner.skipped, *((name, _NOT_YET) for name in names[done:])],
            in_range=tuple(_in_range(outcome) for outcome in outcomes),
            remarks=tuple(map(_remark, owner.remarks, outcomes)),
        )
        predictions = np.stack([outcome.prediction for outcome in outcomes])
        diagnoses = _described(owner).make_task().diagnoses(predictions, inputs)
        diagnoses.write(owner.folder / FILE)
    return owner, None


@contextlib.contextmanager
def _confidential(owner: DataOwner, what: str) -> Iterator[None]:
    """Keeps errors within the block in the data owner's folder; others hear `what` alone.

    Raises:
      ProtocolError: in place of one.
      DataError: in place of any other.
    """
    try:
        yield
    except Exception as error:  # of decoders, of JAX: the text may tell of an image
        path = owner.folder / ERRORS
        is_known = isinstance(error, UserError)
        storage.write_text(path, f"{error}\n" if is_known else traceback.format_exc())
        kind = ProtocolError if isinstance(error, ProtocolError) else DataError
        raise kind(f"{what}; see {path}") from None


def _in_range(outcome: _Outcome) -> bool | None:
    return None if outcome.out_of_range is None else not outcome.out_of_range


def _remark(guard: str, outcome: _Outcome) -> str:
    """The guard's remark, and the layers in which a value left its range, if any."""
    layers = ", ".join(outcome.out_of_range or ())
    out_of_range = f"out of range in {layers}: the diagnosis may be wrong" if layers else ""
    return "; ".join(filter(None, (guard, out_of_range)))


def _described(state: Party) -> Description:
    assert state.description is not None, "the model was not described"
    return state.description
