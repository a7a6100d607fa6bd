"""Classification as a task: the contract, and the confusion matrix that hospitals add up."""

import types

import numpy as np
from sklearn.metrics import confusion_matrix
from task_contract import TaskContract

from primia_jax.data import Dataset
from primia_jax.tasks import Classification, Evaluation
from primia_jax.tasks.classification_figures import _spread

NAMES = ("normal", "bacterial", "viral")


def records(n, labels=None):
    labels = (np.arange(n) * 7 % 3 if labels is None else labels).astype(np.int32)
    rng = np.random.default_rng(0)
    return Dataset(
        images=rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8),
        labels=labels,
        names=tuple(f"image_{i}" for i in range(n)),
        patients=np.array([f"p{i}" for i in range(n)]),
        sites=np.array([f"hospital_{i % 2}" for i in range(n)]),
        class_names=NAMES,
    )


class TestClassification(TaskContract):
    task = Classification(NAMES)

    def data(self, n):
        return records(n)

    def outputs(self, n, seed=0):
        rng = np.random.default_rng(seed)
        return (rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[records(n).labels]).astype(np.float32)

    def reference_loss(self, outputs, targets, smooth, weights):
        shifted = outputs - outputs.max()
        log_p = shifted - np.log(np.exp(shifted).sum())
        return -(smooth @ log_p) * (targets @ weights)

    def test_the_sum_is_the_confusion_matrix(self):
        data, predictions = self.data(30), self.predictions(30)
        summed = self.task.summable(predictions, data.labels).sum(0).reshape(3, 3)
        np.testing.assert_array_equal(
            summed, confusion_matrix(data.labels, predictions.argmax(1), labels=range(3))
        )

    def test_half_of_the_samples_shown_are_misclassified(self):
        data, predictions = self.data(40), self.predictions(40)
        scores = self.task.evaluate(predictions, data, n_bootstrap=10)
        sections = {
            s.anchor: s for s in self.task.figures(Evaluation(data, predictions, scores)).sections
        }
        wrong, right = sections["samples"].blocks
        assert len(wrong.cards) + len(right.cards) == 12
        for group, same in ((wrong, False), (right, True)):
            assert all((c.facts[0][1] == c.facts[1][1]) == same for c in group.cards)


def test_misclassified_images_of_all_kinds_and_sites_are_shown():
    """The images in the report come from each kind of error and each site by turns."""
    labels, predicted = np.repeat([0, 1, 2], 20), np.repeat([1, 2, 0], 20)
    sites = np.array(["north"] * 15 + ["south"] * 5 + ["north"] * 20 + ["south"] * 20)
    data = types.SimpleNamespace(labels=labels, sites=sites)
    shown = np.array(_spread(np.arange(60), data, predicted, 6))
    assert sorted(labels[shown]) == [0, 0, 1, 1, 2, 2]
    assert set(sites[shown[labels[shown] == 0]]) == {"north", "south"}
    assert len(_spread(np.arange(0), data, predicted, 6)) == 0
