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
    """What pictures are drawn of, beyond the numbers of tables.json."""

    sets: tuple[ImageSet, ...]
    raters: tuple[Rater, ...]
    class_names: tuple[str, ...]


def write(folder: pathlib.Path, found: Mapping[str, Any], drawn: Drawn) -> None:
    """Writes tables.md, tables/*.tex and *.csv, study_*.png, and report.html with all within it.

    Args:
      folder: where to.
      found: what tables.json holds; nothing is computed.
      drawn: what pictures are drawn of.

    Raises:
      StorageError: if they cannot be written.
    """
    every = tables.all_tables(found)
    _write_tables(folder, found, every)
    pictured = pictures.draw_all(folder, found, drawn.sets, drawn.raters, drawn.class_names)
    html = _render(folder, found, {table.name: table for table in every}, pictured)
    write_text(folder / "report.html", html)


def _write_tables(folder: pathlib.Path, found: Mapping[str, Any], every: list[Table]) -> None:
    below = folder / "tables"
    write_text(folder / "tables.md", as_markdown(found))
    for table in every:
        write_text(below / f"{table.name}.tex", layout.latex(table))
    numbers = {
        "table_1a": tables.long_rows(found),
        "table_1b": tables.pair_rows(found, "table_1b"),
        "table_1c": tables.pair_rows(found, "table_1c"),
        "equivalence": tables.equivalence_rows(found),
    }
    if found["inversion"]:
        numbers["inversion"] = tables.inversion_rows(found)
        numbers["inversion_tests"] = tables.test_rows(found)
    for name, (heads, rows) in numbers.items():
        records = [dict(zip(heads, row)) for row in rows]
        write_text(below / f"{name}.csv", layout.as_csv(records))


def as_text(found: Mapping[str, Any], width: int = 80) -> str:
    """All tables and the conclusion as plain text that fits into `width` columns."""
    parts = [layout.plain(table, width) for table in tables.all_tables(found)]
    for topic, sentences in text.conclusions(found):
        parts.append(textwrap.fill(f"{topic}. {sentences}", width) + "\n")
    return "\n".join(parts)


def as_markdown(found: Mapping[str, Any]) -> str:
    """All tables and the conclusion in Markdown."""
    parts = [layout.markdown(table) for table in tables.all_tables(found)]
    parts += [f"**{topic}.** {sentences}\n" for topic, sentences in text.conclusions(found)]
    return "\n".join(parts)


def _render(
    folder: pathlib.Path,
    found: Mapping[str, Any],
    by_name: Mapping[str, Table],
    pictured: Mapping[str, pathlib.Path],
) -> str:
    inversion = found["inversion"] or {}
    panels = [
        (MODES.get(name, name), page.embedded(folder / "inversion" / path))
        for name, path in (inversion.get("panels") or {}).items()
    ]
    return (
        page.environment()
        .get_template("study.html.jinja")
        .render(
            found=found,
            tables=by_name,
            conclusions=text.conclusions(found),
            sets=text.data_sentences(found),
            titles=TITLES,
            modes=MODES,
            tiles=_tiles(found),
            other_sets=[key for key in found["table_1b"] if key != TEST_1],
            readers=[r["title"] for r in found["table_1a"]["raters"] if r["kind"] == "reader"],
            phantoms=found["settings"]["data"]["source"] == "phantom",
            pictures={name: page.embedded(path) for name, path in pictured.items()},
            inversion=inversion,
            panels=panels,
        )
    )


def _tiles(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The three figures that the study is about."""
    raters = {rater["key"]: rater for rater in found["table_1a"]["raters"]}
    mcc = raters["federated_secure"]["sets"][TEST_1]["mcc"]
    judged = found["equivalence"][TEST_1]
    kappa = next(
        pair
        for pair in found["table_1c"][TEST_1]["pairs"]
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
