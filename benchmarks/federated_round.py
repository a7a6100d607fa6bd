"""How much of the hardware federated training uses, what secure aggregation costs, and memory.

    python -m benchmarks.federated_round [--rounds=N] [--steps=N]

ResNet-18 (11.2 M parameters), three hospitals in Ray actors, rounds of 20 local steps of 16 images
64×64, on phantoms. Whole rounds are timed: training, averaging, sending the new model out, and its
validation. Rounds with plain and with secure aggregation and the bare loop take turns, so that a
busy machine slows all three alike; medians are compared. Prints JSON lines:

- `throughput_over_bare_loop`: images a second of the federation (plain aggregation) over those of
  a bare loop over the same jitted step in one process on all cores;
  `throughput_over_bare_loops_in_parallel`: over those of such loops in the hospitals' own
  processes, which is what federation itself costs.
- `secure_over_plain`: seconds of a round.
- `save_over_round`: seconds in which all parties write the state that a run is resumed from, over
  those of the (secure) round before it; `save_over_plain_write`: over those of one plain file of as
  many bytes, flushed to the same disk, which is what all parties share here.
- `actor_peak_bytes`: largest resident memory that any party's process reached.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time

from primia_jax import environment

environment.set_up_process()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.flags import at_least  # noqa: E402
from primia_jax.config import ExperimentConfig, from_config_dict, resolved  # noqa: E402
from primia_jax.data import make_plan  # noqa: E402
from primia_jax.federated import checkpoints, hospital_state, local_training  # noqa: E402
from primia_jax.federated.federation import Federation  # noqa: E402
from primia_jax.federated.hospital_state import Hospital  # noqa: E402
from primia_jax.federated.local_training import Statistics, Step  # noqa: E402
from primia_jax.federated.makers import party_makers  # noqa: E402
from primia_jax.runtime import Locally, ray_driver  # noqa: E402

HOSPITALS, BATCH = 3, 16


def experiment(mode: str, steps: int) -> ExperimentConfig:
    """The configuration that is timed."""
    return resolved(
        from_config_dict(
            ExperimentConfig,
            {
                "data": {"phantom": {"n_train": 1000, "n_test": 3}, "validation_fraction": 0.05},
                "training": {"batch_size": BATCH},
                "federated": {
                    "mode": mode,
                    "hospitals": HOSPITALS,
                    "rounds": 100,
                    "sync_every": steps,
                    "sync_unit": "steps",
                },
            },
        )
    )


def bare_loop(site: Hospital, steps: int) -> tuple[Hospital, float]:
    """The same jitted step on the same images and nothing else; returns its seconds."""
    variables, opt_state = jax.tree.map(jax.numpy.array, (site.variables, site.opt_state))
    order = local_training.batches(0, site.index, len(site.train), BATCH, 0)
    start = time.perf_counter()
    with environment.memory_kept():
        for step, batch in enumerate(itertools.islice(order, steps)):
            variables, opt_state, loss = site.learner.train(
                variables,
                opt_state,
                site.variables["params"],
                site.train.images[batch],
                site.train.labels[batch],
                site.statistics,
                np.uint32(0),
                Step(np.uint32(1), np.uint32(site.index), np.uint32(step)),
                np.float32(1e-4),
            )
        loss.block_until_ready()
    return site, time.perf_counter() - start


def plain_write(federation: Federation, number: int) -> float:
    """Seconds that the disk takes for one file as long as all that was saved of a round."""
    saved = federation.workdir.glob(f"*/**/round_{number:06d}/*")
    content = b"".join(file.read_bytes() for file in saved)
    copy = federation.workdir / "copy"
    begin = time.perf_counter()
    with open(copy, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    copy.unlink()
    return seconds


def lone_site(config: ExperimentConfig) -> Hospital:
    """One hospital in this process, with all cores."""
    plan = make_plan(config)
    site = hospital_state.make_hospital(config, ("hospital_0",), 0, *plan.sites[0].load())
    module, size = site.learner.module, config.data.image_size
    template = local_training.template(module, size, config.model.channels)
    variables = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), template)
    return dataclasses.replace(
        site,
        statistics=Statistics(np.float32(0.5), np.float32(0.25), np.ones(3, np.float32)),
        variables=variables,
        opt_state=site.learner.optimizer.init(variables["params"]),
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=at_least(1), default=5, help="timed rounds of each kind")
    parser.add_argument("--steps", type=at_least(1), default=20, help="local steps a round")
    return parser.parse_args(arguments)


def main() -> None:
    """Measures and prints, as the module's docstring says."""
    given = parse()
    images = HOSPITALS * given.steps * BATCH
    seconds: dict[str, list[float]] = {
        kind: []
        for kind in (
            "federated", "federated_secure", "save", "plain_write", "bare", "bare_in_parallel"
        )
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, ray_driver.cluster(None):
        federations = {
            mode: start(experiment(mode, given.steps), pathlib.Path(folder) / mode)
            for mode in ("federated", "federated_secure")
        }
        site = lone_site(experiment("federated", given.steps))
        bare_loop(site, 2)
        for number in range(1, given.rounds + 2):
            for mode, federation in federations.items():
                begin = time.perf_counter()
                federation.train_round(number)
                seconds[mode].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            federation.save(number)  # of the secure round, the last one
            seconds["save"].append(time.perf_counter() - begin)
            seconds["plain_write"].append(plain_write(federation, number))
            checkpoints.commit(federation.owner_folder, checkpoints.Progress(number, number))
            seconds["bare"].append(bare_loop(site, HOSPITALS * given.steps)[1])
            loops = Locally(functools.partial(bare_loop, steps=given.steps))
            plain = federations["federated"]
            reports, _ = plain.driver.run(dict.fromkeys(plain.hospitals, loops))
            seconds["bare_in_parallel"].append(max(reports.values()))
        peaks = [federation.driver.peak_bytes() for federation in federations.values()]
    middle = {kind: statistics.median(times[1:]) for kind, times in seconds.items()}
    setting = {
        "network": "resnet18",
        "image_size": 64,
        "batch_size": BATCH,
        "local_steps": given.steps,
        "hospitals": HOSPITALS,
        "cores": len(os.sched_getaffinity(0)),
        "rounds": given.rounds,
    }
    show(
        setting,
        throughput_over_bare_loop=middle["bare"] / middle["federated"],
        throughput_over_bare_loops_in_parallel=middle["bare_in_parallel"] / middle["federated"],
        images_per_second=images / middle["federated"],
        bare_images_per_second=images / middle["bare"],
    )
    show(
        setting,
        secure_over_plain=middle["federated_secure"] / middle["federated"],
        plain_seconds=middle["federated"],
        secure_seconds=middle["federated_secure"],
    )
    show(
        setting,
        save_over_round=middle["save"] / middle["federated_secure"],
        save_over_plain_write=middle["save"] / middle["plain_write"],
        save_seconds=middle["save"],
    )
    show(
        setting,
        actor_peak_bytes=max(max(peak.values()) for peak in peaks),
        by_party=peaks[1],
    )


def start(config: ExperimentConfig, workdir: pathlib.Path) -> Federation:
    """A federation of Ray actors after its set-up."""
    plan = make_plan(config)
    placements = {
        site.site: ray_driver.Placement(threads=config.runtime.threads) for site in plan.sites
    }
    driver = ray_driver.RayDriver(party_makers(config, plan), placements=placements, sealed=True)
    federation = Federation(driver, config, tuple(s.site for s in plan.sites), workdir)
    federation.set_up()
    return federation


def show(setting: dict, **figures: object) -> None:
    """One JSON line."""
    print(json.dumps({"benchmark": "federated_round", **figures, **setting}), flush=True)


if __name__ == "__main__":
    main()
