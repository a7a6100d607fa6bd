"""Weighted sums over hospitals, and who learns what by them.

Everything that leaves a hospital during training leaves it through `contribute`: model updates,
batch-norm moments, pixel statistics, class counts, confusion matrices. The model owner obtains the
`Total` from `collect`. Three kinds share this interface:

- `plain`: the owner receives each hospital's values and weight. FedAvg without protection.
- `additive`: the paper's secure aggregation. Each hospital splits its fixed-point n_i·v_i, n_i and
  counts into additive shares over Z_2^64 (or Z_2^32), one for every hospital; each hospital sums
  the shares it holds; the owner receives these sums and can open only the total. The owner learns
  neither an update nor a sample count from one sum; nor does any set of hospitals short of all but
  one, nor anybody who reads the messages between hospitals. All parties follow the protocol (honest
  but curious). What totals of several rounds tell together, and what hospitals demand of a sum
  before they contribute, is in `safety` and `hospital_journal`.
- `masked`: the same sum under pairwise masks (`secagg`), for many hospitals: each has to do with
  O(log N) others, and whoever drops out is left out of the sum. The owner may lie about who shared
  keys and who dropped out; the hospitals that collude with it must be few
  (`config.secure_aggregation.colluders`).
"""

import dataclasses
import functools
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.config import ExperimentConfig, SecureAggregationConfig
from primia_jax.errors import ConfigError, ProtocolError, TrainingError
from primia_jax.federated import robust, safety, secagg, secagg_graph
from primia_jax.federated.sealing import KeyRing
from primia_jax.mpc import fixed_point, prg, ring, sharing
from primia_jax.runtime import MISSING, Receive, Send, Steps

_EXACT = 2**53  # of a sum of counts, which is decoded through float64
_CHUNK = 1 << 15  # values encoded at a time: they stay in the processor's cache
_SEED = b"primia_jax seed of a share v1"  # what its seal is bound to, with the subject of the sum
_ADDITIVE_UP_TO = 5  # hospitals, in scheme `auto`

OWNER, PROVIDER = "model_owner", "crypto_provider"  # names of the parties beside the hospitals


class Total(NamedTuple):
    """Result that the model owner learns."""

    values: tuple[np.ndarray, ...]  # float64 [p_j]: Σ_i n_i · v_ij
    weight: int  # Σ_i n_i
    counts: np.ndarray  # int64 [c]: Σ_i counts_i
    parts: tuple["Contribution", ...] = ()  # of each hospital, where the owner sees and keeps them
    took_part: tuple[str, ...] = ()  # the hospitals in the sum
    present: tuple[str, ...] = ()  # those that answered to the end, to whom the owner can go on

    def mean(self) -> tuple[np.ndarray, ...]:
        """Σ n_i v_i / Σ n_i, float64.

        Raises:
          ProtocolError: if no hospital had any weight.
        """
        if self.weight <= 0:
            raise ProtocolError("no hospital contributed to the average")
        return tuple(value / self.weight for value in self.values)


class Contribution(NamedTuple):
    """One hospital's part of a sum."""

    values: tuple[Any, ...]  # float arrays [p_j]
    weight: int  # n_i; 0 leaves the hospital out of the average
    counts: Any  # int64 [c], summed unweighted


# Called with the hospitals in a sum: by the model owner before it reconstructs the sum, and by a
# hospital before it unmasks one from which some have dropped out.
BeforeReveal = Callable[[Sequence[str]], None]

# What makes a contribution, called once what comes before it has been agreed with the others: so
# nothing as long as the network is held while a hospital waits for them.
Making = Callable[[], Contribution]


class Aggregation(NamedTuple):
    """A way to sum: the hospital's half and the owner's half of one party program."""

    # contribute(me, keys, make, before_unmask=…, subject=…): the part of hospital `me`; secure sums
    # need keys, and have all hospitals agree on `subject`, bytes that name what is summed
    contribute: Callable[..., Steps]
    # collect(sizes, n_counts, before_reveal=…): the owner's part, returns a Total; sizes are the
    # lengths p_j
    collect: Callable[..., Steps]


def _note_nothing(hospitals: Sequence[str]) -> None:
    """Stands for no record of what is revealed."""


