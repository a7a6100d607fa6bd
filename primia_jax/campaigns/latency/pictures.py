"""The pictures of a latency study."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from primia_jax.campaigns.latency.results import Study
from primia_jax.campaigns.latency.tables import stages
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.reporting.figures import INK, PICTURE_STYLE, colour, save_picture

_COLOURS = {name: colour(i) for i, name in enumerate(PROTOCOLS)}
_MARKS = "osD^vP"  # of networks
_PARTIES = {DATA_OWNER: colour(5), MODEL_OWNER: colour(7), CRYPTO_PROVIDER: colour(6)}


def draw_all(study: Study, folder: Any, titles: Mapping[str, str]) -> dict[str, Any]:
    """Draws every picture; returns their paths by name, layers' by network.

    Raises:
      StorageError: if they cannot be written.
    """
    paths: dict[str, Any] = {
        "latency": folder / "study_latency.png",
        "traffic": folder / "study_traffic.png",
        "layers": {name: folder / f"study_layers_{name}.png" for name in study.networks},
    }
    with matplotlib.rc_context(PICTURE_STYLE):
        save_picture(_latency(study, titles), paths["latency"])
        save_picture(_traffic(study, titles), paths["traffic"])
        for name, path in paths["layers"].items():
            save_picture(_layers(study, name), path)
    return paths


def _latency(study: Study, titles: Mapping[str, str]) -> Figure:
    """Seconds over latency: a panel a network, a line a protocol."""
    count = len(study.networks)
    figure = Figure(figsize=(max(4.8, 3.7 * count), 3.4), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
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
    return figure


def _traffic(study: Study, titles: Mapping[str, str]) -> Figure:
    """Bytes over round trips; what is dealt beforehand hollow, above or below what is sent."""
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    axes = figure.subplots()
    marks = dict(zip(study.networks, _MARKS * len(study.networks)))
    latency, mbps = study.latencies_ms[0], study.reference_mbps
    for network in study.networks:
        for protocol in study.protocols:
            cell = study.cell(network, protocol, latency, mbps)
            if cell is None:
                continue
            at: Any = {
                "color": _COLOURS.get(protocol, INK),
                "marker": marks[network],
                "markersize": 8,
            }
            axes.plot(cell.round_trips, cell.online_bytes, linestyle="", **at)
            if cell.key_bytes:
                x = [cell.round_trips] * 2
                axes.plot(x, [cell.online_bytes, cell.key_bytes], color=at["color"], linewidth=1)
                axes.plot(
                    cell.round_trips, cell.key_bytes, linestyle="", markerfacecolor="white", **at
                )
    axes.set_xlabel("round trips of one diagnosis")
    axes.set_ylabel("bytes")
    axes.set_xlim(left=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: _bytes(value))
    handles = [Line2D([], [], color=_COLOURS.get(p, INK), linewidth=4, label=p)
               for p in study.protocols]  # fmt: skip
    handles += [
        Line2D([], [], color=INK, marker=mark, linestyle="", label=titles.get(name, name))
        for name, mark in marks.items()
    ]
    handles += [
        Line2D([], [], color=INK, marker="o", linestyle="", label="sent online"),
        Line2D(
            [], [], color=INK, marker="o", linestyle="", markerfacecolor="white",
            label="dealt beforehand",
        ),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _bytes(value: float) -> str:
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if value >= 0.9 * 10**power:
            return f"{value / 10**power:g} {unit}"
    return f"{value:g} B"


def _layers(study: Study, network: str) -> Figure:
    """Computing by layer and party, a panel a protocol, each to its own scale."""
    names = stages(study, network)
    size = (max(5.0, 1.6 + 3.1 * len(study.protocols)), 1.5 + 0.24 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(study.protocols), squeeze=False, sharey=True)[0]
    for axes, protocol in zip(panels, study.protocols):
        _profile(axes, study, network, protocol, names)
    panels[0].set_yticks(range(len(names)), [_short(name) for name in names])
    panels[0].invert_yaxis()
    handles = [
        Line2D([], [], color=shade, linewidth=6, label=party.replace("_", " "))
        for party, shade in _PARTIES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _profile(axes: Axes, study: Study, network: str, protocol: str, names: Sequence[str]) -> None:
    known = {
        layer.name: layer
        for layer in study.layers
        if layer.network == network and layer.protocol == protocol
    }
    left = np.zeros(len(names))
    for party, shade in _PARTIES.items():
        widths = np.array(
            [1e3 * known[n].seconds.get(party, 0.0) if n in known else 0.0 for n in names]
        )
        axes.barh(range(len(names)), widths, left=left, color=shade, height=0.72)
        left += widths
    axes.set_title(f"{protocol}, {_milliseconds(left.sum())} ms in all", loc="left")
    axes.set_xlabel("computing, ms")
    axes.set_xlim(0, 1.05 * left.max(initial=0.0) or 1.0)
    axes.grid(axis="y", visible=False)


def _milliseconds(value: float) -> str:
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def _short(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
