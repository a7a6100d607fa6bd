"""Local early stopping: against overfitting and catastrophic forgetting at a single site.

Within a round, a site watches its own validation loss every `check_every` local steps, stops once
it has not improved for `patience` checks, and sends its best weights of that round. Over rounds, a
site whose best loss has not improved for `stop_after_rounds` stops for good: from the next round
on it no longer trains and is in no sum of updates, but still receives the model and evaluates it.
The training ends for all when nobody goes on; under secure aggregation when fewer than
`config.secure_aggregation.min_participants` do.

The paper names the technique and leaves it undefined; this is our reading of it.
"""

import math
from typing import Any, NamedTuple

from primia_jax.config import EarlyStoppingConfig


class RoundWatch(NamedTuple):
    """Within one round."""

    best_loss: float = math.inf
    best: Any = None  # what was seen with the best loss
    bad_checks: int = 0

    def after_check(self, loss: float, candidate: Any) -> "RoundWatch":
        """After a check: `candidate` is kept if `loss` is the best so far (NaN never is)."""
        if loss < self.best_loss:
            return RoundWatch(loss, candidate, 0)
        return self._replace(bad_checks=self.bad_checks + 1)

    def exhausted(self, config: EarlyStoppingConfig) -> bool:
        """True if the site should end its round."""
        return self.bad_checks >= config.patience


class SiteWatch(NamedTuple):
    """Over rounds."""

    best_loss: float = math.inf
    bad_rounds: int = 0
    stopped: bool = False

    def after_round(self, loss: float, config: EarlyStoppingConfig) -> "SiteWatch":
        """After a round whose best local validation loss was `loss`."""
        if loss < self.best_loss:
            return SiteWatch(loss, 0, False)
        bad = self.bad_rounds + 1
        return SiteWatch(self.best_loss, bad, bad >= config.stop_after_rounds)
