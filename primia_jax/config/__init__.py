"""The settings of an experiment: sections, their schema, and the check at the door."""

from primia_jax.config.schema import from_config_dict, to_config_dict, to_plain
from primia_jax.config.sections import (
    AugmentationConfig,
    DataConfig,
    EarlyStoppingConfig,
    EvaluationConfig,
    ExperimentConfig,
    FederatedConfig,
    LatencyStudyConfig,
    ModelConfig,
    MpcConfig,
    PhantomConfig,
    RuntimeConfig,
    SecureAggregationConfig,
    TrainingConfig,
)
from primia_jax.config.settle import settled

__all__ = [
    "AugmentationConfig",
    "DataConfig",
    "EarlyStoppingConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "FederatedConfig",
    "LatencyStudyConfig",
    "ModelConfig",
    "MpcConfig",
    "PhantomConfig",
    "RuntimeConfig",
    "SecureAggregationConfig",
    "TrainingConfig",
    "from_config_dict",
    "settled",
    "to_config_dict",
    "to_plain",
]
