"""The page of an audit: what its numbers say, in tables, pictures and plain sentences."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from primia_jax.campaigns.audit import pictures
from primia_jax.campaigns.audit.control import RECOVERED_DB
from primia_jax.core.storage import write_text
from primia_jax.reporting import page

_NAMES = {"mse": "MSE", "psnr": "PSNR", "ssim": "SSIM"}
_FAILS_BELOW_DB = 16.0  # of a mean PSNR: what is found then shows little beyond the outline
_LEVELS = ((0.001, "clearly worse"), (0.05, "worse"))  # of corrected p-values


class Table(NamedTuple):
    """Heads and rows of text."""

    heads: list[str]
    rows: list[list[str]]


def write_report(result: Mapping[str, Any], folder: pathlib.Path, path: pathlib.Path) -> None:
    """Writes the page with its pictures within it, and leakage.png beside audit.json's.

    Args:
      result: what audit.json holds.
      folder: of the audit; the pictures that `result` names are below it.
      path: of the page.

    Raises:
      StorageError: if it cannot be written.
    """
    rows, control = result["settings"], result["control"]
    plot = folder / "audit" / "leakage.png"
    drawn = pictures.draw_leakage(plot, rows)
    html = (
        page.environment()
        .get_template("audit.html.jinja")
        .render(
            result=result,
            rows=rows,
            works=control is None or control["recovered"],
            tiles=_tiles(rows),
            verdicts=result["verdicts"],
            attacked=attacked_table(rows),
            similarity=similarity_table(rows),
            distances=distance_table(rows),
            anova=anova_table(result),
            tests=[(_NAMES[m], test_table(t)) for m, t in result["tests"].items() if t],
            defences=defence_table(result),
            panels=[(row["setting"], page.embedded(folder / row["panel"])) for row in rows],
            control=control,
            control_picture=page.embedded(folder / control["panel"]) if control else "",
            plot=page.embedded(plot) if drawn else "",
            notes=[(row["setting"], note) for row in rows for note in row["notes"]],
        )
    )
    write_text(path, html)


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """Verdicts on the numbers, in plain sentences; none after a failed control."""
    sentences, control = [], result["control"]
    if control is None:
        sentences.append(
            "No control was run: that an attack finds nothing may mean that the attack is broken."
        )
    elif control["recovered"]:
        sentences.append(
            f"The attack works: behind the gradient of one image at an untrained network it "
            f"recovered the image ({control['psnr']:.1f} dB, at least {control['needed']:g} dB)."
        )
    else:
        return [
            f"The control failed: behind the gradient of one image at an untrained network the "
            f"attack reached {control['psnr']:.1f} dB only, where {control['needed']:g} dB can be "
            "had. The attack is broken as it is set here, and nothing is concluded from what it "
            "found. More config.audit.control_steps, or other settings of the attack, may mend it."
        ]
    for test in result["tests"]["psnr"] if result["tests"] else []:
        sentences.append(_of_test(test))
    dark = [row for row in result["settings"] if row["psnr"]["mean"] < _FAILS_BELOW_DB]
    leaking = [row for row in dark if _leaks(row)]
    weak = [row["setting"] for row in dark if not _leaks(row)]
    sentences += [_of_leak(row) for row in leaking]
    if weak:
        sentences.append(
            f"Under {', '.join(weak)} this attack recovers little: the mean PSNR is below "
            f"{_FAILS_BELOW_DB:g} dB, no image reaches {RECOVERED_DB:g} dB, and re-identification "
            "above chance is not shown. This is a failure of one attack with a given effort, not "
            "privacy: a better attack, more steps or other knowledge may succeed. Only "
            "differential privacy bounds what any attack can learn."
        )
    return sentences


def _leaks(row: Mapping[str, Any]) -> bool:
    """True if images were re-identified more often than by chance, or one was recovered."""
    identified = row["identified"]
    p = 1.0 if identified["p"] is None else identified["p"]
    above_chance = identified["share"] > identified["chance"] and p < _LEVELS[-1][0]
    return bool(above_chance or row["psnr"]["worst"] >= RECOVERED_DB)


def _of_leak(row: Mapping[str, Any]) -> str:
    """A verdict on a scenario whose mean PSNR is low and whose images leak nevertheless."""
    identified = row["identified"]
    return (
        f"Under {row['setting']} the reconstructions are poor on average (mean PSNR "
        f"{row['psnr']['mean']:.1f} dB, highest {row['psnr']['worst']:.1f} dB), but the update "
        f"leaks: {identified['share']:.0%} of the images were re-identified among "
        f"{identified['gallery']} (chance {identified['chance']:.0%}, {_p(identified['p'])})."
    )


def _of_test(test: Mapping[str, Any]) -> str:
    first, second, difference = test["first"], test["second"], test["difference"]
    if test["p_holm"] is None:
        return f"Between {first} and {second} no test is defined."
    details = (
        f"{abs(difference):.1f} dB, {_test(test)} test, {_p(test['p_holm'])} corrected, "
        f"d = {test['cohens_d']:.2f}"
    )
    worse, better = (second, first) if difference > 0 else (first, second)
    for level, word in _LEVELS:
        if test["p_holm"] < level:
            return f"Reconstructions under {worse} are {word} than under {better} ({details})."
    return f"{first} and {second} do not differ significantly in PSNR ({details})."


def _tiles(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    tiles = []
    for row in rows:
        if not row["is_defence"]:
            psnr = row["psnr"]
            tiles.append(
                {
                    "label": f"PSNR, {row['setting']}",
                    "number": f"{psnr['mean']:.1f} dB",
                    "note": f"{row['n']} images; the one given away most: {psnr['worst']:.1f} dB",
                }
            )
    return tiles


def attacked_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the attacked updates of each setting."""
    heads = ["Setting", "Otherwise", "Mode", "Updates", "Images in one", "Local steps", "Rounds"]
    table = [
        [
            row["setting"],
            " ".join(row["overrides"]) or "–",
            row["mode"],
            str(row["updates"]),
            _behind(row),
            str(row["local_steps"]),
            f"{row['rounds'][0]}–{row['rounds'][-1]}"
            if len(row["rounds"]) > 1
            else str(row["rounds"][0]),
        ]
        for row in rows
    ]
    return Table(heads, table)


