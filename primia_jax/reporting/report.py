"""One self-contained HTML page that tells what a run did and how good its model is.

Axis letters: n test records, k classes, m sample images, s their side.
"""

import base64
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from primia_jax.core.storage import write_text
from primia_jax.evaluation.record import RunRecord
from primia_jax.reporting import page, plots
from primia_jax.reporting.console import ALL, format_bytes, format_duration
from primia_jax.reporting.settings import settings_table

_SAMPLES_SHOWN = 8  # right ones, and as many wrong ones
_SAMPLE_PIXELS = 256  # larger images are reduced
_SITES_NAMED = 5
_SCORES = (
    ("mcc", "Matthews correlation (MCC)", "1 is perfect, 0 no better than chance"),
    ("accuracy", "Accuracy", "share of images that are classified rightly"),
    ("kappa", "Cohen's κ", "agreement with the truth beyond chance"),
    ("roc_auc", "ROC AUC", "one-vs-rest, weighted by class counts"),
    ("brier", "Brier score", "squared error of the probabilities, 0 to 2; lower is better"),
    ("ece", "Calibration error (ECE)", "15 bins of the top probability; lower is better"),
)
_NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "vgg16": "VGG-16",
    "simple": "small convolutional",
}
_MODES = {
    "local": "without federation",
    "federated": "by federated learning with plain aggregation",
    "federated_secure": "by federated learning with secure aggregation",
}


def write_report(path: str | os.PathLike[str], run: RunRecord) -> None:
    """Writes the report of `run` to `path`, replacing what is there in one step.

    The file needs nothing outside itself: plots and images are embedded, there are no scripts.
    Parts of which the record knows nothing are left out.

    Raises:
      StorageError: the file cannot be written.
      ValueError: the arrays of the test records do not fit together.
    """
    write_text(pathlib.Path(path), render(run))


def render(run: RunRecord) -> str:
    """The page of `run` as text; see `write_report`."""
    _check_arrays(run)
    environment = page.environment()
    environment.filters.update(
        score=_score,
        interval=_interval,
        whole=_whole,
        bytes=format_bytes,
        duration=_duration,
    )
    changed, settings = settings_table(run.config)
    context = {
        "run": run,
        "title": run.config.get("name") or "experiment",
        "headline": _headline(run),
        "notices": _notices(run),
        "scores": _score_rows(run),
        "classes": _class_rows(run),
        "confusion": _confusion_rows(run),
        "plots": plots.of_test(run),
        "training": plots.of_training(run),
        "samples": _samples(run),
        "data": _data_rows(run),
        "phases": _phase_rows(run),
        "work": _work_rows(run),
        "changed": changed,
        "settings": settings,
    }
    return environment.get_template("report.html.jinja").render(context)


def _check_arrays(run: RunRecord) -> None:
    if run.labels is None:
        return
    n = len(run.labels)
    shapes = {
        "probabilities": run.probabilities is None
        or np.shape(run.probabilities) == (n, len(run.class_names)),
        "sites": run.sites is None or len(run.sites) == n,
        "names": run.names is None or len(run.names) == n,
        "images": run.images is None
        or (
            np.ndim(run.images) == 3
            and run.image_indices is not None
            and len(run.images) == len(run.image_indices)
        ),
    }
    wrong = [name for name, fits in shapes.items() if not fits]
    if wrong:
        raise ValueError(f"the record's {' and '.join(wrong)} do not fit its {n} test labels")


def _headline(run: RunRecord) -> dict[str, str]:
    """The sentences at the top: what was trained, by whom, from what."""
    name = (run.config.get("model") or {}).get("name", "neural")
    sites = _sites(run)
    how = _MODES.get(run.mode, f"in the mode {run.mode}")
    whom = ""
    if run.mode != "local" and sites:
        whom = f" among {len(sites)} hospital{'s' * (len(sites) != 1)}"
        if len(sites) <= _SITES_NAMED:
            whom += f" ({', '.join(sites)})"
    images = sum(sum(row["counts"]) for row in _data_rows(run) if row["split"] == "train")
    rounds = max((line.get("round") or 0 for line in run.rounds), default=0)
    work = [f"{images:,} training images"] if images else []
    if rounds:
        work.append(f"{rounds} round{'s' * (rounds != 1)}")
    return {
        "what": f"A {_NETWORKS.get(name, name)} network was trained {how}{whom}.",
        "work": ", ".join(work),
        "classes": ", ".join(run.class_names),
    }


def _notices(run: RunRecord) -> list[str]:
    """What in this run is simulated or must be known before the numbers are believed."""
    data, runtime = run.config.get("data") or {}, run.config.get("runtime") or {}
    notices = []
    if data.get("source") == "phantom":
        notices.append(
            "The images are synthetic: drawn by the bundled generator, of no real patient. "
            "The scores say nothing about real radiographs."
        )
    elif run.images is not None and len(run.images):
        notices.append("This page contains images of test records. Treat it as patient data.")
    if data.get("partition", "given") != "given" and run.mode != "local":
        notices.append(
            f"The hospitals are simulated: patients were spread over them by the rule "
            f"“{data['partition']}”."
        )
    if runtime.get("driver") == "local":
        notices.append("All parties ran in one process, so nothing kept them apart.")
    elif run.mode != "local":
        notices.append(
            "The parties ran as processes of one Ray cluster, started by one user: this shows the "
            "computation, not that institutions kept their data apart."
        )
    if runtime.get("latency_s") or runtime.get("bandwidth_bps"):
        bandwidth = runtime.get("bandwidth_bps")
        rate = f"{bandwidth / 1e6:g} Mbit/s" if bandwidth else "unlimited"
        notices.append(
            f"The network is simulated: latency {1e3 * (runtime.get('latency_s') or 0):g} ms each "
            f"way, bandwidth {rate}."
        )
    if run.mode == "federated":
        notices.append("Aggregation was not secured: updates of single hospitals were visible.")
    return notices


