"""The page of an audit: its numbers in tables, pictures and plain sentences."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from primia_jax.campaigns.audit import plots
from primia_jax.campaigns.audit.attacks import RECOVERED_DB
from primia_jax.reporting import page
from primia_jax.reporting.formats import ABSENT, p_equals
from primia_jax.reporting.tables import Table, build

_NAMES = {"mse": "MSE", "psnr": "PSNR", "ssim": "SSIM"}
_FAILS_BELOW_DB = 16.0  # of a mean PSNR: reconstructions then show little beyond the outline
_SIGNIFICANT = 0.05


def write_report(result: Mapping[str, Any], folder: pathlib.Path, path: pathlib.Path) -> None:
    """Writes the page with its pictures within it, and leakage.png beside audit.json's.

    Args:
      result: the content of audit.json.
      folder: of the audit; the pictures that `result` names are below it.
      path: of the page.

    Raises:
      StorageError: if it cannot be written.
    """
    rows, control = result["settings"], result["control"]
    plot = folder / "audit" / "leakage.png"
    drawn = plots.draw_leakage(plot, rows)
    page.write(
        path,
        "audit.html.jinja",
        result=result,
        rows=rows,
        works=control is None or control["recovered"],
        tiles=_tiles(rows) if control is None or control["recovered"] else [],
        attacked=_attacked_table(rows),
        similarity=_similarity_table(rows),
        distances=_distance_table(rows),
        anova=_anova_table(result),
        tests=[(_NAMES[m], _test_table(t)) for m, t in result["tests"].items() if t],
        defences=_defence_table(result),
        panels=[(row["setting"], page.embedded(folder / row["panel"])) for row in rows],
        control=control,
        control_picture=page.embedded(folder / control["panel"]) if control else "",
        plot=page.embedded(plot) if drawn else "",
    )


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """Conclusions from the numbers, in plain sentences; none after a failed control."""
    dark = [row for row in result["settings"] if row["psnr"]["mean"] < _FAILS_BELOW_DB]
    return page.sentences(
        "audit.txt.jinja",
        control=result["control"],
        tests=result["tests"]["psnr"] if result["tests"] else (),
        leaking=[row for row in dark if _leaks(row)],
        weak=[row["setting"] for row in dark if not _leaks(row)],
        significant=_SIGNIFICANT,
        fails_below=_FAILS_BELOW_DB,
        recovered=RECOVERED_DB,
    )


def _leaks(row: Mapping[str, Any]) -> bool:
    """True if images were re-identified more often than by chance, or one was recovered."""
    identified = row["identified"]
    p = 1.0 if identified["p"] is None else identified["p"]
    above_chance = identified["share"] > identified["chance"] and p < _SIGNIFICANT
    return bool(above_chance or row["psnr"]["worst"] >= RECOVERED_DB)


def _tiles(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "label": f"PSNR, {row['setting']}",
            "number": f"{row['psnr']['mean']:.1f} dB",
            "note": f"{row['n']} images; the one leaked most: {row['psnr']['worst']:.1f} dB",
        }
        for row in rows
        if not row["is_defence"]
    ]


def _setting(row: Mapping[str, Any]) -> str:
    return str(row["setting"])


def _attacked_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The runs and updates that were attacked."""
    return build(
        rows,
        [
            ("Setting", _setting),
            ("Otherwise", lambda row: " ".join(row["overrides"]) or ABSENT),
            ("Mode", lambda row: row["mode"]),
            ("Updates", lambda row: str(row["updates"])),
            ("Images in one", _behind),
            ("Local steps", lambda row: str(row["local_steps"])),
            ("Rounds", lambda row: "–".join(map(str, sorted({min(row["rounds"]),
                                                             max(row["rounds"])})))),
        ],
    )  # fmt: skip


def _behind(row: Mapping[str, Any]) -> str:
    n, hospitals = row["images_per_update"], row["hospitals"]
    return f"{n} of {hospitals} hospitals, summed" if hospitals > 1 and n > 1 else str(n)


