"""The paper's tables, laid out as there, of the numbers that `judging` and the audit found.

A. Ziller et al., "Privacy-preserving medical image analysis" (arXiv:2012.06354), table 1 a to c,
and the figures on model inversion in its results.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from primia_jax.campaigns.study.judging import BY_CLASS, MODES, SCALARS
from primia_jax.campaigns.study.sets import TEST_1, TITLES
from primia_jax.reporting.tables import Cell, Table

SIGNIFICANT = 0.05
_SCORES = {
    "accuracy": "Accuracy",
    "by_class": "Sensitivity (specificity)",
    "roc_auc": "ROC-AUC",
    "mcc": "MCC",
}
_BY_CLASS = {"sensitivity": "Sensitivity", "specificity": "Specificity"}
_INVERSION = {"mse": "MSE", "psnr": "PSNR, dB", "ssim": "SSIM", "fid": "FID", "kid": "KID"}


def all_tables(results: Mapping[str, Any]) -> list[Table]:
    """Every table of the report, in order; `results` is what tables.json holds."""
    tables = [table_1a(results), *(by_class(results, key) for key in results["sets"])]
    for key in results["table_1b"]:
        tables += [table_1b(results, key), table_1c(results, key)]
    tables.append(equivalence(results))
    if results["inversion"]:
        tables += [inversion(results["inversion"]), inversion_tests(results["inversion"])]
    return tables


def table_1a(results: Mapping[str, Any]) -> Table:
    """Scores of all raters on all sets, the sets side by side under each score as in the paper."""
    rows = []
    for rater in results["table_1a"]["raters"]:
        row = [Cell(_title(rater, results))]
        for score, key in itertools.product(_SCORES, TITLES):
            scores = rater["sets"].get(key)
            if scores is None:
                row.append(Cell())
            elif score in SCALARS:
                row.append(estimate(scores[score]))
            else:
                sensitivity, specificity = (_all_classes(scores[name]) for name in BY_CLASS)
                row.append(Cell(sensitivity, specificity))
        rows.append(row)
    seeds = results["seeds"]
    several = (
        f"Mean over {len(seeds)} trainings ± standard deviation between them; in brackets"
        if len(seeds) > 1
        else "In brackets"
    )
    over = "images and trainings" if len(seeds) > 1 else "images (bootstrap)"
    return Table(
        "table_1a",
        "Table 1a. Classification performance on the validation set and on Test Sets 1 and 2",
        ["", *(TITLES[key] for _, key in itertools.product(_SCORES, TITLES))],
        rows,
        tuple((name, len(TITLES)) for name in _SCORES.values()),
        f"{several} the 95 % interval over {over}. Sensitivity and specificity: "
        f"{'/'.join(results['classes'])}. ROC-AUC: one class against the rest, weighted by the "
        "number of images. MCC: Matthews correlation coefficient.",
    )


def _title(rater: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Its name, and how many images it rated where these are not all."""
    n = rater["sets"].get(TEST_1, {}).get("n")
    every = results["sets"][TEST_1]["n"]
    return rater["title"] if n in (None, every) else f"{rater['title']} ({n} of {every} images)"


def _all_classes(scores: Mapping[str, Any]) -> str:
    return "/".join(number(each["mean"]) for each in scores.values())


def by_class(results: Mapping[str, Any], key: str) -> Table:
    """Sensitivity and specificity of each class on one set, with intervals."""
    rows = []
    for rater in results["table_1a"]["raters"]:
        scores = rater["sets"].get(key)
        if scores is not None:
            cells = [estimate(scores[s][name]) for s in BY_CLASS for name in results["classes"]]
            rows.append([Cell(_title(rater, results)), *cells])
    counts = results["sets"][key]["counts"]
    images = ", ".join(f"{n} {name}" for name, n in zip(results["classes"], counts))
    return Table(
        f"by_class_{key}",
        f"Sensitivity and specificity by class, {TITLES[key]} ({images})",
        ["", *(name for _ in BY_CLASS for name in results["classes"])],
        rows,
        tuple((_BY_CLASS[s], len(results["classes"])) for s in BY_CLASS),
        "An interval without width: all images of the class, or none, were told rightly; the "
        "bootstrap then knows no spread. Readers: of the images that they read.",
    )


