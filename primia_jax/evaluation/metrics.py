"""Metrics of a classifier: scores of its predictions, with intervals and by site.

Axis letters: n predictions, k classes, b bootstrap resamples, u distinct scores, m bins.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, roc_auc_score

from primia_jax.errors import DataError

ECE_BINS = 15
SCALARS = ("accuracy", "mcc", "kappa", "roc_auc", "brier", "ece")
INTERVAL = (2.5, 97.5)  # percentiles
_CHUNK_VALUES = 1 << 22  # largest [b, n] block of resampling weights held at once (32 MiB)
_SUM_TOLERANCE = 1e-3  # how far a row of probabilities may be from summing to one


def evaluate_predictions(
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    sites: np.ndarray | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores predicted class probabilities against the truth.

    Args:
      labels: [n] int, the true classes.
      probabilities: [n, k]; rows sum to one within 1e-3. The predicted class is the
        most probable one, the first of them on a tie.
      class_names: the k names, in the order of the columns.
      sites: [n] str, where each record comes from; None leaves `per_site` empty.
      n_bootstrap: resamples behind the intervals.
      seed: of the resampling.

    Returns:
      Plain Python values that `json.dumps` takes:
      `n`, `accuracy`, `mcc`, `kappa` (Cohen's), `roc_auc` (one-vs-rest, weighted by class counts),
      `brier` (squared distance to the one-hot truth, summed over classes, so in [0, 2]), `ece`
      (see `reliability`); `sensitivity`, `specificity` and `roc_auc_by_class` as {class: value};
      `confusion`, k×k counts with rows true; `intervals`, {name: [low, high]} for every score (by
      class where the score is): 95 % percentile intervals of a bootstrap stratified by class, which
      have no width where all records of a class, or none, are right;
      `per_site`, {site: the same scores without intervals}.
      A value that the data do not define is None: the sensitivity of a class without records, and
      `roc_auc` wherever a class is missing, since a one-vs-rest curve needs both sides. This is
      common within one site. MCC and kappa are 0 where they are undefined.

    Raises:
      DataError: probabilities that are not finite or no distribution, labels out of range, no data.
      ValueError: arrays whose shapes or lengths do not fit together.
    """
    labels, probabilities = _checked(labels, probabilities, class_names)
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap = {n_bootstrap}: must be at least 1")
    result = _scores(labels, probabilities, class_names)
    result["intervals"] = _intervals(labels, probabilities, class_names, n_bootstrap, seed)
    result["per_site"] = {}
    if sites is not None:
        sites = np.asarray(sites)
        if sites.shape != labels.shape:
            raise ValueError(f"sites has shape {sites.shape}, labels {labels.shape}")
        for site in np.unique(sites):
            here = sites == site
            scores = _scores(labels[here], probabilities[here], class_names)
            result["per_site"][str(site)] = scores
    return result


