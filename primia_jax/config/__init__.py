"""The settings of an experiment: sections, their schema, and the check at the door."""

from primia_jax.config.resolve import remarks, resolved
from primia_jax.config.schema import from_config_dict, to_config_dict, to_plain
from primia_jax.config.sections import (
    AugmentationConfig,
    DataConfig,
    EarlyStoppingConfig,
    EvaluationConfig,
    ExperimentConfig,
    FederatedConfig,
    ModelConfig,
    MpcConfig,
    PhantomConfig,
    PrivacyConfig,
    RuntimeConfig,
    SecureAggregationConfig,
    TrainingConfig,
)
from primia_jax.config.studies import (
    AuditConfig,
    LatencyStudyConfig,
    StudyConfig,
    TuningConfig,
)

__all__ = [
    "AuditConfig",
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
    "PrivacyConfig",
    "RuntimeConfig",
    "SecureAggregationConfig",
    "StudyConfig",
    "TrainingConfig",
    "TuningConfig",
    "from_config_dict",
    "remarks",
    "resolved",
    "to_config_dict",
    "to_plain",
]
