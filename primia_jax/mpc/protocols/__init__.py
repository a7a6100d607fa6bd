"""Protocols of encrypted inference: one interface, one file each."""

DATA_OWNER = "data_owner"
MODEL_OWNER = "model_owner"
CRYPTO_PROVIDER = "crypto_provider"
PARTIES = (DATA_OWNER, MODEL_OWNER, CRYPTO_PROVIDER)
