"""Lists of hospitals in a masked sum: a hospital's view of them, its signatures, its refusals.

The owner says who advertised a fresh key, who shared its keys, and whose input came. It could say
different things to different hospitals. `View` is what one hospital was told. The hospital signs
it, once a sum, and gives nothing that opens a key before its neighbours have signed the same.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from primia_jax.core import identity
from primia_jax.errors import ProtocolError
from primia_jax.federated.sealing import KeyRing
from primia_jax.federated.secagg_plan import Plan, from_bits, part, roll_digest, to_bits

_PURPOSE = "secagg: who is in the sum"


@dataclasses.dataclass(frozen=True)
class View:
    """The lists of one sum as one hospital was told them.

    Attributes:
      plan: of the sum.
      keys: of the hospital.
      number: of the hospital.
      near: its neighbours.
      publics: fresh public keys of all hospitals that advertised one.
      sharers: hospitals that shared their keys.
      survivors: hospitals whose input is in the sum.
    """

    plan: Plan
    keys: KeyRing
    number: int
    near: tuple[int, ...]
    publics: Mapping[int, np.ndarray]
    sharers: frozenset[int] = frozenset()
    survivors: frozenset[int] = frozenset()

    def among(self, group: Any) -> list[int]:
        """The neighbours in `group`, in rising order."""
        return [j for j in self.near if j in group]

    def with_sharers(self, message: Any, senders: Any) -> "View":
        """The view with the list of those who shared keys.

        Args:
          message: the owner's, with the list.
          senders: the neighbours whose letters came with it.

        Raises:
          ProtocolError: if the list lacks this hospital, names others than those that advertised
            keys, does not fit the letters, or leaves too few neighbours.
        """
        sharers = self._list(part(message, "sharers"))
        if not sharers <= self.publics.keys():
            raise self._refusal("says that hospitals without a fresh key shared it")
        if set(senders) != set(self.among(sharers)):
            raise self._refusal("sent other letters than those of the neighbours that shared keys")
        self._check_enough(sharers, "shared their keys")
        return dataclasses.replace(self, sharers=sharers)

    def with_survivors(self, bits: Any) -> "View":
        """The view with the list of those whose input came.

        Raises:
          ProtocolError: if the list lacks this hospital, names others than those that shared keys,
            or is too short for the plan.
        """
        survivors = self._list(bits)
        if not survivors <= self.sharers:
            extra = self.plan.names(survivors - self.sharers)
            raise self._refusal(f"says that {extra} is in the sum, which shared no keys")
        missing = frozenset(range(len(self.plan.hospitals))) - survivors
        if self.plan.complete and missing:
            names = self.plan.names(missing)
            raise self._refusal(f"leaves {names} out of a sum that must be over all")
        if len(survivors) < self.plan.quorum:
            raise self._refusal(
                f"says that the sum is over {len(survivors)} hospitals, {self.plan.quorum} must be "
                "in it"
            )
        self._check_enough(survivors, "are said to be in the sum")
        return dataclasses.replace(self, survivors=survivors)

    def sign(self) -> np.ndarray:
        """uint8 [64]: this hospital's signature of all three lists."""
        return self.keys.sign(_PURPOSE, self._statement())

    def check_signed(self, signatures: Mapping[int, np.ndarray]) -> None:
        """Checks that enough of the neighbourhood signed the same lists as this hospital.

        Raises:
          ProtocolError: if fewer than the threshold did, this hospital included.
        """
        near, signers, statement = set(self.among(self.survivors)), 1, self._statement()
        for j, signature in signatures.items():
            signers += j in near and self.keys.signed_by(
                self.plan.hospitals[j], _PURPOSE, statement, signature
            )
        if signers < self.plan.graph.threshold:
            raise self._refusal(
                f"shows {signers} signatures of its neighbourhood on the same list of hospitals in "
                f"the sum, {self.plan.graph.threshold} are needed: they were told different lists, "
                "or signatures are forged or missing"
            )

    def _list(self, bits: Any) -> frozenset[int]:
        listed = from_bits(self.plan.owner, bits, len(self.plan.hospitals))
        if self.number not in listed:
            raise self._refusal("sent a list that leaves it out")
        return listed

    def _check_enough(self, listed: frozenset[int], state: str) -> None:
        count, threshold = len(self.among(listed)) + 1, self.plan.graph.threshold
        if count < threshold:
            raise ProtocolError(
                f"{self.keys.me} refuses: of its neighbourhood only {count} {state}, {threshold} "
                "are needed"
            )

    def _statement(self) -> dict[str, Any]:
        """The signed statement: plan, this sum's fresh keys, and the lists."""
        n = len(self.plan.hospitals)
        fields = {
            "plan": self.plan.signed_fields(),
            "fresh keys": roll_digest(self.publics),
            "sharers": to_bits(self.sharers, n).tobytes(),
            "survivors": to_bits(self.survivors, n).tobytes(),
        }
        return {"digest": identity.digest("secagg: lists", fields)}

    def _refusal(self, what: str) -> ProtocolError:
        return ProtocolError(f"{self.keys.me} refuses: {self.plan.owner} {what}")


def first_view(
    plan: Plan, me: str, keys: KeyRing, public: np.ndarray, publics: Mapping[int, np.ndarray]
) -> View:
    """The view of hospital `me` after it received everybody's fresh public keys.

    Raises:
      ProtocolError: if its own key is not among them, too few neighbours' are, it has no keys to
        write to one of these, or two hospitals show the same fresh key.
    """
    number = plan.hospitals.index(me)
    view = View(plan, keys, number, plan.neighbourhoods()[number][1:], publics)
    if number not in publics or not np.array_equal(publics[number], public):
        raise view._refusal("sent a table of fresh keys in which its own is missing or changed")
    if len({key.tobytes() for key in publics.values()}) != len(publics):
        raise view._refusal("shows the same fresh key for two hospitals")
    view._check_enough(frozenset(publics), "advertised keys")
    strangers = [j for j in view.among(publics) if plan.hospitals[j] not in keys.seal_keys]
    if strangers:
        raise ProtocolError(f"{me} has exchanged no keys with {plan.names(strangers)}")
    return view


def check_threshold(plan: Plan, me: str) -> None:
    """Checks that the plan's threshold withstands an owner that lies.

    Raises:
      ProtocolError: if it does not.
    """
    graph = plan.graph
    if graph.threshold < graph.safe_threshold:
        raise ProtocolError(
            f"{me} refuses: with {graph.k} neighbours and {graph.colluding} of them colluding, a "
            f"threshold of {graph.threshold} lets {plan.owner} read an input by lying about who "
            f"dropped out; at least {graph.safe_threshold} is needed"
        )
