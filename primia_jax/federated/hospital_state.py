"""State of a hospital, from which its party programs start."""

import dataclasses
from typing import Any

from primia_jax import models, tasks
from primia_jax.config import ExperimentConfig
from primia_jax.core.identity import Credentials
from primia_jax.data import Dataset
from primia_jax.federated import (
    local_training,
    privacy,
    private_training,
    quantities,
    recording,
    rules,
    sealing,
    sums,
)
from primia_jax.federated.aggregation import Making
from primia_jax.federated.early_stopping import SiteWatch
from primia_jax.federated.hospital_journal import HospitalJournal
from primia_jax.federated.local_training import Learner, Statistics
from primia_jax.federated.quantities import STATISTICS, Quantity
from primia_jax.federated.variables import Vectors
from primia_jax.runtime import Steps


@dataclasses.dataclass(frozen=True)
class Hospital:
    """State of one hospital. The data and everything derived from it alone stay here."""

    name: str
    index: int
    roster: tuple[str, ...]  # all hospitals of the run, as fixed at its beginning
    hospitals: tuple[str, ...]  # those that take part at present
    config: ExperimentConfig
    train: Dataset
    validation: Dataset
    learner: Learner
    credentials: Credentials | None = None  # where sums are secure
    keys: sealing.KeyRing | None = None
    journal: HospitalJournal | None = None  # of secure sums
    statistics: Statistics | None = None
    variables: Any = None  # the global model; under FedBN with this site's batch norms
    model: str = ""  # digest of the global model, as the owner sent it, where sums are secure
    moments: str = ""  # likewise of the moments of its batch norms
    opt_state: Any = None  # None: as at the start
    watch: SiteWatch = SiteWatch()
    guarantee: privacy.Site | None = None  # where config.privacy asks for one
    private_learner: private_training.PrivateLearner | None = None  # in its mode `record`
    truth: recording.Truth | None = None  # of the round not saved yet, where it is recorded

    @property
    def size(self) -> int:
        """Training images that this hospital counts for; patients, where those are protected."""
        units = self.guarantee.train if self.guarantee else None
        return len(self.train) if units is None else len(units)

    @property
    def validation_size(self) -> int:
        """Validation images that it counts for, or patients."""
        units = self.guarantee.validation if self.guarantee else None
        return len(self.validation) if units is None else len(units)

    @property
    def privacy_site(self) -> privacy.Site:
        """Its guarantee, which must have been opened."""
        assert self.guarantee is not None, "the ledger was not opened"
        return self.guarantee

    def contribute(
        self,
        quantity: Quantity,
        make: Making,
        participants: tuple[str, ...] | None = None,
        charged: bool = False,
    ) -> Steps:
        """Contributes to one sum, or refuses (`sums`).

        Args:
          quantity: what is summed.
          make: makes the contribution, called when it is due.
          participants: hospitals in the sum; None: all that take part at present.
          charged: as in `sums.contribute`.
        """
        yield from sums.contribute(
            self.name,
            self.keys,
            self.journal,
            self.config,
            self.hospitals if participants is None else participants,
            self.roster,
            quantity,
            make,
            charged,
            "" if quantity.purpose == STATISTICS else self._start(),
        )

    def with_digests(self, message: Any) -> "Hospital":
        """The state with digests of the model in `message`; in the clear the state as it is."""
        if self.journal is None:
            return self
        vectors = Vectors(*message["model"])
        return dataclasses.replace(
            self,
            model=quantities.digest_of_vectors(vectors),
            moments=quantities.digest_of_arrays(vectors.moments),
        )

    def _start(self) -> str:
        """Digest of what the owner sent beside the parameters, the same for all in a sum."""
        if self.journal is None:
            return ""
        return self.moments + quantities.digest_of_arrays(tuple(self.statistics or ()))

    def note_final(self, quantity: Quantity) -> None:
        """Notes that the result of a sum came back."""
        if self.journal is not None:
            self.journal.note_final(quantity)


def make_hospital(
    config: ExperimentConfig,
    hospitals: tuple[str, ...],
    index: int,
    train: Dataset,
    validation: Dataset,
) -> Hospital:
    """The state of hospital number `index` before anything was exchanged.

    Raises:
      ConfigError: if a user's own network does not keep to the contract.
    """
    mu = rules.make(config.federated).proximal_mu
    task = tasks.make(config, tasks.classes(config, train))
    learner = local_training.make_learner(config, task, mu)
    models.check(learner.module, config, task.n_outputs, task.spatial)
    task.check_loss(config.data.image_size)
    return Hospital(
        hospitals[index], index, hospitals, hospitals, config, train, validation, learner
    )
