"""Interface of the protocols of encrypted inference: `fss`, `ariann` and `securenn`.

A protocol object holds no state; the parties' states are its methods' first arguments, and the
programs run under any driver. States are made, set up once, and then serve runs: each run has a
number, and what was dealt for it is used once.
"""

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from primia_jax.config.sections import MpcConfig
from primia_jax.mpc.cost import Cost
from primia_jax.mpc.plan import Plan
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER, PARTIES
from primia_jax.mpc.scaling import Ranges
from primia_jax.runtime.party import Driver, Locally, Program, Steps
from primia_jax.runtime.trace import Trace


class Diagnosis(NamedTuple):
    """Result of a run for one image or batch; the data owner alone has it.

    Attributes:
      outputs: of the network, as reals.
      out_of_range: names of the layers in which a value left the calibrated range, so that the
        outputs may be wrong; None if the protocol cannot tell.
    """

    outputs: tuple[Any, ...]
    out_of_range: tuple[str, ...] | None

    @property
    def in_range(self) -> bool | None:
        """True if every value stayed in its range, False if one did not, None if not known."""
        return None if self.out_of_range is None else not self.out_of_range


class Protocol(abc.ABC):
    """Protocol by which three parties evaluate a plan.

    Attributes:
      name: in the configuration.
      keys_on_disk: whether a session can be kept in a folder (`mpc.sessions`).
    """

    name: str
    keys_on_disk: bool

    @abc.abstractmethod
    def circuit(self, plan: Plan, ranges: Ranges, config: MpcConfig) -> Any:
        """The network's public description, which all parties hold.

        It has `plan`, `image_limit`, `overflows(ranges)` and `coarse_products(ranges, params)`.
        """

    def published(self, plan: Plan, params: Any, ranges: Ranges, config: MpcConfig) -> Ranges:
        """The ranges that all parties get to know, from those that the model owner observed.

        Powers of two, see `Ranges.rounded`.
        """
        del plan, params, config
        return ranges.rounded()

    @abc.abstractmethod
    def cost(self, circuit: Any) -> Cost:
        """Cost of one run, by shapes alone."""

    @abc.abstractmethod
    def data_owner(self, circuit: Any) -> Any:
        """A data owner with fresh seeds."""

    @abc.abstractmethod
    def model_owner(self, circuit: Any, params: Any) -> Any:
        """A model owner with fresh seeds."""

    @abc.abstractmethod
    def provider(self, circuit: Any) -> Any:
        """A crypto provider with fresh seeds."""

    def state(self, party: str, circuit: Any, params: Callable[[], Any]) -> Any:
        """The state of the party of this name; only the model owner calls `params`."""
        if party == MODEL_OWNER:
            return self.model_owner(circuit, params())
        return (self.data_owner if party == DATA_OWNER else self.provider)(circuit)

    def programs(self, image: Any) -> dict[str, Program]:
        """Each party's program for one image or batch under the key that was dealt first."""
        return {
            DATA_OWNER: functools.partial(self.infer_data_owner, image=image),
            MODEL_OWNER: self.infer_model_owner,
            CRYPTO_PROVIDER: self.infer_provider,
        }

    def deal_one(self, driver: Driver) -> Trace:
        """Gets the parties of a driver ready for one more run; returns what that cost."""
        numbers, _ = driver.run(dict.fromkeys(PARTIES, Locally(self._told_number)))
        prepare = functools.partial(self.prepare, numbers=(max(numbers.values()),))
        return driver.run(dict.fromkeys(PARTIES, prepare))[1]

    def _told_number(self, state: Any) -> tuple[Any, int]:
        return state, self.next_number(state)

    @abc.abstractmethod
    def set_up(self, state: Any) -> Steps:
        """The program by which any of the three begins a session."""

    @abc.abstractmethod
    def begin_epoch(self, state: Any) -> Steps:
        """The program by which any of the three takes a session up again after a restart."""

    @abc.abstractmethod
    def next_number(self, state: Any) -> int:
        """The lowest number of which nothing was dealt to this party."""

    @abc.abstractmethod
    def available(self, state: Any) -> int:
        """For how many runs this party has what was dealt."""

    @abc.abstractmethod
    def prepare(self, state: Any, numbers: Sequence[int]) -> Steps:
        """The program by which any of the three gets ready for runs of these numbers."""

    @abc.abstractmethod
    def infer_data_owner(self, state: Any, image: Any, streamed: bool = False) -> Steps:
        """The data owner's program for one image or batch; reports a `Diagnosis`.

        With `streamed`, what the run needs is dealt in the run itself.
        """

    @abc.abstractmethod
    def infer_model_owner(self, state: Any, streamed: bool = False) -> Steps:
        """The model owner's program for one run."""

    @abc.abstractmethod
    def infer_provider(self, state: Any, streamed: bool = False) -> Steps:
        """The crypto provider's program for one run."""

    @abc.abstractmethod
    def in_the_clear(self, circuit: Any, params: Any, images: Any) -> list[Any]:
        """The outputs of the same fixed-point program without any secret."""
