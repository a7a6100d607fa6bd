"""A run's statement of its privacy: ε by both accountants, for whom, against whom, and its limits.

The statement goes into metrics.json and the report. It is made from the configuration, from the
hospitals' reports of their ledgers after each round, and from those ledgers that can be read where
the run is operated: a hospital that is lost after it was charged reports nothing. It claims nothing
that the code does not do.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from primia_jax.config import ExperimentConfig, PrivacyConfig
from primia_jax.core.names import safe_file_name
from primia_jax.federated import checkpoints
from primia_jax.federated.accounting import Epsilon
from primia_jax.federated.privacy_ledger import FILE, Ledger
from primia_jax.federated.records import SiteSetUp

_UNIT = {"image": "one image", "patient": "one patient", "client": "one hospital"}
_PROTECTED = {"image": "single images", "patient": "whole patients", "client": "whole hospitals"}
_RELATION = {
    "image": "one image of one hospital is replaced by a blank that contributes nothing "
    "(zero-out; the numbers are those of adding or removing an image)",
    "patient": "all images of one patient of one hospital are replaced by a blank that contributes "
    "nothing (zero-out; the numbers are those of adding or removing a patient)",
    "client": "one hospital's contribution is replaced by nothing (zero-out; the number of "
    "hospitals is known)",
}


def _unit(own: PrivacyConfig) -> str:
    """The key of what is protected in the tables above."""
    return own.unit if own.mode == "record" else own.mode


def statement(
    config: ExperimentConfig, lines: Sequence[Mapping[str, Any]], workdir: pathlib.Path
) -> dict[str, Any] | None:
    """The statement of a run; None where nothing is protected.

    Args:
      config: of the experiment.
      lines: of rounds.jsonl.
      workdir: of the run.

    Raises:
      CheckpointError: if a ledger is damaged.
    """
    own = config.privacy
    if own.mode == "none":
        return None
    sites = {name: cost._asdict() for name, cost in _spent(own, lines, workdir).items()}
    return {
        "mode": own.mode,
        "unit": _UNIT[_unit(own)],
        "neighbouring": _RELATION[_unit(own)],
        "delta": own.delta,
        "budget": own.budget or own.epsilon,
        "epsilon": {
            accountant: max((cost[accountant] for cost in sites.values()), default=0.0)
            for accountant in ("pld", "rdp")
        },
        "sites": sites,
        "clip_norm": own.clip_norm,
        "against": _against(config),
        "covered": _covered(own),
        "not_covered": _not_covered(config),
    }


def _spent(
    own: PrivacyConfig, lines: Sequence[Mapping[str, Any]], workdir: pathlib.Path
) -> dict[str, Epsilon]:
    """Each hospital's largest ε: reported by it, or in its ledger where that can be read."""
    costs: dict[str, Epsilon] = {}

    def note(name: str, cost: Epsilon) -> None:
        costs[name] = Epsilon(*map(max, cost, costs.get(name, cost)))

    names: set[str] = set()
    for line in lines:
        names.update(line.get("absent", {}), {line["site"]} - {"all"})
        if line.get("epsilon") is not None:
            note(line["site"], Epsilon(line["epsilon"], line["epsilon_rdp"]))
    folders = checkpoints.site_folder(workdir, "").parent
    of_folder = {folder.name: folder.name for folder in folders.glob("*")}
    of_folder |= {safe_file_name(name): name for name in names}
    for folder_name, name in sorted(of_folder.items()):
        base = pathlib.Path(own.ledger).absolute() if own.ledger else folders
        path = base / folder_name / FILE
        if path.is_file():
            ledger = Ledger(path, own.budget or own.epsilon, own.delta, name, own.unit)
            note(name, ledger.spent())
    return costs


def large_delta(config: ExperimentConfig, summary: Sequence[Mapping[str, Any]]) -> str:
    """A warning if δ allows one of a hospital's units to be published; or "".

    Args:
      config: of the experiment.
      summary: of its data plan; hospitals that read paths of their own are not in it.
    """
    own = config.privacy
    if own.mode == "none":
        return ""
    counts = [config.federated.hospitals]
    if own.mode == "record":
        units = "patients" if own.unit == "patient" else "counts"
        counts = [int(np.sum(line[units])) for line in summary if line["split"] == "train"]
    if not counts or own.delta < 1 / max(counts):
        return ""
    name = _UNIT[_unit(own)].removeprefix("one ")
    return (
        f"config.privacy.delta = {own.delta:g} is no less than 1 / {max(counts)}: it lets a "
        f"mechanism publish one {name} of {max(counts)} whole; set it well below"
    )


