"""Segmentation as a task: the contract, Dice from sums, and pictures of masks."""

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from task_contract import TaskContract
from test_classification import records

from primia_jax.errors import DataError
from primia_jax.tasks import Evaluation, Segmentation
from primia_jax.tasks.segmentation_figures import overlay
from primia_jax.tasks.segmentation_masks import as_png

NAMES = ("background", "lungs", "heart")
SIDE = 8


def masks(n):
    grown = np.random.default_rng(1).integers(0, 3, (n, 2, 2), dtype=np.uint8)
    grown[:, 0, 0], grown[:, 1, 1] = 2, 0
    return grown.repeat(4, 1).repeat(4, 2)


class TestSegmentation(TaskContract):
    task = Segmentation(NAMES)

    def data(self, n):
        return dataclasses.replace(records(n), masks=masks(n), structures=NAMES)

    def outputs(self, n, seed=0):
        rng = np.random.default_rng(seed)
        return (rng.normal(size=(n, SIDE, SIDE, 3)) + 1.5 * np.eye(3)[masks(n)]).astype(np.float32)

    def reference_loss(self, outputs, targets, smooth, weights):
        p = np.exp(outputs - outputs.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        total, dice = 0.0, []
        for i in range(SIDE):
            for j in range(SIDE):
                total -= smooth[i, j] @ np.log(p[i, j]) * (targets[i, j] @ weights)
        for c in (1, 2):
            overlap = sum(p[i, j, c] * targets[i, j, c] for i in range(SIDE) for j in range(SIDE))
            dice.append((2 * overlap + 1) / (p[..., c].sum() + targets[..., c].sum() + 1))
        return total / SIDE**2 + 1 - sum(dice) / 2

    def test_classes_are_the_structures_of_the_masks(self):
        assert Segmentation.classes(self.data(2)) == NAMES
        with pytest.raises(DataError, match="needs masks"):
            Segmentation.classes(records(2))

    def test_the_report_shows_three_images_with_both_outlines(self):
        data, predictions = self.data(9), self.predictions(9)
        scores = self.task.evaluate(predictions, data, n_bootstrap=10)
        sections = self.task.figures(Evaluation(data, predictions, scores)).sections
        table, cards = sections[0].blocks[0], sections[1].blocks[0]
        assert [row[0].text for row in table.rows] == ["hospital_0", "hospital_1", "all sites"]
        assert all("to" in cell.note for row in table.rows for cell in row[2:])
        assert [card.facts[0][0] for card in cards.cards] == [
            f"{word} image, Dice" for word in ("best", "median", "worst")
        ]
        values = [float(card.facts[0][1]) for card in cards.cards]
        assert values == sorted(values, reverse=True)
        assert len(cards.legend) == 2


@given(st.integers(0, 2**32 - 1))
def test_dice_is_that_of_sets_of_pixels(seed):
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, 3, (2, 4, 5, 5), dtype=np.uint8)
    task = Segmentation(NAMES)
    scores = task.metrics(task.summable(predicted, true).sum(0))
    for c, name in enumerate(NAMES):
        a, b = set(np.flatnonzero(true == c)), set(np.flatnonzero(predicted == c))
        if a or b:
            assert scores["dice_by_class"][name] == pytest.approx(
                2 * len(a & b) / (len(a) + len(b))
            )
            assert scores["iou_by_class"][name] == pytest.approx(len(a & b) / len(a | b))
    assert scores["accuracy"] == pytest.approx((true == predicted).mean())


def test_an_absent_structure_is_not_scored():
    task, empty = Segmentation(NAMES), np.zeros((2, 4, 4), np.uint8)
    scores = task.evaluate(empty, dataclasses.replace(records(2), masks=empty), n_bootstrap=10)
    assert scores["dice"] is None and scores["dice_by_class"]["heart"] is None
    assert scores["intervals"]["dice"] is None and scores["dice_by_class"]["background"] == 1
    np.testing.assert_array_equal(task.errors(empty, empty), 0)


@pytest.mark.parametrize("size", [(40, 70), (70, 40), (8, 8), (5, 300)])
def test_a_mask_has_the_size_of_its_picture(size):
    """The network sees the central square; the mask lies there, and background around it."""
    picture = Image.open(io.BytesIO(as_png(np.full((8, 8), 2, np.uint8), size)))
    values, square = np.asarray(picture), min(size)
    assert values.shape == size and (values == 2).sum() == square**2
    top, left = (size[0] - square) // 2, (size[1] - square) // 2
    assert (values[top : top + square, left : left + square] == 2).all()


def test_overlays_colour_predictions_and_outline_the_truth():
    image, predicted = np.full((16, 16), 100, np.uint8), np.zeros((16, 16), np.uint8)
    predicted[:8] = 1
    picture = overlay(image, predicted, np.fliplr(np.tri(16)).astype(np.uint8))
    assert picture.shape[0] == picture.shape[1] >= 256
    assert (picture[-1, -1] == 100).all() or (picture[-1, -1] == 255).all()
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 3
