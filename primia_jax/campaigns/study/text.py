"""The conclusion in plain language, made from the numbers, whichever way they came out."""

from collections.abc import Mapping, Sequence
from typing import Any

from primia_jax.campaigns.study.judging import LOCAL, MODES, SECURE
from primia_jax.campaigns.study.sets import TEST_1, TEST_2, TITLES, VALIDATION
from primia_jax.campaigns.study.tables import (
    SIGNIFICANT,
    figure,
    interval,
    number,
    p_text,
    signed,
    t_test,
)
from primia_jax.evaluation.agreement import DIFFERENT, EQUIVALENT

# J. R. Landis and G. G. Koch, "The measurement of observer agreement for categorical data" (1977).
_AGREEMENT = (
    (0.0, "poor"), (0.2, "slight"), (0.4, "fair"), (0.6, "moderate"), (0.8, "substantial"),
)  # fmt: skip


def conclusions(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Conclusions of the study, (topic, sentences), from the contents of tables.json."""
    parts = [
        ("How well the models do", _performance(results)),
        ("Whether secure aggregation costs accuracy", _equivalence(results)),
        ("Whether the models are right equally often", _tests(results)),
        ("How far the models agree", _kappa(results)),
    ]
    if any(rater["kind"] == "reader" for rater in results["table_1a"]["raters"]):
        parts.append(("Models and readers", _readers(results)))
    if results["inversion"]:
        parts.append(("What can be stolen from an update", _inversion(results["inversion"])))
    return parts


def _performance(results: Mapping[str, Any]) -> str:
    raters = {rater["key"]: rater for rater in results["table_1a"]["raters"]}
    sentences = []
    for key in (TEST_1, TEST_2):
        if key not in results["sets"]:
            continue
        mccs = [
            f"{number(mcc['mean'])} ({MODES[mode].lower()})"
            for mode in MODES
            if mode in raters and (mcc := raters[mode]["sets"][key]["mcc"])
        ]
        size, what = results["sets"][key]["n"], results["sets"][key]["what"]
        sentences.append(f"On {TITLES[key]} ({size} images, {what}) the MCC is {_and(mccs)}.")
    values = [
        mcc["mean"]
        for mode, rater in raters.items()
        if mode in MODES and (mcc := rater["sets"][TEST_1]["mcc"])["mean"] is not None
    ]
    if min(values) < 0.5:
        sentences.append(
            "An MCC below 0.5 is that of a model which has not learnt its task: what follows then "
            "compares poor models and says little."
        )
    return " ".join(sentences)


def _equivalence(results: Mapping[str, Any]) -> str:
    sentences = []
    for key in (TEST_1, TEST_2):
        if key not in results["equivalence"]:
            continue
        judged = results["equivalence"][key]
        difference, margin = judged["difference"], judged["margin"]
        if difference["low"] is None:
            sentences.append(f"On {TITLES[key]} the difference in MCC is undefined.")
            continue
        span = interval(difference, signed=True)
        start = (
            f"On {TITLES[key]} the MCC with secure aggregation is {signed(difference['mean'])} "
            f"against that of pooled data (95 % interval {span})"
        )
        if judged["verdict"] == EQUIVALENT:
            end = f", within the margin of ±{margin:g}: the two are equivalent."
        elif judged["verdict"] == DIFFERENT:
            better = "better" if difference["mean"] > 0 else "worse"
            end = f", beyond the margin of ±{margin:g}: secure aggregation is {better}."
        else:
            end = f"; the margin is ±{margin:g}. {_undecided(difference, margin)}"
        sentences.append(start + end)
    return " ".join(sentences)


def _undecided(difference: Mapping[str, Any], margin: float) -> str:
    """Conclusion where the interval crosses an edge of the margin."""
    if difference["low"] > 0 or difference["high"] < 0:
        better = "better" if difference["mean"] > 0 else "worse"
        return (
            f"Secure aggregation is {better}, since the interval leaves out 0; whether by more "
            "than the margin is open. The two are not shown to be equivalent."
        )
    if abs(difference["mean"]) <= margin:
        return (
            "The difference found lies within it, the interval reaches beyond: equivalence is not "
            "shown, nor is a difference. More images or trainings would tell."
        )
    return (
        "The difference found lies outside it, but the interval includes 0: neither equivalence "
        "nor a difference is shown. More images or trainings would tell."
    )


def _tests(results: Mapping[str, Any]) -> str:
    sentences = []
    for key, part in results["table_1b"].items():
        pairs = [p for p in part["pairs"] if {p["first"], p["second"]} <= set(MODES)]
        verdicts = [said for pair in pairs if (said := _told_apart(pair))]
        if verdicts:
            sentences.append(
                f"On {TITLES[key]} McNemar’s test, with Holm’s correction, finds a difference: "
                f"{'; '.join(verdicts)}."
            )
        else:
            least = min(test["p_holm"] for pair in pairs for test in pair["by_seed"])
            sentences.append(
                f"On {TITLES[key]} McNemar’s test finds no difference between the modes (smallest "
                f"p {_equals(least)}, with Holm’s correction). That alone would not show that "
                "there is none; the interval above speaks to that."
            )
    return " ".join(sentences)


def _told_apart(pair: Mapping[str, Any]) -> str:
    """Names the mode that is right more often, and in how many trainings; empty if none."""
    ahead = {side: _times_ahead(pair, side) for side in ("first", "second")}
    parts = []
    for side, other in (("first", "second"), ("second", "first")):
        if ahead[side]:
            winner, loser = (MODES[pair[name]].lower() for name in (side, other))
            times = _times(ahead[side], pair)
            parts.append(f"{winner} is right more often than {loser}{times}")
    return ", ".join(parts)


def _times_ahead(pair: Mapping[str, Any], side: str) -> int:
    """In how many trainings one of two is right more often, beyond chance."""
    other = {"first": "second", "second": "first"}[side]
    return sum(
        test["p_holm"] < SIGNIFICANT and test[f"{side}_only"] > test[f"{other}_only"]
        for test in pair["by_seed"]
    )


def _times(count: int, pair: Mapping[str, Any]) -> str:
    of = len(pair["by_seed"])
    return "" if of == 1 else f" in {count} of {of} trainings"


def _kappa(results: Mapping[str, Any]) -> str:
    sentences = []
    for key, part in results["table_1c"].items():
        for pair in part["pairs"]:
            if {pair["first"], pair["second"]} == {SECURE, LOCAL} and pair["mean"] is not None:
                span = f" (95 % interval {interval(pair)})" if pair["low"] is not None else ""
                sentences.append(
                    f"On {TITLES[key]} the models from secure aggregation and from pooled data "
                    f"agree with κ = {number(pair['mean'], 3)}{span}, "
                    f"“{agreement_word(pair['mean'])}” by Landis and Koch."
                )
    return " ".join(sentences) or "κ is undefined: the models name one class alone."


def agreement_word(kappa: float) -> str:
    """Word for a value of kappa."""
    return next((word for bound, word in _AGREEMENT if kappa <= bound), "almost perfect")


def _readers(results: Mapping[str, Any]) -> str:
    raters = {rater["key"]: rater for rater in results["table_1a"]["raters"]}
    pairs = [
        pair
        for pair in results["table_1b"][TEST_1]["pairs"]
        if pair["p"] is not None and len({pair["first"], pair["second"]} & set(MODES)) == 1
    ]
    sentences = []
    for rater in raters.values():
        if rater["kind"] != "reader":
            continue
        scores = rater["sets"][TEST_1]
        mine = [p for p in pairs if rater["key"] in (p["first"], p["second"])]
        mcc = f" and an MCC of {number(scores['mcc']['mean'])}" if scores["mcc"] else ""
        sentences.append(
            f"{rater['title']} ({scores['n']} images read) reached an accuracy of "
            f"{number(scores['accuracy']['mean'])}{mcc}."
        )
        better: list[str] = []
        worse: list[str] = []
        for pair in mine:
            mode, reader = ("first", "second") if pair["first"] in MODES else ("second", "first")
            for side, listed in ((mode, better), (reader, worse)):
                if count := _times_ahead(pair, side):
                    listed.append(f"{MODES[pair[mode]].lower()}{_times(count, pair)}")
        if better:
            sentences.append(f"Right more often than this reader: {_and(better)}.")
        if worse:
            sentences.append(f"Right less often than this reader: {_and(worse)}.")
        if not better and not worse:
            sentences.append("No model is told apart from this reader by McNemar’s test.")
    return " ".join([*sentences, "(With Holm’s correction over all pairs of raters.)"])


def _inversion(results: Mapping[str, Any]) -> str:
    sentences = []
    control = results.get("control") or {}
    if control:
        psnr = control.get("psnr")
        of = "" if psnr is None else f" (PSNR {figure(psnr)} dB)"
        if not control.get("recovered"):
            return f"The attack failed on its control{of}: nothing can be said of it."
        sentences.append(
            f"The attack works where nothing protects: it recovers the control image{of}."
        )
    rows = {row["setting"]: row for row in results["rows"]}
    errors = [
        f"{figure(rows[mode]['mse']['mean'])} ({MODES[mode].lower()})"
        for mode in MODES
        if mode in rows and (rows[mode].get("mse") or {}).get("mean") is not None
    ]
    if errors:
        sentences.append(f"Reconstructions miss the image by an MSE of {_and(errors)}.")
    for test in results.get("tests", {}).get("mse", []):
        names = {test["first"], test["second"]}
        if SECURE not in names:
            continue
        other = next(iter(names - {SECURE}))
        secure_first = test["first"] == SECURE
        difference = test["difference"] if secure_first else -test["difference"]
        p = test["p_holm"] if test.get("p_holm") is not None else test["p"]
        if p is None or p >= SIGNIFICANT:
            verdict = "no difference is shown"
        elif difference > 0:
            verdict = "secure aggregation gives less away"
        else:
            verdict = "secure aggregation gives more away"
        sentences.append(
            f"Secure sum against {MODES.get(other, other).lower()}: {verdict} "
            f"({t_test(test)}, p {_equals(p)} after Holm’s correction)."
        )
    return " ".join([*sentences, results.get("note", "")]).strip()


def data_sentences(results: Mapping[str, Any]) -> list[str]:
    """Description of each set."""
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


def _equals(p: float | None) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _and(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]
