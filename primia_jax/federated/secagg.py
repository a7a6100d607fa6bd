"""Secure sums that survive dropouts: pairwise masks over a sparse graph of hospitals.

K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS
2017, on the graphs of SecAgg+ (`secagg_graph`). The model owner carries all messages; what is not
meant for it is sealed. In each sum hospital i draws a mask key s_i (X25519) and a seed b_i anew:

1. *advertise keys*: the public half of s_i goes to i's neighbours.
2. *share keys*: Shamir shares of s_i and b_i go to the neighbours, sealed under the hospitals'
   lasting keys (`sealing`) together with the two fresh public keys. So a share opens only if both
   ends saw the same public keys: swapped ones, and shares replayed from another sum, are refused
   before anything is masked.
3. *masked input*: y_i = x_i + PRG(b_i) ± Σ_j PRG(m_ij) in Z_2^64 or Z_2^32, m_ij from the
   agreement of s_i and s_j, + for i < j, over those neighbours that shared their keys. PRG is
   ChaCha20 under all 256 bits.
4. *unmask*: the owner names the survivors, whose y came, and the dropped. Of each survivor its
   neighbours give their shares of b, of each dropped one those of s, never both; the owner takes
   PRG(b_i) of the survivors and the masks towards the dropped away, and has Σ x_i of the survivors.

Whoever disappears at any stage is left out from there on, if in the neighbourhood of everybody who
shared keys at least t hospitals remain; otherwise the owner gives up, naming who is missing. Before
stage 4 nothing but uniform words and shares below their threshold have reached it; nor do shares of
an unfinished stage 4 open a y, whose masks between survivors are never opened. What the owner
reconstructs it checks (s_i against its public half, b_i against a digest sent in stage 2).

A sum may demand more than t: a quorum, which the owner counts before stage 4, or all hospitals
(`Plan.complete`), where each adds noise that the sum must have. There the owner ends the sum as
soon as one is missing, and hospitals unmask only what all of their neighbourhood are said to be in.

The owner could still: name as survivors only some of those whose y came, as long as t of each
hospital's neighbourhood are among them, and so sum over fewer; open both keys of a hospital by
telling its neighbours different lists, unless the threshold forbids it (`owner_may_lie`). A
hospital could spoil a sum by what it contributes, or stop it by shares that do not open.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from primia_jax.errors import PartyLost, ProtocolError
from primia_jax.federated import sealing
from primia_jax.federated.sealing import KeyRing
from primia_jax.federated.secagg_graph import Graph
from primia_jax.mpc import masking, prg, ring, shamir, sharing
from primia_jax.runtime import MISSING, Deadline, Receive, Send, Stage, Steps

ADVERTISE, SHARE, MASK, UNMASK = STAGES = (
    "secagg: advertise keys",
    "secagg: share keys",
    "secagg: masked input",
    "secagg: unmask",
)
_KEY = 32  # bytes of a key, a seed, a digest, and of a share of one
_SEALED = 2 * _KEY + 28


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the parties of a sum agree on beforehand.

    Attributes:
      hospitals: their names; the place of one in it is its number.
      owner: name of the model owner.
      graph: neighbours and threshold.
      seed: of the graph.
      patience_s: how long the owner waits for a hospital to begin, and for its input, which it may
        have to make first; None: as long as it lives.
      deadline_s: how long in each of the other stages.
      quorum: fewest hospitals that the sum may be over.
      complete: whether it must be over all.
      word_bits: of the ring in which is summed, 64 or 32.
    """

    hospitals: tuple[str, ...]
    owner: str
    graph: Graph
    seed: int = 0
    patience_s: float | None = None
    deadline_s: float | None = None
    quorum: int = 0
    complete: bool = False
    word_bits: int = ring.N_BITS

    def neighbourhoods(self) -> list[tuple[int, ...]]:
        """Of each hospital: itself and its neighbours, by number, itself first."""
        return [(i, *others) for i, others in enumerate(self.graph.neighbours(self.seed))]


class Sum(NamedTuple):
    """What the owner has at the end."""

    words: Any  # uint64 or uint32 [n]: Σ over `took_part`
    took_part: tuple[str, ...]
    present: tuple[str, ...]  # those that answered to the end
    missing: dict[str, str]  # the others -> the stage in which they were missed


