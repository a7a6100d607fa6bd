"""The tables of a latency study: for readers in the paper's form, and as numbers in CSV files."""

import csv
import io
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from primia_jax.campaigns.latency.results import BASELINE, Cell, Comparison, Study
from primia_jax.core.storage import write_text
from primia_jax.reporting.console import format_bytes

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


class Table(NamedTuple):
    """Heads and rows, all text."""

    heads: list[str]
    rows: list[list[str]]


def paper_table(study: Study, mbps: float, titles: Mapping[str, str]) -> Table:
    """Mean ± standard deviation of every protocol at each latency, and the tests."""
    others = [p for p in study.protocols if p != BASELINE]
    tested = others if BASELINE in study.protocols else []
    heads = ["network", "latency", *(f"{p}, s" for p in study.protocols)]
    heads += [f"{p} against {BASELINE}" for p in tested] + ["published"]
    rows = []
    for network in study.networks:
        for latency in study.latencies_ms:
            cells = [study.cell(network, p, latency, mbps) for p in study.protocols]
            found = {cell.protocol: study.compared(cell) for cell in cells if cell}
            rows.append(
                [titles.get(network, network) if latency == study.latencies_ms[0] else "",
                 f"{latency:g} ms",
                 *("–" if cell is None else mean_and_deviation(cell) for cell in cells),
                 *(comparison(found.get(p, Comparison(None, None))) for p in tested),
                 published(latency)]
            )  # fmt: skip
    return Table(heads, rows)


def mean_and_deviation(cell: Cell) -> str:
    """With decimals that fit the mean."""
    digits = 3 if cell.mean < 10 else 2 if cell.mean < 100 else 1
    return f"{cell.mean:.{digits}f} ± {cell.deviation:.{digits}f}"


def comparison(found: Comparison) -> str:
    """A change of the mean in percent, as the paper gives it, and the test."""
    if found.reduction_percent is None:
        return "–"
    change = f"{-found.reduction_percent:+.1f} %".replace("-", "−")
    return change if found.p_value is None else f"{change}, {p_text(found.p_value)}"


def p_text(p: float) -> str:
    """As usual."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def published(latency_ms: float) -> str:
    """The paper's figure for this latency."""
    if latency_ms not in PUBLISHED:
        return "–"
    return f"−{PUBLISHED[latency_ms]:g} %"


def traffic_table(study: Study, titles: Mapping[str, str]) -> Table:
    """What does not depend on latency, and dealing at the reference bandwidth."""
    heads = [
        "network",
        "protocol",
        "round trips",
        "online",
        "keys",
        "dealing, s",
        "set-up",
        "error",
    ]
    rows, last = [], ""
    for session in study.sessions:
        network = session.network
        cell = study.cell(network, session.protocol, study.latencies_ms[0], study.reference_mbps)
        if cell is None:
            continue
        name = titles.get(network, network) if network != last else ""
        last = network
        rows.append(
            [name, session.protocol, f"{cell.round_trips:g}", format_bytes(cell.online_bytes),
             format_bytes(cell.key_bytes), f"{cell.offline_mean:.3f}",
             format_bytes(session.set_up_bytes), f"{session.error:.1e}"]
        )  # fmt: skip
    return Table(heads, rows)


def layer_table(study: Study, network: str) -> Table:
    """Computing of all parties by stage and protocol, and bytes sent."""
    heads = ["layer"]
    for protocol in study.protocols:
        heads += [f"{protocol}, ms", "bytes"]
    known = {(x.protocol, x.name): x for x in study.layers if x.network == network}
    rows = []
    for name in stages(study, network):
        row = [name]
        for protocol in study.protocols:
            layer = known.get((protocol, name))
            if layer is None:
                row += ["–", "–"]
            else:
                milliseconds = 1e3 * sum(layer.seconds.values())
                row += [f"{milliseconds:.1f}", format_bytes(layer.n_bytes)]
        rows.append(row)
    return Table(heads, rows)


def stages(study: Study, network: str) -> list[str]:
    """Names of a network's stages, in order; what comes before the first one is left out."""
    names = (layer.name for layer in study.layers if layer.network == network)
    found = list(dict.fromkeys(name for name in names if name))
    return [name for name in found if name != "outputs"] + ["outputs"] * ("outputs" in found)


def validation_table(study: Study, titles: Mapping[str, str]) -> Table:
    """Actors beside the virtual clocks."""
    heads = ["network", "protocol", "latency", "actors, s", "virtual, s", "ratio"]
    rows = [
        [titles.get(v.network, v.network), v.protocol, f"{v.latency_ms:g} ms",
         f"{np.mean(v.wall_seconds):.3f}", f"{np.mean(v.virtual_seconds):.3f}", f"{v.ratio:.2f}"]
        for v in study.validations
    ]  # fmt: skip
    return Table(heads, rows)


def role_table(study: Study) -> Table:
    """Who owns the weights and who deals."""
    heads = ["protocol", "what it is", "weights", "image", "third party"]
    rows = [[protocol, *ROLES[protocol]] for protocol in study.protocols if protocol in ROLES]
    return Table(heads, rows)


def write_csv(study: Study, folder: pathlib.Path, titles: Mapping[str, str]) -> None:
    """paper.csv as readers see it; cells.csv, layers.csv, sessions.csv, validation.csv in numbers.

    Raises:
      StorageError: if they cannot be written.
    """
    paper = paper_table(study, study.reference_mbps, titles)
    name, filled = "", []
    for row in paper.rows:
        name = row[0] or name
        filled.append(dict(zip(paper.heads, [name, *row[1:]])))
    _write(folder / "paper.csv", filled)
    _write(folder / "cells.csv", [_without_kind(study.line(cell)) for cell in study.cells])
    _write(folder / "validation.csv", [_without_kind(v.line()) for v in study.validations])
    _write(
        folder / "layers.csv",
        [
            {"network": x.network, "protocol": x.protocol, "layer": x.name, "bytes": x.n_bytes,
             "messages": x.messages, **{f"{p}_seconds": s for p, s in x.seconds.items()}}
            for x in study.layers
        ],
    )  # fmt: skip
    _write(
        folder / "sessions.csv",
        [
            {"network": s.network, "protocol": s.protocol, "set_up_seconds": s.set_up_seconds,
             "set_up_bytes": s.set_up_bytes, "error": s.error, "warnings": "; ".join(s.warnings)}
            for s in study.sessions
        ],
    )  # fmt: skip


def _without_kind(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "benchmark"}


def _write(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
    rows, text = list(rows), io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())
