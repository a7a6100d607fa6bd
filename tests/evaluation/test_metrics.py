"""Scores equal scikit-learn's and hand-worked cases; intervals cover; mistakes are named."""

import json
import warnings

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from primia_jax.errors import DataError
from primia_jax.evaluation import metrics

NAMES = ("normal", "bacterial", "viral")


def made_up(n: int, k: int, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and probabilities [n, k] of a middling classifier."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    labels[:k] = np.arange(k)
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), labels] += 1.2
    if ties:
        logits = np.round(logits)
    probabilities = np.exp(logits)
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_scores_equal_scikit_learn(k, ties):
    labels, probabilities = made_up(200, k, seed=k, ties=ties)
    names = [f"class {c}" for c in range(k)]
    got = metrics.evaluate_predictions(labels, probabilities, names, n_bootstrap=10)
    predicted = probabilities.argmax(axis=1)
    assert got["n"] == 200
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert got["mcc"] == pytest.approx(reference.matthews_corrcoef(labels, predicted))
    assert got["kappa"] == pytest.approx(reference.cohen_kappa_score(labels, predicted))
    assert got["confusion"] == reference.confusion_matrix(labels, predicted).tolist()
    recall = reference.recall_score(labels, predicted, average=None)
    assert list(got["sensitivity"].values()) == pytest.approx(recall)
    specificity = [reference.recall_score(labels != c, predicted != c) for c in range(k)]
    assert list(got["specificity"].values()) == pytest.approx(specificity)
    score = probabilities[:, 1] if k == 2 else probabilities
    auc = reference.roc_auc_score(labels, score, multi_class="ovr", average="weighted")
    assert got["roc_auc"] == pytest.approx(auc)
    brier = reference.brier_score_loss(labels, probabilities, scale_by_half=False)
    assert got["brier"] == pytest.approx(brier)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.int64, st.integers(2, 4).map(lambda k: (k, k)), elements=st.integers(0, 6)),
)
def test_confusion_scores_equal_scikit_learn(confusion):
    """Also where a class is never predicted or has no records."""
    k = len(confusion)
    got = metrics.metrics_from_confusion(confusion)
    if not confusion.sum():
        assert got["accuracy"] is None and got["mcc"] == 0
        return
    true, predicted = np.indices((k, k)).reshape(2, -1)
    labels, predicted = (np.repeat(side, confusion.ravel()) for side in (true, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kappa = reference.cohen_kappa_score(labels, predicted)
        assert got["mcc"] == pytest.approx(reference.matthews_corrcoef(labels, predicted))
        assert got["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert got["kappa"] == pytest.approx(0.0 if np.isnan(kappa) else kappa)
    recall = reference.recall_score(
        labels, predicted, average=None, labels=np.arange(k), zero_division=np.nan
    )
    expected = [None if np.isnan(v) else pytest.approx(v) for v in recall]
    assert got["sensitivity"] == expected


def test_one_predicted_class_has_no_correlation():
    got = metrics.metrics_from_confusion(np.array([[5, 0], [3, 0]]), ("healthy", "ill"))
    assert got["mcc"] == 0.0
    assert got["sensitivity"] == {"healthy": 1.0, "ill": 0.0}
    assert got["specificity"] == {"healthy": 0.0, "ill": 1.0}


@pytest.mark.parametrize(
    "confusion", [np.zeros((2, 3)), np.zeros(4), -np.eye(2), np.full((2, 2), np.nan), np.eye(0)]
)
def test_what_is_no_confusion_matrix_is_refused(confusion):
    with pytest.raises(ValueError, match="confusion matrix"):
        metrics.metrics_from_confusion(confusion)


def test_calibration_error_by_hand():
    """Two bins: 4 at 0.9 of which 3 are right, 1 at 0.6 and right: (4·0.15 + 1·0.4) / 5 = 0.2."""
    top = np.array([0.9, 0.9, 0.9, 0.9, 0.6])
    probabilities = np.stack([top, 1 - top], axis=1)
    labels = np.array([0, 0, 0, 1, 0])
    assert metrics.expected_calibration_error(labels, probabilities) == pytest.approx(0.2)
    counts, confidence, accuracy = metrics.reliability(labels, probabilities)
    assert counts.tolist() == [0] * 8 + [1] + [0] * 4 + [4, 0]
    assert confidence[13] == pytest.approx(0.9) and accuracy[13] == pytest.approx(0.75)
    assert np.isnan(accuracy[0])


def test_calibration_bins_are_closed_above():
    """0.6 = 9/15 ends the ninth bin; 1.0 lies in the last one."""
    top = np.array([0.6, 0.6000001, 1.0])
    counts, _, _ = metrics.reliability(np.zeros(3, int), np.stack([top, 1 - top], axis=1))
    assert np.flatnonzero(counts).tolist() == [8, 9, 14]


def test_a_perfect_and_certain_classifier():
    labels = np.arange(9) % 3
    got = metrics.evaluate_predictions(labels, np.eye(3)[labels], NAMES, n_bootstrap=20)
    for name in ("accuracy", "mcc", "kappa", "roc_auc"):
        assert got[name] == 1.0 and got["intervals"][name] == [1.0, 1.0]
    assert got["brier"] == 0.0 and got["ece"] == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 40), st.integers(1, 6))
def test_weighted_auc_equals_scikit_learn(seed, n, levels):
    """With weights, with many ties, and for several resamples at once."""
    rng = np.random.default_rng(seed)
    positive = np.arange(n) % 2 == 0
    score = rng.integers(0, levels, n) / levels
    weights = rng.integers(0, 4, (3, n)).astype(float)
    weights[:, :2] = 1  # both classes always present
    got = metrics._weighted_auc(positive, score)(weights)
    expected = [reference.roc_auc_score(positive, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_resamples_keep_the_class_counts():
    labels = np.array([0] * 7 + [1] * 2 + [2] * 11)
    for weights in metrics.resampling_weights(labels, 3, 50, seed=1):
        for c, size in enumerate((7, 2, 11)):
            assert (weights[:, labels == c].sum(axis=1) == size).all()


def test_the_bootstrap_equals_resampling_one_by_one(monkeypatch):
    """Every vectorised score of a resample is the score of the repeated records."""
    labels, probabilities = made_up(60, 3, ties=True)
    drawn = next(metrics.resampling_weights(labels, 3, 8, seed=3))
    one_by_one = []
    for weights in drawn.astype(int):
        rows = np.repeat(np.arange(60), weights)
        one_by_one.append(metrics._scores(labels[rows], probabilities[rows], NAMES))
    got = metrics._intervals(labels, probabilities, NAMES, 8, seed=3)
    for name in metrics.SCALARS:
        expected = np.percentile([scores[name] for scores in one_by_one], (2.5, 97.5))
        np.testing.assert_allclose(got[name], expected, atol=1e-12)
    for name in ("sensitivity", "specificity", "roc_auc_by_class"):
        values = [scores[name]["viral"] for scores in one_by_one]
        np.testing.assert_allclose(got[name]["viral"], np.percentile(values, (2.5, 97.5)))
    monkeypatch.setattr(metrics, "_CHUNK_VALUES", 120)  # two resamples at a time
    in_blocks = metrics._intervals(labels, probabilities, NAMES, 8, seed=3)
    assert in_blocks.keys() == got.keys()


def test_intervals_narrow_with_more_data_and_hold_the_score():
    widths = []
    for n in (100, 1600):
        got = metrics.evaluate_predictions(*made_up(n, 3), NAMES, n_bootstrap=400)
        low, high = got["intervals"]["mcc"]
        assert low < got["mcc"] < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.25)


def test_results_are_json_and_repeat_with_the_seed():
    labels, probabilities = made_up(90, 3)
    sites = np.array(["a", "b", "c"])[np.arange(90) % 3]
    first, again, other = (
        metrics.evaluate_predictions(
            labels, probabilities, NAMES, sites=sites, n_bootstrap=50, seed=seed
        )
        for seed in (5, 5, 6)
    )
    text = json.dumps(first, allow_nan=False)
    assert json.loads(text) == first == again
    assert first["intervals"]["mcc"] != other["intervals"]["mcc"]
    assert type(first["mcc"]) is float and type(first["n"]) is int
    assert sum(scores["n"] for scores in first["per_site"].values()) == 90


def test_a_class_missing_at_a_site():
    labels, probabilities = made_up(60, 3)
    sites = np.where(labels == 2, "children's", "general")
    got = metrics.evaluate_predictions(labels, probabilities, NAMES, sites=sites, n_bootstrap=10)
    general, childrens = got["per_site"]["general"], got["per_site"]["children's"]
    assert general["roc_auc"] is None and got["roc_auc"] > 0.5
    assert general["sensitivity"]["viral"] is None
    assert general["roc_auc_by_class"]["viral"] is None
    assert childrens["mcc"] == 0.0 and childrens["kappa"] == 0.0
    everywhere = metrics.evaluate_predictions(
        labels[labels < 2], probabilities[labels < 2], NAMES, n_bootstrap=10
    )
    assert everywhere["intervals"]["roc_auc"] is None
    assert everywhere["intervals"]["sensitivity"]["viral"] is None
    json.dumps(everywhere, allow_nan=False)


def test_probabilities_of_low_precision_are_taken():
    labels, probabilities = made_up(50, 3)
    exact, half = (
        metrics.evaluate_predictions(labels, p, NAMES, n_bootstrap=10)
        for p in (probabilities, probabilities.astype(np.float16))
    )
    assert half["brier"] == pytest.approx(exact["brier"], abs=1e-2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"probabilities": np.full((6, 3), np.nan)}, DataError, "not finite for 6 of 6"),
        ({"probabilities": np.full((6, 3), np.inf)}, DataError, "not finite"),
        ({"probabilities": np.full((6, 3), 2.0)}, DataError, "softmax"),
        ({"probabilities": np.tile([2.0, -1.0, 0.0], (6, 1))}, DataError, "at least 0"),
        ({"probabilities": np.full((6, 2), 0.5)}, ValueError, r"\[n, 3\]"),
        ({"probabilities": np.full(6, 0.5)}, ValueError, r"\(6,\)"),
        ({"labels": np.arange(5) % 3}, ValueError, r"\(5,\)"),
        ({"labels": np.array([0, 1, 3, 0, 1, 2])}, DataError, "record 2 has label 3"),
        ({"labels": np.array([0, -1, 2, 0, 1, 2])}, DataError, "record 1 has label -1"),
        ({"labels": np.zeros(6)}, ValueError, "float64"),
        ({"labels": np.zeros(0, int), "probabilities": np.zeros((0, 3))}, DataError, "empty"),
        ({"sites": np.array(["a"])}, ValueError, r"sites has shape \(1,\)"),
        ({"class_names": ("a", "a", "b")}, ValueError, "distinct"),
        ({"n_bootstrap": 0}, ValueError, "n_bootstrap = 0"),
    ],
)
def test_mistakes_are_named(change, error, words):
    arguments = {
        "labels": np.arange(6) % 3,
        "probabilities": np.full((6, 3), 1 / 3),
        "class_names": NAMES,
        **change,
    }
    with pytest.raises(error, match=words) as caught:
        metrics.evaluate_predictions(**arguments)
    assert "\n" not in str(caught.value)
