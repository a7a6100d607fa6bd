"""Tasks: what networks tell about images, and how it is trained, measured, summed and shown."""

from primia_jax.config import ExperimentConfig
from primia_jax.tasks.classification import Classification
from primia_jax.tasks.segmentation import Segmentation
from primia_jax.tasks.task import Evaluation, Inputs, Metric, Source, Task, presence_norm

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
}

__all__ = [
    "TASKS",
    "Classification",
    "Evaluation",
    "Inputs",
    "Metric",
    "Segmentation",
    "Source",
    "Task",
    "classes",
    "make",
    "presence_norm",
]


def classes(config: ExperimentConfig, source: Source) -> tuple[str, ...]:
    """The classes that `source` knows for the task of `config`.

    Raises:
      DataError: if it knows none.
    """
    return TASKS[config.task].classes(source)


def make(config: ExperimentConfig, class_names: tuple[str, ...]) -> Task:
    """The task of `config` with these classes."""
    return TASKS[config.task](tuple(class_names), config.training.label_smoothing)
