"""Classification: one class an image (`Classification`), or any number of them (`MultiLabel`).

Axis letters: n records, b of them in a batch, k classes.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np
import optax

from primia_jax.data import Catalogue, Dataset
from primia_jax.evaluation.metrics import evaluate_predictions, metrics_from_confusion
from primia_jax.predictions import Predictions
from primia_jax.tasks import classification_figures
from primia_jax.tasks.task import Evaluation, Figures, Inputs, Metric, Source, Task

_FLOOR = 1e-12  # of a probability whose logarithm is taken


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Every image is of one class. Loss: cross-entropy, weighted by the image's class."""

    score: ClassVar[Metric] = Metric("mcc", "MCC")
    headline: ClassVar[tuple[Metric, ...]] = (
        score, Metric("accuracy", "accuracy"), Metric("roc_auc", "ROC-AUC"),
    )  # fmt: skip
    loss_name: ClassVar[str] = "cross-entropy (nats)"

    @staticmethod
    def classes(source: Source) -> tuple[str, ...]:
        """The labels' names."""
        return tuple(source.class_names)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes themselves."""
        return self.class_names

    def targets(self, data: Dataset) -> np.ndarray:
        """[n] int32 labels."""
        return data.labels

    def presence(self, data: Dataset) -> np.ndarray:
        """[n k] bool: one True a row."""
        return data.labels[:, None] == np.arange(len(self.class_names))

    @property
    def largest_presence(self) -> float:
        """1: an image is of one class."""
        return 1.0

    def encode(self, targets: jax.Array) -> jax.Array:
        """[b] -> [b k] one-hot."""
        return jax.nn.one_hot(targets, len(self.class_names))

    def loss(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        """[b] cross-entropy with smoothed targets; their class weights are those before."""
        smoothed = optax.smooth_labels(targets, self.label_smoothing)
        return optax.softmax_cross_entropy(outputs, smoothed) * (targets @ weights)

    def predictions(self, outputs: jax.Array) -> jax.Array:
        """[b k] probabilities."""
        return jax.nn.softmax(outputs)

    def errors(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """[n] cross-entropy, unweighted and unsmoothed."""
        chosen = predictions[np.arange(len(targets)), targets]
        return -np.log(np.maximum(chosen.astype(np.float64), _FLOOR))

    @property
    def n_summed(self) -> int:
        """k²: a confusion matrix."""
        return len(self.class_names) ** 2

    def summable(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """[n k²] the cell (true, predicted) that each record counts in, one-hot."""
        k = len(self.class_names)
        cells = targets.astype(np.int64) * k + predictions.argmax(1)
        return (cells[:, None] == np.arange(k * k)).astype(np.int64)

    def largest_row(self, image_size: int) -> float:
        """1: a record counts in one cell."""
        return 1.0

    def metrics(self, summed: np.ndarray) -> dict[str, Any]:
        """As `metrics_from_confusion` gives them."""
        k = len(self.class_names)
        return metrics_from_confusion(np.reshape(summed, (k, k)), self.class_names)

    def evaluate(
        self, predictions: np.ndarray, data: Dataset, n_bootstrap: int = 1000, seed: int = 0
    ) -> dict[str, Any]:
        """As `evaluate_predictions` gives them."""
        return evaluate_predictions(
            data.labels, predictions, self.class_names,
            sites=data.sites, n_bootstrap=n_bootstrap, seed=seed,
        )  # fmt: skip

    def figures(self, evaluation: Evaluation) -> Figures:
        """Scores, confusion matrix, curves, sites and sample images."""
        return classification_figures.figures(self.class_names, evaluation)

    def warning(self, catalogue: Catalogue, records: np.ndarray) -> str:
        """Names the classes without test images."""
        present = {int(label) for label in catalogue.labels[records]}
        absent = [name for c, name in enumerate(self.class_names) if c not in present]
        if not absent or not present:
            return ""
        return (
            f"no test image is of class {', '.join(absent)}: its sensitivity and the ROC-AUC "
            "cannot be told, and the other scores speak of the other classes only"
        )

    def diagnoses(self, predictions: np.ndarray, inputs: Inputs) -> Predictions:
        """A table of classes and probabilities."""
        probabilities = predictions.reshape(len(inputs.names), len(self.class_names))
        return Predictions(
            list(inputs.names), probabilities, self.class_names, list(inputs.skipped),
            inputs.in_range, inputs.remarks,
        )  # fmt: skip
