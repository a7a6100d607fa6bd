"""Evaluation of the attacks: metrics with intervals, tests between settings. JSON-able.

Axis letters: n images of a setting.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from primia_jax.campaigns.audit.attacking import Found
from primia_jax.config import AuditConfig
from primia_jax.inversion import anova, compare_two, corrected, judge, summarise
from primia_jax.inversion.comparison import Comparison
from primia_jax.inversion.distances import SMALLEST_SET, SetDistance
from primia_jax.inversion.identification import Identification, of_ranks

METRICS = ("mse", "psnr", "ssim")
Extract = Callable[[Any], Any]  # images [n s s 1] in [0, 1] -> features [n d]
_LEVEL = 0.95


def measures(
    reconstructions: Found, extract: Extract, audit: AuditConfig, seed: int
) -> dict[str, Any]:
    """All metrics of one setting."""
    identified = _identified(reconstructions)
    measured: dict[str, Any] = {
        name: _summary(getattr(reconstructions, name), low_is_close=name == "mse")
        for name in METRICS
    }
    measured["identified"] = {
        "share": identified.top1,
        "interval": list(identified.interval),
        "chance": identified.chance,
        "gallery": int(reconstructions.gallery),
        "p": identified.p,
    }
    measured["labels_right"] = float(reconstructions.labels_right.mean())
    measured |= _distances(reconstructions, extract, audit, seed)
    return measured


def _identified(reconstructions: Found) -> Identification:
    """Counts an image that stands behind an update twice but once."""
    keys = np.stack(
        [reconstructions.updates, np.unique(reconstructions.hospitals, return_inverse=True)[1]],
        axis=1,
    )
    once = np.unique(np.column_stack([keys, reconstructions.records]), axis=0, return_index=True)[1]
    groups = np.unique(keys[once], axis=0, return_inverse=True)[1].ravel()
    return of_ranks(reconstructions.ranks[once], int(reconstructions.gallery), groups)


def _summary(values: np.ndarray, *, low_is_close: bool) -> dict[str, Any] | None:
    """One metric; None where it is not defined, as SSIM of tiny images."""
    if not np.isfinite(values).all():
        return None
    one = summarise(values, low_is_close=low_is_close)
    interval = None
    if one.n > 1:
        half = stats.t.ppf((1 + _LEVEL) / 2, one.n - 1) * one.std / math.sqrt(one.n)
        interval = [one.mean - half, one.mean + half]
    return {
        "mean": one.mean,
        "std": one.std if one.n > 1 else None,
        "interval": interval,
        "median": one.median,
        "worst": one.worst,
        "worst_image": one.worst_image,
        "values": [float(v) for v in values],
    }


def _distances(
    reconstructions: Found, extract: Extract, audit: AuditConfig, seed: int
) -> dict[str, Any]:
    n = len(reconstructions.originals)
    if n < SMALLEST_SET:
        why = f"{n} images are too few for FID and KID, which need at least {SMALLEST_SET}"
        return {"fid": None, "kid": None, "distances": why}
    judged = judge(
        reconstructions.originals,
        reconstructions.images,
        extract,
        jax.random.key(seed),
        n_splits=audit.splits,
        n_bootstrap=audit.bootstrap,
    )
    note = f"{judged.n} images, {judged.n_features} features"
    if judged.rank_deficient:
        note += ": fewer images than features, so that FID is mostly bias; hold it to its floor"
    return {"fid": _distance(judged.fid), "kid": _distance(judged.kid), "distances": note}


def _distance(one: SetDistance) -> dict[str, Any]:
    return {
        "value": one.value,
        "interval": list(one.interval),
        "found": one.reconstructions.mean,  # of halves, as the two below
        "floor": one.floor.mean,
        "floor_std": one.floor.std,
        "ceiling": one.ceiling.mean,
    }


def tests(findings: Mapping[str, Found]) -> dict[str, Any]:
    """ANOVA over all settings, and t-tests of every two with Holm's correction, by metric.

    Where two settings were attacked behind the very same images the test is of pairs, else Welch's.
    """
    analysis: dict[str, Any] = {"anova": {}, "tests": {}}
    for metric in METRICS:
        groups = _groups(findings, metric)
        analysis["anova"][metric] = anova(groups)._asdict() if groups else None
        pairs = itertools.combinations(groups, 2)
        compared = [_compared(findings, first, second, metric) for first, second in pairs]
        analysis["tests"][metric] = [_plain(one) for one in corrected(compared)]
    return analysis


def against(
    reference: str, findings: Mapping[str, Found], others: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """t-tests of each of `others` against the reference, corrected for all of these, by metric.

    They are of pairs or Welch's, see `tests`.
    """
    comparisons = {}
    for metric in METRICS:
        compared = [
            _compared(findings, reference, name, metric)
            for name in others
            if _groups({one: findings[one] for one in (reference, name)}, metric)
        ]
        comparisons[metric] = [_plain(one) for one in corrected(compared)]
    return comparisons


def _compared(findings: Mapping[str, Found], first: str, second: str, metric: str) -> Comparison:
    orders = _paired(findings[first], findings[second])
    values = (getattr(findings[name], metric) for name in (first, second))
    if orders is None:
        return compare_two(dict(zip((first, second), values)), paired=False)
    ordered = (v[order] for v, order in zip(values, orders))
    return compare_two(dict(zip((first, second), ordered)), paired=True)


def _paired(first: Found, second: Found) -> tuple[np.ndarray, np.ndarray] | None:
    """Orders [n] that bring both to the same images, or None if they were not the same ones.

    Images are the same by hospital, round and record, if they were also augmented alike.
    """
    if first.originals.shape != second.originals.shape:
        return None
    keys = [(one.records, one.rounds, one.hospitals) for one in (first, second)]
    one, other = (np.lexsort(key) for key in keys)
    alike = all(np.array_equal(a[one], b[other]) for a, b in zip(*keys))
    if alike and np.allclose(first.originals[one], second.originals[other], atol=1e-6):
        return one, other
    return None


def _groups(findings: Mapping[str, Found], metric: str) -> dict[str, np.ndarray]:
    """The metric's values by setting; empty where no test is to be had."""
    groups = {name: getattr(reconstructions, metric) for name, reconstructions in findings.items()}
    fit = len(groups) > 1 and all(len(v) > 1 and np.isfinite(v).all() for v in groups.values())
    return groups if fit else {}


def _plain(one: Comparison) -> dict[str, Any]:
    values = one._asdict()
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
