"""The paper's study: one model of each mode from the same start, judged beside human readers.

A. Ziller et al., "Privacy-preserving medical image analysis" (arXiv:2012.06354), table 1: local,
federated and securely aggregated training over several seeds, on the validation set and two test
sets; and what an attacker recovers from an update in each mode.
"""

from primia_jax.campaigns.study.report import as_text
from primia_jax.campaigns.study.running import Study, check, run

study = run  # by this name in `primia_jax`

__all__ = ["Study", "as_text", "check", "run", "study"]