def metrics_from_confusion(
    confusion: np.ndarray, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Scores that need only a confusion matrix, such as one summed over sites.

    Args:
      confusion: [k, k] counts, rows true, columns predicted.
      class_names: keys of `sensitivity` and `specificity`; without them these are lists.

    Returns:
      `n`, `accuracy`, `mcc`, `kappa`, `sensitivity`, `specificity` and `confusion` as plain Python
      values. MCC and kappa are 0 where they are undefined (one class only, true or predicted); a
      sensitivity or specificity without records is None. With no counts, accuracy is None too.

    Raises:
      ValueError: not square, negative or not finite.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or not confusion.size:
        raise ValueError(f"a confusion matrix is square; this one has shape {confusion.shape}")
    if not np.all(np.isfinite(confusion)) or np.any(confusion < 0):
        raise ValueError("a confusion matrix holds finite counts of at least 0")
    if class_names is not None and len(class_names) != len(confusion):
        raise ValueError(f"{len(class_names)} class names for {len(confusion)} classes")
    scores = count_scores(confusion[None].astype(np.float64))
    by_class = {}
    for name in ("sensitivity", "specificity"):
        values = [_plain(v) for v in scores[name][0]]
        by_class[name] = values if class_names is None else dict(zip(class_names, values))
    return {
        "n": int(confusion.sum()),
        "accuracy": _plain(scores["accuracy"][0]),
        "mcc": float(scores["mcc"][0]),
        "kappa": float(scores["kappa"][0]),
        **by_class,
        "confusion": [[int(v) for v in row] for row in confusion],
    }


def bootstrap_scores(
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The scores of each resample behind the intervals of `evaluate_predictions`.

    The same labels and seed give the same resamples, whatever the probabilities: scores of two
    models are paired, and their differences may be taken resample by resample.

    Returns:
      [b] `accuracy`, `mcc`, `kappa`, `brier`, `ece` and, where every class has records, `roc_auc`;
      [b, k] `sensitivity`, `specificity` (NaN for a class without records), `roc_auc_by_class`.

    Raises:
      As `evaluate_predictions`.
    """
    labels, probabilities = _checked(labels, probabilities, class_names)
    n, k = probabilities.shape
    cells = labels * k + probabilities.argmax(axis=1)
    in_cell = np.eye(k * k)[cells]  # [n, k*k]
    bins, top, correct = _binned(labels, probabilities, ECE_BINS)
    gap_in_bin = np.eye(ECE_BINS)[bins] * (correct - top)[:, None]  # [n, m]
    distance = _squared_distance(labels, probabilities)
    class_counts = np.bincount(labels, minlength=k)
    complete = class_counts.all()
    ranks = [_weighted_auc(labels == c, _one_vs_rest(probabilities, c)) for c in range(k)]

    # A resample is a row of weights: how often each record was drawn. Every score is then a
    # function of weighted sums, so that a block of resamples costs a few matrix products.
    samples: dict[str, list[np.ndarray]] = {}
    for weights in resampling_weights(labels, k, n_bootstrap, seed):
        scores = count_scores((weights @ in_cell).reshape(-1, k, k))
        scores["brier"] = weights @ distance / n
        scores["ece"] = np.abs(weights @ gap_in_bin).sum(axis=1) / n
        if complete:
            auc = np.stack([rank(weights) for rank in ranks], axis=1)  # [b, k]
            scores["roc_auc_by_class"] = auc
            scores["roc_auc"] = auc @ class_counts / n
        for name, values in scores.items():
            samples.setdefault(name, []).append(values)
    return {name: np.concatenate(blocks) for name, blocks in samples.items()}


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, n_bins: int = ECE_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bins predictions by the probability of the predicted class, for calibration.

    Bin i holds the top probabilities in (i/m, (i+1)/m], m = `n_bins`, as in Guo et al., "On
    calibration of modern neural networks" (2017), section 2. The expected calibration error is the
    mean over predictions of |accuracy - confidence| of their bin.

    Returns:
      counts [m] int64; confidence [m] and accuracy [m], their means, NaN in empty bins.
    """
    bins, top, correct = _binned(np.asarray(labels), np.asarray(probabilities), n_bins)
    counts = np.bincount(bins, minlength=n_bins)
    filled = np.where(counts, counts, 1)
    confidence = np.bincount(bins, weights=top, minlength=n_bins) / filled
    accuracy = np.bincount(bins, weights=correct, minlength=n_bins) / filled
    empty = counts == 0
    confidence[empty], accuracy[empty] = np.nan, np.nan
    return counts, confidence, accuracy


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, n_bins: int = ECE_BINS
) -> float:
    """The expected calibration error over `n_bins` equal-width bins (see `reliability`)."""
    counts, confidence, accuracy = reliability(labels, probabilities, n_bins)
    return float(np.nansum(counts * np.abs(accuracy - confidence)) / counts.sum())


def _checked(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """`labels` as int64 and `probabilities` as float64, or an error."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    k = len(class_names)
    if k < 2 or len(set(class_names)) != k:
        raise ValueError(f"class_names = {list(class_names)}: expected two or more distinct names")
    if labels.ndim != 1 or probabilities.shape != (len(labels), k):
        raise ValueError(
            f"labels of shape {labels.shape} and probabilities of shape {probabilities.shape}: "
            f"expected [n] and [n, {k}], for {k} classes"
        )
    if not len(labels):
        raise DataError("there are no predictions to evaluate: the set is empty")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}: expected integers, the indices of classes")
    wrong = np.flatnonzero((labels < 0) | (labels >= k))
    if wrong.size:
        raise DataError(
            f"record {wrong[0]} has label {labels[wrong[0]]}, outside 0..{k - 1} "
            f"({', '.join(class_names)})"
        )
    wrong = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if wrong.size:
        raise DataError(
            f"the model's probabilities are not finite for {wrong.size} of {len(labels)} records "
            f"(first: {wrong[0]}); the training has diverged, try a lower learning rate"
        )
    total = probabilities.sum(axis=1)
    wrong = np.flatnonzero((probabilities < 0).any(axis=1) | (np.abs(total - 1) > _SUM_TOLERANCE))
    if wrong.size:
        raise DataError(
            f"record {wrong[0]} has probabilities {probabilities[wrong[0]].tolist()}: "
            "expected numbers of at least 0 that sum to 1 (apply softmax to logits)"
        )
    return labels.astype(np.int64), probabilities


def _scores(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """The point scores of checked arrays."""
    k = len(class_names)
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, labels=np.arange(k))
    auc = {name: _auc(labels, probabilities, c) for c, name in enumerate(class_names)}
    share = np.bincount(labels, minlength=k) / len(labels)
    per_class = list(auc.values())
    complete = all(value is not None for value in per_class)
    return {
        **metrics_from_confusion(confusion, class_names),
        "roc_auc": float(np.dot(share, np.array(per_class, float))) if complete else None,
        "roc_auc_by_class": auc,
        "brier": float(_squared_distance(labels, probabilities).mean()),
        "ece": expected_calibration_error(labels, probabilities),
    }


def _auc(labels: np.ndarray, probabilities: np.ndarray, c: int) -> float | None:
    """Area under the ROC curve of class c against the rest; None where one side is empty."""
    positive = labels == c
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, _one_vs_rest(probabilities, c)))


def _one_vs_rest(probabilities: np.ndarray, c: int) -> np.ndarray:
    """[n] the score of class c; with two classes both sides rank by one column.

    p₀ = 1 - p₁ holds only up to rounding, which would break ties on one side and not on the other.
    """
    if probabilities.shape[1] == 2:
        return probabilities[:, 1] if c == 1 else -probabilities[:, 1]
    return probabilities[:, c]


def _squared_distance(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """[n] squared distance of each row from the one-hot truth."""
    truth = np.eye(probabilities.shape[1])[labels]
    return np.square(probabilities - truth).sum(axis=1)


def _binned(
    labels: np.ndarray, probabilities: np.ndarray, n_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each prediction its bin, its top probability, and 1.0 where it is right."""
    top = probabilities.max(axis=1).astype(np.float64)
    inner_edges = np.arange(1, n_bins) / n_bins
    bins = np.searchsorted(inner_edges, top, side="left")
    return bins, top, (probabilities.argmax(axis=1) == labels).astype(np.float64)


def count_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of [b, k, k] confusion matrices: accuracy, mcc, kappa [b]; by class [b, k].

    MCC is Gorodkin's R_K ("Comparing two K-category assignments by a K-category correlation
    coefficient", 2004), kappa is Cohen's; both equal scikit-learn's, which takes one resample at a
    time and so cannot serve the bootstrap.
    """
    total = confusion.sum(axis=(1, 2))
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)  # [b, k]
    hits = np.diagonal(confusion, axis1=1, axis2=2)  # [b, k]
    right = hits.sum(axis=1)
    by_chance = (true * predicted).sum(axis=1)
    covariance = right * total - by_chance
    spread = (total**2 - (true**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
    others = total[:, None] - true
    return {
        "accuracy": _ratio(right, total, np.nan),
        "mcc": _ratio(covariance, np.sqrt(spread), 0.0),
        "kappa": _ratio(covariance, total**2 - by_chance, 0.0),
        "sensitivity": _ratio(hits, true, np.nan),
        "specificity": _ratio(others - (predicted - hits), others, np.nan),
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray, undefined: float) -> np.ndarray:
    out = np.full(np.shape(numerator), undefined)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def _intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    n_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """95 % percentile intervals of every score."""
    samples = bootstrap_scores(labels, probabilities, class_names, n_bootstrap, seed)
    intervals: dict[str, Any] = dict.fromkeys(("roc_auc", "roc_auc_by_class"))
    for name, values in samples.items():
        low, high = np.percentile(values, INTERVAL, axis=0)
        if np.ndim(low) == 0:
            intervals[name] = [float(low), float(high)]
        else:
            # A class without records is NaN in every resample.
            intervals[name] = {
                label: None if np.isnan(low[c]) else [float(low[c]), float(high[c])]
                for c, label in enumerate(class_names)
            }
    return intervals


def resampling_weights(
    labels: np.ndarray, k: int, n_bootstrap: int, seed: int
) -> Iterator[np.ndarray]:
    """Blocks [b, n] of how often each record is drawn, with replacement, within its class."""
    rng = np.random.Generator(np.random.PCG64(seed))
    n = len(labels)
    block = max(1, _CHUNK_VALUES // n)
    members = [np.flatnonzero(labels == c) for c in range(k)]
    for start in range(0, n_bootstrap, block):
        b = min(block, n_bootstrap - start)
        weights = np.zeros((b, n))
        for records in members:
            size = len(records)
            if size:
                drawn = rng.integers(0, size, (b, size)) + size * np.arange(b)[:, None]
                counts = np.bincount(drawn.ravel(), minlength=b * size)
                weights[:, records] = counts.reshape(b, size)
        yield weights


def _weighted_auc(positive: np.ndarray, score: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Maps weights [b, n] to the areas [b] under the ROC curves of the weighted records.

    The area is the chance that a positive outranks a negative, ties counting half (the
    Mann-Whitney statistic), summed over the u distinct scores in ascending order.
    """
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ranked)) + 1])  # [u]
    is_positive = positive[order].astype(np.float64)

    def area(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        positives = np.add.reduceat(weights * is_positive, starts, axis=1)  # [b, u]
        negatives = np.add.reduceat(weights, starts, axis=1) - positives
        below = np.cumsum(negatives, axis=1) - negatives / 2
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        return (positives * below).sum(axis=1) / pairs

    return area


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
