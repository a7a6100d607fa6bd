"""Local early stopping, within a round and for good."""

import math

from primia_jax.config import EarlyStoppingConfig
from primia_jax.federated.early_stopping import RoundWatch, SiteWatch

CONFIG = EarlyStoppingConfig(enabled=True, patience=2, stop_after_rounds=3)


def test_a_round_keeps_its_best_and_ends_after_patience():
    watch = RoundWatch()
    for loss, name in ((3.0, "a"), (1.0, "b"), (2.0, "c")):
        watch = watch.after_check(loss, name)
        assert not watch.exhausted(CONFIG)
    watch = watch.after_check(1.0, "d")  # equal is no improvement
    assert watch.exhausted(CONFIG)
    assert (watch.best, watch.best_loss) == ("b", 1.0)


def test_improvement_restores_patience():
    watch = (
        RoundWatch().after_check(3.0, 0).after_check(4.0, 0).after_check(2.0, 1).after_check(2.5, 0)
    )
    assert not watch.exhausted(CONFIG) and watch.best == 1


def test_nan_is_never_best():
    watch = RoundWatch().after_check(math.nan, "bad")
    assert watch.best is None and watch.bad_checks == 1


def test_a_site_stops_for_good_after_enough_bad_rounds():
    watch = SiteWatch()
    for loss, stopped in ((1.0, False), (0.5, False), (0.6, False), (0.5, False), (9.0, True)):
        watch = watch.after_round(loss, CONFIG)
        assert watch.stopped is stopped
    assert watch.best_loss == 0.5