def make(
    config: ExperimentConfig,
    hospitals: Sequence[str],
    *,
    of_models: bool = False,
    complete: bool = False,
    purpose: str = "",
) -> Aggregation:
    """The aggregation that the configuration asks for: secure in mode `federated_secure` only.

    Args:
      config: of the experiment.
      hospitals: that take part, in an order that all agree on.
      of_models: whether models are averaged, robustly where that is asked for.
      complete: True if a secure sum must be over all of `hospitals`.
      purpose: of the sum, for the fewest hospitals that it may be over.

    Raises:
      ConfigError: if a secure sum could overflow the ring, or robust averages do not go with it.
    """
    if config.federated.mode == "federated_secure":
        if scheme(config, len(hospitals)) == "additive":
            return additive(hospitals, OWNER, config.secure_aggregation)
        patience = config.runtime.round_deadline_s or None
        return masked(
            hospitals,
            OWNER,
            config.secure_aggregation,
            config.seed,
            patience,
            safety.fewest(config, len(hospitals), purpose),
            complete=complete or config.privacy.mode == "client",
        )
    combine = robust.make(config.federated) if of_models else None
    keep_parts = config.federated.record_updates or combine is not None
    return plain(hospitals, OWNER, keep_parts=keep_parts, combine=combine)


def scheme(config: ExperimentConfig, n_hospitals: int) -> str:
    """Scheme of a secure sum over `n_hospitals` of the run: additive or secagg.

    `auto` is additive where secagg has no graph that withstands an owner that lies
    (`secagg_graph`); so is `secagg` for a part of a larger confederation. There all must stay, but
    no more need to be trusted.
    """
    own = config.secure_aggregation
    n_all = max(config.federated.hospitals, n_hospitals)
    if own.scheme == "auto" and (n_all <= _ADDITIVE_UP_TO or n_hospitals <= 2):
        return "additive"
    may_fall_back = own.scheme == "auto" or n_hospitals < n_all
    if own.scheme == "additive" or (may_fall_back and not secagg_graph.exists(n_hospitals, own)):
        return "additive"
    return "secagg"


def plain(
    hospitals: Sequence[str],
    owner: str,
    *,
    keep_parts: bool = False,
    combine: robust.Combine | None = None,
) -> Aggregation:
    """The owner sees everything; sums in float64, in the order of `hospitals`.

    With `keep_parts` the total holds what was summed. With `combine`, the mean of the total is what
    `combine` makes of the values of those hospitals that have any weight, and not by samples.
    """

    def contribute(
        me: str,
        keys: KeyRing | None,
        make: Making,
        before_unmask: BeforeReveal = _note_nothing,
        subject: bytes = b"",
    ) -> Steps:
        own = make()
        message = {
            "values": own.values,
            "weight": np.asarray(own.weight, np.int64),
            "counts": np.asarray(own.counts, np.int64),
        }
        yield Send(owner, message, "values in the clear")

    def collect(
        sizes: Sequence[int], n_counts: int, before_reveal: BeforeReveal = _note_nothing
    ) -> Steps:
        sums = [np.zeros(size) for size in sizes]
        weight, counts = 0, np.zeros(n_counts, np.int64)
        parts, took_part = [], []
        for hospital in hospitals:
            message = yield Receive(hospital, optional=True)
            if message is MISSING:
                continue
            took_part.append(hospital)
            if keep_parts:
                parts.append(Contribution(**message))
            weight += int(message["weight"])
            counts += message["counts"]
            for total, value in zip(sums, message["values"]):
                total += np.asarray(value, np.float64) * int(message["weight"])
        counted = [part.values for part in parts if part.weight]
        if combine is not None and counted:
            sums = [combine(vectors) * weight for vectors in zip(*counted)]
        there = tuple(took_part)
        return Total(tuple(sums), weight, counts, tuple(parts), there, there)

    return Aggregation(contribute, collect)