def _score_rows(run: RunRecord) -> list[dict[str, Any]]:
    if not run.test:
        return []
    intervals = run.test.get("intervals") or {}
    return [
        {
            "key": key,
            "name": name,
            "note": note,
            "value": run.test[key],
            "interval": intervals.get(key),
        }
        for key, name, note in _SCORES
        if key in run.test
    ]


def _class_rows(run: RunRecord) -> list[dict[str, Any]]:
    """Sensitivity, specificity and AUC of every class, each with its interval."""
    if not run.test:
        return []
    intervals = run.test.get("intervals") or {}
    columns = ("sensitivity", "specificity", "roc_auc_by_class")
    rows = []
    for c, name in enumerate(run.class_names):
        confusion = run.test.get("confusion")
        row = {"name": name, "n": sum(confusion[c]) if confusion else None}
        for column in columns:
            value = (run.test.get(column) or {}).get(name)
            row[column] = (value, (intervals.get(column) or {}).get(name))
        rows.append(row)
    return rows


def _confusion_rows(run: RunRecord) -> list[dict[str, Any]]:
    """Rows of the confusion matrix; a cell is its count, share of the row and CSS background."""
    matrix = (run.test or {}).get("confusion")
    rows = []
    for c, counts in enumerate(matrix or []):
        total = sum(counts)
        cells = []
        for j, count in enumerate(counts):
            share = count / total if total else 0.0
            hue = "29, 91, 143" if j == c else "168, 56, 59"
            cells.append(
                {"count": count, "share": share, "style": f"rgba({hue}, {0.55 * share:.3f})"}
            )
        rows.append({"name": run.class_names[c], "cells": cells})
    return rows


def _samples(run: RunRecord) -> dict[str, list[dict[str, Any]]]:
    """The sample images with their probabilities, right ones and wrong ones apart."""
    groups: dict[str, list[dict[str, Any]]] = {"wrong": [], "right": []}
    if run.images is None or run.labels is None or run.probabilities is None:
        return groups
    for image, index in zip(run.images, np.asarray(run.image_indices).tolist()):
        row = np.asarray(run.probabilities[index], float)
        true, predicted = int(run.labels[index]), int(row.argmax())
        group = groups["right" if true == predicted else "wrong"]
        if len(group) < _SAMPLES_SHOWN:
            group.append(
                {
                    "image": _png(np.asarray(image)),
                    "name": str(run.names[index]) if run.names is not None else f"record {index}",
                    "site": str(run.sites[index]) if run.sites is not None else "",
                    "true": run.class_names[true],
                    "predicted": run.class_names[predicted],
                    "probabilities": list(zip(run.class_names, row.tolist())),
                }
            )
    return groups


def _png(image: np.ndarray) -> str:
    """An image [s, s] uint8 as a data URI."""
    picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.uint8))
    picture.thumbnail((_SAMPLE_PIXELS, _SAMPLE_PIXELS))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _data_rows(run: RunRecord) -> list[dict[str, Any]]:
    rows = []
    for line in run.data_summary:
        counts = line.get("counts") or []
        if isinstance(counts, Mapping):
            counts = [counts.get(name, 0) for name in run.class_names]
        rows.append(
            {
                "site": str(line.get("site") or "–"),
                "split": str(line.get("split") or ""),
                "counts": [int(count) for count in counts],
                "patients": line.get("patients"),
            }
        )
    return rows


def _phase_rows(run: RunRecord) -> list[dict[str, Any]]:
    """Seconds and bytes of every phase, with their shares of the largest one for the bars."""
    rows: list[dict[str, Any]] = [
        {"name": name, "seconds": cost.get("seconds"), "bytes": cost.get("bytes")}
        for name, cost in run.phases.items()
    ]
    for key in ("seconds", "bytes"):
        largest = max((row[key] or 0 for row in rows), default=0) or 1
        for row in rows:
            row[f"{key}_share"] = 100 * (row[key] or 0) / largest
    return rows


def _work_rows(run: RunRecord) -> list[dict[str, Any]]:
    """What every site did over all rounds."""
    sums = ("steps", "compute_seconds", "bytes_sent")
    rows: dict[str, dict[str, Any]] = {}
    for line in run.rounds:
        if line.get("site") == ALL:
            continue
        site = str(line.get("site"))
        start = {"site": site, "rounds": 0, **dict.fromkeys(sums), "stopped": None}
        row = rows.setdefault(site, start)
        row["rounds"] += 1
        for key in sums:
            if line.get(key) is not None:
                row[key] = (row[key] or 0) + line[key]
        if line.get("stopped") and row["stopped"] is None:
            row["stopped"] = line.get("round")
    return list(rows.values())


def _sites(run: RunRecord) -> list[str]:
    """The sites that trained, in order of first mention."""
    trained = [str(line.get("site")) for line in run.rounds if line.get("site") != ALL]
    held = [row["site"] for row in _data_rows(run) if row["split"] == "train"]
    return list(dict.fromkeys(trained or held))


def _score(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float | None) -> str:
    short = seconds is not None and seconds < 9.95
    return f"{seconds:.1f} s" if short else format_duration(seconds)


def _whole(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def _interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    return "–" if bounds is None else f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"
