"""One self-contained HTML page that tells what a run did and how good its model is.

Axis letters: s side of an image.
"""

import base64
import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from primia_jax.core.storage import write_text
from primia_jax.evaluation.blocks import Cell, score
from primia_jax.evaluation.record import RunRecord
from primia_jax.reporting import page, plots
from primia_jax.reporting.console import ALL, format_bytes, format_duration
from primia_jax.reporting.settings import settings_table

_SAMPLE_PIXELS = 256  # larger images are reduced
_SITES_NAMED = 5
_NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "vgg16": "VGG-16",
    "simple": "small convolutional",
    "unet": "U-Net",
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
    """
    write_text(pathlib.Path(path), render(run))


def render(run: RunRecord) -> str:
    """The page of `run` as text; see `write_report`."""
    environment = page.environment()
    environment.filters.update(
        score=score,
        kind=lambda block: type(block).__name__,
        curves=plots.of_curves,
        png=_png,
        shade=_shade,
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
        "figures": run.figures,
        "training": plots.of_training(run),
        "data": _data_rows(run),
        "phases": _phase_rows(run),
        "work": _work_rows(run),
        "changed": changed,
        "settings": settings,
    }
    return environment.get_template("report.html.jinja").render(context)


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
        "classes": ", ".join(run.outputs or run.class_names),
    }


def _notices(run: RunRecord) -> list[str]:
    """Simulated parts of the run, and cautions to read before the numbers."""
    data, runtime = run.config.get("data") or {}, run.config.get("runtime") or {}
    notices = []
    if data.get("source") == "phantom":
        notices.append(
            "The images are synthetic: drawn by the bundled generator, of no real patient. "
            "The scores say nothing about real radiographs."
        )
    elif run.figures is not None:
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


def _shade(cell: Cell) -> str:
    """CSS colour behind a cell."""
    hue = "29, 91, 143" if cell.right else "168, 56, 59"
    return f"rgba({hue}, {0.55 * cell.share:.3f})"


def _png(image: np.ndarray) -> str:
    """An image [s s] or [s s 3] uint8 as a data URI."""
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
    """Totals of every site over all rounds."""
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


def _duration(seconds: float | None) -> str:
    short = seconds is not None and seconds < 9.95
    return f"{seconds:.1f} s" if short else format_duration(seconds)


def _whole(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"