def _behind(row: Mapping[str, Any]) -> str:
    n, hospitals = row["images_per_update"], row["hospitals"]
    return f"{n} of {hospitals} hospitals, summed" if hospitals > 1 and n > 1 else str(n)


def similarity_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Similarity of reconstructions: the mean, its interval, and the worst image beside it."""
    heads = ["Setting", "Images", "PSNR, dB", "Worst", "SSIM", "Worst", "MSE", "Worst"]
    heads += ["Identified (by chance)", "Labels right"]
    table = []
    for row in rows:
        who = row["identified"]
        table.append(
            [
                row["setting"],
                str(row["n"]),
                *_mean_and_worst(row["psnr"], 1),
                *_mean_and_worst(row["ssim"], 2),
                *_mean_and_worst(row["mse"], 4),
                f"{who['share']:.2f} ({who['chance']:.2f})",
                f"{row['labels_right']:.2f}",
            ]
        )
    return Table(heads, table)


def _mean_and_worst(one: Mapping[str, Any] | None, digits: int) -> list[str]:
    if one is None:
        return ["–", "–"]
    spread = "" if one["std"] is None else f" ± {one['std']:.{digits}f}"
    return [f"{one['mean']:.{digits}f}{spread}", f"{one['worst']:.{digits}f}"]


def distance_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """FID and KID with what they are to be held to."""
    heads = ["Setting", "FID", "Of halves", "Floor", "Ceiling", "KID", "Of halves", "Floor"]
    heads += ["Ceiling", "Sets"]
    table = []
    for row in rows:
        cells = []
        for key in ("fid", "kid"):
            one = row[key]
            if one is None:
                cells += ["–"] * 4
                continue
            low, high = one["interval"]
            cells.append(f"{one['value']:.3g} ({low:.3g} to {high:.3g})")
            cells += [f"{one[part]:.3g}" for part in ("found", "floor", "ceiling")]
        table.append([row["setting"], *cells, row["distances"]])
    return Table(heads, table)


def anova_table(result: Mapping[str, Any]) -> Table:
    """The analysis of variance over all settings."""
    heads = ["Metric", "F", "Degrees of freedom", "p", "Share of variance (η²)"]
    table = []
    for metric, one in result["anova"].items():
        if one is not None:
            table.append(
                [
                    _NAMES[metric],
                    _number(one["f"], 2),
                    f"{one['between']}, {one['within']}",
                    _p(one["p"]),
                    _number(one["eta_squared"], 2),
                ]
            )
    return Table(heads, table)


def test_table(tests: Sequence[Mapping[str, Any]]) -> Table:
    """t-tests of every two settings."""
    heads = ["First", "Second", "Test", "Difference", "95 % interval", "t", "p", "p corrected"]
    heads.append("Cohen’s d")
    table = []
    for one in tests:
        interval = "–"
        if one["interval"] is not None:
            interval = f"{one['interval'][0]:.4g} to {one['interval'][1]:.4g}"
        table.append(
            [
                one["first"],
                one["second"],
                _test(one),
                f"{one['difference']:.4g}",
                interval,
                _number(one["t"], 2),
                _p(one["p"]),
                _p(one["p_holm"]),
                _number(one["cohens_d"], 2),
            ]
        )
    return Table(heads, table)


def defence_table(result: Mapping[str, Any]) -> Table:
    """Every setting: what it gives away, and what its model is worth."""
    heads = ["Setting", "MCC (95 % interval)", "PSNR, dB", "Most", "SSIM", "Identified"]
    compared = result["defences"] is not None
    if compared:
        heads += ["PSNR against the reference", "Test", "p corrected"]
    tests = {one["second"]: one for one in result["defences"]["psnr"]} if compared else {}
    table = []
    for row in result["settings"]:
        utility, test = row["utility"], tests.get(row["setting"])
        worth = "–"
        if utility:
            low, high = utility["interval"]
            worth = f"{utility['mcc']:.2f} ({low:.2f} to {high:.2f})"
        cells = [
            row["setting"],
            worth,
            *_mean_and_worst(row["psnr"], 1),
            _mean_and_worst(row["ssim"], 2)[0],
            f"{row['identified']['share']:.2f}",
        ]
        if compared:
            cells += (
                [f"{-test['difference']:+.1f}", _test(test), _p(test["p_holm"])]
                if test
                else ["–"] * 3
            )
        table.append(cells)
    return Table(heads, table)


def _test(one: Mapping[str, Any]) -> str:
    return "paired" if one["paired"] else "Welch’s"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
