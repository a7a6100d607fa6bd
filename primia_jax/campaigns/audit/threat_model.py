"""Threat model: assumed knowledge and actions of the attacker, derived from the runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from primia_jax.campaigns.audit.settings import Run
from primia_jax.config import AuditConfig


def rows(
    given: AuditConfig, runs: Sequence[Run], attacked: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
    """Assumed knowledge and actions of the attacker: names and values.

    Args:
      given: the threat model.
      runs: that are attacked.
      attacked: the settings of audit.json.
    """
    norms = {run.config.model.norm for run in runs}
    table = [
        ["network", _each(runs, _network)],
        ["normalisation", _each(runs, lambda run: run.config.model.norm)],
        ["image side", _each(runs, lambda run: str(run.config.data.image_size))],
        ["images of a local step", _each(runs, lambda run: str(run.config.training.batch_size))],
        ["local steps in a round", _each(runs, lambda run: str(_steps(attacked, run)))],
        ["local optimiser", _each(runs, _optimizer)],
        ["labels", "known" if given.labels_known else "inferred from the last layer's gradient"],
        ["moments of batch norm", _moments(given, norms)],
        ["hospitals' numbers of images", "known" if given.sizes_known else "not known"],
        ["pixel statistics, class weights, schedule, optimiser", "known"],
        ["rounds", f"of the {given.checkpoint} of training"],
        ["attack", f"{given.attack}, {given.steps} steps, {given.restarts} start(s)"],
    ]
    if given.attack == "inverting_gradients":
        weights = f"{given.total_variation:g}, first step {given.learning_rate:g}"
        table.append(["total variation", weights])
    return table


def note(runs: Sequence[Run], attacked: Sequence[Mapping[str, Any]]) -> str:
    """Describes the attacked updates of a table of inversions; see `rows`."""
    rounds = sorted({number for row in attacked for number in row["rounds"]})
    which = f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]} to {rounds[-1]}"
    total = sorted({run.config.federated.rounds for run in runs})
    sentence = f"Attacked were updates of {which} (of {' or '.join(map(str, total))})"
    if not all(run.is_own for run in runs):
        return f"{sentence} of the runs themselves."
    steps = _each(runs, lambda run: f"{_steps(attacked, run)} local step(s) a round")
    sentence += f" of runs trained for this table alone: {_each(runs, _network)}; {steps}"
    easy = rounds[0] == 1 and all(
        _steps(attacked, run) == 1
        and run.config.training.optimizer == "sgd"
        and not run.config.training.beta1
        and run.config.model.name == "simple"
        and run.config.model.norm == "none"
        and run.config.privacy.mode == "none"
        and not run.config.federated.update_clip
        for run in runs
    )
    return f"{sentence}. That is the attacker's best case." if easy else f"{sentence}."


def _each(runs: Sequence[Run], tell: Callable[[Run], str]) -> str:
    """Text that holds for all runs, or one for each where they differ."""
    names_by_text: dict[str, list[str]] = {}
    for run in runs:
        names_by_text.setdefault(tell(run), []).append(run.setting.name)
    if len(names_by_text) == 1:
        return next(iter(names_by_text))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in names_by_text.items())


def _optimizer(run: Run) -> str:
    given = run.config.training
    momentum = f", momentum {given.beta1:g}" if given.optimizer == "sgd" and given.beta1 else ""
    return f"{given.optimizer}{momentum}, learning rate {given.learning_rate:g} ({given.schedule})"


def _moments(given: AuditConfig, norms: set[str]) -> str:
    if "batch" not in norms:
        return "none: local steps compute alike in training and evaluation"
    known = "known" if given.moments_known else "not used"
    return f"{known}; local steps use those of the batch (training mode)"


def _steps(attacked: Sequence[Mapping[str, Any]], run: Run) -> int:
    return next(row["local_steps"] for row in attacked if row["setting"] == run.setting.name)


def _network(run: Run) -> str:
    return f"{run.config.model.name}, width {run.config.model.width}"
