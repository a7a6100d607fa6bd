"""Tasks: what networks tell about images, and how it is trained, measured, summed and shown."""

from primia_jax.config import ExperimentConfig
from primia_jax.errors import ConfigError
from primia_jax.tasks.classification import Classification
from primia_jax.tasks.segmentation import Segmentation
from primia_jax.tasks.task import Evaluation, Inputs, Metric, Source, Task

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
    "check_classifies",
    "classes",
    "make",
]


def classes(config: ExperimentConfig, source: Source) -> tuple[str, ...]:
    """The classes that `source` knows for the task of `config`.

    Raises:
      DataError: if it knows none.
    """
    return TASKS[config.task].classes(source)


def check_classifies(config: ExperimentConfig, verb: str) -> None:
    """Refuses another task, for a `verb` that is about the classes of images.

    Raises:
      ConfigError: for another task.
    """
    if config.task != "classification":
        raise ConfigError(f"{verb} needs config.task = 'classification', not {config.task!r}")


def make(config: ExperimentConfig, class_names: tuple[str, ...]) -> Task:
    """The task of `config` with these classes."""
    training = config.training
    return TASKS[config.task](tuple(class_names), training.label_smoothing, training.loss)
