"""The search for good settings over the whole confederation; a trial is a federation."""

from primia_jax.campaigns.tuning.search import Event, Found, tune

__all__ = ["Event", "Found", "tune"]
