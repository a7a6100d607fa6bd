"""A fresh epoch at every start of a session: no mask returns, whatever a party has lost.

A session's seeds may lie on a disk for months, beside a ledger of the key numbers that were used. A
ledger can be lost, or come back from a backup. So no mask is expanded from such a seed. At every
start (set-up, or after a restart) each party sends the others 32 fresh bytes of its operating
system; the SHA-256 of all of them is the *epoch*, and masks come from HKDF(seed, epoch). The bytes
of one party alone make an epoch that never was before. Key number 0 of another epoch has other
masks, so that an empty ledger repeats nothing.

What was dealt in an earlier epoch and still lies on disk keeps its epoch and its number. There the
ledgers decide: data owner and model owner exchange theirs at every start, and both burn what either
has burned. All parties also exchange the epoch before. Where these differ, a party was restored
from a backup (or lost within a start), and no key of an earlier epoch is used.

Not promised, since nothing that the parties hold can tell; begin a new session then:

- data owner and model owner that are both restored, together, to a backup taken since the last
  start, bring back keys that were used since;
- all three parties restored to a backup of before the last start agree with one another, and use
  the keys in it again;
- a session whose folders are copied whole, all three, is two sessions with the same stocked keys.

A folder is open in one program at a time (`mpc.sessions`), and a ledger that is replaced under it
is refused (`mpc.ledger`).

Adversary: any one party, honest but curious. Assumed: HKDF-SHA256 is a pseudo-random function, and
one of the three operating systems gives fresh bytes.
"""

import dataclasses
import hashlib
import os
from typing import Any

import numpy as np

from primia_jax.core.storage import check_regular, storing, write_bytes
from primia_jax.errors import ProtocolError
from primia_jax.mpc import prg
from primia_jax.mpc.ledger import Ledger
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, PARTIES
from primia_jax.runtime.party import Receive, Send, Steps

ID_BYTES = 32
_FILE = "epoch"  # beside a ledger: the epoch of the last start
_NONE = bytes(ID_BYTES)
_CONTEXT = b"primia_jax epoch 1"


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One start of a session.

    Attributes:
      id: 32 bytes, which all three parties know.
      next_number: lowest key number that no party had dealt or received at the start.
    """

    id: bytes
    next_number: int = 0

    def seed(self, root: Any) -> np.ndarray:
        """uint8 [32]: the seed that takes the place of `root` in this epoch."""
        return seed_in(root, self.id)


def seed_in(root: Any, epoch_id: bytes) -> np.ndarray:
    """uint8 [32]: the seed that takes the place of `root` in an epoch.

    Raises:
      ProtocolError: if there is no epoch yet.
    """
    if len(epoch_id) != ID_BYTES:
        raise ProtocolError("this party has no epoch yet: run the set-up first")
    return prg.derived(root, _CONTEXT + epoch_id)


def agree(party: str, ledger: Ledger, made: int, resumed: bool = False) -> Steps:
    """Agrees on a new epoch, and on which keys of earlier ones may still be used.

    Args:
      party: the name of this party.
      ledger: of the numbers that it burned (the crypto provider: dealt).
      made: the lowest number of which it holds and knows nothing.
      resumed: True if the session was begun before this start.

    Returns:
      the epoch, and the number below which every key is used up.

    Raises:
      ProtocolError: if the parties resume different sessions.
      StorageError: if the epoch cannot be kept beside the ledger.
    """
    session = hashlib.sha256(ledger.session.encode()).digest() if resumed else _NONE
    own = {
        "fresh": _words(os.urandom(ID_BYTES)),
        "before": _words(_last(ledger) if resumed else _NONE),
        "session": _words(session),
        "numbers": np.asarray([ledger.next(), made], np.uint64),
    }
    messages = {party: own}
    others = tuple(name for name in PARTIES if name != party)
    yield Send(others, own, "fresh bytes of the epoch | public")
    for other in others:
        messages[other] = yield Receive(other)
    for other in others:
        if np.asarray(messages[other]["session"]).tobytes() != session:
            raise ProtocolError(
                f"{party.replace('_', ' ')} and {other.replace('_', ' ')} resume different "
                "sessions: give all parties the folders of one session, or begin a new one"
            )
    digest = hashlib.sha256(_CONTEXT + session)
    for name in PARTIES:
        digest.update(np.asarray(messages[name]["fresh"]).tobytes())
    numbers = {name: [int(n) for n in messages[name]["numbers"]] for name in PARTIES}
    next_number = max(max(pair) for pair in numbers.values())
    used = max(numbers[name][0] for name in PARTIES if name != CRYPTO_PROVIDER)
    if len({np.asarray(messages[name]["before"]).tobytes() for name in PARTIES}) > 1:
        used = next_number
    if ledger.path is not None:
        write_bytes(ledger.path.with_name(_FILE), digest.hexdigest().encode())
    return Epoch(digest.digest(), next_number), used


def _words(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def _last(ledger: Ledger) -> bytes:
    """The epoch of the last start, or what equals no epoch."""
    if ledger.path is None:
        return _NONE
    path = ledger.path.with_name(_FILE)
    if not path.exists():
        return os.urandom(ID_BYTES)
    check_regular(path, error=ProtocolError)
    with storing(f"{path} cannot be read"):
        text = path.read_bytes()
    try:
        last = bytes.fromhex(text.decode())
    except ValueError:
        last = b""
    return last if len(last) == ID_BYTES else os.urandom(ID_BYTES)