def table_1b(results: Mapping[str, Any], key: str = TEST_1) -> Table:
    """p-values of McNemar's test between all raters."""
    seeds = results["seeds"]

    def cell(pair: Mapping[str, Any]) -> Cell:
        if pair["p"] is None:
            return Cell()
        many = len(pair["by_seed"]) > 1
        note = f"{p_text(pair['p_low'])} to {p_text(pair['p_high'])}" if many else ""
        return Cell(p_text(pair["p"]), note, bold=pair["p"] < SIGNIFICANT)

    several = (
        f" Of seed {seeds[0]}, the first; in brackets the smallest and largest p of "
        f"{len(seeds)} trainings."
        if len(seeds) > 1
        else ""
    )
    return Table(
        "table_1b" if key == TEST_1 else f"table_1b_{key}",
        f"Table 1b. McNemar’s test on {TITLES[key]}: p-values",
        *_square(results, results["table_1b"][key]["pairs"], cell),
        note="Two-sided; exact where just one of two is right on fewer than 25 images, else "
        f"chi-square with continuity correction. Bold: p < {SIGNIFICANT:g}, not adjusted for the "
        f"number of tests (Holm’s adjusted ones are in tables.json).{several}",
    )


def table_1c(results: Mapping[str, Any], key: str = TEST_1) -> Table:
    """Cohen's kappa between all raters."""
    mean = "Mean over the trainings, with" if len(results["seeds"]) > 1 else "With"
    return Table(
        "table_1c" if key == TEST_1 else f"table_1c_{key}",
        f"Table 1c. Cohen’s κ on {TITLES[key]}",
        *_square(results, results["table_1c"][key]["pairs"], estimate),
        note=f"{mean} the 95 % interval. 1: the same class for every image; 0: no more "
        "than by chance.",
    )


def _square(
    results: Mapping[str, Any], pairs: Iterable[Mapping[str, Any]], cell: Any
) -> tuple[list[str], list[list[Cell]]]:
    """Heads and rows of a table of all raters by all raters."""
    known = {}
    for pair in pairs:
        known[pair["first"], pair["second"]] = known[pair["second"], pair["first"]] = pair
    here = {key for pair in known for key in pair}
    raters = [rater for rater in results["table_1a"]["raters"] if rater["key"] in here]
    rows = [
        [Cell(a["title"])]
        + [cell(known[a["key"], b["key"]]) if a is not b else Cell() for b in raters]
        for a in raters
    ]
    return ["", *(rater["title"] for rater in raters)], rows


def equivalence(results: Mapping[str, Any]) -> Table:
    """The difference in MCC, secure less local, on every set."""
    rows = []
    for key, judged in results["equivalence"].items():
        difference = judged["difference"]
        rows.append(
            [Cell(TITLES[key]), Cell(signed(difference["mean"])),
             Cell(interval(difference, signed=True)), Cell(f"±{judged['margin']:g}"),
             Cell(judged["verdict"])]
        )  # fmt: skip
    over = " and the spread between trainings" if len(results["seeds"]) > 1 else ""
    return Table(
        "equivalence",
        f"Difference in MCC, {MODES['federated_secure'].lower()} less {MODES['local'].lower()}",
        ["", "difference", "95 % interval", "margin", "verdict"],
        rows,
        note=f"Paired bootstrap over images{over}. Equivalent: the interval lies within the "
        "margin; different: it lies outside, on one side; undecided: neither.",
    )


