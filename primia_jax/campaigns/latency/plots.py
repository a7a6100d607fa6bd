"""The pictures of a latency study."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from primia_jax.campaigns.latency.results import Study
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.reporting.figures import INK, colour, picture

_COLOURS = {name: colour(i) for i, name in enumerate(PROTOCOLS)}
_MARKS = "osD^vP"  # of networks
_PARTIES = {DATA_OWNER: colour(5), MODEL_OWNER: colour(7), CRYPTO_PROVIDER: colour(6)}
_NAME_LENGTH = 34  # of a layer


def draw_latency(path: pathlib.Path, study: Study, titles: Mapping[str, str]) -> None:
    """Draws seconds over latency: a panel a network, a line a protocol.

    Raises:
      StorageError: if it cannot be written.
    """
    count = len(study.networks)
    with picture(path, (max(4.8, 3.7 * count), 3.4), count) as (_, panels):
        for axes, network in zip(panels, study.networks):
            for protocol in study.protocols:
                cells = [
                    cell
                    for latency in study.latencies_ms
                    if (cell := study.cell(network, protocol, latency, study.reference_mbps))
                ]
                axes.errorbar(
                    [cell.latency_ms for cell in cells], [cell.mean for cell in cells],
                    [cell.deviation for cell in cells], color=_COLOURS.get(protocol, INK),
                    marker="o", markersize=4, capsize=3, label=protocol,
                )  # fmt: skip
            axes.set_title(titles.get(network, network), loc="left")
            axes.set_xlabel("one-way latency, ms")
            axes.set_xticks(study.latencies_ms)
            axes.set_ylim(bottom=0)
        panels[0].set_ylabel("online phase, s")
        panels[0].legend(loc="upper left")


def draw_traffic(path: pathlib.Path, study: Study, titles: Mapping[str, str]) -> None:
    """Draws bytes over round trips; what is dealt beforehand is hollow, in line with what is sent.

    Raises:
      StorageError: if it cannot be written.
    """
    marks = dict(zip(study.networks, _MARKS * len(study.networks)))
    hollow: Any = {"linestyle": "", "markerfacecolor": "white"}
    with picture(path, (7.4, 4.4)) as (figure, (axes,)):
        for network, mark in marks.items():
            for protocol in study.protocols:
                cell = study.cell(
                    network, protocol, study.latencies_ms[0], study.reference_mbps
                )  # fmt: skip
                if cell is None:
                    continue
                shade, x = _COLOURS.get(protocol, INK), cell.round_trips
                style: Any = {"color": shade, "marker": mark, "markersize": 8}
                axes.plot(x, cell.online_bytes, linestyle="", **style)
                if cell.key_bytes:
                    axes.plot([x, x], [cell.online_bytes, cell.key_bytes], color=shade, linewidth=1)
                    axes.plot(x, cell.key_bytes, **hollow, **style)
        axes.set_xlabel("round trips of one diagnosis")
        axes.set_ylabel("bytes")
        axes.set_xlim(left=0)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: _bytes(value))
        handles = [
            *(Line2D([], [], color=_COLOURS.get(p, INK), linewidth=4, label=p)
              for p in study.protocols),
            *(Line2D([], [], color=INK, marker=mark, linestyle="", label=titles.get(name, name))
              for name, mark in marks.items()),
            Line2D([], [], color=INK, marker="o", linestyle="", label="sent online"),
            Line2D([], [], color=INK, marker="o", label="dealt beforehand", **hollow),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside right upper")


def _bytes(value: float) -> str:
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if value >= 0.9 * 10**power:
            return f"{value / 10**power:g} {unit}"
    return f"{value:g} B"


def draw_layers(path: pathlib.Path, study: Study, network: str) -> None:
    """Draws computing by layer and party, a panel a protocol, each to its own scale.

    Raises:
      StorageError: if it cannot be written.
    """
    names, count = list(study.stages(network)), len(study.protocols)
    size = (max(5.0, 1.6 + 3.1 * count), 1.5 + 0.24 * len(names))
    with picture(path, size, count, sharey=True) as (figure, panels):
        for axes, protocol in zip(panels, study.protocols):
            _profile(axes, study, network, protocol)
        panels[0].set_yticks(range(len(names)), [_short(name) for name in names])
        panels[0].invert_yaxis()
        handles = [
            Line2D([], [], color=shade, linewidth=6, label=party.replace("_", " "))
            for party, shade in _PARTIES.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _profile(axes: Axes, study: Study, network: str, protocol: str) -> None:
    layers = [by_protocol.get(protocol) for by_protocol in study.stages(network).values()]
    left = np.zeros(len(layers))
    for party, shade in _PARTIES.items():
        widths = [1e3 * layer.seconds.get(party, 0.0) if layer else 0.0 for layer in layers]
        axes.barh(range(len(layers)), widths, left=left, color=shade, height=0.72)
        left += widths
    total = left.sum()
    digits = 2 if total < 10 else 1 if total < 100 else 0
    axes.set_title(f"{protocol}, {total:,.{digits}f} ms in all", loc="left")
    axes.set_xlabel("computing, ms")
    axes.set_xlim(0, 1.05 * left.max(initial=0.0) or 1.0)
    axes.grid(axis="y", visible=False)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
