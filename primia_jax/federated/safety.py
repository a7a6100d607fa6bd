"""Conditions under which a hospital takes part in a secure sum, and the secrecy of its counts.

Every hospital checks this itself, from its own configuration and the roster that was fixed when the
run began; neither the operator nor the model owner can lower it.

*Fewest hospitals.* From a sum over two, each hospital learns the other's update by taking its own
away, and so does anybody else who is sent the new model and knows one of them. So a sum is over at
least `config.secure_aggregation.min_participants` hospitals: 3 unless the configuration asks for 2
by name. `config.federated.quorum` can ask for more. A hospital that has stopped early would add
nothing to a sum of updates, and could leave others alone in it. So it refuses to be in one, and the
least number counts hospitals that train, after dropouts as well.

*Counts.* The total of samples over the hospitals {a, b, c} less that over {a, b} is the number of
samples of c, and confusion matrices give the number of validation images by class in the same way.
Where sets change, a few rounds are a solvable system of linear equations. So there are two cases:

- *fixed cohort*: `min_participants` is the number of hospitals, as in a run of three by default.
  Every sum is then over all of them, all totals are over the same set, and the sizes of single
  hospitals stay secret from the model owner. Local early stopping takes hospitals out of the
  total and ends this case.
- *public sizes*: otherwise the number of training images, the number of validation images by
  class, and when a hospital stops training, are declared public to the model owner. Updates,
  pixel statistics, training class counts and confusion matrices are not: of these only one sum is
  ever revealed for each starting model (`owner_journal`). Not promised: where the model hardly
  moves between rounds, least squares over totals of changing sets estimates the confusion matrix
  and the direction of the update of a single hospital. Take a fixed cohort or `config.privacy`
  then.

With `config.privacy` confusion matrices and class counts carry noise, and in mode `client` no
number of images enters a sum; see docs/privacy.md.
"""

import math
from collections.abc import Sequence

from primia_jax.config import ExperimentConfig
from primia_jax.errors import ProtocolError
from primia_jax.federated.quantities import UPDATE


def is_secure(config: ExperimentConfig) -> bool:
    """True if sums are secret and must be kept safe."""
    return config.federated.mode == "federated_secure"


def min_participants(config: ExperimentConfig) -> int:
    """Fewest hospitals that a sum may ever be over; 1 where sums are in the clear."""
    return config.secure_aggregation.fewest_participants if is_secure(config) else 1


def fewest(config: ExperimentConfig, n_drawn: int, purpose: str = "") -> int:
    """Fewest hospitals that a sum begun by `n_drawn` may be over.

    `config.federated.quorum` is a fraction of all hospitals; where a round draws some, of those
    drawn; of a sum of updates (`purpose`) under early stopping, of those that still train.
    """
    fed = config.federated
    some = fed.participation < 1 or (purpose == UPDATE and fed.early_stopping.enabled)
    whole = n_drawn if some else fed.hospitals
    return max(min_participants(config), math.ceil(fed.quorum * whole))


def counts_are_public(config: ExperimentConfig) -> bool:
    """True if the model owner may learn how many images each hospital has.

    In mode `client` no sum holds them.
    """
    if config.privacy.mode == "client":
        return False
    if not is_secure(config):
        return True
    return (
        min_participants(config) < config.federated.hospitals
        or config.federated.early_stopping.enabled
    )


def counts_statement(config: ExperimentConfig) -> str:
    """One line for a secure run: are the hospitals' sizes secret from the model owner?"""
    if config.privacy.mode == "client":
        return "numbers of images: secret, no sum holds them"
    if not counts_are_public(config):
        return (
            "numbers of images: secret from the model owner's part in the protocol, every sum is "
            f"over all {config.federated.hospitals} hospitals; whoever operates the run sees them "
            "(rounds.jsonl)"
        )
    return (
        "numbers of images of each hospital (training, validation by class): public to the model "
        "owner, since the hospitals in a sum may change"
    )


def pair_statement(config: ExperimentConfig) -> str:
    """A warning where a secure sum may be over two hospitals; empty if it may not."""
    if not is_secure(config) or min_participants(config) > 2:
        return ""
    return (
        "a secure sum may be over two hospitals (config.secure_aggregation.min_participants = 2): "
        "each of them learns the other's update, pixel sums and class counts by taking its own "
        "away; take at least 3 hospitals where that matters"
    )


def check_participants(
    me: str,
    participants: Sequence[str],
    roster: Sequence[str],
    config: ExperimentConfig,
    purpose: str = "",
) -> None:
    """Refuses a sum over a set of hospitals that would not hide a single one.

    Args:
      me: the hospital that asks.
      participants: of the sum.
      roster: all hospitals of the run, as fixed when it began.
      config: of the experiment, as this hospital has it.
      purpose: of the sum.

    Raises:
      ProtocolError: naming what is wrong with the set.
    """
    strangers = [name for name in participants if name not in roster]
    if strangers:
        raise ProtocolError(f"{me} refuses a sum with {strangers[0]}, which is not of this run")
    if len(set(participants)) != len(participants):
        raise ProtocolError(f"{me} refuses a sum in which a hospital stands twice")
    if me not in participants:
        raise ProtocolError(f"{me} refuses to contribute to a sum that it is not in")
    least = fewest(config, len(participants), purpose)
    if len(participants) < least:
        raise ProtocolError(
            f"{me} refuses a sum over {len(participants)} hospitals: at least {least} must be in "
            "it (config.secure_aggregation.min_participants, config.federated.quorum)"
        )
