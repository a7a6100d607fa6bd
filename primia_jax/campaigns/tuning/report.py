"""The page of a search, with its table of trials and its pictures."""

import pathlib
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from primia_jax.campaigns.tuning import pictures
from primia_jax.campaigns.tuning.space import Dimension
from primia_jax.campaigns.tuning.study import best_of, followers, interrupted, learned
from primia_jax.config import ExperimentConfig, to_plain
from primia_jax.core.storage import write_text
from primia_jax.reporting import page
from primia_jax.reporting.console import format_bytes, format_duration
from primia_jax.reporting.settings import settings_table

_FEWEST = 4  # complete trials of which importances are told


def write_report(
    folder: pathlib.Path,
    config: ExperimentConfig,
    space: Sequence[Dimension],
    trials: Sequence[FrozenTrial],
    counts: Mapping[str, int],
    spent: str,
    command: str,
) -> None:
    """Writes report.html, which needs nothing outside itself.

    Args:
      folder: of the search.
      config: of the search.
      space: what was searched.
      trials: all of them, by number.
      counts: of them by what became of them.
      spent: why the search ended before all trials were made, if the privacy budget ended it.
      command: the command line.

    Raises:
      StorageError: if it cannot be written.
    """
    write_text(folder / "report.html", render(config, space, trials, counts, spent, command))


def render(
    config: ExperimentConfig,
    space: Sequence[Dimension],
    trials: Sequence[FrozenTrial],
    counts: Mapping[str, int],
    spent: str,
    command: str,
) -> str:
    """The page as text; see `write_report`."""
    left_out = interrupted(trials)
    shown = [trial for trial in trials if trial.number not in left_out]
    best, shares = best_of(shown), importances(shown, config.seed)
    complete = [trial for trial in shown if learned(trial)]
    changed, _ = settings_table(to_plain(config))
    searched = {dimension.name for dimension in space}
    return (
        page.environment()
        .get_template("tune.html.jinja")
        .render(
            title=config.name,
            hospitals=config.federated.hospitals,
            mode=config.federated.mode,
            source=config.data.source,
            rounds=config.federated.rounds,
            counts=counts,
            total=sum(counts.values()),
            best=best,
            best_settings=[(d.name, _text(best.params[d.name])) for d in space] if best else [],
            history=pictures.history(shown),
            by_round=pictures.by_round(shown),
            importances=pictures.importances(shares) if shares else None,
            shares=[(name, f"{share:.2f}") for name, share in shares.items()],
            fewest=_FEWEST,
            parallel=pictures.parallel_coordinates(shown, space) if complete else None,
            names=[dimension.name for dimension in space],
            rows=[_row(trial, space, followers(trials), best) for trial in trials],
            space=list(config.tuning.space),
            changed=[
                row
                for row in changed
                if row.name not in searched and not row.name.startswith("tuning.space")
            ],
            private=config.privacy.mode != "none",
            spent=spent,
            command=command,
            finished=time.strftime("%Y-%m-%d %H:%M"),
        )
    )


def importances(trials: Sequence[FrozenTrial], seed: int) -> dict[str, float]:
    """Each setting's share of the variance of the MCC over complete trials, the largest first.

    By functional ANOVA over a random forest (Hutter et al. 2014, "An efficient approach for
    assessing hyperparameter importance"). Empty if there are too few trials, or all found the same.
    """
    complete = [trial for trial in trials if learned(trial)]
    if len(complete) < _FEWEST or len({trial.value for trial in complete}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    study.add_trials(complete)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # the forest saw no variance
        return {}
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def _row(
    trial: FrozenTrial,
    space: Sequence[Dimension],
    following: Mapping[int, int],
    best: FrozenTrial | None,
) -> dict[str, Any]:
    attributes, values = trial.user_attrs, trial.intermediate_values
    text = attributes.get("outcome", "interrupted")
    if trial.number in following:
        text = f"interrupted; taken up as trial {following[trial.number]}"
    elif (begun := attributes.get("takes_up")) is not None:
        text += f" (takes up trial {begun})"
    mcc = trial.value if learned(trial) else max(values.values(), default=None)
    return {
        "number": trial.number,
        "best": best is not None and trial.number == best.number,
        "mcc": "–" if mcc is None else f"{mcc:.3f}",
        "rounds": attributes.get("rounds", "–"),
        "seconds": format_duration(attributes.get("seconds")),
        "bytes": format_bytes(attributes.get("bytes_sent")),
        "text": text,
        "settings": [_text(trial.params.get(d.name, "–")) for d in space],
    }


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
