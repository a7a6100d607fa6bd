"""The page of a latency study, with its tables and pictures."""

import pathlib
from collections.abc import Mapping
from typing import Any

from primia_jax.campaigns.latency import pictures, tables
from primia_jax.campaigns.latency.results import BASELINE, Study
from primia_jax.core.storage import write_text
from primia_jax.reporting import page


def write_report(study: Study, folder: pathlib.Path, titles: Mapping[str, str]) -> None:
    """Writes tables/*.csv, study_*.png and report.html, which holds the pictures within itself.

    Args:
      study: what was found; nothing is run.
      folder: where to.
      titles: of the networks, for readers.

    Raises:
      StorageError: if they cannot be written.
    """
    tables.write_csv(study, folder / "tables", titles)
    drawn = pictures.draw_all(study, folder, titles)
    write_text(folder / "report.html", _render(study, titles, drawn))


def _render(study: Study, titles: Mapping[str, str], drawn: Mapping[str, Any]) -> str:
    reference = study.reference_mbps
    others = [mbps for mbps in study.bandwidths_mbps if mbps != reference]
    repetitions = len(study.cells[0].seconds) if study.cells else 0
    return (
        page.environment()
        .get_template("latency.html.jinja")
        .render(
            study=study,
            titles=titles,
            repetitions=repetitions,
            tiles=_tiles(study, titles),
            bandwidth=rate(reference),
            paper=tables.paper_table(study, reference, titles),
            others=[(rate(mbps), tables.paper_table(study, mbps, titles)) for mbps in others],
            traffic=tables.traffic_table(study, titles),
            layers=[
                (titles.get(n, n), page.embedded(drawn["layers"][n]), tables.layer_table(study, n))
                for n in study.networks
            ],
            validation=tables.validation_table(study, titles),
            roles=tables.role_table(study),
            warnings=[
                f"{titles.get(s.network, s.network)}, {s.protocol}: {warning}"
                for s in study.sessions
                for warning in s.warnings
            ],
            latency_picture=page.embedded(drawn["latency"]),
            traffic_picture=page.embedded(drawn["traffic"]),
        )
    )


def rate(mbps: float) -> str:
    """A bandwidth for readers."""
    if not mbps:
        return "unlimited bandwidth"
    return f"{mbps / 1000:g} Gbit/s" if mbps >= 1000 else f"{mbps:g} Mbit/s"


def _tiles(study: Study, titles: Mapping[str, str]) -> list[dict[str, str]]:
    """This project's protocol against the baseline, on the largest network, as the paper tells."""
    found = []
    network = max(study.networks, key=lambda name: _baseline_seconds(study, name))
    for latency in study.latencies_ms:
        cell = study.cell(network, "fss", latency, study.reference_mbps)
        if cell is None or BASELINE not in study.protocols or latency not in tables.PUBLISHED:
            continue
        change, _, test = tables.comparison(study.compared(cell)).partition(", ")
        found.append(
            {
                "label": f"fss against {BASELINE} at {latency:g} ms",
                "number": change,
                "note": f"{titles.get(network, network)}; {test}; published: "
                f"−{tables.PUBLISHED[latency]:g} %",
            }
        )
    return found


def _baseline_seconds(study: Study, network: str) -> float:
    """How long the baseline computes on a network: a measure of its size."""
    cells = [study.cell(network, BASELINE, t, study.reference_mbps) for t in study.latencies_ms]
    return max((cell.mean for cell in cells if cell), default=0.0)
