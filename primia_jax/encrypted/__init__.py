"""Diagnosis without showing: the model's owner sees no image, the images' owner no model.

Three parties, each in a Ray actor of its own (or all in this process, with virtual clocks): the
data owner reads the images and gets the diagnoses, the model owner reads the checkpoint and
calibrates it, the crypto provider holds neither. Whoever operates the run sees how many images
there are, and the size and time of messages. See `primia_jax.mpc.protocols.fss` for what the
parties learn of one another.
"""

from primia_jax.encrypted.description import Description, describe, params_of
from primia_jax.encrypted.parties import party_makers
from primia_jax.encrypted.predicting import EncryptedDiagnosis, predict_encrypted

__all__ = [
    "Description",
    "EncryptedDiagnosis",
    "describe",
    "params_of",
    "party_makers",
    "predict_encrypted",
]
