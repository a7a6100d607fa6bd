"""What every task promises: a suite that the tests of each task inherit.

Axis letters: n records, k classes, m summed numbers.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from primia_jax.errors import DataError
from primia_jax.federated import private_training
from primia_jax.tasks import Evaluation, Inputs, Task


class TaskContract:
    """Inherited by a class with `task`, `data`, `outputs` and `reference_loss`."""

    task: Task

    def data(self, n):
        """A data set of n records."""
        raise NotImplementedError

    def outputs(self, n, seed=0):
        """[n … k] outputs of a network that is right more often than not."""
        raise NotImplementedError

    def reference_loss(self, outputs, targets, weights):
        """The loss of one example in plain NumPy, from encoded targets."""
        raise NotImplementedError

    def predictions(self, n, seed=0):
        return np.asarray(self.task.predictions(jnp.asarray(self.outputs(n, seed))))

    def encoded(self, data):
        return self.task.encode(jnp.asarray(self.task.targets(data)))

    def test_the_loss_of_each_example_is_that_of_the_reference(self):
        outputs, targets = self.outputs(6), np.asarray(self.encoded(self.data(6)))
        weights = np.linspace(0.5, 1.5, len(self.task.class_names)).astype(np.float32)
        task = dataclasses.replace(self.task, label_smoothing=0.1)
        losses = task.loss(jnp.asarray(outputs), jnp.asarray(targets), jnp.asarray(weights))
        smooth = 0.9 * targets + 0.1 / len(self.task.class_names)
        wanted = [
            self.reference_loss(o, t, s, weights) for o, t, s in zip(outputs, targets, smooth)
        ]
        np.testing.assert_allclose(losses, wanted, rtol=1e-5)

    def test_an_example_has_the_same_loss_in_any_company(self):
        """Else the gradient of one record could not be clipped by itself."""
        outputs, targets = jnp.asarray(self.outputs(5)), self.encoded(self.data(5))
        weights = jnp.ones(len(self.task.class_names))
        together = self.task.loss(outputs, targets, weights)
        alone = [
            self.task.loss(outputs[i : i + 1], targets[i : i + 1], weights)[0] for i in range(5)
        ]
        np.testing.assert_allclose(together, alone, rtol=1e-6)

    def test_clipped_gradients_of_examples_have_at_most_the_clip_as_norm(self):
        outputs, targets = jnp.asarray(self.outputs(4)), self.encoded(self.data(4))
        weights = jnp.ones(len(self.task.class_names))

        def one(scale, output, target):
            return 100 * self.task.loss(scale * output[None], target[None], weights)[0]

        scale = jnp.ones(outputs.shape[1:])
        gradients = jax.vmap(jax.grad(one), (None, 0, 0))(scale, outputs, targets)
        for gradient in gradients:
            counted = private_training.clipped_integers({"w": gradient}, 0.5)["w"]
            norm = np.linalg.norm(np.asarray(counted, np.float64))
            assert 0 < norm <= 2**private_training.GRID_BITS

    def test_metrics_of_the_sum_are_those_of_the_pooled_records(self):
        """Two hospitals add up integers; the owner learns what one hospital would have learnt."""
        data, predictions = self.data(30), self.predictions(30)
        rows = self.task.summable(predictions, self.task.targets(data))
        assert rows.shape == (30, self.task.n_summed) and rows.dtype == np.int64
        assert rows.min() >= 0
        parts = [rows[:11].sum(0), rows[11:].sum(0)]
        assert self.task.metrics(sum(parts)) == self.task.metrics(rows.sum(0))
        tested = self.task.evaluate(predictions, data, n_bootstrap=10)
        pooled = self.task.metrics(rows.sum(0))
        for key, value in pooled.items():
            assert tested[key] == value, key
        assert pooled["n"] == 30 and 0 <= pooled["accuracy"] <= 1

    def test_no_record_adds_more_than_is_declared(self):
        data = self.data(30)
        rows = self.task.summable(self.predictions(30), self.task.targets(data))
        side = data.images.shape[1]
        assert np.linalg.norm(rows, axis=1).max() <= self.task.largest_row(side) * (1 + 1e-12)

    def test_perfect_predictions_score_best(self):
        data = self.data(30)
        perfect = np.asarray(self.task.predictions(20.0 * self.encoded(data)))
        targets = self.task.targets(data)
        key = self.task.score.key
        right = self.task.evaluate(perfect, data, n_bootstrap=10)
        guessed = self.task.evaluate(self.predictions(30), data, n_bootstrap=10)
        assert right[key] == pytest.approx(1) and guessed[key] < right[key]
        assert self.task.errors(perfect, targets).max() < 1e-6
        assert (self.task.errors(self.predictions(30), targets) > 0).any()

    def test_intervals_enclose_the_score_of_each_site(self):
        data = self.data(40)
        scores = self.task.evaluate(self.predictions(40), data, n_bootstrap=200)
        low, high = scores["intervals"][self.task.score.key]
        assert low <= scores[self.task.score.key] <= high and low < high
        assert set(scores["per_site"]) == set(data.sites)
        assert sum(site["n"] for site in scores["per_site"].values()) == 40

    def test_an_empty_set_is_refused(self):
        data = self.data(2).take(np.zeros(0, int))
        with pytest.raises(DataError, match="empty"):
            self.task.evaluate(self.predictions(1)[:0], data)

    def test_presence_is_of_the_classes_that_records_show(self):
        present = self.task.presence(self.data(30))
        assert present.shape == (30, len(self.task.class_names)) and present.any(1).all()

    def test_figures_show_every_class(self):
        data, predictions = self.data(40), self.predictions(40)
        scores = self.task.evaluate(predictions, data, n_bootstrap=10)
        figures = self.task.figures(Evaluation(data, predictions, scores))
        value = scores[self.task.score.key]
        assert figures.tiles[0].value == f"{value:.2f}"
        text = repr([section.blocks for section in figures.sections])
        assert all(name in text for name in self.task.class_names[1:])

    def test_diagnoses_are_written_for_their_owner(self, tmp_path: pathlib.Path):
        inputs = Inputs(("a.png", "=b.png"), ((20, 30), (16, 16)), [("c.png", "no image")])
        diagnoses = self.task.diagnoses(self.predictions(2), inputs)
        diagnoses.write(tmp_path / "predictions.csv")
        rows = (tmp_path / "predictions.csv").read_text().splitlines()
        assert len(rows) == 4 and rows[1].startswith("a.png,") and rows[2].startswith("'=b.png,")
        assert rows[3].startswith("c.png,") and rows[3].endswith("no image")
        assert len(diagnoses.lines()) == 2 and diagnoses.lines()[0].startswith("a.png: ")
        assert diagnoses.names == ["a.png", "=b.png"]
        unread = self.task.diagnoses(np.zeros(0), Inputs((), skipped=[("d.png", "no image")]))
        unread.write(tmp_path / "unread.csv")
        assert (tmp_path / "unread.csv").read_text().splitlines()[1].startswith("d.png,")
        for file in tmp_path.rglob("*.*"):
            assert file.stat().st_mode & 0o077 == 0
