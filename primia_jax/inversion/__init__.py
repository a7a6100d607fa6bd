"""Gradient-inversion attacks on a model update, and measures of the leak.

An attacker sees an `Observed` update and knows how updates come about (`LocalTraining`). `invert`
runs an attack, `Attack(init, step)`, against it: `inverting_gradients` and `deep_leakage` are two.
`similarity`, `identification` and `distances` judge what it found, `comparison` compares settings.
To add an attack, write a module with a factory like theirs; nothing else needs to know of it.
"""

from primia_jax.inversion.analytic import recover_image, recover_input
from primia_jax.inversion.attack import Attack, Inversion, invert, invert_all
from primia_jax.inversion.comparison import anova, compare_two, corrected
from primia_jax.inversion.distances import SetDistances, fid, judge, kid
from primia_jax.inversion.dlg import DeepLeakage, deep_leakage
from primia_jax.inversion.features import penultimate
from primia_jax.inversion.geiping import InvertingGradients, inverting_gradients
from primia_jax.inversion.identification import Identification, identify
from primia_jax.inversion.labels import infer as infer_labels
from primia_jax.inversion.observed import LocalTraining, Observed, observe, simulate
from primia_jax.inversion.similarity import Similarity, Summary, compare, summarise

__all__ = [
    "Attack",
    "DeepLeakage",
    "Identification",
    "Inversion",
    "InvertingGradients",
    "LocalTraining",
    "Observed",
    "SetDistances",
    "Similarity",
    "Summary",
    "anova",
    "compare",
    "compare_two",
    "corrected",
    "deep_leakage",
    "fid",
    "identify",
    "infer_labels",
    "invert",
    "invert_all",
    "inverting_gradients",
    "judge",
    "kid",
    "observe",
    "penultimate",
    "recover_image",
    "recover_input",
    "simulate",
    "summarise",
]
