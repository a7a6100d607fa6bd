"""The tables of a latency study, its CSV files, and its page."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from primia_jax.campaigns.latency import plots
from primia_jax.campaigns.latency.results import BASELINE, Cell, Comparison, Layer, Study
from primia_jax.core.storage import write_text
from primia_jax.reporting import page, tables
from primia_jax.reporting.console import format_bytes
from primia_jax.reporting.formats import ABSENT, p_equals, signed
from primia_jax.reporting.tables import Table, build

# FSS against SecureNN at one-way latencies in ms, in percent: A. Ziller et al., "Privacy-preserving
# medical image analysis" (arXiv:2012.06354), results; both with p < 0.001.
PUBLISHED = {10.0: 35.0, 100.0: 47.0}

ROLES = {
    "fss": (
        "This project's protocol, by function secret sharing",
        "with the model owner; the data owner gets them masked, once a session",
        "to the model owner under a mask, layer by layer",
        "the crypto provider deals keys beforehand and takes no part online",
    ),
    "ariann": (
        "AriaNN (Ryffel et al. 2022), by function secret sharing",
        "shared between the two servers, data owner and model owner",
        "shared between the two servers",
        "the crypto provider deals keys and triples beforehand and takes no part online",
    ),
    "securenn": (
        "SecureNN (Wagh et al. 2019), with a third party",
        "shared between the two servers, data owner and model owner",
        "shared between the two servers",
        "nothing is dealt; the crypto provider assists in every layer online",
    ),
}


def write_report(study: Study, folder: pathlib.Path, titles: Mapping[str, str]) -> None:
    """Writes tables/*.csv, study_*.png and report.html, which holds the pictures within itself.

    Args:
      study: its figures; nothing is run.
      folder: where to.
      titles: of the networks, for readers.

    Raises:
      StorageError: if they cannot be written.
    """
    _write_csv(study, folder / "tables", titles)
    pictures = {name: folder / f"study_{name}.png" for name in ("latency", "traffic")}
    plots.draw_latency(pictures["latency"], study, titles)
    plots.draw_traffic(pictures["traffic"], study, titles)
    layers = []
    for network in study.networks:
        path = folder / f"study_layers_{network}.png"
        plots.draw_layers(path, study, network)
        title = titles.get(network, network)
        layers.append((title, page.embedded(path), layer_table(study, network)))
    others = [mbps for mbps in study.bandwidths_mbps if mbps != study.reference_mbps]
    page.write(
        folder / "report.html",
        "latency.html.jinja",
        study=study,
        titles=titles,
        repetitions=len(study.cells[0].seconds) if study.cells else 0,
        tiles=_tiles(study, titles),
        bandwidth=_rate(study.reference_mbps),
        paper=paper_table(study, study.reference_mbps, titles),
        others=[(_rate(mbps), paper_table(study, mbps, titles)) for mbps in others],
        traffic=traffic_table(study, titles),
        layers=layers,
        validation=_validation_table(study, titles),
        roles=_role_table(study),
        pictures={name: page.embedded(path) for name, path in pictures.items()},
    )


def paper_table(study: Study, mbps: float, titles: Mapping[str, str]) -> Table:
    """Mean ± standard deviation of every protocol at each latency, and the tests."""
    against = BASELINE in study.protocols
    others = [p for p in study.protocols if p != BASELINE and against]
    first = study.latencies_ms[0] if study.cells else 0.0

    def cell(link: tuple[str, float], protocol: str) -> Cell | None:
        return study.cell(link[0], protocol, link[1], mbps)

    return build(
        [(network, latency) for network in study.networks for latency in study.latencies_ms],
        [
            ("network", lambda at: titles.get(at[0], at[0]) if at[1] == first else ""),
            ("latency", lambda at: f"{at[1]:g} ms"),
            *((f"{p}, s", lambda at, p=p: _mean_and_deviation(cell(at, p)))
              for p in study.protocols),
            *((f"{p} against {BASELINE}", lambda at, p=p: _change(study, cell(at, p)))
              for p in others),
            ("published", lambda at: f"−{PUBLISHED[at[1]]:g} %" if at[1] in PUBLISHED else ABSENT),
        ],
    )  # fmt: skip


def _mean_and_deviation(cell: Cell | None) -> str:
    """A time, with decimals that fit the mean."""
    if cell is None:
        return ABSENT
    digits = 3 if cell.mean < 10 else 2 if cell.mean < 100 else 1
    return f"{cell.mean:.{digits}f} ± {cell.deviation:.{digits}f}"


def _change(study: Study, cell: Cell | None) -> str:
    """A change of the mean in percent, as the paper gives it, and the test."""
    reduction, p = Comparison(None, None) if cell is None else study.compared(cell)
    if reduction is None:
        return ABSENT
    change = f"{signed(-reduction, 1)} %"
    return change if p is None else f"{change}, {p_equals(p)}"


def traffic_table(study: Study, titles: Mapping[str, str]) -> Table:
    """Messages and bytes, which latency does not change, and dealing at the main bandwidth."""
    firsts = {session.network: session for session in reversed(study.sessions)}
    cells = [
        (session, cell)
        for session in study.sessions
        if (cell := study.cell(session.network, session.protocol, study.latencies_ms[0],
                               study.reference_mbps))
    ]  # fmt: skip
    return build(
        cells,
        [
            ("network", lambda at: titles.get(at[0].network, at[0].network)
             if at[0] is firsts[at[0].network] else ""),
            ("protocol", lambda at: at[0].protocol),
            ("round trips", lambda at: f"{at[1].round_trips:g}"),
            ("online", lambda at: format_bytes(at[1].online_bytes)),
            ("keys", lambda at: format_bytes(at[1].key_bytes)),
            ("dealing, s", lambda at: f"{at[1].offline_mean:.3f}"),
            ("set-up", lambda at: format_bytes(at[0].set_up_bytes)),
            ("error", lambda at: f"{at[0].error:.1e}"),
        ],
    )  # fmt: skip


def layer_table(study: Study, network: str) -> Table:
    """Computing of all parties by stage and protocol, and bytes sent."""
    columns: list[Any] = [("layer", lambda stage: stage[0])]
    for p in study.protocols:
        columns.append((f"{p}, ms", lambda stage, p=p: _milliseconds(stage[1].get(p))))
        columns.append(("bytes", lambda stage, p=p: _sent(stage[1].get(p))))
    return build(study.stages(network).items(), columns)


def _milliseconds(layer: Layer | None) -> str:
    return f"{1e3 * sum(layer.seconds.values()):.1f}" if layer else ABSENT


def _sent(layer: Layer | None) -> str:
    return format_bytes(layer.n_bytes if layer else None)


def _validation_table(study: Study, titles: Mapping[str, str]) -> Table:
    """Actors beside the virtual clocks."""
    return build(
        study.validations,
        [
            ("network", lambda v: titles.get(v.network, v.network)),
            ("protocol", lambda v: v.protocol),
            ("latency", lambda v: f"{v.latency_ms:g} ms"),
            ("actors, s", lambda v: f"{np.mean(v.wall_seconds):.3f}"),
            ("virtual, s", lambda v: f"{np.mean(v.virtual_seconds):.3f}"),
            ("ratio", lambda v: f"{v.ratio:.2f}"),
        ],
    )


def _role_table(study: Study) -> Table:
    """Names the owner of the weights and the dealer."""
    heads = ("what it is", "weights", "image", "third party")
    columns: Sequence[Any] = [
        ("protocol", str), *((head, lambda p, i=i: ROLES[p][i]) for i, head in enumerate(heads))
    ]  # fmt: skip
    return build([p for p in study.protocols if p in ROLES], columns)


def _write_csv(study: Study, folder: pathlib.Path, titles: Mapping[str, str]) -> None:
    """Writes paper.csv as readers see it, and the others in numbers."""
    paper, network, lines = paper_table(study, study.reference_mbps, titles), "", []
    for row in paper.rows:
        network = row[0].text or network
        values = [None if cell.text == ABSENT else cell.text for cell in row[1:]]
        lines.append(dict(zip(paper.heads, [network, *values])))
    measured = study.lines(study.networks)
    plain = [{k: v for k, v in line.items() if k != "benchmark"} for line in measured]
    count = len(study.cells)
    files: dict[str, list[dict[str, Any]]] = {
        "paper": lines,
        "cells": plain[:count],
        "validation": plain[count:],
        "layers": [
            {"network": x.network, "protocol": x.protocol, "layer": x.name, "bytes": x.n_bytes,
             "messages": x.messages, **{f"{p}_seconds": s for p, s in x.seconds.items()}}
            for x in study.layers
        ],
        "sessions": [
            {**vars(session), "warnings": "; ".join(session.warnings)}
            for session in study.sessions
        ],
    }  # fmt: skip
    for name, records in files.items():
        write_text(folder / f"{name}.csv", tables.as_csv(records))


def _rate(mbps: float) -> str:
    """A bandwidth for readers."""
    if not mbps:
        return "unlimited bandwidth"
    return f"{mbps / 1000:g} Gbit/s" if mbps >= 1000 else f"{mbps:g} Mbit/s"


def _tiles(study: Study, titles: Mapping[str, str]) -> list[dict[str, str]]:
    """This project's protocol against the baseline, on the network that takes it longest."""
    if BASELINE not in study.protocols:
        return []
    mbps = study.reference_mbps

    def baseline_seconds(network: str) -> float:
        cells = [study.cell(network, BASELINE, t, mbps) for t in study.latencies_ms]
        return max((cell.mean for cell in cells if cell), default=0.0)

    network, tiles = max(study.networks, key=baseline_seconds), []
    for latency in sorted(PUBLISHED.keys() & set(study.latencies_ms)):
        if cell := study.cell(network, "fss", latency, mbps):
            change, _, test = _change(study, cell).partition(", ")
            note = f"{titles.get(network, network)}; {test}; published: −{PUBLISHED[latency]:g} %"
            label = f"fss against {BASELINE} at {latency:g} ms"
            tiles.append({"label": label, "number": change, "note": note})
    return tiles
