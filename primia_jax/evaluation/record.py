"""Record of one run once it has ended: everything the report shows."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from primia_jax.core.storage import read_json_lines
from primia_jax.errors import CheckpointError
from primia_jax.evaluation.blocks import Figures

ROUNDS = "rounds.jsonl"  # a line of numbers for each round and site, and one for all sites


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One finished run. Only the first three fields are required; the report leaves out the rest.

    Axis letters: k classes.
    """

    config: Mapping[str, Any]  # nested, as `primia_jax.config.schema.to_plain` gives it
    mode: str  # "local" | "federated" | "federated_secure"
    class_names: Sequence[str]  # [k] of the images' labels

    # {"site", "split", "counts": [k] or {class: count}, "patients"} for every site and split
    data_summary: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[tuple[str, str]] = ()  # (name, reason) of files left out

    # The lines of rounds.jsonl, in order. Rounds count from 1. One line a round and site:
    # {"round", "site", "loss", "validation_loss", "validation_accuracy", "samples", "steps",
    # "learning_rate", "seconds", "compute_seconds", "bytes_sent", "stopped"}; and one a round with
    # "site": "all": {"round", "site", "validation": {"mcc", "accuracy", …}, "score": {"name",
    # "value"}, "seconds", "bytes_sent", "best"}. Any of them may be absent or None.
    rounds: Sequence[Mapping[str, Any]] = ()
    # {phase: {"seconds", "bytes"}}
    phases: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    # {"mode", "unit", "epsilon": {"pld", "rdp"}, "delta", …}, see `federated.privacy_statement`
    privacy: Mapping[str, Any] | None = None

    figures: Figures | None = None  # of the test, see `Task.figures`
    outputs: Sequence[str] = ()  # classes that the network tells apart, if not `class_names`
    loss_name: str = "loss"  # of the validation loss

    warnings: Sequence[str] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # {package: version}
    command: str = ""
    finished: str = ""  # date and time, as it is to be shown


def read_rounds(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl; none if it is missing, and no last one that a crash cut short.

    Raises:
      CheckpointError: if it is damaged.
    """
    lines = read_json_lines(path, ["round", "site"])
    for number, line in enumerate(lines, 1):
        if type(line["round"]) is not int:
            raise CheckpointError(f"{path} is damaged in line {number} (no round); restore it")
    return lines


class Score(NamedTuple):
    """The score by which rounds are compared; a larger one is better."""

    name: str
    value: float | None


def score(line: Mapping[str, Any]) -> Score:
    """The federated validation score in a line of rounds.jsonl, or in metrics.json."""
    stored = line.get("score") or {}
    return Score(str(stored.get("name", "score")), stored.get("value"))
