"""The verb `predict_encrypted`, as whoever operates the run calls it."""

import contextlib
import dataclasses
import os
import pathlib
import secrets
from collections.abc import Callable

from ml_collections import ConfigDict

from primia_jax import environment
from primia_jax.config import ExperimentConfig
from primia_jax.core import names, storage
from primia_jax.encrypted import parties
from primia_jax.experiment import checked, open_driver
from primia_jax.federated import checkpoints
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER
from primia_jax.reporting.timeline import plot_timeline
from primia_jax.runtime import Locally, Trace
from primia_jax.watch.heartbeat import only_writer

DATA_OWNER_FOLDER = "data_owner"  # in the workdir, unless the configuration names another


@dataclasses.dataclass(frozen=True)
class EncryptedDiagnosis:
    """Everything that the operator of an encrypted diagnosis learns.

    Attributes:
      images: number of images that were diagnosed.
      traces: messages and seconds of each, in their order.
      folder: the data owner's, where predictions.csv lies. Where all parties run on one machine,
        `read_predictions(folder)` opens it in the data owner's place.
    """

    images: int
    traces: tuple[Trace, ...]
    folder: pathlib.Path


def predict_encrypted(
    config: ConfigDict | ExperimentConfig,
    workdir: str | os.PathLike[str],
    input_path: str | os.PathLike[str],
    *,
    ray_address: str | None = None,
    progress: Callable[[int, int, Trace | None], None] = lambda done, total, trace: None,
) -> EncryptedDiagnosis:
    """Diagnoses an image, a DICOM file or a folder of them; image and model stay with their owners.

    The data owner writes predictions.csv into its own folder (`config.runtime.data_owner_folder`),
    and nobody else learns what is in it; it is complete after each image, so that a run that ends
    early loses nothing. The data owner's files of an earlier run are moved to `previous/N`. The
    workdir gets trace.json: messages and computing of the first image, by party and layer, to be
    opened in a trace viewer, with the totals of every image by its number.

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
      ClusterError: if a party is lost; it is named.
    """
    config = checked(config)
    directory = names.user_path(workdir)
    own = config.runtime.data_owner_folder
    folder = names.user_path(own) if own else directory / DATA_OWNER_FOLDER
    placements = {
        DATA_OWNER: {"with_driver": True},
        MODEL_OWNER: {"with_driver": True},
        CRYPTO_PROVIDER: {},
    }
    model_folder = directory / "checkpoints"
    checkpoints.check_begun(model_folder)  # before three processes are started
    traces = []
    source = str(names.user_path(input_path))
    run = secrets.token_hex(8)
    with (
        contextlib.ExitStack() as stack,
        only_writer(directory, "an encrypted diagnosis"),
        open_driver(
            config,
            lambda: parties.party_makers(config, directory, source, folder, run),
            placements,
            ray_address,
            sealed=True,
            check_report=parties.REPORTS,
            folders={
                DATA_OWNER: directory / DATA_OWNER_FOLDER,
                MODEL_OWNER: model_folder,
                CRYPTO_PROVIDER: directory / CRYPTO_PROVIDER,
            },
        ) as driver,
    ):
        stack.enter_context(environment.memory_kept())
        stack.callback(parties.release, run)
        reports, _ = driver.run(parties.introduction())
        count = reports[DATA_OWNER].images
        progress(0, count, None)
        driver.run(parties.set_up())
        for done in range(1, count + 1):
            _, trace = driver.run(parties.inference())
            driver.run({DATA_OWNER: Locally(parties.write)})
            traces.append(trace)
            progress(done, count, trace)
        driver.close()
    summary = [
        {
            "image": number,
            "seconds": trace.seconds,
            "bytes_sent": trace.bytes_sent,
            "round_trips": trace.round_trips,
        }
        for number, trace in enumerate(traces, 1)
    ]
    chrome = {**traces[0].chrome_trace(), "otherData": {"images": summary}}
    storage.write_json(directory / "trace.json", chrome)
    plot_timeline(traces[0], directory / "trace.png")
    return EncryptedDiagnosis(count, tuple(traces), folder)
