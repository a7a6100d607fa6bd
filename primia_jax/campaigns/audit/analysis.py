"""Metrics of reconstructions with intervals, and tests between scenarios. All of it JSON-able.

Axis letters: n images of a scenario.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from primia_jax.campaigns.audit.attacks import Reconstructions
from primia_jax.campaigns.audit.features import Extract
from primia_jax.config import AuditConfig
from primia_jax.evaluation.agreement import plain
from primia_jax.inversion import anova, compare_two, corrected, judge, summarise
from primia_jax.inversion.comparison import Comparison
from primia_jax.inversion.distances import SMALLEST_SET, SetDistance
from primia_jax.inversion.identification import Identification, of_ranks

METRICS = ("mse", "psnr", "ssim")
_LEVEL = 0.95


def measures(
    attacked: Reconstructions, extract: Extract, audit: AuditConfig, seed: int
) -> dict[str, Any]:
    """All metrics of one scenario."""
    identified = identification(attacked)
    return {
        **{name: _summary(getattr(attacked, name), name == "mse") for name in METRICS},
        "identified": {
            "share": identified.top1,
            "interval": list(identified.interval),
            "chance": identified.chance,
            "gallery": int(attacked.gallery),
            "p": identified.p,
        },
        "labels_right": float(attacked.labels_right.mean()),
        **_distances(attacked, extract, audit, seed),
    }


def identification(attacked: Reconstructions) -> Identification:
    """Re-identification; an image that stands behind an update twice counts once."""
    hospitals = np.unique(attacked.hospitals, return_inverse=True)[1]
    keys = np.stack([attacked.updates, hospitals], axis=1)
    once = np.unique(np.column_stack([keys, attacked.records]), axis=0, return_index=True)[1]
    groups = np.unique(keys[once], axis=0, return_inverse=True)[1].ravel()
    return of_ranks(attacked.ranks[once], int(attacked.gallery), groups)


def _summary(values: np.ndarray, low_is_close: bool) -> dict[str, Any] | None:
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
    attacked: Reconstructions, extract: Extract, audit: AuditConfig, seed: int
) -> dict[str, Any]:
    n = len(attacked.originals)
    if n < SMALLEST_SET:
        why = f"{n} images are too few for FID and KID, which need at least {SMALLEST_SET}"
        return {"fid": None, "kid": None, "distances": why}
    sets = judge(
        attacked.originals,
        attacked.images,
        extract,
        jax.random.key(seed),
        n_splits=audit.splits,
        n_bootstrap=audit.bootstrap,
    )
    note = f"{sets.n} images, {sets.n_features} features"
    if sets.rank_deficient:
        note += ": fewer images than features, so that FID is mostly bias; hold it to its floor"
    return {"fid": _distance(sets.fid), "kid": _distance(sets.kid), "distances": note}


def _distance(one: SetDistance) -> dict[str, Any]:
    return {
        "value": one.value,
        "interval": list(one.interval),
        "found": one.found.mean,  # of halves, as the two below
        "floor": one.floor.mean,
        "floor_std": one.floor.std,
        "ceiling": one.ceiling.mean,
    }


def tests(attacked: Mapping[str, Reconstructions]) -> dict[str, Any]:
    """ANOVA over all scenarios, and t-tests of every two with Holm's correction, by metric.

    Where two scenarios were attacked behind the very same images the test is of pairs, else
    Welch's.
    """
    analysis: dict[str, Any] = {"anova": {}, "tests": {}}
    for metric in METRICS:
        groups = _groups(attacked, metric)
        analysis["anova"][metric] = anova(groups)._asdict() if groups else None
        pairs = itertools.combinations(groups, 2)
        compared = corrected([_compared(attacked, *pair, metric) for pair in pairs])
        analysis["tests"][metric] = [plain(one) for one in compared]
    return analysis


def against(
    reference: str, attacked: Mapping[str, Reconstructions], others: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """t-tests of each of `others` against the reference, corrected for all of these, by metric.

    They are of pairs or Welch's, see `tests`.
    """
    analysis = {}
    for metric in METRICS:
        compared = [
            _compared(attacked, reference, name, metric)
            for name in others
            if _groups({one: attacked[one] for one in (reference, name)}, metric)
        ]
        analysis[metric] = [plain(one) for one in corrected(compared)]
    return analysis


def _compared(
    attacked: Mapping[str, Reconstructions], first: str, second: str, metric: str
) -> Comparison:
    orders = _paired(attacked[first], attacked[second]) or (slice(None), slice(None))
    values = {
        name: getattr(attacked[name], metric)[order] for name, order in zip((first, second), orders)
    }
    return compare_two(values, paired=not isinstance(orders[0], slice))


def _paired(
    first: Reconstructions, second: Reconstructions
) -> tuple[np.ndarray, np.ndarray] | None:
    """Orders [n] that bring both to the same images, or None if they were not the same ones.

    Images are the same by hospital, round and record, if they were also augmented alike.
    """
    if first.originals.shape != second.originals.shape:
        return None
    keys = [(each.records, each.rounds, each.hospitals) for each in (first, second)]
    one, other = (np.lexsort(key) for key in keys)
    alike = all(np.array_equal(a[one], b[other]) for a, b in zip(*keys))
    if alike and np.allclose(first.originals[one], second.originals[other], atol=1e-6):
        return one, other
    return None


def _groups(attacked: Mapping[str, Reconstructions], metric: str) -> dict[str, np.ndarray]:
    """The metric's values by scenario; empty where no test is to be had."""
    groups = {name: getattr(each, metric) for name, each in attacked.items()}
    fit = len(groups) > 1 and all(len(v) > 1 and np.isfinite(v).all() for v in groups.values())
    return groups if fit else {}
