"""The audit: what can be stolen from the updates that a model owner really saw.

`audit(config, workdir)` trains or takes up recorded runs, attacks their updates by the library
`primia_jax.inversion`, and reports; `inversion_table` gives the rows that a study prints, and
`check_inversion` refuses before any training what it could not do after it.
"""

from primia_jax.campaigns.audit.study import audit, check_inversion, inversion_table

__all__ = ["audit", "check_inversion", "inversion_table"]
