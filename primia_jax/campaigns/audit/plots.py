"""The pictures of an audit: images beside their reconstructions, and leakage over utility.

Axis letters: n images, s their side.
"""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from primia_jax.campaigns.audit.attacks import Reconstructions
from primia_jax.reporting.figures import colour, picture

_SHOWN = 5  # images leaked most, and as many least
_DPI = 130


def draw_panel(path: pathlib.Path, attacked: Reconstructions) -> None:
    """Draws originals over reconstructions: the images leaked most, then those leaked least.

    Raises:
      StorageError: if it cannot be written.
    """
    order = list(np.argsort(-attacked.psnr, kind="stable"))
    n = len(order)
    half = _SHOWN if n > 2 * _SHOWN else (n + 1) // 2
    most, least = order[:half], order[half:][-_SHOWN:]
    shown = [*most, *([None] if least else []), *least]  # None: a gap between them
    widths = [0.35 if i is None else 1.0 for i in shown]
    size = (0.95 + 0.95 * (len(most) + len(least)), 2.5)
    columns = {"gridspec_kw": {"width_ratios": widths}}
    with picture(path, size, len(shown), rows=2, dpi=_DPI, **columns) as (_, axes):
        top, bottom = axes[: len(shown)], axes[len(shown) :]
        for above, below, i in zip(top, bottom, shown):
            if i is None:
                above.axis("off")
                below.axis("off")
                continue
            _show(above, attacked.originals[i])
            _show(below, attacked.images[i])
            below.set_xlabel(f"{attacked.psnr[i]:.1f} dB", fontsize=9)
        top[0].set_ylabel("original", fontsize=9)
        bottom[0].set_ylabel("found", fontsize=9)
        top[0].set_title("leaked most", loc="left", fontsize=9)
        if least:
            top[len(most) + 1].set_title("least", loc="left", fontsize=9)


def draw_pair(
    path: pathlib.Path, original: np.ndarray, reconstruction: np.ndarray, psnr: float
) -> None:
    """Draws one image [s s 1] beside its reconstruction.

    Raises:
      StorageError: if it cannot be written.
    """
    with picture(path, (2.6, 1.5), 2, dpi=_DPI) as (_, (left, right)):
        _show(left, original)
        _show(right, reconstruction)
        left.set_xlabel("original", fontsize=9)
        right.set_xlabel(f"found, {psnr:.1f} dB", fontsize=9)


def draw_leakage(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Draws leakage over utility, a panel a metric; False, and no picture, without any utility.

    Args:
      path: of the picture.
      rows: the scenarios of audit.json.

    Raises:
      StorageError: if it cannot be written.
    """
    rows = [row for row in rows if row["utility"]]
    if not rows:
        return False
    metrics = {"psnr": "PSNR, dB", "ssim": "SSIM"}
    metrics = {key: title for key, title in metrics.items() if all(row[key] for row in rows)}
    metrics["identified"] = "share identified"
    size = (3.6 * len(metrics), 3.2 + 0.2 * ((len(rows) + 2) // 3))
    with picture(path, size, len(metrics), dpi=_DPI) as (figure, panels):
        for axes, (key, title) in zip(panels, metrics.items()):
            for i, row in enumerate(rows):
                _point(axes, row, key, i)
            axes.set_xlabel("MCC of the model")
            axes.set_title(title, loc="left", fontsize=10)
        panels[-1].set_ylim(-0.03, 1.03)
        handles, labels = panels[0].get_legend_handles_labels()
        labels = [textwrap.shorten(label, 40) for label in labels]
        columns = min(3, len(rows))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
    return True


def _point(axes: Axes, row: Mapping[str, Any], key: str, i: int) -> None:
    """Draws a scenario with the 95 % intervals of both."""
    x, (low, high) = row["utility"]["mcc"], row["utility"]["interval"]
    measured = row[key]
    y = measured["share"] if key == "identified" else measured["mean"]
    bottom, top = measured["interval"] or (y, y)
    axes.errorbar(
        x,
        y,
        xerr=[[max(0.0, x - low)], [max(0.0, high - x)]],
        yerr=[[max(0.0, y - bottom)], [max(0.0, top - y)]],
        color=colour(i),
        marker="s" if row["is_defence"] else "o",
        markersize=7,
        linestyle="",
        elinewidth=0.8,
        alpha=0.9,
        label=row["setting"],
    )


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(np.clip(image[..., 0], 0, 1), cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
