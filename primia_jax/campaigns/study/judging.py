"""From predictions to the numbers of the paper's tables: nothing here is laid out or drawn.

Axis letters: n images, k classes, s seeds, b bootstrap resamples.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from primia_jax.campaigns.study.readers import Reader
from primia_jax.campaigns.study.sets import TEST_1, VALIDATION, ImageSet
from primia_jax.evaluation import agreement, metrics
from primia_jax.evaluation.agreement import Estimate, plain

SECURE, FEDERATED, LOCAL = "federated_secure", "federated", "local"
MODES = {
    SECURE: "Federated secure",
    FEDERATED: "Federated non-secure",
    LOCAL: "Locally trained",
}
SCALARS = ("accuracy", "roc_auc", "mcc")
BY_CLASS = ("sensitivity", "specificity")
_SHARE, _CORRELATION, _DIFFERENCE = (0.0, 1.0), (-1.0, 1.0), (-2.0, 2.0)  # values they can take


class Rater(NamedTuple):
    """Rater that names classes: a mode, trained from several seeds, or a reader."""

    key: str
    title: str
    kind: str  # "model" | "reader"
    # By set: [s n k] probabilities. A reader's are 0 and 1, and NaN where an image was not read.
    probabilities: Mapping[str, np.ndarray]

    def seeds(self, key: str) -> int:
        """s, 1 for a reader."""
        return len(self.probabilities[key])

    def read(self, key: str) -> np.ndarray:
        """[n] whether there is a rating of the image."""
        return ~np.isnan(self.probabilities[key]).any(axis=(0, 2))


class Choice(NamedTuple):
    """Number of resamples, and the margin of equivalence."""

    bootstrap: int
    seed: int
    margin: float


def model(mode: str, probabilities: Mapping[str, np.ndarray]) -> Rater:
    """The rater that a mode is."""
    return Rater(mode, MODES[mode], "model", probabilities)


def human(reader: Reader, n_classes: int) -> Rater:
    """The rater that a reader of Test Set 1 is."""
    one_hot = np.eye(n_classes)[np.maximum(reader.ratings, 0)]
    one_hot[~reader.read] = np.nan
    return Rater(f"reader:{reader.name}", reader.name, "reader", {TEST_1: one_hot[None]})


def judge(
    sets: Sequence[ImageSet],
    class_names: Sequence[str],
    raters: Sequence[Rater],
    seeds: Sequence[int],
    choice: Choice,
) -> dict[str, Any]:
    """All numbers of a study.

    Returns:
      `table_1a`: {"raters": [{"key", "title", "kind", "sets": {set: scores}}]}, scores being n and
      estimates (mean, low, high, std, by_seed) of accuracy, roc_auc, mcc, and by class of
      sensitivity and specificity;
      `table_1b`, `table_1c`: {set: {"pairs": [...]}} of the test sets, McNemar's test and Cohen's
      kappa of each pair of raters, seed by seed;
      `equivalence`: {set: ...}, the difference in MCC, secure less local, with its verdict.
    """
    table_1b, table_1c, differences = {}, {}, {}
    for image_set in sets:
        if image_set.key != VALIDATION:
            mcnemar, kappa = _pairs(image_set, len(class_names), raters, seeds, choice)
            table_1b[image_set.key] = {"pairs": mcnemar}
            table_1c[image_set.key] = {"pairs": kappa}
        differences[image_set.key] = _equivalence(image_set, class_names, raters, choice)
    return {
        "table_1a": {"raters": [_rater_scores(r, sets, class_names, choice) for r in raters]},
        "table_1b": table_1b,
        "table_1c": table_1c,
        "equivalence": differences,
    }


def _rater_scores(
    rater: Rater, sets: Sequence[ImageSet], class_names: Sequence[str], choice: Choice
) -> dict[str, Any]:
    scored = {
        image_set.key: _scores(rater, image_set, class_names, choice)
        for image_set in sets
        if image_set.key in rater.probabilities
    }
    return {"key": rater.key, "title": rater.title, "kind": rater.kind, "sets": scored}


def _scores(
    rater: Rater, image_set: ImageSet, class_names: Sequence[str], choice: Choice
) -> dict[str, Any]:
    """Estimates of every score of a rater on a set, on the images that it rated."""
    read = rater.read(image_set.key)
    labels = image_set.labels[read]
    points, samples = [], []
    for probabilities in rater.probabilities[image_set.key][:, read]:
        points.append(metrics.evaluate_predictions(labels, probabilities, class_names,
                                                   n_bootstrap=1))  # fmt: skip
        samples.append(metrics.bootstrap_scores(labels, probabilities, class_names,
                                                choice.bootstrap, choice.seed))  # fmt: skip
    scores: dict[str, Any] = {"n": len(labels)}
    known = {
        "accuracy": True,
        "roc_auc": rater.kind == "model" and "roc_auc" in samples[0],
        "mcc": len(np.unique(labels)) > 1,
    }
    for name in SCALARS:
        bounds = _CORRELATION if name == "mcc" else _SHARE
        scores[name] = (
            plain(_estimate([p[name] for p in points], [s[name] for s in samples], bounds))
            if known[name]
            else None
        )
    for name in BY_CLASS:
        scores[name] = {
            label: plain(_estimate([p[name][label] for p in points],
                                   [s[name][:, c] for s in samples], _SHARE))
            for c, label in enumerate(class_names)
        }  # fmt: skip
    return scores


def _estimate(
    by_seed: Sequence[float | None],
    samples: Sequence[np.ndarray],
    bounds: tuple[float, float],
    least: float = 0.0,
) -> Estimate:
    return agreement.estimate(by_seed, np.stack(samples, axis=1), bounds, least)


def _pairs(
    image_set: ImageSet, k: int, raters: Sequence[Rater], seeds: Sequence[int], choice: Choice
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """McNemar's test and Cohen's kappa of each pair, on the images that both rated."""
    here = [rater for rater in raters if image_set.key in rater.probabilities]
    mcnemar, kappa = [], []
    for first, second in itertools.combinations(here, 2):
        both = first.read(image_set.key) & second.read(image_set.key)
        names = {"first": first.key, "second": second.key, "n": int(both.sum())}
        if not both.any():
            mcnemar.append({**names, "p": None, "by_seed": []})
            kappa.append({**names, **plain(_nothing()), "seeds": []})
            continue
        labels = image_set.labels[both]
        count = max(first.seeds(image_set.key), second.seeds(image_set.key))
        tests, kappas, samples = [], [], []
        for i in range(count):
            a, b = (_classes(rater, image_set.key, i)[both] for rater in (first, second))
            tests.append(agreement.mcnemar(labels, a, b))
            kappas.append(agreement.cohen_kappa(a, b, k))
            samples.append(
                agreement.resampled_kappa(labels, a, b, k, choice.bootstrap, choice.seed)
            )
        of = seeds if count > 1 or "model" in (first.kind, second.kind) else [None]
        mcnemar.append(
            {**names, "p": tests[0].p, "p_low": min(t.p for t in tests),
             "p_high": max(t.p for t in tests),
             "by_seed": [{"seed": seed, **plain(t)} for seed, t in zip(of, tests)]}
        )  # fmt: skip
        estimate = _estimate([value.value for value in kappas], samples, _CORRELATION)
        kappa.append(
            {**names, **plain(estimate),
             "seeds": [{"seed": seed, **plain(value)} for seed, value in zip(of, kappas)]}
        )  # fmt: skip
    _adjust(mcnemar)
    return mcnemar, kappa


def _adjust(pairs: Sequence[dict[str, Any]]) -> None:
    """Adds Holm's adjusted p: of each training's tests, over all pairs of raters on a set.

    What has one rating only, as two readers have, is tested once and stands beside each training.
    """
    tested = [pair for pair in pairs if pair["p"] is not None]
    for i in range(max((len(pair["by_seed"]) for pair in tested), default=0)):
        tests = [pair["by_seed"][min(i, len(pair["by_seed"]) - 1)] for pair in tested]
        adjusted = agreement.holm([test["p"] for test in tests])
        for test, p in zip(tests, adjusted):
            test["p_holm"] = max(p, test.get("p_holm", 0.0))
    for pair in tested:
        pair["p_holm"] = pair["by_seed"][0]["p_holm"]


def _classes(rater: Rater, key: str, i: int) -> np.ndarray:
    """[n] what a rater names, trained from the i-th seed; the images not read count for nothing."""
    rows = rater.probabilities[key]
    return np.nan_to_num(rows[min(i, len(rows) - 1)]).argmax(1)


def _nothing() -> Estimate:
    return Estimate(None, None, None, None, ())


def _equivalence(
    image_set: ImageSet, class_names: Sequence[str], raters: Sequence[Rater], choice: Choice
) -> dict[str, Any]:
    """The difference in MCC, secure less local, by a paired bootstrap.

    It is undefined where a model names one class for all images. The interval allows for as many
    images told differently as such a set may show none of.
    """
    by_key = {rater.key: rater for rater in raters}
    points: list[float | None] = []
    samples = []
    pair = (by_key[SECURE].probabilities[image_set.key], by_key[LOCAL].probabilities[image_set.key])
    for secure, local in zip(*pair):
        both = [
            metrics.bootstrap_scores(
                image_set.labels, p, class_names, choice.bootstrap, choice.seed
            )
            for p in (secure, local)
        ]
        mcc = [
            metrics.evaluate_predictions(image_set.labels, p, class_names, n_bootstrap=1)["mcc"]
            for p in (secure, local)
        ]
        constant = any(len(np.unique(p.argmax(1))) == 1 for p in (secure, local))
        points.append(None if constant else mcc[0] - mcc[1])
        samples.append(both[0]["mcc"] - both[1]["mcc"])
    # Classes of equal size: an image that only one of two gets right is worth k / (k - 1) / n.
    k, n = len(class_names), len(image_set.labels)
    least = agreement.unseen_share(n) * k / (k - 1)
    difference = _estimate(points, samples, _DIFFERENCE, least)
    judged = agreement.equivalence(difference, choice.margin)
    return {"score": "mcc", "first": SECURE, "second": LOCAL, **plain(judged)}
