"""Secure sums that survive dropouts: pairwise masks over a sparse graph of hospitals.

K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS
2017, with its consistency check against an owner that lies, on the graphs of SecAgg+
(`secagg_graph`). The model owner carries all messages; what is not meant for it is sealed. In each
sum hospital i draws a mask key s_i (X25519) and a seed b_i anew:

1. *advertise keys*: i sends the public half of s_i; all hospitals get all of them. Their digest
   names this sum in every signature.
2. *share keys*: Shamir shares of s_i and b_i go to the neighbours, sealed under the hospitals'
   session keys (`sealing`) and bound to the fresh public keys of both ends and the subject of the
   sum (`Plan.subject`). All get the list of those that shared keys.
3. *masked input*: y_i = x_i + PRG(b_i) ± Σ_j PRG(m_ij) in Z_2^64 or Z_2^32, m_ij from the
   agreement of s_i and s_j, + for i < j, over the neighbours on that list. PRG is ChaCha20 under
   all 256 bits.
4. *agree on survivors*: the owner sends the list of those whose y came. Each of them signs, once in
   this sum, all that it was told: the fresh keys, who shared keys, who is in the sum.
5. *unmask*: i refuses unless t of its neighbourhood, itself included, signed the same as itself.
   Then it gives its shares of b of each survivor near it, and of s of each that dropped out, never
   both. The owner removes PRG(b_i) of the survivors and the masks towards the dropped, and has
   Σ x_i of the survivors.

**Against an owner that lies**, together with at most c colluding hospitals among the neighbours of
any (`secagg_graph`): every sum that it can reveal is over at least t − c honest hospitals, and no
hospital has both of its keys opened. Proof, with t > (k + 1 + c)/2. Of the k + 1 that hold shares
of a key at most c collude, so any two sets of t − c honest holders intersect.

1. An honest hospital answers stage 5 once, by one pair of lists. To open both keys of one takes
   t − c honest holders by lists with it as survivor and as many by lists without: impossible.
2. If a answered, t − c honest signers near it have a as survivor. To open its s takes t − c honest
   signers near it with lists without a, and each signs once: its s stays closed. All signers of a's
   lists near it masked towards a, and a towards them.
3. Let b_v be opened. Its mask partners and v are t at least, t − c of them honest, and t − c honest
   holders answered with v as survivor: some a is in both. It is v, or v and a masked towards each
   other, and neither's s opens. So whatever sum has y_v in it has a in it, and with it all of the
   t − c honest signers of a's lists near a.

A hospital also refuses a list without itself, below the quorum, or not of all hospitals where all
must be in (`Plan.complete`); and a threshold below the bound.

An owner can still leave hospitals out, within these bounds, or not finish. A hospital can spoil a
sum by what it contributes, or stop it by shares or signatures that do not fit.

**Dropouts.** Whoever disappears at any stage is left out from there on, if in the neighbourhood of
everybody who shared keys at least t hospitals remain; otherwise the owner gives up and names who is
missing. Before stage 5 nothing but uniform words, signatures and shares below their threshold have
reached it. The owner checks what it reconstructs (s_i against its public half, b_i against a digest
sent in stage 2).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from primia_jax.core import identity
from primia_jax.errors import PartyLost, ProtocolError
from primia_jax.federated.sealing import SIGNATURE_BYTES, KeyRing
from primia_jax.federated.secagg_lists import check_threshold, first_view
from primia_jax.federated.secagg_plan import (
    ADVERTISE,
    AGREE,
    KEY_BYTES,
    LETTER_BYTES,
    MASK,
    SHARE,
    STAGES,
    UNMASK,
    Plan,
    part,
    table,
    table_rows,
    to_bits,
)
from primia_jax.mpc import masking, prg, ring, shamir, sharing
from primia_jax.runtime import MISSING, Deadline, Receive, Send, Stage, Steps

__all__ = [
    "ADVERTISE",
    "AGREE",
    "MASK",
    "SHARE",
    "STAGES",
    "UNMASK",
    "Plan",
    "Sum",
    "collect",
    "contribute",
]


class Sum(NamedTuple):
    """Result at the owner."""

    words: Any  # uint64 or uint32 [n]: Σ over `took_part`
    took_part: tuple[str, ...]
    present: tuple[str, ...]  # those that answered to the end
    missing: dict[str, str]  # the others -> the stage in which they were missed


def contribute(
    plan: Plan,
    me: str,
    keys: KeyRing,
    words: Any | Callable[[], Any],
    before_unmask: Callable[[Sequence[str]], None] = lambda hospitals: None,
) -> Steps:
    """The part of hospital `me`.

    Args:
      plan: the same for all.
      me: its name.
      keys: of this session, with a key for each of its neighbours.
      words: [n] of the plan's width, consumed; or what makes them, called when they are due.
      before_unmask: called with the hospitals in the sum, before any share of their keys leaves.

    Raises:
      ProtocolError: if too few neighbours are left, a share does not open, or the owner's lists
        are inconsistent or would reveal this hospital's or another's input.
    """
    check_threshold(plan, me)
    n, threshold = len(plan.hospitals), plan.graph.threshold

    yield Stage(ADVERTISE)
    private = X25519PrivateKey.generate()
    public = np.frombuffer(private.public_key().public_bytes_raw(), np.uint8)
    yield Send(plan.owner, public, "fresh public key, in the clear")
    publics = table_rows(plan.owner, (yield Receive(plan.owner)), KEY_BYTES, n)
    view = first_view(plan, me, keys, public, publics)
    number = view.number

    yield Stage(SHARE)
    self_seed = prg.new_seed()
    secrets = np.stack([np.frombuffer(private.private_bytes_raw(), np.uint8), self_seed])
    members = (number, *view.among(publics))
    shares = dict(zip(members, shamir.share(secrets, np.add(members, 1), threshold)))
    letters = [
        keys.seal(plan.hospitals[j], shares[j], _context(plan, public, publics[j]))
        for j in members[1:]
    ]
    message = table(members[1:], letters, LETTER_BYTES)
    message["digest"] = _digest(self_seed)
    yield Send(plan.owner, message, "shares of keys, sealed for their receivers")
    message = yield Receive(plan.owner)
    received = table_rows(plan.owner, message, LETTER_BYTES, n)
    view = view.with_sharers(message, received)
    held = {number: shares[number]}  # from whom -> its shares, uint8 [2 32]
    for j, letter in received.items():
        opened = keys.open(plan.hospitals[j], letter, _context(plan, publics[j], public))
        if opened.size != 2 * KEY_BYTES:
            raise ProtocolError(f"{me}: {plan.hospitals[j]} sealed something that is no share")
        held[j] = opened.reshape(2, KEY_BYTES)

    yield Stage(MASK)
    plus: list[np.ndarray] = [self_seed]
    minus: list[np.ndarray] = []
    for j in view.among(view.sharers):
        mask = _pairwise_seed(private, public, publics[j], plan.hospitals[j])
        (plus if number < j else minus).append(mask)
    words = ring.checked(words() if callable(words) else words, plan.word_bits)
    words = masking.mask(words, plus, minus)
    yield Send(plan.owner, words, "masked input: uniform without the keys of its masks")
    del words  # as long as the network

    message = yield Receive(plan.owner)
    yield Stage(AGREE)
    view = view.with_survivors(message)
    yield Send(plan.owner, view.sign(), "signature of who is in the sum")

    message = yield Receive(plan.owner)
    yield Stage(UNMASK)
    view.check_signed(table_rows(plan.owner, message, SIGNATURE_BYTES, n))
    before_unmask(_named(plan, view.survivors))
    alive, dropped = _split(held, view.survivors)
    answer = {
        "seeds": np.reshape([held[j][1] for j in alive], (-1, KEY_BYTES)),
        "keys": np.reshape(np.asarray([held[j][0] for j in dropped], np.uint8), (-1, KEY_BYTES)),
    }
    yield Send(plan.owner, answer, "shares of survivors' seeds and dropped hospitals' keys")


def _split(group: Iterable[int], survivors: Any) -> tuple[list[int], list[int]]:
    """The survivors and the others of a group, each in rising order."""
    ordered = sorted(group)
    return [j for j in ordered if j in survivors], [j for j in ordered if j not in survivors]


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
    names, n = plan.hospitals, len(plan.hospitals)
    near = [frozenset(members) for members in plan.neighbourhoods()]
    missing: dict[str, str] = {}

    def gather(stage: str, group: Iterable[int]) -> Steps:
        """The messages of those that answer, number -> message."""
        answers = {}
        for i in group:
            message = yield Receive(names[i], optional=True)
            if message is MISSING:
                missing[names[i]] = stage
            else:
                answers[i] = message
        return answers

    def check(present: Iterable[int], keys_of: Iterable[int], quorum: int = plan.quorum) -> None:
        """Checks that enough are present for the sum, and to reconstruct every key."""
        _check_enough(plan, near, missing, frozenset(present), keys_of, quorum)

    yield Stage(ADVERTISE)
    yield Deadline(plan.patience_s)
    publics = yield from gather(ADVERTISE, range(n))
    for i, public in publics.items():
        if getattr(public, "shape", None) != (KEY_BYTES,):
            raise ProtocolError(f"{names[i]} sent a public key that is none")
    check(publics, publics)

    yield Stage(SHARE)
    yield Deadline(plan.deadline_s)
    roll = table(publics, list(publics.values()), KEY_BYTES)
    yield Send(_named(plan, publics), roll, "fresh public keys of all hospitals")
    shared = yield from gather(SHARE, publics)
    letters = {}
    for i, message in shared.items():
        letters[i] = table_rows(names[i], message, LETTER_BYTES, n)
        if letters[i].keys() != near[i] & publics.keys() - {i}:
            raise ProtocolError(f"{names[i]} sent shares for others than its neighbours")
    digests = {i: _digest_of(names[i], message) for i, message in shared.items()}
    check(shared, shared)

    yield Stage(MASK)
    yield Deadline(plan.patience_s)
    sharers = to_bits(shared, n)
    for i in shared:
        senders = sorted(near[i] & shared.keys() - {i})
        message = table(senders, [letters[j][i] for j in senders], LETTER_BYTES)
        message["sharers"] = sharers
        yield Send(names[i], message, "shares of neighbours' keys, sealed; who shared keys")
    del letters, shared
    total, present = None, []
    for i in digests:  # summed as they come: each is as long as the network
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
        present.append(i)
        del masked
    survivors = frozenset(present)
    check(survivors, digests)

    yield Stage(AGREE)
    yield Deadline(plan.deadline_s)
    yield Send(_named(plan, survivors), to_bits(survivors, n), "who is in the sum")
    signed = yield from gather(AGREE, sorted(survivors))
    signed = {i: _signature(names[i], signature) for i, signature in signed.items()}
    check(signed, digests, quorum=0)  # that of the sum is met

    yield Stage(UNMASK)
    yield Deadline(plan.deadline_s)
    for i in signed:
        signers = sorted(near[i] & signed.keys() - {i})
        message = table(signers, [signed[j] for j in signers], SIGNATURE_BYTES)
        yield Send(names[i], message, "signatures of who is in the sum")
    answers = yield from gather(UNMASK, signed)
    check(answers, digests, quorum=0)
    before_reveal(_named(plan, survivors))
    due = {i: _split(near[i] & digests.keys(), survivors) for i in answers}
    seeds, private_keys = _opened(plan, due, answers)
    for i, seed in seeds.items():
        if not np.array_equal(_digest(seed), digests[i]):
            raise ProtocolError(f"the shares of {names[i]}'s seed do not fit together")
    plus: list[np.ndarray] = []
    minus = list(seeds.values())
    for i, key in private_keys.items():
        private = X25519PrivateKey.from_private_bytes(key.tobytes())
        if private.public_key().public_bytes_raw() != publics[i].tobytes():
            raise ProtocolError(f"the shares of {names[i]}'s key do not fit together")
        for j in near[i] & seeds.keys():
            mask = _pairwise_seed(private, publics[i], publics[j], names[j])
            (minus if j < i else plus).append(mask)
    total = masking.mask(total, plus, minus)
    return Sum(total, _named(plan, survivors), _named(plan, answers), missing)


def _named(plan: Plan, numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(plan.hospitals[i] for i in sorted(numbers))


def _check_enough(
    plan: Plan,
    near: Sequence[frozenset[int]],
    missing: Mapping[str, str],
    present: frozenset[int],
    keys_of: Iterable[int],
    quorum: int,
) -> None:
    """Raises an error that names the missing unless the sum can go on with those present."""
    given_up = "the secure sum is given up, nothing of it was opened"
    absences = ", ".join(f"{name} ({at})" for name, at in missing.items()) or "none"
    if plan.complete and missing:
        raise PartyLost(f"{given_up}: it must be over all; missing: {absences}", tuple(missing))
    if len(present) < quorum:
        raise ProtocolError(
            f"{given_up}: it would be over {len(present)} hospitals, {quorum} must be in it "
            f"(config.federated.quorum); missing: {absences}"
        )
    left = min((len(present & near[i]) for i in keys_of), default=0)
    if left < plan.graph.threshold:
        raise ProtocolError(
            f"{given_up}: there is a key that {left} hospitals are left to open, "
            f"{plan.graph.threshold} are needed; missing: {absences}"
        )


def _opened(
    plan: Plan, due: Mapping[int, Sequence[Sequence[int]]], answers: Mapping[int, Any]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """The survivors' seeds and the dropped hospitals' keys, from the shares that came."""
    collected: tuple[dict[int, dict[int, np.ndarray]], ...] = ({}, {})
    for i, answer in answers.items():
        for shares, whose, name in zip(collected, due[i], ("seeds", "keys")):
            rows = part(answer, name)
            if getattr(rows, "shape", None) != (len(whose), KEY_BYTES):
                raise ProtocolError(f"{plan.hospitals[i]} sent other shares than those due")
            for j, row in zip(whose, rows):
                shares.setdefault(j, {})[i] = row
    opened = []
    for shares in collected:
        secrets = {}
        for j, rows in shares.items():
            givers = list(rows)[: plan.graph.threshold]
            stacked = np.stack([rows[i] for i in givers])
            secrets[j] = shamir.reconstruct(np.add(givers, 1), stacked)
        opened.append(secrets)
    return opened[0], opened[1]


def _context(plan: Plan, sender: np.ndarray, receiver: np.ndarray) -> bytes:
    """Data that a sealed share is bound to: fresh public keys of both ends, subject of the sum."""
    ends = sender.tobytes() + receiver.tobytes()
    return b"primia_jax shares of keys v2" + ends + plan.subject


def _pairwise_seed(
    private: X25519PrivateKey, public: np.ndarray, theirs: np.ndarray, peer: str
) -> np.ndarray:
    """uint8 [32]: the seed of the mask that two hospitals share, the same for both."""
    shared = identity.agree(private, theirs.tobytes(), peer)
    ends = sorted((public.tobytes(), theirs.tobytes()))
    seed = identity.derive(shared, b"primia_jax pairwise mask v1" + b"".join(ends))
    return np.frombuffer(seed, np.uint8)


def _digest(seed: np.ndarray) -> np.ndarray:
    """uint8 [32]: reveals nothing of a uniform seed and fits no other."""
    digest = hashlib.sha256(b"primia_jax self mask v1" + seed.tobytes()).digest()
    return np.frombuffer(digest, np.uint8)


def _digest_of(sender: str, message: Any) -> np.ndarray:
    digest = part(message, "digest")
    if getattr(digest, "shape", None) != (KEY_BYTES,):
        raise ProtocolError(f"{sender} sent no digest of its seed")
    return digest


def _signature(sender: str, signature: Any) -> np.ndarray:
    if getattr(signature, "shape", None) != (SIGNATURE_BYTES,) or signature.dtype != np.uint8:
        raise ProtocolError(f"{sender} sent no signature of {SIGNATURE_BYTES} bytes")
    return signature
