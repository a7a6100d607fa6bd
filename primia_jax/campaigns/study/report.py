"""Everything that a study leaves for readers: the page, and the tables in three forms."""

import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from primia_jax.campaigns.study import pictures, tables, text
from primia_jax.campaigns.study.judging import MODES, Rater
from primia_jax.campaigns.study.sets import TEST_1, TITLES, ImageSet
from primia_jax.core.storage import write_text
from primia_jax.reporting import page
from primia_jax.reporting import tables as layout
from primia_jax.reporting.tables import Table


class Drawn(NamedTuple):
    """Data that pictures are drawn of, beyond the numbers of tables.json."""

    sets: tuple[ImageSet, ...]
    raters: tuple[Rater, ...]
    class_names: tuple[str, ...]


def write(folder: pathlib.Path, results: Mapping[str, Any], drawn: Drawn) -> None:
    """Writes tables.md, tables/*.tex and *.csv, study_*.png, and report.html with all within it.

    Args:
      folder: where to.
      results: what tables.json holds; nothing is computed.
      drawn: what pictures are drawn of.

    Raises:
      StorageError: if they cannot be written.
    """
    every = tables.all_tables(results)
    _write_tables(folder, results, every)
    pictured = pictures.draw_all(folder, results, drawn.sets, drawn.raters, drawn.class_names)
    html = _render(folder, results, {table.name: table for table in every}, pictured)
    write_text(folder / "report.html", html)


def _write_tables(folder: pathlib.Path, results: Mapping[str, Any], every: list[Table]) -> None:
    below = folder / "tables"
    write_text(folder / "tables.md", as_markdown(results))
    for table in every:
        write_text(below / f"{table.name}.tex", layout.latex(table))
    numbers = {
        "table_1a": tables.long_rows(results),
        "table_1b": tables.pair_rows(results, "table_1b"),
        "table_1c": tables.pair_rows(results, "table_1c"),
        "equivalence": tables.equivalence_rows(results),
    }
    if results["inversion"]:
        numbers["inversion"] = tables.inversion_rows(results)
        numbers["inversion_tests"] = tables.test_rows(results)
    for name, (heads, rows) in numbers.items():
        records = [dict(zip(heads, row)) for row in rows]
        write_text(below / f"{name}.csv", layout.as_csv(records))


def as_text(results: Mapping[str, Any], width: int = 80) -> str:
    """All tables and the conclusion as plain text that fits into `width` columns."""
    parts = [layout.plain(table, width) for table in tables.all_tables(results)]
    for topic, sentences in text.conclusions(results):
        parts.append(textwrap.fill(f"{topic}. {sentences}", width) + "\n")
    return "\n".join(parts)


def as_markdown(results: Mapping[str, Any]) -> str:
    """All tables and the conclusion in Markdown."""
    parts = [layout.markdown(table) for table in tables.all_tables(results)]
    parts += [f"**{topic}.** {sentences}\n" for topic, sentences in text.conclusions(results)]
    return "\n".join(parts)


def _render(
    folder: pathlib.Path,
    results: Mapping[str, Any],
    by_name: Mapping[str, Table],
    pictured: Mapping[str, pathlib.Path],
) -> str:
    inversion = results["inversion"] or {}
    panels = [
        (MODES.get(name, name), page.embedded(folder / "inversion" / path))
        for name, path in (inversion.get("panels") or {}).items()
    ]
    return (
        page.environment()
        .get_template("study.html.jinja")
        .render(
            results=results,
            tables=by_name,
            conclusions=text.conclusions(results),
            sets=text.data_sentences(results),
            titles=TITLES,
            modes=MODES,
            tiles=_tiles(results),
            other_sets=[key for key in results["table_1b"] if key != TEST_1],
            readers=[r["title"] for r in results["table_1a"]["raters"] if r["kind"] == "reader"],
            phantoms=results["settings"]["data"]["source"] == "phantom",
            pictures={name: page.embedded(path) for name, path in pictured.items()},
            inversion=inversion,
            panels=panels,
        )
    )


def _tiles(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The three figures that the study is about."""
    raters = {rater["key"]: rater for rater in results["table_1a"]["raters"]}
    mcc = raters["federated_secure"]["sets"][TEST_1]["mcc"]
    judged = results["equivalence"][TEST_1]
    kappa = next(
        pair
        for pair in results["table_1c"][TEST_1]["pairs"]
        if {pair["first"], pair["second"]} == {"federated_secure", "local"}
    )
    return [
        {
            "label": "MCC with secure aggregation, Test Set 1",
            "number": tables.number(mcc["mean"]),
            "note": f"95 % interval {tables.interval(mcc)}",
        },
        {
            "label": "Difference in MCC from pooled data",
            "number": tables.signed(judged["difference"]["mean"]),
            "note": f"{tables.interval(judged['difference'], signed=True)}; margin "
            f"±{judged['margin']:g}: {judged['verdict']}",
        },
        {
            "label": "Agreement with the model from pooled data, κ",
            "number": tables.number(kappa["mean"]),
            "note": f"95 % interval {tables.interval(kappa)}",
        },
    ]
