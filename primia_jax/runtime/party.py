"""Party programs: a party is a generator that yields its messages, whoever carries them.

    def greeter(state):
        yield Send("bob", {"x": np.ones(3)})
        reply = yield Receive("bob")
        return state, reply["y"].sum()

A *program* is a function of the party's state that returns such a generator; the generator returns
`(new_state, report)`. Sub-protocols are used by `yield from`. The same unmodified source runs in
one process with virtual clocks (`local_driver`), in Ray actors (`ray_driver`), and under
`jax.eval_shape`, where only the messages' shapes are seen (`cost.count`). The number of messages
may not depend on data. `yield Stage("layer 3")` names what the party does from there on.

Who can do without another party's message asks for it by `yield Receive("bob", optional=True)` and
is given `MISSING` if bob has gone, or if nothing came within the time that the party's last
`yield Deadline(60.0)` left. Who was missed once is missed for the rest of the run. Whom the run may
end without is for the operator to say (`Driver.run`, `optional`).
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from primia_jax.errors import ClusterError, PartyLost, ProtocolError, TrainingError, UserError
from primia_jax.runtime.trace import Trace

Message = Any  # a pytree of arrays


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"  # pickled by its name, so that there is one in every process


MISSING = _Missing()  # what an optional `Receive` gives in place of a message that does not come


@dataclasses.dataclass(frozen=True)
class Send:
    """Hands `message`, a pytree of arrays, to the party named `to`; the sender does not wait.

    With several names the same message goes to each of them.
    """

    to: str | tuple[str, ...]
    message: Message
    label: str = ""  # what it is and which mask hides it, for traces and audits


@dataclasses.dataclass(frozen=True)
class Receive:
    """Waits for the next message from `sender`; messages of one sender keep their order.

    An optional message may turn out `MISSING`: when its sender has gone, when it has not arrived by
    the party's deadline, or when this party has missed its sender before in this run.
    """

    sender: str
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Deadline:
    """From now on optional messages are waited for until `seconds` from now, by the party's clock.

    It holds until the next one. Without any, or with None, they are waited for as long as their
    sender lives and the driver allows.
    """

    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Stage:
    """Names what the party does from now on, for traces; sends nothing."""

    label: str


Event = Send | Receive | Stage | Deadline
Steps = Generator[Event, Message, Any]
Program = Callable[[Any], Steps]


class Driver(Protocol):
    """Keeps each party's state and runs programs over it; how, is the driver's affair."""

    @property
    def missing(self) -> Mapping[str, str]:
        """Parties that it began without, and why; `revive` fetches them once they can come."""

    def run(
        self,
        programs: Mapping[str, Program],
        deadline_s: float = 0.0,
        optional: Collection[str] = (),
    ) -> tuple[dict[str, Any], Trace]:
        """Runs one program a party to its end; returns the reports and what it cost.

        The states change only if every party came to its end, those named in `optional` apart: the
        run goes on and ends without such a party if it dies, fails by one of `DROPOUTS`, or was
        missed by another one and is still not done when the others are. It then has no report,
        keeps its state of before the run, and is named in `Trace.lost`.

        Parties that still compute `deadline_s` after the begin, if it is not 0, are given up.

        Raises:
          PartyLost: if a party died or was given up that is not optional, or a protocol could not
            go on without those that were.
        """

    def revive(self, name: str, timeout_s: float = 0.0) -> bool:
        """Makes the state of a lost party anew; False if it has not come back in this time.

        Raises:
          UserError: what making its state raised.
        """

    def close(self) -> None:
        """Ends the parties."""


@dataclasses.dataclass(frozen=True)
class Locally:
    """A program without messages: `function(state) -> (new_state, report)`."""

    function: Callable[[Any], tuple[Any, Any]]

    def __call__(self, state: Any) -> Steps:
        """The program's steps: none."""
        return self.function(state)
        yield  # makes this function a generator


def checked_event(party: str, event: Any, parties: Mapping[str, Any]) -> Event:
    """`event` if it is a message of arrays to or from a known party, or a stage.

    Raises:
      ProtocolError: for anything else; above all for a generator, which betrays a missing
        `yield from`.
    """
    if isinstance(event, Generator):
        raise ProtocolError(
            f"{party} yielded a generator: write `yield from` before a sub-protocol"
        )
    if isinstance(event, Stage):
        if not isinstance(event.label, str):
            raise ProtocolError(f"{party} named a stage by a {type(event.label).__name__}")
        return event
    if isinstance(event, Deadline):
        if event.seconds is not None and not event.seconds >= 0:
            raise ProtocolError(f"{party} set a deadline of {event.seconds} seconds")
        return event
    if not isinstance(event, (Send, Receive)):
        raise ProtocolError(
            f"{party} yielded {type(event).__name__}: only Send, Receive, Stage and Deadline may be"
        )
    for other in receivers(event) if isinstance(event, Send) else (event.sender,):
        if other not in parties or other == party:
            known = ", ".join(parties)
            raise ProtocolError(f"{party} names '{other}' in a message; known: {known}")
    if isinstance(event, Send):
        leaves = jax.tree.leaves(event.message, is_leaf=lambda leaf: leaf is None)
        for leaf in leaves:
            if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
                raise ProtocolError(
                    f"{party} sent {event.to} a {type(leaf).__name__}: every leaf must be an array"
                )
    return event


def name_party(error: BaseException, party: str) -> None:
    """Makes `error` say in whose program it was raised, unless it does so already."""
    if isinstance(error, UserError):
        party = error.party = getattr(error, "party", "") or party
        if not re.search(rf"(?<!\w){re.escape(party)}(?!\w)", str(error)):
            error.args = (f"{party}: {error}", *error.args[1:])
    else:
        error.add_note(f"raised in the program of party '{party}'")


# What a party may fail by for others to go on without it. Anything else a user must hear of: a
# spent budget, a full disk, settings that do not go together.
DROPOUTS = (ClusterError, ProtocolError, TrainingError)


def with_lost(error: Exception, lost: Mapping[str, str]) -> Exception:
    """A run's failure that says which parties it had lost before, and why the first of them.

    A protocol that cannot go on without them fails by their loss: it is a `PartyLost`.
    """
    if not lost or not isinstance(error, UserError):
        return error
    name, reason = next(iter(lost.items()))
    more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    if reason not in str(error):
        error.args = (f"{error} (lost before: {name}: {reason}{more})", *error.args[1:])
    if isinstance(error, ProtocolError):
        return PartyLost(str(error), tuple(lost))
    return error


def receivers(event: Send) -> tuple[str, ...]:
    """The parties that `event` goes to."""
    return (event.to,) if isinstance(event.to, str) else event.to


def message_bytes(message: Message) -> int:
    """Bytes of the arrays in `message`."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(message))