def additive(
    hospitals: Sequence[str], owner: str, settings: SecureAggregationConfig
) -> Aggregation:
    """Secure aggregation by additive sharing (see the module's docstring).

    For hospital i, with seeds s_ij drawn for the others: its own share is
    x_i − Σ_j PRG(s_ij); it sends s_ij, sealed, to each j; what it sends to the owner is
    its own share + Σ_j PRG(s_ji). Summed over i all PRG terms cancel and Σ x_i remains.

    Cost for N hospitals and p values: N(N−1) messages of 60 bytes between hospitals, and N of
    p + 1 words to the owner; two one-way messages deep.
    """
    _prove_no_overflow(len(hospitals), settings)

    def contribute(
        me: str,
        keys: KeyRing | None,
        make: Making,
        before_unmask: BeforeReveal = _note_nothing,
        subject: bytes = b"",
    ) -> Steps:
        assert keys is not None, "secure aggregation needs the keys of `sealing.exchange_keys`"
        seeds = {peer: prg.new_seed() for peer in hospitals if peer != me}
        for peer, seed in seeds.items():
            yield Send(
                peer,
                keys.seal(peer, seed, _SEED + subject),
                "seed of a share, sealed for its receiver",
            )
        received = []
        for peer in seeds:
            sealed = yield Receive(peer)
            received.append(keys.open(peer, sealed, _SEED + subject))
        # As long as the network, and named nowhere here: it goes once the driver has packed it.
        words = functools.partial(_encoded, me, settings=settings, n_hospitals=len(hospitals))
        held = [sharing.own_share(words(make()), list(seeds.values()), received)]
        yield Send(owner, held.pop(), "sum of the shares held: uniform without the others' sums")

    def collect(
        sizes: Sequence[int], n_counts: int, before_reveal: BeforeReveal = _note_nothing
    ) -> Steps:
        total, length = None, sum(sizes) + 1 + n_counts
        for hospital in hospitals:  # summed as they come: each is as long as the network
            share = yield Receive(hospital)
            if not ring.is_vector(share, length, settings.word_bits):
                raise ProtocolError(
                    f"{hospital} sent a share that is no vector of {length} words of "
                    f"{settings.word_bits} bits"
                )
            if hospital == hospitals[-1]:
                before_reveal(hospitals)  # without this share the sum so far is uniform
            total = sharing.include(total, share)
        decoded, there = _decoded(total, sizes, n_counts, settings.frac_bits), tuple(hospitals)
        return decoded._replace(took_part=there, present=there)

    return Aggregation(contribute, collect)


def masked(
    hospitals: Sequence[str],
    owner: str,
    settings: SecureAggregationConfig,
    seed: int = 0,
    patience_s: float | None = None,
    quorum: int = 0,
    *,
    complete: bool = False,
) -> Aggregation:
    """Secure aggregation under pairwise masks, which survives dropouts (`secagg`).

    Cost for N hospitals with k neighbours each and p values: in five stages, each hospital sends
    32 + (94k + 32) + 64 + 32(k + 1) bytes and p words, and expands k + 1 masks of p words; it
    receives some 34N + 160k bytes and checks k signatures. The owner expands one mask for each
    survivor and one for each pair of a dropped and a surviving neighbour. Nine one-way messages
    deep.

    Args:
      hospitals: in an order that all agree on.
      owner: name of the model owner.
      settings: see `SecureAggregationConfig`.
      seed: of the graph of neighbours.
      patience_s: how long the owner waits for a hospital to begin, and for its contribution, which
        may have to be trained for; None: as long as it lives.
      quorum: fewest hospitals that a sum may be over.
      complete: whether it must be over all, as where each adds its part of the noise.

    Raises:
      ConfigError: if the sum could overflow, or no graph has the security that the settings ask.
    """
    _prove_no_overflow(len(hospitals), settings)
    graph = secagg_graph.choose(len(hospitals), settings)
    deadline_s = settings.stage_deadline_s
    plan = secagg.Plan(
        tuple(hospitals),
        owner,
        graph,
        seed,
        patience_s,
        deadline_s,
        quorum,
        complete,
        settings.word_bits,
    )

    def contribute(
        me: str,
        keys: KeyRing | None,
        make: Making,
        before_unmask: BeforeReveal = _note_nothing,
        subject: bytes = b"",
    ) -> Steps:
        assert keys is not None, "secure aggregation needs the keys of `sealing.exchange_keys`"
        agreed = dataclasses.replace(plan, subject=subject)
        words = functools.partial(_encoded, me, settings=settings, n_hospitals=len(hospitals))
        yield from secagg.contribute(agreed, me, keys, lambda: words(make()), before_unmask)

    def collect(
        sizes: Sequence[int], n_counts: int, before_reveal: BeforeReveal = _note_nothing
    ) -> Steps:
        opened = yield from secagg.collect(plan, sum(sizes) + 1 + n_counts, before_reveal)
        decoded = _decoded(opened.words, sizes, n_counts, settings.frac_bits)
        return decoded._replace(took_part=opened.took_part, present=opened.present)

    return Aggregation(contribute, collect)