def contribute(plan: Plan, me: str, keys: KeyRing, words: Any | Callable[[], Any]) -> Steps:
    """The part of hospital `me`.

    Args:
      plan: the same for all.
      me: its name.
      keys: with a key for each of its neighbours; those without one count as dropped out.
      words: [n] of the plan's width, consumed; or what makes them, called when they are due.

    Raises:
      ProtocolError: if too few neighbours are left, a share does not open, or the owner asks for
        what would open this hospital's or another's input.
    """
    number, threshold = plan.hospitals.index(me), plan.graph.threshold
    neighbours = plan.neighbourhoods()[number][1:]

    def checked(message: Any, allowed: Iterable[int], row_bytes: int) -> dict[int, np.ndarray]:
        found = _rows(plan.owner, message, row_bytes)
        if not found.keys() <= set(allowed):
            raise ProtocolError(f"{me}: {plan.owner} names hospitals that are no neighbours")
        if len(found) + 1 < threshold:
            raise ProtocolError(
                f"{me}: only {len(found)} of {len(neighbours)} neighbours are left, and "
                f"{threshold - 1} are needed: nothing is given away"
            )
        return found

    yield Stage(ADVERTISE)
    private = X25519PrivateKey.generate()
    public = np.frombuffer(private.public_key().public_bytes_raw(), np.uint8)
    yield Send(plan.owner, public, "fresh public key, in the clear")
    publics = checked((yield Receive(plan.owner)), neighbours, _KEY)
    publics = {j: key for j, key in publics.items() if plan.hospitals[j] in keys.seal_keys}

    yield Stage(SHARE)
    self_seed = prg.new_seed()
    secrets = np.stack([np.frombuffer(private.private_bytes_raw(), np.uint8), self_seed])
    members = (number, *publics)
    shares = dict(zip(members, shamir.share(secrets, np.add(members, 1), threshold)))
    own, sealed = shares[number], []
    for j, theirs in publics.items():
        context = _context(public, theirs)
        sealed.append(keys.seal(plan.hospitals[j], shares[j], context))
    message = _table(publics, sealed, _SEALED)
    message["digest"] = _digest(self_seed)
    yield Send(plan.owner, message, "shares of keys, sealed for their receivers")
    received = checked((yield Receive(plan.owner)), publics, _SEALED)
    held = {number: own}  # from whom -> its shares, uint8 [2 32]
    for j, row in received.items():
        opened = keys.open(plan.hospitals[j], row, _context(publics[j], public))
        if opened.size != 2 * _KEY:
            raise ProtocolError(f"{me}: {plan.hospitals[j]} sealed something that is no share")
        held[j] = opened.reshape(2, _KEY)

    yield Stage(MASK)
    plus: list[np.ndarray] = [self_seed]
    minus: list[np.ndarray] = []
    for j in received:
        mask = _pairwise_seed(private, public, publics[j], plan.hospitals[j])
        (plus if number < j else minus).append(mask)
    words = ring.checked(words() if callable(words) else words, plan.word_bits)
    words = masking.mask(words, plus, minus)
    yield Send(plan.owner, words, "masked input: uniform without the keys of its masks")
    del words  # as long as the network

    request = yield Receive(plan.owner)
    yield Stage(UNMASK)
    survivors, dropped = _request(plan, me, request)
    _refuse(plan, me, (number, *neighbours), held, survivors, dropped)
    seeds, private_keys = [held[j][1] for j in survivors], [held[j][0] for j in dropped]
    answer = {
        "seeds": np.reshape(seeds, (-1, _KEY)),
        "keys": np.reshape(np.asarray(private_keys, np.uint8), (-1, _KEY)),
    }
    yield Send(plan.owner, answer, "shares of survivors' seeds and dropped hospitals' keys")


def _request(plan: Plan, me: str, request: Any) -> tuple[list[int], list[int]]:
    """The survivors and the dropped that the owner names."""
    lists = []
    for name in ("survivors", "dropped"):
        numbers = _part(request, name)
        if numbers is None or np.asarray(numbers).dtype != np.uint16 or np.ndim(numbers) != 1:
            raise ProtocolError(f"{me}: {plan.owner} asks for shares without saying whose")
        lists.append([int(j) for j in numbers])
    return lists[0], lists[1]


def _refuse(
    plan: Plan,
    me: str,
    neighbourhood: Sequence[int],
    held: Mapping[int, Any],
    survivors: list[int],
    dropped: list[int],
) -> None:
    """Raises a ProtocolError unless giving what the owner asks for opens nobody's input."""
    asked = survivors + dropped
    both = sorted(set(survivors) & set(dropped))
    if both:
        raise ProtocolError(
            f"{me} refuses: {plan.owner} asks for both keys of {plan.hospitals[both[0]]}"
        )
    if len(set(asked)) != len(asked) or not set(asked) <= held.keys():
        raise ProtocolError(f"{me} refuses: {plan.owner} asks for shares that it has no claim to")
    if plan.hospitals.index(me) not in survivors:
        raise ProtocolError(f"{me} refuses: {plan.owner} asks for keys that leave its input out")
    if len(survivors) < plan.graph.threshold:
        raise ProtocolError(
            f"{me} refuses: of its neighbourhood only {len(survivors)} are said to be in the sum, "
            f"{plan.graph.threshold} are needed"
        )
    gone = sorted(set(neighbourhood) - set(survivors))
    if plan.complete and gone:
        names = ", ".join(plan.hospitals[j] for j in gone)
        raise ProtocolError(
            f"{me} refuses: {plan.owner} leaves {names} out of a sum that must be over all"
        )


