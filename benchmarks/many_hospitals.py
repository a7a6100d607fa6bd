"""What many hospitals cost that share few actors: memory, and seconds of a round.

    python -m benchmarks.many_hospitals [--hospitals=N,N,…] [--actors=N]

ResNet-18 (11.2 M parameters, 45 MB) at 32×32, 30 phantoms and a local step a hospital, secure sums
under pairwise masks. Prints a JSON line for each number of hospitals:

- `hospital_actor_peak_bytes`: largest resident memory that a process of hospitals reached;
  `over_fewest`: over that with the fewest hospitals. A copy of the model for each would add 45 MB a
  hospital, an update waiting to be sent 90 MB.
- `owner_peak_bytes`: of the model owner's.
- `round_seconds`, `seconds_per_hospital`: of a round, after the one in which all is compiled.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

from primia_jax import environment

environment.set_up_process()

from benchmarks.flags import at_least, several_at_least  # noqa: E402
from primia_jax.config import ExperimentConfig, from_config_dict, resolved  # noqa: E402
from primia_jax.data import make_plan  # noqa: E402
from primia_jax.errors import UserError  # noqa: E402
from primia_jax.experiment import training_driver  # noqa: E402
from primia_jax.federated import secagg_graph  # noqa: E402
from primia_jax.federated.aggregation import OWNER  # noqa: E402
from primia_jax.federated.federation import Federation  # noqa: E402
from primia_jax.runtime import ray_driver  # noqa: E402

_IMAGES, _ROUNDS = 30, 2


def experiment(hospitals: int, actors: int) -> ExperimentConfig:
    """The configuration that is measured."""
    phantom = {"n_train": _IMAGES * hospitals, "n_test": 3}
    return resolved(
        from_config_dict(
            ExperimentConfig,
            {
                "data": {"phantom": phantom, "image_size": 32, "partition": "iid"},
                "training": {"batch_size": 8},
                "federated": {
                    "mode": "federated_secure",
                    "hospitals": hospitals,
                    "rounds": _ROUNDS,
                    "sync_unit": "steps",
                    "optimizer_state": "reset",
                },
                "secure_aggregation": {"scheme": "secagg"},
                "runtime": {"hospital_actors": actors},
            },
        )
    )


def measured(config: ExperimentConfig, folder: pathlib.Path) -> dict[str, float]:
    """One federation's figures."""
    plan = make_plan(config)
    names = tuple(site.site for site in plan.sites)
    with training_driver(config, plan, None) as driver:
        assert isinstance(driver, ray_driver.RayDriver)
        federation = Federation(driver, config, names, folder)
        federation.set_up()
        for number in range(1, _ROUNDS + 1):
            begin = time.perf_counter()
            federation.train_round(number)
            seconds = time.perf_counter() - begin
        peaks = driver.peak_bytes()
    return {
        "hospital_actor_peak_bytes": max(peaks[name] for name in names),
        "owner_peak_bytes": peaks[OWNER],
        "round_seconds": seconds,
        "seconds_per_hospital": seconds / len(names),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags; every number of hospitals has a graph of masks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    numbers = several_at_least(1)
    parser.add_argument("--hospitals", type=numbers, default="10,40", help="how many, with commas")
    parser.add_argument("--actors", type=at_least(1), default=2, help="that they share")
    given = parser.parse_args(arguments)
    try:
        for hospitals in given.hospitals:
            config = experiment(hospitals, given.actors)
            secagg_graph.choose(hospitals, config.secure_aggregation)
    except UserError as error:
        parser.error(f"--hospitals={hospitals}: {error}")
    return given


def main() -> None:
    """Measures and prints, as the module's docstring says."""
    given = parse()
    least = 0.0
    for hospitals in given.hospitals:
        with tempfile.TemporaryDirectory() as folder, ray_driver.cluster(None):
            found = measured(experiment(hospitals, given.actors), pathlib.Path(folder))
        least = least or found["hospital_actor_peak_bytes"]
        line = {
            "benchmark": "many_hospitals",
            "hospitals": hospitals,
            "actors": given.actors,
            **found,
            "over_fewest": found["hospital_actor_peak_bytes"] / least,
            "cores": len(os.sched_getaffinity(0)),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