def headline(stated: Mapping[str, Any]) -> str:
    """The statement's numbers in one line."""
    cost = stated["epsilon"]
    return (
        f"differential privacy of {stated['unit']}: ε = {cost['pld']:.3f} (PLD), "
        f"{cost['rdp']:.3f} (RDP) at δ = {stated['delta']:g}, budget {stated['budget']:g}"
    )


def opening(config: ExperimentConfig, reports: Mapping[str, Any]) -> list[str]:
    """The lines before the first round, from the hospitals' reports of their set-up."""
    plans = [
        report
        for report in reports.values()
        if isinstance(report, SiteSetUp) and report.planned_epsilon is not None
    ]
    if not plans:
        return []
    noise = sorted(plan.noise_multiplier or 0.0 for plan in plans)
    worst = max(plan.planned_epsilon or 0.0 for plan in plans)
    own = config.privacy
    budget = own.budget or own.epsilon
    lines = [
        f"privacy of {_PROTECTED[_unit(own)]}: noise "
        f"multiplier {_range(noise)}, clip {own.clip_norm:g}; all {config.federated.rounds} rounds "
        f"would bring ε to {worst:.2f} at δ = {own.delta:g}, budget {budget:g}"
    ]
    if own.mode == "record" and own.unit == "patient":
        most = own.images_per_patient
        lines.append(
            f"batch_size, sampling and samples count patients; a step uses at most {most} images "
            "of each, and an image whose patient is not named is a patient of its own"
        )
    if worst > budget:
        lines.append(f"the budget of ε = {budget:g} ends this training before its last round")
    return lines


def _range(values: Sequence[float]) -> str:
    low, high = f"{values[0]:.3g}", f"{values[-1]:.3g}"
    return low if low == high else f"{low} to {high}"


def _against(config: ExperimentConfig) -> str:
    own = config.privacy
    if own.mode == "record":
        return (
            "everybody outside the hospital: the model owner, other hospitals, users of the model"
        )
    if own.missing_hospitals:
        return (
            "the model owner and users of the model, even in league with "
            f"{own.missing_hospitals} of the other hospitals"
        )
    return "the model owner and users of the model, but no other hospital: each knows its own noise"


def _covered(own: PrivacyConfig) -> list[str]:
    if own.mode == "record":
        covered = ["training images: the weights that hospitals send, by DP-SGD"]
        covered.append(
            "training images: pixel statistics and class counts, by noise"
            if own.statistics_noise
            else "training images: pixel statistics and class counts, which are not released"
        )
        whose = "validation images"
    else:
        covered = [
            "the weights that a hospital sends, by clipping and noise within the secure sum",
            "pixel statistics and class counts, which are not released",
        ]
        whose = "validation"
    if own.validation == "noised":
        covered.append(f"{whose}: confusion matrices and the choice of the best round, by noise")
    elif own.validation == "none":
        covered.append(f"{whose}: confusion matrices, which are not released")
    return covered


def _not_covered(config: ExperimentConfig) -> list[str]:
    own = config.privacy
    missing = [
        "what the division into training, validation and test images tells: it is drawn from the "
        "classes, patients and copies of all images together, and ε holds for a given division"
    ]
    if own.validation == "exact":
        missing.append("confusion matrices on validation images, released as they are every round")
    if own.mode == "record":
        missing += {
            "image": [
                "how many images a hospital has",
                "patients of several images: ε is of one image, and grows with their number "
                "(config.privacy.unit = patient protects whole patients)",
            ],
            "patient": [
                "how many patients a hospital has",
                "people who are patients of several hospitals, or under several patient numbers: "
                "ε is of one number at one hospital, and adds up",
            ],
        }[own.unit]
    missing.append("test images: the scores and pictures of this report")
    missing.append(
        "what whoever operates the run sees besides: tables of the data, files left out, times"
    )
    if not own.ledger:
        missing.append(
            "other trainings on the same images, whose ε adds up, such as those by which settings "
            "were chosen"
        )
    return missing
