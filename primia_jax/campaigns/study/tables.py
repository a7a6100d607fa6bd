"""The paper's tables, laid out as there, of the numbers that `judging` and the audit found.

A. Ziller et al., "Privacy-preserving medical image analysis" (arXiv:2012.06354), table 1 a to c,
and the figures on model inversion in its results.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from primia_jax.campaigns.study.judging import BY_CLASS, MODES, SCALARS
from primia_jax.campaigns.study.sets import TEST_1, TITLES
from primia_jax.reporting.formats import figure, interval, number, p_value, percent, signed, span
from primia_jax.reporting.tables import Cell, Table, build

SIGNIFICANT = 0.05
_SCORES = {
    "accuracy": "Accuracy",
    "by_class": "Sensitivity (specificity)",
    "roc_auc": "ROC-AUC",
    "mcc": "MCC",
}
_BY_CLASS = {"sensitivity": "Sensitivity", "specificity": "Specificity"}
_ESTIMATE = ("mean", "low", "high", "std")
_MCNEMAR_FIELDS = ("first_only", "second_only", "p", "exact")
_TEST_FIELDS = ("first", "second", "difference", "t", "p", "p_holm", "cohens_d")
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
        "An interval without width: all images of the class, or none, were classified correctly; "
        "the bootstrap then knows no spread. Readers: of the images that they read.",
    )


def table_1b(results: Mapping[str, Any], key: str = TEST_1) -> Table:
    """p-values of McNemar's test between all raters."""
    seeds = results["seeds"]

    def cell(pair: Mapping[str, Any]) -> Cell:
        if pair["p"] is None:
            return Cell()
        many = len(pair["by_seed"]) > 1
        note = f"{p_value(pair['p_low'])} to {p_value(pair['p_high'])}" if many else ""
        return Cell(p_value(pair["p"]), note, bold=pair["p"] < SIGNIFICANT)

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
    over = " and the spread between trainings" if len(results["seeds"]) > 1 else ""
    return build(
        results["equivalence"].items(),
        [
            ("", lambda item: TITLES[item[0]]),
            ("difference", lambda item: signed(item[1]["difference"]["mean"])),
            ("95 % interval", lambda item: interval(item[1]["difference"], with_signs=True)),
            ("margin", lambda item: f"±{item[1]['margin']:g}"),
            ("verdict", lambda item: item[1]["verdict"]),
        ],
        "equivalence",
        f"Difference in MCC, {MODES['federated_secure'].lower()} less {MODES['local'].lower()}",
        f"Paired bootstrap over images{over}. Equivalent: the interval lies within the "
        "margin; different: it lies outside, on one side; undecided: neither.",
    )


def inversion(results: Mapping[str, Any]) -> Table:
    """Similarity of the reconstructions to the images behind what the model owner saw."""

    def similarity(part: Mapping[str, Any] | None) -> Cell:
        if not part or part.get("mean") is None:
            return Cell()
        return Cell(f"{figure(part['mean'])} ± {figure(part['std'])}", span(part["interval"]))

    def distance(part: Mapping[str, Any] | None) -> Cell:
        if not part:
            return Cell()
        return Cell(figure(part["found"]), f"{figure(part['floor'])} to {figure(part['ceiling'])}")

    def identified(part: Mapping[str, Any] | None) -> Cell:
        if not part or part.get("share") is None:
            return Cell()
        return Cell(percent(part["share"]), f"by chance {percent(part['chance'])}")

    return build(
        results["rows"],
        [
            ("", lambda row: MODES.get(row["setting"], row["setting"])),
            ("images", lambda row: str(row["n"])),
            *(
                (
                    title,
                    lambda row, s=s: (distance if s in ("fid", "kid") else similarity)(row.get(s)),
                )
                for s, title in _INVERSION.items()
            ),
            ("identified", lambda row: identified(row.get("identified"))),
        ],
        "inversion",
        "Model inversion: reconstructions from what the model owner saw",
        "Mean ± standard deviation over images, with the 95 % interval of the mean. A large "
        "MSE, FID and KID, a small PSNR and SSIM: little was recovered. FID and KID: of half of "
        "the reconstructions against the other half of the originals, between what halves of the "
        "originals give (floor) and what noise gives (ceiling). "
        + " ".join([results.get("note", ""), *_notes(results["rows"])]),
    )