def inversion(results: Mapping[str, Any]) -> Table:
    """Table of the quality of reconstructions from the model owner's view."""
    rows = []
    for row in results["rows"]:
        cells = [Cell(MODES.get(row["setting"], row["setting"])), Cell(str(row["n"]))]
        for score in ("mse", "psnr", "ssim"):
            part = row.get(score)
            cells.append(
                Cell(f"{figure(part['mean'])} ± {figure(part['std'])}", _span(part["interval"]))
                if part and part.get("mean") is not None
                else Cell()
            )
        for score in ("fid", "kid"):
            part = row.get(score)
            cells.append(
                Cell(figure(part["found"]), f"{figure(part['floor'])} to {figure(part['ceiling'])}")
                if part
                else Cell()
            )
        identified = row.get("identified")
        cells.append(
            Cell(percent(identified["share"]), f"by chance {percent(identified['chance'])}")
            if identified and identified.get("share") is not None
            else Cell()
        )
        rows.append(cells)
    return Table(
        "inversion",
        "Model inversion: reconstructions from what the model owner saw",
        ["", "images", *_INVERSION.values(), "identified"],
        rows,
        note="Mean ± standard deviation over images, with the 95 % interval of the mean. A large "
        "MSE, FID and KID, a small PSNR and SSIM: little was recovered. FID and KID: of half of "
        "the reconstructions against the other half of the originals, between what halves of the "
        "originals give (floor) and what noise gives (ceiling). "
        + " ".join([results.get("note", ""), *_notes(results["rows"])]),
    )