def _prove_no_overflow(n_hospitals: int, settings: SecureAggregationConfig) -> None:
    fixed_point.prove_no_overflow(
        settings.frac_bits, settings.clip, n_hospitals, settings.max_samples, settings.word_bits
    )


def _encoded(
    me: str, own: Contribution, settings: SecureAggregationConfig, n_hospitals: int
) -> Any:
    """Words [Σ p_j + 1 + c]: n·v in fixed point, then n, then the counts, as plain integers."""
    encode = functools.partial(
        fixed_point.encode,
        weight=own.weight,
        frac_bits=settings.frac_bits,
        n_bits=settings.word_bits,
    )
    words = ring.word_type(settings.word_bits)
    tail = np.concatenate([np.asarray([own.weight], np.int64), own.counts]).astype(words)
    if any(isinstance(value, jax.core.Tracer) for value in own.values):
        with ring.x64():
            return jnp.concatenate([*map(encode, own.values), tail])
    _check_bounds(me, own, settings, n_hospitals)
    encoded = np.empty(sum(len(value) for value in own.values) + len(tail), words)
    dither = None if settings.word_bits == ring.N_BITS else _dither(me, own)
    at = 0
    for value in own.values:
        for start in range(0, len(value), _CHUNK):
            part = np.asarray(value[start : start + _CHUNK])
            drawn = dither.integers(0, 1 << 16, len(part), np.uint16) if dither else None
            encoded[at : at + len(part)] = encode(part, dither=drawn)
            at += len(part)
    encoded[at:] = tail
    return encoded


def _dither(me: str, own: Contribution) -> np.random.Generator:
    """Random numbers for rounding up or down; they hide nothing.

    It follows from the values, so that a round that is begun again rounds them as it did before.
    """
    prints = []
    for value in own.values:
        in_bytes = np.ascontiguousarray(value).view(np.uint8)
        words = in_bytes[: len(in_bytes) // 4 * 4].view(np.uint32)
        prints.append(int(words.sum(dtype=np.uint64)))
    key = np.random.SeedSequence([zlib.crc32(me.encode()), own.weight, *prints])
    return np.random.Generator(np.random.SFC64(key))


def _check_bounds(
    me: str, own: Contribution, settings: SecureAggregationConfig, n_hospitals: int
) -> None:
    """Checks the bounds that `prove_no_overflow` assumed; counts have no scale."""
    if not 0 <= own.weight <= settings.max_samples:
        raise ConfigError(
            f"{me} holds {own.weight} samples; config.secure_aggregation.max_samples allows "
            f"{settings.max_samples}: raise it"
        )
    most = min(2 ** (settings.word_bits - 1) - 1, _EXACT) // n_hospitals
    if np.any(np.asarray(own.counts) < 0) or np.any(np.asarray(own.counts) > most):
        raise ConfigError(
            f"{me}: a count lies outside [0, {most}], beyond which a sum over {n_hospitals} "
            f"hospitals could overflow {settings.word_bits} bits"
            + "; set config.secure_aggregation.word_bits to 64"
            * (settings.word_bits < 64)
        )
    for value in own.values:
        largest = float(np.max(np.abs(value), initial=0.0))
        if not largest <= settings.clip:
            raise TrainingError(
                f"{me}: a value to be averaged {_size_of(largest)}, beyond "
                f"config.secure_aggregation.clip = {settings.clip:g}; the training has diverged "
                "or the clip is too tight"
            )


def _size_of(largest: float) -> str:
    """A magnitude up to the next power of two: more would tell others of one hospital's update."""
    if not math.isfinite(largest):
        return "is no finite number"
    return f"has a magnitude of up to {2.0 ** math.frexp(largest)[1]:g}"


def _decoded(total: Any, sizes: Sequence[int], n_counts: int, frac_bits: int) -> Total:
    """Splits and decodes the opened total."""
    if isinstance(total, jax.core.Tracer):  # only shapes are wanted
        return Total((), 0, np.zeros(n_counts, np.int64))
    words, ends = np.asarray(total), np.cumsum([0, *sizes])
    values = tuple(fixed_point.decode(words[a:b], frac_bits) for a, b in itertools.pairwise(ends))
    integers = fixed_point.decode(words[ends[-1] :], 0).astype(np.int64)
    return Total(values, int(integers[0]), integers[1 : 1 + n_counts])
