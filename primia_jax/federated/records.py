"""Records that the parties of a training or a federated evaluation report to its operator.

All of their fields are public; docs/security.md lists them. `check` is what the process of each
party lets out.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np

from primia_jax.core.records import Name, Only, Record, Text
from primia_jax.federated.aggregation import OWNER
from primia_jax.tasks import Task

_Fingerprint = Annotated[str, Text(r"[0-9a-f]{4}(-[0-9a-f]{4}){9}")]
_Process = Annotated[str, Text(r"[A-Za-z0-9._-]{1,255}:[0-9]{1,10}")]  # HOST:PID


@dataclasses.dataclass(frozen=True)
class Identity(Record):
    """Public key of a hospital."""

    fingerprint: _Fingerprint


@dataclasses.dataclass(frozen=True)
class SiteSetUp(Record):
    """A hospital after set-up; with differential privacy its noise, and ε after all rounds."""

    samples: int
    validation_samples: int
    noise_multiplier: float | None = None
    planned_epsilon: float | None = None


@dataclasses.dataclass(frozen=True)
class Restored(Record):
    """A hospital that goes on from a checkpoint."""

    stopped: bool


@dataclasses.dataclass(frozen=True)
class SiteRound(Record):
    """A hospital after a round. With differential privacy exact losses and scores are None."""

    loss: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    samples: int
    steps: int
    learning_rate: float
    stopped: bool
    rss_bytes: int
    process: _Process
    epsilon: float | None = None
    epsilon_rdp: float | None = None

    def line(self) -> dict[str, Any]:
        """The fields as rounds.jsonl has them: ε only where it was spent."""
        return _without_none(self, "epsilon", "epsilon_rdp")


@dataclasses.dataclass(frozen=True)
class Pooled(Record):
    """The model owner has the pooled statistics already, or not."""

    known: bool


@dataclasses.dataclass(frozen=True)
class OwnerSetUp(Record):
    """Pooled statistics of all hospitals; counts only where they were just summed exactly."""

    mean: float
    std: float
    class_counts: tuple[int, ...] | None = None
    samples: int | None = None


@dataclasses.dataclass(frozen=True)
class OwnerRestored(Record):
    """The model owner after `--resume`, with the last round that each hospital saved its own of."""

    saved: dict[Name, int]


@dataclasses.dataclass(frozen=True)
class Revealed(Record):
    """The hospitals in the sums of a round that were revealed; None: not revealed.

    `uncertain` are those of one that may have been revealed just before a crash.
    """

    update: tuple[Name, ...] | None
    validation: tuple[Name, ...] | None
    uncertain: tuple[Name, ...] = ()


@dataclasses.dataclass(frozen=True)
class Scores(Record):
    """A sum of `Task.summable`, such as a confusion matrix, from which all scores follow."""

    summed: tuple[int, ...]
    loss: float | None = None

    @classmethod
    def of(cls, summed: Iterable[int], loss: float | None = None) -> "Scores":
        """The record of a sum [m], and of the loss if there is one."""
        return cls(tuple(int(number) for number in summed), loss)

    def metrics(self, task: Task) -> dict[str, Any]:
        """The task's metrics of the sum, and the loss if there is one."""
        return task.metrics(np.asarray(self.summed)) | (
            {} if self.loss is None else {"loss": self.loss}
        )


@dataclasses.dataclass(frozen=True)
class RoundSummary(Record):
    """A round of all hospitals together."""

    validation: Scores | None
    best_round: int
    samples: int | None
    finished: bool


@dataclasses.dataclass(frozen=True)
class Evaluation(Record):
    """Scores of a finished model, and of its personalised form if there is one."""

    models: tuple[Scores, ...]


HOSPITAL = (Identity, SiteSetUp, Restored, SiteRound, Evaluation)
MODEL_OWNER = (Pooled, OwnerSetUp, OwnerRestored, Revealed, RoundSummary, Evaluation)


def check(class_names: Sequence[str], hospitals: Iterable[str]) -> Only:
    """The check of all reports of a training or an evaluation."""
    names = tuple(hospitals)
    kinds = {**dict.fromkeys(names, HOSPITAL), OWNER: MODEL_OWNER}
    return Only(kinds, frozenset((*class_names, *names)))


def _without_none(record: Record, *names: str) -> dict[str, Any]:
    """The fields of a record, those in `names` only where they are not None."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {k: v for k, v in fields.items() if v is not None or k not in names}
