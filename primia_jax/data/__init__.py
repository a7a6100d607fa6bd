"""Images with labels, patients, sites and splits, from any kind of source.

`open_catalogue` looks at every image and tells what is there, `assign_splits` and `partition` say
which record is for what and whose, `load` brings pixels into memory. Random changes of training
images are in `primia_jax.data.augmentation`, which needs JAX; this package's front does not.
"""

from primia_jax.data.catalogue import TEST, TRAIN, VALIDATION, Catalogue, Dataset, load
from primia_jax.data.partition import hospital_names, partition
from primia_jax.data.plan import (
    DataPlan,
    SiteData,
    make_plan,
    make_test_plan,
    patient_digests,
)
from primia_jax.data.sources import open_catalogue, predict_inputs, read_inputs
from primia_jax.data.splits import assign_splits

__all__ = [
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Catalogue",
    "DataPlan",
    "Dataset",
    "SiteData",
    "assign_splits",
    "hospital_names",
    "load",
    "make_plan",
    "make_test_plan",
    "open_catalogue",
    "partition",
    "patient_digests",
    "predict_inputs",
    "read_inputs",
]