def _notes(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Notes of the audit on single settings."""
    for row in rows:
        name = MODES.get(row["setting"], row["setting"])
        yield from (f"{name}: {note.rstrip('.')}." for note in row.get("notes", ()))


def inversion_tests(results: Mapping[str, Any]) -> Table:
    """Analysis of variance and t-tests on the reconstructions."""
    rows = []
    for score, tests in results.get("tests", {}).items():
        anova = results.get("anova", {}).get(score)
        if anova:
            rows.append(
                [Cell(_INVERSION[score]), Cell("all settings"), Cell(),
                 Cell(f"F = {figure(anova['f'])}"), Cell(p_text(anova["p"])), Cell(),
                 Cell(f"η² = {figure(anova['eta_squared'])}")]
            )  # fmt: skip
        for test in tests:
            names = (MODES.get(test[side], test[side]) for side in ("first", "second"))
            rows.append(
                [Cell(_INVERSION[score]), Cell(" – ".join(names)),
                 Cell(figure(test["difference"]), _span(test["interval"])),
                 Cell(f"t = {figure(test['t'])}", t_test(test)), Cell(p_text(test["p"])),
                 Cell(p_text(test["p_holm"]), bold=_below(test["p_holm"])),
                 Cell(f"d = {figure(test['cohens_d'])}")]
            )  # fmt: skip
    return Table(
        "inversion_tests",
        "Model inversion: one-way analysis of variance, and t-tests between the settings",
        ["", "compared", "difference", "statistic", "p", "p, Holm", "effect"],
        rows,
        note=f"Bold: p < {SIGNIFICANT:g} after Holm’s correction, for each measure by itself.",
    )


def equivalence_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The differences in MCC, for machines."""
    rows = [
        [key, *(judged["difference"][part] for part in ("mean", "low", "high", "std")),
         judged["margin"], judged["verdict"]]
        for key, judged in results["equivalence"].items()
    ]  # fmt: skip
    return ["set", "mean", "low", "high", "std", "margin", "verdict"], rows


def inversion_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Scores of the reconstructions, a line for each setting and measure, for machines."""
    rows: list[list[Any]] = []
    for row in results["inversion"]["rows"]:
        for score in ("mse", "psnr", "ssim"):
            if part := row.get(score):
                rows.append(
                    [row["setting"], row["n"], score, part["mean"], part["std"], *part["interval"]]
                )
        for score in ("fid", "kid"):
            if part := row.get(score):
                rows.append(
                    [row["setting"], row["n"], score, part["found"], None, part["floor"],
                     part["ceiling"]]
                )  # fmt: skip
    return ["setting", "images", "measure", "value", "std", "low", "high"], rows


def test_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The tests between settings of the attack, for machines."""
    fields = ("first", "second", "difference", "t", "p", "p_holm", "cohens_d")
    rows = [
        [score, *(test[field] for field in fields)]
        for score, tests in results["inversion"]["tests"].items()
        for test in tests
    ]
    return ["measure", *fields], rows


def t_test(test: Mapping[str, Any]) -> str:
    """Name of the t-test: paired where the images are the same."""
    return "paired t-test" if test.get("paired") else "Welch’s t-test"


def long_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Table 1a with a line a number, for machines."""
    heads = ["rater", "set", "n", "score", "class", "mean", "low", "high", "std"]
    rows: list[list[Any]] = []
    for rater in results["table_1a"]["raters"]:
        for key, scores in rater["sets"].items():
            named = [(score, "", scores[score]) for score in SCALARS]
            named += [(s, name, each) for s in BY_CLASS for name, each in scores[s].items()]
            for score, name, each in named:
                if each is not None:
                    rows.append(
                        [rater["key"], key, scores["n"], score, name, each["mean"], each["low"],
                         each["high"], each["std"]]
                    )  # fmt: skip
    return heads, rows


def pair_rows(results: Mapping[str, Any], table: str) -> tuple[list[str], list[list[Any]]]:
    """Table 1b or 1c with a line for each pair, set and seed, for machines."""
    inner = "by_seed" if table == "table_1b" else "seeds"
    rows: list[list[Any]] = []
    fields: Sequence[str] = (
        ("first_only", "second_only", "p", "exact")
        if table == "table_1b"
        else ("value", "low", "high")
    )
    for key, part in results[table].items():
        for pair in part["pairs"]:
            for line in pair[inner]:
                rows.append(
                    [key, pair["first"], pair["second"], pair["n"], line["seed"],
                     *(line[field] for field in fields)]
                )  # fmt: skip
    return ["set", "first", "second", "n", "seed", *fields], rows


def estimate(each: Mapping[str, Any] | None) -> Cell:
    """A mean with its interval, and the deviation between trainings where there are several."""
    if each is None or each["mean"] is None:
        return Cell()
    std = "" if each["std"] is None else f" ± {number(each['std'], 3)}"
    return Cell(f"{number(each['mean'])}{std}", interval(each))


def number(value: float | None, digits: int = 2) -> str:
    """A score for readers; 0.996 is not made 1.00, nor -0.001 a -0.00."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    if float(text) == 1 and value < 1:
        text = f"{value:.{digits + 1}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def signed(value: float | None) -> str:
    """A difference of scores, to three digits."""
    return "-" if value is None else f"{value:+.3f}".replace("-", "−")


def interval(each: Mapping[str, Any], *, signed: bool = False) -> str:
    """LOW–HIGH, or LOW to HIGH where signs would be read as dashes."""
    low, high = each["low"], each["high"]
    if low is None:
        return ""
    if signed or low < 0:
        texts = (f"{v:+.3f}" if signed else number(v) for v in (low, high))
        return " to ".join(texts).replace("-", "−")
    return f"{number(low)}–{number(high)}"


def p_text(p: float | None) -> str:
    """A p-value as usual."""
    if p is None:
        return "-"
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.995 else f"{p:.1f}"


def figure(value: float | None) -> str:
    """Three significant digits, plainly written."""
    if value is None:
        return "-"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("-", "−")
    digits = max(0, 2 - _magnitude(value))
    return f"{value:.{digits}f}".replace("-", "−")


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.0f} %"


def _magnitude(value: float) -> int:
    return int(f"{abs(value):e}".partition("e")[2])


def _span(pair: Sequence[float] | None) -> str:
    if not pair or pair[0] is None:
        return ""
    return f"{figure(pair[0])} to {figure(pair[1])}"


def _below(p: float | None) -> bool:
    return p is not None and p < SIGNIFICANT