def collect(
    plan: Plan,
    length: int,
    before_reveal: Callable[[Sequence[str]], None] = lambda hospitals: None,
) -> Steps:
    """The owner's part; returns a `Sum` of vectors of `length` words.

    Args:
      plan: the same for all.
      length: of the vectors.
      before_reveal: called with the hospitals in the sum, before any of their keys is opened.

    Raises:
      ProtocolError: if too few hospitals are left for the threshold or the quorum (naming the
        missing), or one sends what is not due.
      PartyLost: naming the missing, if the sum must be over all and one is missing at any stage.
    """
    names, threshold = plan.hospitals, plan.graph.threshold
    neighbourhoods = plan.neighbourhoods()
    missing: dict[str, str] = {}

    def gather(stage: str, asked: Iterable[int]) -> Steps:
        """The messages of those that answer, number -> message."""
        found = {}
        for i in asked:
            message = yield Receive(names[i], optional=True)
            if message is MISSING:
                missing[names[i]] = stage
            else:
                found[i] = message
        return found

    def check(there: Iterable[int], keys_of: Iterable[int], quorum: int = plan.quorum) -> None:
        """That as many are there as must be, and every key can be opened by its neighbours."""
        there = set(there)
        given_up = "the secure sum is given up, nothing of it was opened"
        told = ", ".join(f"{name} ({at})" for name, at in missing.items()) or "none"
        if plan.complete and missing:
            raise PartyLost(f"{given_up}: it must be over all; missing: {told}", tuple(missing))
        if len(there) < quorum:
            raise ProtocolError(
                f"{given_up}: it would be over {len(there)} hospitals, {quorum} must be in it "
                f"(config.federated.quorum); missing: {told}"
            )
        left = min((len(there.intersection(neighbourhoods[i])) for i in keys_of), default=0)
        if left < threshold:
            raise ProtocolError(
                f"{given_up}: there is a key that {left} hospitals are left to open, {threshold} "
                f"are needed; missing: {told}"
            )

    yield Stage(ADVERTISE)
    yield Deadline(plan.patience_s)
    publics = yield from gather(ADVERTISE, range(len(names)))
    for i, public in publics.items():
        if getattr(public, "shape", None) != (_KEY,):
            raise ProtocolError(f"{names[i]} sent a public key that is none")
    check(publics, publics)

    yield Stage(SHARE)
    yield Deadline(plan.deadline_s)
    for i in publics:
        there = [j for j in neighbourhoods[i][1:] if j in publics]
        table = _table(there, [publics[j] for j in there], _KEY)
        yield Send(names[i], table, "neighbours' fresh public keys")
    shared = yield from gather(SHARE, publics)
    letters = {i: _rows(names[i], message, _SEALED) for i, message in shared.items()}
    for i, rows in letters.items():
        if not rows.keys() <= set(neighbourhoods[i][1:]):
            raise ProtocolError(f"{names[i]} sent shares for hospitals that are no neighbours")
    check(shared, shared)

    yield Stage(MASK)
    yield Deadline(plan.patience_s)
    for i in shared:
        # Those two that wrote to each other will mask towards each other, and hold shares.
        senders = [j for j in letters[i] if i in letters.get(j, {})]
        neighbourhoods[i] = (i, *senders)
        table = _table(senders, [letters[j][i] for j in senders], _SEALED)
        yield Send(names[i], table, "shares of neighbours' keys, sealed")
    digests = {i: _digest_of(names[i], message) for i, message in shared.items()}
    del letters
    total, survivors = None, []
    for i in shared:  # summed as they come: each is as long as the network
        masked = yield Receive(names[i], optional=True)
        if masked is MISSING:
            missing[names[i]] = MASK
            continue
        if not ring.is_vector(masked, length, plan.word_bits):
            raise ProtocolError(
                f"{names[i]} sent an input that is no vector of {length} words of "
                f"{plan.word_bits} bits"
            )
        total = sharing.include(total, masked)
        survivors.append(i)
        del masked
    check(survivors, shared)

    yield Stage(UNMASK)
    yield Deadline(plan.deadline_s)
    dropped = [i for i in shared if i not in set(survivors)]
    asked = {}
    for i in survivors:
        near = set(neighbourhoods[i])
        asked[i] = [[j for j in group if j in near] for group in (survivors, dropped)]
        request = {
            "survivors": np.asarray(asked[i][0], np.uint16),
            "dropped": np.asarray(asked[i][1], np.uint16),
        }
        yield Send(names[i], request, "who is in the sum and who dropped out")
    answers = yield from gather(UNMASK, survivors)
    check(answers, shared, quorum=0)  # that of the sum was there
    before_reveal([names[i] for i in survivors])
    seeds, private_keys = _opened(plan, asked, answers)
    for i, seed in seeds.items():
        if not np.array_equal(_digest(seed), digests[i]):
            raise ProtocolError(f"the shares of {names[i]}'s seed do not fit together")
    plus: list[np.ndarray] = []
    minus = list(seeds.values())
    for i, key in private_keys.items():
        private = X25519PrivateKey.from_private_bytes(key.tobytes())
        if private.public_key().public_bytes_raw() != publics[i].tobytes():
            raise ProtocolError(f"the shares of {names[i]}'s key do not fit together")
        for j in neighbourhoods[i][1:]:
            if j in seeds:
                mask = _pairwise_seed(private, publics[i], publics[j], names[j])
                (minus if j < i else plus).append(mask)
    total = masking.mask(total, plus, minus)
    took_part, present = (tuple(names[i] for i in group) for group in (survivors, answers))
    return Sum(total, took_part, present, missing)