def _similarity_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Mean similarity with its spread, and the worst image beside it."""
    metrics = (("PSNR, dB", "psnr", 1), ("SSIM", "ssim", 2), ("MSE", "mse", 4))
    columns: list[Any] = [("Setting", _setting), ("Images", lambda row: str(row["n"]))]
    for head, key, digits in metrics:
        columns.append((head, lambda row, k=key, d=digits: _mean(row[k], d)))
        columns.append(("Worst", lambda row, k=key, d=digits: _worst(row[k], d)))
    columns += [
        ("Identified (by chance)", lambda row: "{share:.2f} ({chance:.2f})".format_map(
            row["identified"])),
        ("Labels right", lambda row: f"{row['labels_right']:.2f}"),
    ]  # fmt: skip
    return build(rows, columns)


def _mean(one: Mapping[str, Any] | None, digits: int) -> str:
    if one is None:
        return ABSENT
    spread = "" if one["std"] is None else f" ± {one['std']:.{digits}f}"
    return f"{one['mean']:.{digits}f}{spread}"


def _worst(one: Mapping[str, Any] | None, digits: int) -> str:
    return ABSENT if one is None else f"{one['worst']:.{digits}f}"


def _distance_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """FID and KID with the values that they are to be held to."""
    columns: list[Any] = [("Setting", _setting)]
    for key in ("fid", "kid"):
        columns.append((key.upper(), lambda row, k=key: _with_interval(row[k])))
        for head, part in (("Of halves", "found"), ("Floor", "floor"), ("Ceiling", "ceiling")):
            columns.append((head, lambda row, k=key, p=part: _part(row[k], p)))
    return build(rows, [*columns, ("Sets", lambda row: row["distances"])])


def _with_interval(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ABSENT
    low, high = one["interval"]
    return f"{one['value']:.3g} ({low:.3g} to {high:.3g})"


def _part(one: Mapping[str, Any] | None, part: str) -> str:
    return ABSENT if one is None else f"{one[part]:.3g}"


def _anova_table(result: Mapping[str, Any]) -> Table:
    """The analysis of variance over all scenarios."""
    return build(
        [(metric, one) for metric, one in result["anova"].items() if one is not None],
        [
            ("Metric", lambda at: _NAMES[at[0]]),
            ("F", lambda at: _number(at[1]["f"])),
            ("Degrees of freedom", lambda at: f"{at[1]['between']}, {at[1]['within']}"),
            ("p", lambda at: p_equals(at[1]["p"])),
            ("Share of variance (η²)", lambda at: _number(at[1]["eta_squared"])),
        ],
    )


def _test_table(tests: Sequence[Mapping[str, Any]]) -> Table:
    """t-tests of every two scenarios."""
    return build(
        tests,
        [
            ("First", lambda one: one["first"]),
            ("Second", lambda one: one["second"]),
            ("Test", _kind),
            ("Difference", lambda one: f"{one['difference']:.4g}"),
            ("95 % interval", lambda one: ABSENT if one["interval"] is None else
             "{:.4g} to {:.4g}".format(*one["interval"])),
            ("t", lambda one: _number(one["t"])),
            ("p", lambda one: p_equals(one["p"])),
            ("p corrected", lambda one: p_equals(one["p_holm"])),
            ("Cohen’s d", lambda one: _number(one["cohens_d"])),
        ],
    )  # fmt: skip


def _defence_table(result: Mapping[str, Any]) -> Table:
    """Every scenario: its leakage, and the utility of its model."""
    compared = result["defences"]
    tests = {one["second"]: one for one in compared["psnr"]} if compared else {}

    def tested(show: Any) -> Any:
        return lambda row: show(tests[row["setting"]]) if row["setting"] in tests else ABSENT

    against = [
        ("PSNR against the reference", tested(lambda test: f"{-test['difference']:+.1f}")),
        ("Test", tested(_kind)),
        ("p corrected", tested(lambda test: p_equals(test["p_holm"]))),
    ]
    return build(
        result["settings"],
        [
            ("Setting", _setting),
            ("MCC (95 % interval)", lambda row: _utility(row["utility"])),
            ("PSNR, dB", lambda row: _mean(row["psnr"], 1)),
            ("Most", lambda row: _worst(row["psnr"], 1)),
            ("SSIM", lambda row: _mean(row["ssim"], 2)),
            ("Identified", lambda row: f"{row['identified']['share']:.2f}"),
            *(against if compared else ()),
        ],
    )


def _utility(utility: Mapping[str, Any] | None) -> str:
    if not utility:
        return ABSENT
    low, high = utility["interval"]
    return f"{utility['mcc']:.2f} ({low:.2f} to {high:.2f})"


def _kind(test: Mapping[str, Any]) -> str:
    return "paired" if test["paired"] else "Welch’s"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"
