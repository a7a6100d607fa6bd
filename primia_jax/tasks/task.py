"""The boundary `Task`: everything that depends on what a network is to tell about an image.

Training, private training, evaluation, secure sums, reports and diagnoses are the same for every
task; they call these methods and know no labels, masks or scores.

Axis letters: n records, b of them in a batch, s image side, k classes, m summed numbers.
"""

import abc
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from primia_jax.core import objects
from primia_jax.data import Catalogue, Dataset
from primia_jax.errors import ConfigError
from primia_jax.evaluation.blocks import Figures

LOSS = "config.training.loss"  # the option that names a user's own


class Metric(NamedTuple):
    """A metric: its key in what `Task.metrics` gives, and its name for people."""

    key: str
    name: str


class Source(Protocol):
    """Data that say which classes there are, such as a `Dataset` or a `DataPlan`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels."""

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the masks' values."""


class Evaluation(NamedTuple):
    """A model on its test set."""

    data: Dataset
    predictions: np.ndarray  # [n …], as `Task.predictions` gives them
    scores: dict[str, Any]  # as `Task.evaluate` gives them


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Images that were diagnosed, n of them, and remarks on them.

    Attributes:
      names: [n] of the files.
      sizes: [n] height and width of each picture as it came.
      skipped: files that could not be read, with reasons.
      in_range: [n] True if every value of the encrypted computation stayed in its range, False if
        the diagnosis may be wrong for that reason, None where nothing is computed in a bounded
        range; or empty, for None throughout.
      remarks: [n] notes on the images; or empty.
    """

    names: Sequence[str]
    sizes: Sequence[tuple[int, int]] = ()
    skipped: Sequence[tuple[str, str]] = ()
    in_range: tuple[bool | None, ...] = ()
    remarks: tuple[str, ...] = ()


class Diagnoses(Protocol):
    """Diagnoses of images without labels, as a task keeps them."""

    @property
    def names(self) -> list[str]:
        """[n] of the files."""

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Files that could not be read, with reasons."""

    def lines(self) -> list[str]:
        """One line an image, for people."""

    def write(self, path: pathlib.Path) -> None:
        """Replaces the table at `path`, and what belongs to it, readable by the owner alone."""


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """A task with its classes. Equal tasks are interchangeable: compiled functions are shared.

    Attributes:
      class_names: k names, in the order of the network's outputs.
      label_smoothing: share of a target that is given to all classes alike.
      own_loss: `module:function` of a user's loss, or "task" for `loss`.
    """

    class_names: tuple[str, ...]
    label_smoothing: float = 0.0
    own_loss: str = "task"

    score: ClassVar[Metric]  # it chooses the round; larger is better
    headline: ClassVar[tuple[Metric, ...]]  # of `evaluate`, that a terminal shows
    loss_name: ClassVar[str]  # of `errors`, with its unit
    spatial: ClassVar[bool] = False  # True if targets have the axes of the image

    @staticmethod
    @abc.abstractmethod
    def classes(source: Source) -> tuple[str, ...]:
        """The classes that a source of data knows for this task.

        Raises:
          DataError: if it knows none.
        """

    @abc.abstractmethod
    def targets(self, data: Dataset) -> np.ndarray:
        """[n …] integers: the records' targets, as they are stored."""

    @abc.abstractmethod
    def presence(self, data: Dataset) -> np.ndarray:
        """[n k] bool: classes that each record shows; their sums weight the loss."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that a source must have, though it may lack images of some."""
        return ()

    @property
    def largest_presence(self) -> float:
        """Largest Euclidean norm of a row of `presence`."""
        return float(len(self.class_names)) ** 0.5

    # --- the network's side, traced by JAX

    @property
    def n_outputs(self) -> int:
        """Outputs of the network: of the last axis."""
        return len(self.class_names)

    @abc.abstractmethod
    def encode(self, targets: jax.Array) -> jax.Array:
        """Stored targets -> float32 targets of the loss, which augmentation may mix and warp."""

    @abc.abstractmethod
    def loss(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        """[b] the loss of each example, a function of that example alone.

        Args:
          outputs: [b … k] of the network.
          targets: [b … k] as `encode` gives them, augmented.
          weights: [k] of the classes, mean 1 over the records.
        """

    def training_loss(
        self, outputs: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> jax.Array:
        """[b] the loss that is minimised: `loss`, or a user's own in its place.

        Raises:
          ConfigError: if a user's own cannot be imported here, fails, or gives another shape.
        """
        if not objects.is_reference(self.own_loss):
            return self.loss(outputs, targets, weights)
        function = objects.load(self.own_loss, LOSS)
        start = f"{LOSS} = {self.own_loss!r}:"
        try:
            losses = function(outputs, targets, weights)
        except Exception as error:
            raise ConfigError(
                f"{start} with outputs {list(outputs.shape)} it fails with "
                f"{type(error).__name__}: {objects.first_line(error)} (docs/own_parts.md)"
            ) from None
        shape, dtype = getattr(losses, "shape", None), getattr(losses, "dtype", None)
        if shape != outputs.shape[:1] or dtype != outputs.dtype:
            raise ConfigError(
                f"{start} gives {dtype} of shape {shape} for outputs {list(outputs.shape)}; give "
                "float32 [b], the loss of each example (docs/own_parts.md)"
            )
        return jax.numpy.asarray(losses)

    def check_loss(self, image_size: int) -> None:
        """Checks a user's own loss by shapes alone.

        Raises:
          ConfigError: see `training_loss`.
        """
        if objects.is_reference(self.own_loss):
            pixels = (image_size, image_size) if self.spatial else ()
            outputs = jax.ShapeDtypeStruct((2, *pixels, self.n_outputs), np.float32)
            weights = jax.ShapeDtypeStruct((len(self.class_names),), np.float32)
            jax.eval_shape(self.training_loss, outputs, outputs, weights)

    @abc.abstractmethod
    def predictions(self, outputs: jax.Array) -> jax.Array:
        """[b …] what is kept of the outputs: probabilities, or the class of each pixel."""

    # --- evaluation

    @abc.abstractmethod
    def errors(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """[n] float64: the validation loss of each record; decides where scores are equal."""

    @property
    @abc.abstractmethod
    def n_summed(self) -> int:
        """m."""

    @abc.abstractmethod
    def summable(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """[n m] int64, at least 0: numbers of each record that hospitals may add up securely.

        `metrics` of the sum over any records are the metrics of these records together.
        """

    @abc.abstractmethod
    def largest_row(self, image_size: int) -> float:
        """Largest Euclidean norm of a row of `summable`, which noise on the sum is made for."""

    @abc.abstractmethod
    def metrics(self, summed: np.ndarray) -> dict[str, Any]:
        """Plain values from a sum [m] of `summable`; with `score`, and an "accuracy"."""

    @abc.abstractmethod
    def evaluate(
        self, predictions: np.ndarray, data: Dataset, n_bootstrap: int = 1000, seed: int = 0
    ) -> dict[str, Any]:
        """`metrics` of a test set with "n", "intervals" and "per_site", for metrics.json.

        Args:
          predictions: [n …] of the model.
          data: the records.
          n_bootstrap: resamples behind the 95 % intervals.
          seed: of the resampling.

        Raises:
          DataError: if there are no records, or predictions that are not finite.
        """

    # --- for people

    @abc.abstractmethod
    def figures(self, evaluation: Evaluation) -> Figures:
        """Content of the report on a test."""

    def warning(self, catalogue: Catalogue, records: np.ndarray) -> str:
        """Warns of a test set, some `records` of a catalogue; empty if there is nothing to say."""
        return ""

    @abc.abstractmethod
    def diagnoses(self, predictions: np.ndarray, inputs: Inputs) -> Diagnoses:
        """Predictions [n …] for images without labels, to be written and shown; [0] for none."""


def bootstrap(rows: np.ndarray, n_bootstrap: int, seed: int, block: int = 64) -> np.ndarray:
    """[n_bootstrap m] sums of resamples, drawn with replacement, of `rows` [n m]."""
    rng = np.random.Generator(np.random.PCG64(seed))
    n, values = len(rows), rows.astype(np.float64)
    sums = []
    for start in range(0, n_bootstrap, block):
        drawn = rng.multinomial(n, np.full(n, 1 / n), min(block, n_bootstrap - start))
        sums.append(drawn.astype(np.float64) @ values)
    return np.concatenate(sums)
