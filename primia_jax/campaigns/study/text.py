"""The conclusions in plain language, made from the numbers, whichever way they came out.

The sentences stand in the template study.txt.jinja; this module chooses what they speak of.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from primia_jax.campaigns.study.judging import LOCAL, MODES, SECURE
from primia_jax.campaigns.study.sets import TEST_1, TEST_2, TITLES, VALIDATION
from primia_jax.campaigns.study.tables import SIGNIFICANT, t_test
from primia_jax.reporting import page
from primia_jax.reporting.formats import figure, number

# J. R. Landis and G. G. Koch, "The measurement of observer agreement for categorical data" (1977).
_AGREEMENT = (
    (0.0, "poor"), (0.2, "slight"), (0.4, "fair"), (0.6, "moderate"), (0.8, "substantial"),
)  # fmt: skip
_TOPICS = {
    "performance": "How well the models do",
    "equivalence": "Whether secure aggregation costs accuracy",
    "tests": "Whether the models are right equally often",
    "kappa": "How far the models agree",
    "readers": "Models and readers",
    "inversion": "What can be stolen from an update",
}


def conclusions(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Topics and sentences that conclude a study, of the numbers in tables.json."""
    raters = {rater["key"]: rater for rater in results["table_1a"]["raters"]}
    models = {mode: raters[mode] for mode in MODES if mode in raters}
    tests = [key for key in (TEST_1, TEST_2) if key in results["sets"]]
    scores = {key: {mode: one["sets"][key]["mcc"] for mode, one in models.items()} for key in tests}
    known = [mcc["mean"] for mcc in scores[TEST_1].values() if mcc["mean"] is not None]
    context = {
        "titles": TITLES,
        "sets": results["sets"],
        "tests": tests,
        "mcc": {
            key: [
                f"{number(mcc['mean'])} ({MODES[mode].lower()})"
                for mode, mcc in each.items()
                if mcc
            ]
            for key, each in scores.items()
        },
        "lowest": min(known),
        "equivalence": results["equivalence"],
        "differences": list(_differences(results)),
        "kappas": [
            (key, pair)
            for key, part in results["table_1c"].items()
            for pair in part["pairs"]
            if {pair["first"], pair["second"]} == {SECURE, LOCAL} and pair["mean"] is not None
        ],
        "word": agreement_word,
        "readers": list(_readers(results)),
        "inversion": {"note": "", **(results["inversion"] or {})},
        "errors": _errors(results["inversion"] or {"rows": ()}),
        "comparisons": list(_comparisons(results["inversion"] or {})),
    }
    absent = {"readers": not context["readers"], "inversion": not results["inversion"]}
    return [
        (title, " ".join(page.sentences("study.txt.jinja", topic=topic, **context)))
        for topic, title in _TOPICS.items()
        if not absent.get(topic)
    ]


def agreement_word(kappa: float) -> str:
    """The word for a kappa."""
    return next((word for bound, word in _AGREEMENT if kappa <= bound), "almost perfect")


def _differences(results: Mapping[str, Any]) -> Iterator[tuple[str, list[str], float]]:
    """By set: the modes that are right more often than others, and the smallest p-value."""
    for key, part in results["table_1b"].items():
        pairs = [p for p in part["pairs"] if {p["first"], p["second"]} <= set(MODES)]
        ahead = []
        for pair in pairs:
            names = {side: MODES[pair[side]].lower() for side in ("first", "second")}
            winners = [
                f"{names[side]} is right more often than {names[other]}{times}"
                for side, other in (("first", "second"), ("second", "first"))
                if (times := _times_ahead(pair, side, other)) is not None
            ]
            ahead += [", ".join(winners)] if winners else []
        yield key, ahead, min(test["p_holm"] for pair in pairs for test in pair["by_seed"])


def _times_ahead(pair: Mapping[str, Any], side: str, other: str) -> str | None:
    """In how many trainings one rater is right more often, beyond chance; None if in none."""
    tests = pair["by_seed"]
    count = sum(
        test["p_holm"] < SIGNIFICANT and test[f"{side}_only"] > test[f"{other}_only"]
        for test in tests
    )
    if not count:
        return None
    return "" if len(tests) == 1 else f" in {count} of {len(tests)} trainings"


def _readers(
    results: Mapping[str, Any],
) -> Iterator[tuple[Mapping[str, Any], list[str], list[str]]]:
    """Each reader, with the modes that are right more often and less often."""
    for rater in results["table_1a"]["raters"]:
        if rater["kind"] != "reader":
            continue
        better: list[str] = []
        worse: list[str] = []
        for pair in results["table_1b"][TEST_1]["pairs"]:
            models = {pair["first"], pair["second"]} & set(MODES)
            if pair["p"] is None or len(models) != 1:
                continue
            if rater["key"] not in (pair["first"], pair["second"]):
                continue
            mode, reader = ("first", "second") if pair["first"] in MODES else ("second", "first")
            for sides, names in (((mode, reader), better), ((reader, mode), worse)):
                if (times := _times_ahead(pair, *sides)) is not None:
                    names.append(f"{MODES[pair[mode]].lower()}{times}")
        yield rater, better, worse


def _errors(inversion: Mapping[str, Any]) -> list[str]:
    """The mean squared error of the reconstructions of each mode."""
    rows = {row["setting"]: row.get("mse") or {} for row in inversion["rows"]}
    return [
        f"{figure(rows[mode]['mean'])} ({MODES[mode].lower()})"
        for mode in MODES
        if mode in rows and rows[mode].get("mean") is not None
    ]


def _comparisons(inversion: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float | None]]:
    """The tests of secure sums against other modes: mode, verdict, kind of test, p-value."""
    for test in inversion.get("tests", {}).get("mse", []):
        names = {test["first"], test["second"]}
        if SECURE not in names:
            continue
        (other,) = names - {SECURE}
        difference = test["difference"] * (1 if test["first"] == SECURE else -1)
        p = test["p_holm"] if test.get("p_holm") is not None else test["p"]
        if p is None or p >= SIGNIFICANT:
            verdict = "no difference is shown"
        else:
            verdict = f"secure aggregation gives {'less' if difference > 0 else 'more'} away"
        yield MODES.get(other, other).lower(), verdict, t_test(test), p


def data_sentences(results: Mapping[str, Any]) -> list[str]:
    """The size and origin of each set."""
    sentences = []
    for key, part in results["sets"].items():
        counts = ", ".join(f"{n} {name}" for name, n in zip(results["classes"], part["counts"]))
        sentences.append(
            f"{TITLES[key]}: {part['n']} images of {part['patients']} patients ({counts}), "
            f"{part['what']}"
        )
    if VALIDATION in results["sets"]:
        sentences[0] += "; the best round was chosen on it, so its scores are too good"
    return sentences
