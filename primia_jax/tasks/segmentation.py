"""Segmentation: every pixel is of one structure, the first of which is the background.

The measure is Dice's coefficient of each structure over all pixels of all images together,
2·|predicted ∩ true| / (|predicted| + |true|): three integers a structure, which hospitals add up
securely. `dice` is the mean over the structures other than the background.

Axis letters: n records, b of them in a batch, s image side, k structures.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from primia_jax.data import Dataset
from primia_jax.errors import DataError
from primia_jax.evaluation.metrics import INTERVAL
from primia_jax.tasks import segmentation_figures
from primia_jax.tasks.segmentation_masks import Masks
from primia_jax.tasks.task import Evaluation, Figures, Inputs, Metric, Source, Task, bootstrap


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
    """Every pixel is of one structure. Loss: cross-entropy, and one less the soft Dice."""

    score: ClassVar[Metric] = Metric("dice", "Dice")
    headline: ClassVar[tuple[Metric, ...]] = (score, Metric("accuracy", "pixels"))
    loss_name: ClassVar[str] = "1 − Dice"
    spatial: ClassVar[bool] = True

    @staticmethod
    def classes(source: Source) -> tuple[str, ...]:
        """The structures' names.

        Raises:
          DataError: if the source has no masks.
        """
        if len(source.structures) < 2:
            raise DataError(
                "config.task = 'segmentation' needs masks, and the source of the images has none; "
                "take config.data.source = 'phantom'"
            )
        return tuple(source.structures)

    def targets(self, data: Dataset) -> np.ndarray:
        """[n s s] uint8 masks."""
        assert data.masks is not None, "images without masks; `classes` refuses their source"
        return data.masks

    def presence(self, data: Dataset) -> np.ndarray:
        """[n k] bool: structures with a pixel in the image."""
        return _counts(self.targets(data), len(self.class_names)) > 0

    def encode(self, targets: jax.Array) -> jax.Array:
        """[b s s] -> [b s s k] one-hot."""
        return jax.nn.one_hot(targets, len(self.class_names))

    def loss(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        """[b] mean cross-entropy of the pixels, plus one less the mean soft Dice.

        The soft Dice (Milletari, Navab and Ahmadi 2016, with sums in place of squares) has one
        pixel added above and below, so that an image without the structure has a gradient too.
        """
        smoothed = optax.smooth_labels(targets, self.label_smoothing)
        entropy = optax.softmax_cross_entropy(outputs, smoothed) * (targets @ weights)
        p, t = jax.nn.softmax(outputs)[..., 1:], targets[..., 1:]
        overlap, sizes = jnp.sum(p * t, (1, 2)), jnp.sum(p + t, (1, 2))
        dice = (2 * overlap + 1) / (sizes + 1)
        return entropy.mean((1, 2)) + 1 - dice.mean(-1)

    def predictions(self, outputs: jax.Array) -> jax.Array:
        """[b s s] uint8: the most probable structure of each pixel, the first one on a tie."""
        return outputs.argmax(-1).astype(jnp.uint8)

    def errors(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """[n] one less the mean Dice of the image's structures; absent ones count as 1."""
        _, overlap, predicted, true = self._parts(self.summable(predictions, targets))
        sizes = predicted + true
        dice = np.where(sizes == 0, 1.0, 2 * overlap / np.maximum(sizes, 1))
        return 1 - dice[:, 1:].mean(-1)

    @property
    def n_summed(self) -> int:
        """1 + 3k: images; then of each structure the pixels in both masks and in either."""
        return 1 + 3 * len(self.class_names)

    def summable(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """[n 1+3k] one image; pixels in both masks, predicted and true ones, by structure."""
        k = len(self.class_names)
        both = np.where(predictions == targets, targets, k)  # k: of no structure
        parts = [_counts(both, k + 1)[:, :k], _counts(predictions, k), _counts(targets, k)]
        return np.concatenate([np.ones((len(targets), 1), np.int64), *parts], 1)

    def largest_row(self, image_size: int) -> float:
        """√(1 + 3 s⁴): each of the three groups of counts adds up to s² at most."""
        return float((1 + 3 * image_size**4) ** 0.5)

    def metrics(self, summed: np.ndarray) -> dict[str, Any]:
        """`n`, `dice`, `dice_by_class`, `iou_by_class`, and `accuracy`, the share of right pixels.

        The Dice of a structure that neither mask shows is None, and left out of the mean.
        """
        scores = self._scores(np.asarray(summed, np.float64)[None])
        by_class = {
            name: {c: _plain(scores[name][0, i]) for i, c in enumerate(self.class_names)}
            for name in ("dice_by_class", "iou_by_class")
        }
        n = int(np.asarray(summed)[0])
        return {
            "n": n,
            "dice": _plain(scores["dice"][0]),
            "accuracy": _plain(scores["accuracy"][0]),
            **by_class,
        }

    def evaluate(
        self, predictions: np.ndarray, data: Dataset, n_bootstrap: int = 1000, seed: int = 0
    ) -> dict[str, Any]:
        """`metrics` with 95 % percentile intervals of a bootstrap over the images, also by site."""
        if not len(data):
            raise DataError("there are no predictions to evaluate: the set is empty")
        rows = self.summable(predictions, self.targets(data))
        result = self._with_intervals(rows, n_bootstrap, seed)
        result["per_site"] = {}
        for site in np.unique(data.sites):
            here = self._with_intervals(rows[data.sites == site], n_bootstrap, seed)
            result["per_site"][str(site)] = here
        return result

    def figures(self, evaluation: Evaluation) -> Figures:
        """Dice of each structure and site, and overlays of three images."""
        errors = self.errors(evaluation.predictions, self.targets(evaluation.data))
        return segmentation_figures.figures(self.class_names, evaluation, errors)

    def diagnoses(self, predictions: np.ndarray, inputs: Inputs) -> Masks:
        """Masks as pictures, with a table of the structures' shares."""
        return Masks(self.class_names, predictions, inputs)

    def _parts(self, sums: np.ndarray) -> tuple[np.ndarray, ...]:
        """[b] images and three times [b k] pixels, of [b 1+3k]."""
        return sums[:, 0], *np.split(sums[:, 1:], 3, axis=1)

    def _scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of several sums [b 1+3k]: [b] or, by class, [b k]; NaN where not defined."""
        _, overlap, predicted, true = self._parts(sums)
        dice = _ratio(2 * overlap, predicted + true)
        iou = _ratio(overlap, predicted + true - overlap)
        defined = ~np.isnan(dice[:, 1:])
        mean = _ratio(np.nansum(dice[:, 1:], 1), defined.sum(1).astype(np.float64))
        accuracy = _ratio(overlap.sum(1), true.sum(1))
        return {"dice": mean, "accuracy": accuracy, "dice_by_class": dice, "iou_by_class": iou}

    def _with_intervals(self, rows: np.ndarray, n_bootstrap: int, seed: int) -> dict[str, Any]:
        result: dict[str, Any] = self.metrics(rows.sum(0))
        intervals: dict[str, Any] = {}
        samples = self._scores(bootstrap(rows, n_bootstrap, seed))
        for name, values in samples.items():
            if values.ndim == 1:
                intervals[name] = _interval(values)
            else:
                intervals[name] = {c: _interval(values[:, i]) for i, c in enumerate(result[name])}
        return {**result, "intervals": intervals}


def _counts(masks: np.ndarray, k: int) -> np.ndarray:
    """[n k] int64: pixels of each value in masks [n s s]."""
    return np.stack([(masks == c).sum((1, 2)) for c in range(k)], 1).astype(np.int64)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient, at most 1, which noised sums may exceed; NaN where nothing is divided by."""
    out = np.full(np.shape(above), np.nan)
    return np.minimum(np.divide(above, below, out=out, where=below > 0), 1.0)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(values: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval; None where a resample does not define the metric."""
    if np.isnan(values).any():
        return None
    low, high = np.percentile(values, INTERVAL)
    return [float(low), float(high)]