def _notes(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """The audit's notes on single settings."""
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
                 Cell(f"F = {figure(anova['f'])}"), Cell(p_value(anova["p"])), Cell(),
                 Cell(f"η² = {figure(anova['eta_squared'])}")]
            )  # fmt: skip
        for test in tests:
            names = (MODES.get(test[side], test[side]) for side in ("first", "second"))
            holm = test["p_holm"]
            rows.append(
                [Cell(_INVERSION[score]), Cell(" – ".join(names)),
                 Cell(figure(test["difference"]), span(test["interval"])),
                 Cell(f"t = {figure(test['t'])}", t_test(test)), Cell(p_value(test["p"])),
                 Cell(p_value(holm), bold=holm is not None and holm < SIGNIFICANT),
                 Cell(f"d = {figure(test['cohens_d'])}")]
            )  # fmt: skip
    return Table(
        "inversion_tests",
        "Model inversion: one-way analysis of variance, and t-tests between the settings",
        ["", "compared", "difference", "statistic", "p", "p, Holm", "effect"],
        rows,
        note=f"Bold: p < {SIGNIFICANT:g} after Holm’s correction, for each measure by itself.",
    )


def t_test(test: Mapping[str, Any]) -> str:
    """Which one it was: of pairs where the images are the same."""
    return "paired t-test" if test.get("paired") else "Welch’s t-test"


def estimate(each: Mapping[str, Any] | None) -> Cell:
    """A mean with its interval, and the deviation between trainings where there are several."""
    if each is None or each["mean"] is None:
        return Cell()
    std = "" if each["std"] is None else f" ± {number(each['std'], 3)}"
    return Cell(f"{number(each['mean'])}{std}", interval(each))


def records(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The numbers of the tables for machines, a record a line, by the name of the CSV file."""
    files = {
        "table_1a": _score_records(results),
        "table_1b": _pair_records(results, "table_1b", "by_seed", _MCNEMAR_FIELDS),
        "table_1c": _pair_records(results, "table_1c", "seeds", ("value", "low", "high")),
        "equivalence": [
            {"set": key, **{part: judged["difference"][part] for part in _ESTIMATE},
             "margin": judged["margin"], "verdict": judged["verdict"]}
            for key, judged in results["equivalence"].items()
        ],
    }  # fmt: skip
    if results["inversion"]:
        files["inversion"] = _inversion_records(results["inversion"]["rows"])
        files["inversion_tests"] = [
            {"measure": score, **{field: test[field] for field in _TEST_FIELDS}}
            for score, tests in results["inversion"]["tests"].items()
            for test in tests
        ]
    return files


def _score_records(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    lines = []
    for rater in results["table_1a"]["raters"]:
        for key, scores in rater["sets"].items():
            named = [(score, "", scores[score]) for score in SCALARS]
            named += [(s, name, each) for s in BY_CLASS for name, each in scores[s].items()]
            lines += [
                {"rater": rater["key"], "set": key, "n": scores["n"], "score": score, "class": name,
                 **{part: each[part] for part in _ESTIMATE}}
                for score, name, each in named
                if each is not None
            ]  # fmt: skip
    return lines


def _pair_records(
    results: Mapping[str, Any], table: str, inner: str, fields: Sequence[str]
) -> list[dict[str, Any]]:
    """A record for each pair, set and seed."""
    return [
        {"set": key, **{name: pair[name] for name in ("first", "second", "n")},
         "seed": line["seed"], **{field: line[field] for field in fields}}
        for key, part in results[table].items()
        for pair in part["pairs"]
        for line in pair[inner]
    ]  # fmt: skip


def _inversion_records(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    lines = []
    for row in rows:
        for score in _INVERSION:
            if part := row.get(score):
                if score in ("fid", "kid"):
                    values = (part["found"], None, part["floor"], part["ceiling"])
                else:
                    values = (part["mean"], part["std"], *part["interval"])
                named = zip(("value", "std", "low", "high"), values)
                lines.append(
                    {"setting": row["setting"], "images": row["n"], "measure": score, **dict(named)}
                )
    return lines
