"""The pictures of an audit: images beside what was found of them, and leakage over utility.

Axis letters: n images, s their side.
"""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from primia_jax.campaigns.audit.attacking import Found
from primia_jax.reporting.figures import PICTURE_STYLE, colour, save_picture

_SHOWN = 5  # images given away most, and as many least
_DPI = 130


def draw_panel(path: pathlib.Path, reconstructions: Found) -> None:
    """Originals over reconstructions: the images given away most, then those given away least.

    Raises:
      StorageError: if it cannot be written.
    """
    order = np.argsort(-reconstructions.psnr, kind="stable")
    n = len(order)
    if n > 2 * _SHOWN:
        best, worst = order[:_SHOWN], order[-_SHOWN:]
    else:
        best, worst = order[: (n + 1) // 2], order[(n + 1) // 2 :]
    gap = 0.35 if len(worst) else 0.0
    columns = len(best) + len(worst)
    widths = [1.0] * len(best) + ([gap] if gap else []) + [1.0] * len(worst)
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(0.95 + 0.95 * columns, 2.5), layout="constrained")
        axes = figure.subplots(2, len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})
        shown = [*best, *([None] if gap else []), *worst]
        for column, i in enumerate(shown):
            top, bottom = axes[0, column], axes[1, column]
            if i is None:
                top.axis("off")
                bottom.axis("off")
                continue
            _show(top, reconstructions.originals[i])
            _show(bottom, reconstructions.images[i])
            bottom.set_xlabel(f"{reconstructions.psnr[i]:.1f} dB", fontsize=9)
        axes[0, 0].set_ylabel("original", fontsize=9)
        axes[1, 0].set_ylabel("found", fontsize=9)
        axes[0, 0].set_title("given away most", loc="left", fontsize=9)
        if len(worst):
            axes[0, len(best) + 1].set_title("least", loc="left", fontsize=9)
        save_picture(figure, path, _DPI)


def draw_pair(
    path: pathlib.Path, original: np.ndarray, reconstruction: np.ndarray, psnr: float
) -> None:
    """One image [s s 1] beside what was found of it.

    Raises:
      StorageError: if it cannot be written.
    """
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(2.6, 1.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        _show(left, original)
        _show(right, reconstruction)
        left.set_xlabel("original", fontsize=9)
        right.set_xlabel(f"found, {psnr:.1f} dB", fontsize=9)
        save_picture(figure, path, _DPI)


def draw_leakage(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Leakage over utility, a panel a metric; False, and no picture, without any utility.

    Args:
      path: of the picture.
      rows: the settings of audit.json.

    Raises:
      StorageError: if it cannot be written.
    """
    rows = [row for row in rows if row["utility"]]
    if not rows:
        return False
    panels: list[tuple[str, str]] = [("psnr", "PSNR, dB"), ("ssim", "SSIM")]
    panels = [(key, title) for key, title in panels if all(row[key] for row in rows)]
    panels.append(("identified", "share identified"))
    with matplotlib.rc_context(PICTURE_STYLE):
        height = 3.2 + 0.2 * ((len(rows) + 2) // 3)
        figure = Figure(figsize=(3.6 * len(panels), height), layout="constrained")
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (key, title) in zip(all_axes, panels):
            for i, row in enumerate(rows):
                _point(axes, row, key, i)
            axes.set_xlabel("MCC of the model")
            axes.set_title(title, loc="left", fontsize=10)
        all_axes[-1].set_ylim(-0.03, 1.03)
        handles, labels = all_axes[0].get_legend_handles_labels()
        labels = [textwrap.shorten(label, 40) for label in labels]
        columns = min(3, len(rows))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
        save_picture(figure, path, _DPI)
    return True


def _point(axes: Axes, row: Mapping[str, Any], key: str, i: int) -> None:
    """A setting with the 95 % intervals of both."""
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
