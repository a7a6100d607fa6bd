"""What a secure sum that survives dropouts costs each party, beside a plain one and Flower's.

    python -m benchmarks.secure_aggregation [--quick] [--size=N] [--hospitals=3,10,50,100]
        [--dropout=0,0.1,0.3] [--word_bits=64] [--flower_python=PATH]

Vectors as long as a ResNet-18 (11.2 M values) are summed by the party programs of
`primia_jax.federated.secagg`, in this process: one hospital after the other makes its vector, masks
it and hands it to the model owner, which adds it to its sum, so that no more than two vectors are
in memory whatever N is. Those that drop out do so before their masked input, where they cost the
owner most. Every sum is compared with the plain one, word by word. Some 15 minutes on 2 cores;
--quick (100,000 values) half a minute. Seconds are of one core's computing (processor time), so
that what else the machine does counts as little as possible. Prints JSON lines:

- `mask_expansion`: GB/s of one core, of ChaCha20 under 256-bit keys added to a vector.
- `secure_sum`, one for each N and dropout: seconds of one hospital (mean) and of the owner in each
  stage, encoding apart; bytes that each sends and receives; `plain_seconds` to add up the same
  encoded vectors, and what the owner and the hospitals take over that.
- `growth`: a hospital's seconds and bytes at the largest N over those at each smaller one, beside
  the ratio of their logarithms. k, the number of neighbours, is O(log N), and below its asymptote
  where the whole confederation is hardly more than a neighbourhood.
- `many_hospitals`: the same as `secure_sum` for 1,000 hospitals with 1,000 values each.
- `flower`, with --flower_python (a Python that has flwr 1.41; extra `peers`): one client's seconds
  in a round by Flower's own functions over those of a hospital here, encoding and all, for the same
  vector and as many neighbours; runs take turns. Flower sums words of 32 bits, and here those of
  --word_bits are summed, in 32 with Flower's own clip and bound on samples. Flower's masks come
  from a Mersenne twister whose seed is the 256-bit key folded to 32 bits; here the whole key enters
  the cipher.
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from primia_jax import environment

environment.set_up_process()

import numpy as np  # noqa: E402

from benchmarks.flags import at_least, several_at_least  # noqa: E402
from benchmarks.peers import subprocesses  # noqa: E402
from primia_jax.config import SecureAggregationConfig  # noqa: E402
from primia_jax.errors import UserError  # noqa: E402
from primia_jax.federated import (  # noqa: E402
    aggregation,
    sealing,
    secagg,
    secagg_graph,
    secagg_plan,
)
from primia_jax.federated.aggregation import OWNER, PROVIDER, Contribution  # noqa: E402
from primia_jax.federated.sealing import SIGNATURE_BYTES  # noqa: E402
from primia_jax.federated.secagg_lists import View  # noqa: E402
from primia_jax.mpc import masking, prg  # noqa: E402
from primia_jax.runtime import MISSING, Receive, Send, Stage, run_local  # noqa: E402
from primia_jax.runtime.party import message_bytes, receivers  # noqa: E402

SETTINGS = SecureAggregationConfig()
FLOWER_CLIP, FLOWER_MAX_SAMPLES = 8.0, 1000  # the defaults of its SecAggPlusWorkflow
RESNET18 = 11_200_000
SAMPLES = 100
FLOWER_SCRIPT = pathlib.Path(__file__).parent / "peers" / "flower_peer.py"


class Cost:
    """Seconds and bytes of one kind of party, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.sent = self.received = 0

    @property
    def total_s(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


class Party:
    """A party's program that is stepped by hand, so that one vector is there at a time."""

    def __init__(self, steps: Any, cost: Cost):
        self.steps, self.cost, self.stage = steps, cost, ""
        self.untimed_s = 0.0  # of what the program called that is no part of it
        self.waits_for = ""
        self.result: Any = None
        self.ended = False
        self.first = self.go_on(None)  # what it sent before it waited for anybody

    def go_on(self, message: Any) -> list[Send]:
        """Runs until the program waits or ends; gives what it sent."""
        sent: list[Send] = []
        if message is not None and message is not MISSING:
            self.cost.received += message_bytes(message)
        while True:
            self.untimed_s, start = 0.0, time.process_time()
            try:
                event = self.steps.send(message)
            except StopIteration as stop:
                event, self.result, self.ended = None, stop.value, True
            self.cost.seconds[self.stage] += time.process_time() - start - self.untimed_s
            message = None
            if isinstance(event, Stage):
                self.stage = event.label
            elif isinstance(event, Send):
                self.cost.sent += message_bytes(event.message) * len(receivers(event))
                sent.append(event)
            elif event is None or isinstance(event, Receive):
                self.waits_for = event.sender if event else ""
                return sent


def settings(n: int, word_bits: int) -> SecureAggregationConfig:
    """The default ones; or what 32 bits hold for n hospitals, with as fine a grid as fits."""
    if word_bits == 64:
        return SETTINGS
    reach = n * FLOWER_MAX_SAMPLES * FLOWER_CLIP
    return dataclasses.replace(
        SETTINGS,
        word_bits=word_bits,
        frac_bits=math.ceil(word_bits - 1 - math.log2(reach)) - 1,
        clip=FLOWER_CLIP,
        max_samples=FLOWER_MAX_SAMPLES,
    )


def vector(i: int, size: int) -> np.ndarray:
    """float32 [size], hospital i's."""
    return np.random.default_rng(i).standard_normal(size, dtype=np.float32)


def encoded(
    name: str, values: np.ndarray, own: SecureAggregationConfig, n_hospitals: int
) -> np.ndarray:
    """Words [size + 1]: what is masked."""
    part = Contribution((values,), SAMPLES, np.zeros(0, np.int64))
    return aggregation._encoded(name, part, own, n_hospitals)


def planned(n: int, own: SecureAggregationConfig) -> secagg.Plan:
    """The sum over n hospitals, whose values are proven to fit."""
    aggregation._prove_no_overflow(n, own)
    hospitals = tuple(f"hospital_{i}" for i in range(n))
    return secagg.Plan(hospitals, OWNER, secagg_graph.choose(n, own), word_bits=own.word_bits)


def exchanged(plan: secagg.Plan) -> tuple[dict[str, Any], float]:
    """Everybody's session keys for its neighbours, and a hospital's seconds for them."""
    parties: dict[str, Any] = {
        name: sealing.exchange_keys(name, [plan.hospitals[j] for j in near[1:]], PROVIDER)
        for name, near in zip(plan.hospitals, plan.neighbourhoods())
    }
    keys, trace = run_local({**parties, PROVIDER: sealing.distribute_keys(plan.hospitals)})
    spent = [trace.parties[name].compute_seconds for name in plan.hospitals]
    return keys, statistics.mean(spent)


def secure_sum(n: int, size: int, dropout: float, word_bits: int) -> dict[str, Any]:
    """One sum over n hospitals, checked; what it cost."""
    own = settings(n, word_bits)
    plan = planned(n, own)
    hospitals, graph = plan.hospitals, plan.graph
    keys, exchange_s = exchanged(plan)
    gone = set(np.random.default_rng(n).choice(n, int(dropout * n), replace=False).tolist())
    costs, owner_cost = {name: Cost() for name in hospitals}, Cost()
    expected = np.zeros(size + 1, f"u{word_bits // 8}")
    plain_s = encode_s = 0.0
    parties: dict[str, Party] = {}

    def words(i: int) -> np.ndarray:
        """The vector of hospital i, made when it is masked; adds it to the plain sum too."""
        nonlocal plain_s, encode_s
        begin = time.process_time()
        made = vector(i, size)
        start = time.process_time()
        found = encoded(hospitals[i], made, own, len(hospitals))
        encode_s += time.process_time() - start
        start = time.process_time()
        np.add(expected, found, out=expected)
        plain_s += time.process_time() - start
        parties[hospitals[i]].untimed_s += time.process_time() - begin
        return found

    owner = Party(secagg.collect(plan, size + 1), owner_cost)
    for i, name in enumerate(hospitals):
        make = functools.partial(words, i)
        parties[name] = Party(secagg.contribute(plan, name, keys[name], make), costs[name])
    mail = {name: collections.deque(party.first) for name, party in parties.items()}
    letters: dict[Any, collections.deque] = {name: collections.deque() for name in hospitals}
    while not owner.ended:
        name = owner.waits_for
        party = parties[name]
        there = party.stage != secagg.SHARE or hospitals.index(name) not in gone
        if not mail[name] and letters[name] and not party.ended and there:
            mail[name].extend(party.go_on(letters[name].popleft()))
        message = mail[name].popleft().message if mail[name] else MISSING
        for sent in owner.go_on(message):
            for to in receivers(sent):
                letters[to].append(sent.message)
        del message
    result = owner.result
    np.testing.assert_array_equal(result.words, expected)
    assert len(result.took_part) == n - len(gone)
    whole = [costs[name] for name in result.took_part]  # those that went through all stages
    hospital = {
        stage: statistics.mean(cost.seconds[stage] for cost in whole) for stage in secagg.STAGES
    }
    hospitals_s = sum(cost.total_s for cost in costs.values())
    return {
        "hospitals": n,
        "dropout": dropout,
        "values": size,
        "word_bits": word_bits,
        "frac_bits": own.frac_bits,
        "neighbours": graph.k,
        "threshold": graph.threshold,
        "insecure": graph.insecure,
        "incorrect": graph.incorrect,
        "hospital_seconds": hospital,
        "hospital_total_seconds": sum(hospital.values()),
        "hospital_encode_seconds": encode_s / len(whole),
        "hospital_key_exchange_seconds": exchange_s,
        "hospital_sent_bytes": statistics.mean(cost.sent for cost in whole),
        "hospital_received_bytes": statistics.mean(cost.received for cost in whole),
        "owner_seconds": {stage: owner_cost.seconds[stage] for stage in secagg.STAGES},
        "owner_total_seconds": owner_cost.total_s,
        "owner_sent_bytes": owner_cost.sent,
        "owner_received_bytes": owner_cost.received,
        "plain_seconds": plain_s,
        "owner_over_plain": owner_cost.total_s / plain_s,
        "all_over_plain": (owner_cost.total_s + hospitals_s + encode_s) / plain_s,
    }


def mask_expansion(size: int, word_bits: int) -> dict[str, Any]:
    """Of one core: seconds of its own time, not of the clock on the wall."""
    words, rates = np.zeros(size, f"u{word_bits // 8}"), []
    masking.mask(words, [prg.new_seed()])
    for _ in range(5):
        seeds = [prg.new_seed() for _ in range(4)]
        start = time.process_time()
        masking.mask(words, seeds[:2], seeds[2:])
        rates.append(4 * words.nbytes / (time.process_time() - start) / 1e9)
    rate = statistics.median(rates)
    return {"gigabytes_per_second": rate, "values": size, "word_bits": word_bits}


def growth(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Ratios of the last row to each of the others, of those without dropouts; none of one row."""
    rows = [row for row in rows if not row["dropout"]]
    for row in rows[:-1]:
        last = rows[-1]
        yield {
            "from": row["hospitals"],
            "to": last["hospitals"],
            "seconds": last["hospital_total_seconds"] / row["hospital_total_seconds"],
            "sent_bytes": last["hospital_sent_bytes"] / row["hospital_sent_bytes"],
            "neighbours": last["neighbours"] / row["neighbours"],
            "logarithm": math.log(last["hospitals"]) / math.log(row["hospitals"]),
            "neighbours_over_log2": [
                r["neighbours"] / math.log2(r["hospitals"]) for r in (row, last)
            ],
        }


def own_seconds(size: int, n: int, word_bits: int) -> float:
    """What hospital 0 of n computes in a round, encoding and all, when nobody drops out."""
    own = settings(n, word_bits)
    plan = planned(n, own)
    hospitals = plan.hospitals
    keys, _ = exchanged(plan)
    made = vector(0, size)

    circle = plan.neighbourhoods()[0]
    make = functools.partial(encoded, "hospital_0", made, own)
    cost, others = Cost(), Cost()
    stepped = {
        name: Party(
            secagg.contribute(plan, name, keys[name], make),
            cost if name == "hospital_0" else others,
        )
        for name in hospitals
    }
    # The owner's part towards hospital 0: its neighbours stop once they have shared their keys.
    publics = {i: stepped[name].first[0].message for i, name in enumerate(hospitals)}
    roll = secagg_plan.table(publics, list(publics.values()), secagg_plan.KEY_BYTES)
    width = secagg_plan.LETTER_BYTES
    letters = {
        i: secagg_plan.table_rows("", stepped[hospitals[i]].go_on(roll)[0].message, width, n)
        for i in circle
    }
    site, near = stepped["hospital_0"], circle[1:]
    members = secagg_plan.to_bits(circle, n)
    table = secagg_plan.table(near, [letters[j][0] for j in near], width)
    site.go_on({**table, "sharers": members})
    site.go_on(members)
    everybody = frozenset(circle)
    signed = [
        View(plan, keys[hospitals[j]], j, (), publics, everybody, everybody).sign() for j in near
    ]
    site.go_on(secagg_plan.table(near, signed, SIGNATURE_BYTES))
    assert site.ended
    return cost.total_s


def flower(python: str, size: int, n: int, runs: int, word_bits: int) -> dict[str, Any]:
    """Flower's client and ours, in turns."""
    graph = secagg_graph.choose(n, SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/vector.npy"
        np.save(path, vector(0, size))
        arguments = [path, str(graph.k), str(graph.threshold)]
        theirs, ours = [], []
        with subprocesses.started(python, FLOWER_SCRIPT, arguments) as run:
            for _ in range(runs):
                theirs.append(run()["seconds"])
                ours.append(own_seconds(size, n, word_bits))
    return {
        "hospitals": n,
        "neighbours": graph.k,
        "values": size,
        "word_bits": word_bits,
        "flower_seconds": statistics.median(theirs),
        "hospital_seconds": statistics.median(ours),
        "ratio": statistics.median(a / b for a, b in zip(theirs, ours)),
        "ratios": [a / b for a, b in zip(theirs, ours)],
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100,000 values, up to 50 hospitals")
    parser.add_argument("--size", type=at_least(1), help="values of a vector")
    parser.add_argument("--hospitals", type=several_at_least(3), help="numbers of hospitals")
    parser.add_argument("--dropout", default="0,0.1,0.3", help="parts of them that drop out")
    parser.add_argument("--word_bits", type=int, choices=(32, 64), default=64, help="of a value")
    parser.add_argument("--flower_python", help="a Python that has flwr")
    parser.add_argument("--runs", type=at_least(1), default=3, help="of Flower's and of ours")
    given = parser.parse_args(arguments)
    given.size = given.size or (100_000 if given.quick else RESNET18)
    try:
        given.dropout = [float(part) for part in given.dropout.split(",")]
        if not all(0 <= part <= SETTINGS.dropouts for part in given.dropout):
            raise ValueError
    except ValueError:
        parser.error(f"--dropout: expected numbers in [0, {SETTINGS.dropouts}]")
    given.hospitals = given.hospitals or [3, 10, 50] + [100] * (not given.quick)
    try:
        for n in given.hospitals:
            planned(n, settings(n, given.word_bits))
    except UserError as error:
        parser.error(f"--hospitals={n}: {error}")
    return given


def main() -> None:
    """See the module's docstring."""
    given = parse()
    show("mask_expansion", mask_expansion(given.size, given.word_bits))
    rows = []
    for n in given.hospitals:
        for dropout in given.dropout:
            if dropout and not int(dropout * n):
                continue  # nobody would drop out
            rows.append(secure_sum(n, given.size, dropout, given.word_bits))
            show("secure_sum", rows[-1])
    for row in growth(rows):
        show("growth", row)
    many = 200 if given.quick else 1000
    show("many_hospitals", secure_sum(many, 1000, max(given.dropout), given.word_bits))
    for n in [n for n in given.hospitals if n in (10, 50)] if given.flower_python else []:
        try:
            runs, bits = given.runs, given.word_bits
            show("flower", flower(given.flower_python, given.size, n, runs, bits))
        except (subprocesses.PeerError, UserError) as error:
            show("flower", {"hospitals": n, "error": str(error)})


def show(row: str, figures: dict[str, Any]) -> None:
    """One JSON line."""
    line = {"benchmark": "secure_aggregation", "row": row, **figures}
    print(json.dumps({**line, "cores": len(os.sched_getaffinity(0))}), flush=True)


if __name__ == "__main__":
    main()