def _opened(
    plan: Plan, asked: Mapping[int, Sequence[Sequence[int]]], answers: Mapping[int, Any]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """The survivors' seeds and the dropped hospitals' keys, from the shares that came."""
    collected: tuple[dict[int, dict[int, np.ndarray]], ...] = ({}, {})
    for i, answer in answers.items():
        for shares, whose, name in zip(collected, asked[i], ("seeds", "keys")):
            rows = _part(answer, name)
            if getattr(rows, "shape", None) != (len(whose), _KEY):
                raise ProtocolError(f"{plan.hospitals[i]} sent other shares than asked for")
            for j, row in zip(whose, rows):
                shares.setdefault(j, {})[i] = row
    opened = []
    for shares in collected:
        found = {}
        for j, rows in shares.items():
            givers = list(rows)[: plan.graph.threshold]
            stacked = np.stack([rows[i] for i in givers])
            found[j] = shamir.reconstruct(np.add(givers, 1), stacked)
        opened.append(found)
    return opened[0], opened[1]


def _table(numbers: Iterable[int], rows: Sequence[np.ndarray], row_bytes: int) -> dict[str, Any]:
    """Rows of bytes with the numbers of the hospitals that they are for, or of."""
    stacked = np.stack(rows) if len(rows) else np.zeros((0, row_bytes), np.uint8)
    return {"hospitals": np.asarray(list(numbers), np.uint16), "rows": stacked}


def _rows(sender: str, message: Any, row_bytes: int) -> dict[int, np.ndarray]:
    """The inverse of `_table`."""
    numbers, rows = _part(message, "hospitals"), _part(message, "rows")
    count = getattr(numbers, "size", 0)
    if getattr(rows, "shape", None) != (count, row_bytes) or len(set(map(int, numbers))) != count:
        raise ProtocolError(f"{sender} sent a table of hospitals that is none")
    return {int(number): row for number, row in zip(numbers, rows)}


def _part(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, Mapping) else None


def _context(sender: np.ndarray, receiver: np.ndarray) -> bytes:
    """What a sealed share is bound to: the fresh public keys of both ends."""
    return b"primia_jax shares of keys v1" + sender.tobytes() + receiver.tobytes()


def _pairwise_seed(
    private: X25519PrivateKey, public: np.ndarray, theirs: np.ndarray, peer: str
) -> np.ndarray:
    """uint8 [32]: the seed of the mask that two hospitals share, the same for both."""
    shared = sealing.agree(private, theirs.tobytes(), peer)
    ends = sorted((public.tobytes(), theirs.tobytes()))
    seed = sealing.derive(shared, b"primia_jax pairwise mask v1" + b"".join(ends))
    return np.frombuffer(seed, np.uint8)


def _digest(seed: np.ndarray) -> np.ndarray:
    """uint8 [32], which tells nothing of a uniform seed and fits no other."""
    found = hashlib.sha256(b"primia_jax self mask v1" + seed.tobytes()).digest()
    return np.frombuffer(found, np.uint8)


def _digest_of(sender: str, message: Any) -> np.ndarray:
    digest = _part(message, "digest")
    if getattr(digest, "shape", None) != (_KEY,):
        raise ProtocolError(f"{sender} sent no digest of its seed")
    return digest
