"""Encrypted inference by this project's protocol and two published ones, over links of all kinds.

    python -m benchmarks.protocols [--quick] [--networks=lenet,resnet18_64,resnet18_224]
        [--repetitions=N] [--protocols=fss,ariann,securenn] [--out=DIR] [--without_ray]

Every repetition is a new image with new keys; the protocols take turns. A run is computed once, in
one process with virtual clocks, and judged under every link (`primia_jax.campaigns.latency`). With
`--quick`: LeNet-5 and ResNet-18 at 64 × 64, 3 repetitions, 0, 10 and 100 ms; some 5 minutes on 2
cores with nothing compiled yet.
Prints JSON lines:

- `protocols`, one a protocol, network, latency and bandwidth: `seconds` and `seconds_sd` of the
  online phase; `online_bytes` of all its messages; `key_bytes` that the party with most receives
  for one run before there is an image; `round_trips`; `offline_seconds` of dealing for one run;
  `reduction_vs_securenn` of the mean, in percent, positive if faster, and `p_value` of Student's
  t-test (both null for securenn itself).
- `validation`: `wall_seconds` of three Ray actors with really delayed messages over
  `virtual_seconds`, on one network, at 10 and 100 ms.

With `--out`, study.json, tables, pictures and report.html are left there.
"""

import argparse
import json
import shlex
import sys
import tempfile
from typing import Any

from primia_jax import environment

environment.set_up_process()

from primia_jax.campaigns import latency  # noqa: E402
from primia_jax.config import ExperimentConfig, from_config_dict, resolved  # noqa: E402
from primia_jax.errors import UserError  # noqa: E402

QUICK = {
    "networks": ("lenet", "resnet18_64"),
    "latencies_ms": (0.0, 10.0, 100.0),
    "repetitions": 3,
    "validated": "lenet",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--networks")
    parser.add_argument("--protocols")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--out", default="")
    parser.add_argument("--without_ray", action="store_true")
    arguments = parser.parse_args()
    changes: dict[str, Any] = dict(QUICK) if arguments.quick else {}
    for name in ("networks", "protocols"):
        given = getattr(arguments, name)
        if given is not None:
            changes[name] = tuple(given.split(",")) if given else ()
    if arguments.repetitions is not None:
        changes["repetitions"] = arguments.repetitions
    if arguments.without_ray:
        changes["validated"] = ""

    def show(study: latency.Study, network: str) -> None:
        for line in study.lines([network]):
            print(json.dumps(line), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        try:
            config = resolved(from_config_dict(ExperimentConfig, {"latency_study": changes}))
            out = arguments.out or folder
            command = shlex.join(["python", "-m", "benchmarks.protocols", *sys.argv[1:]])
            latency.run(config, out, command=command, measured=show)
        except UserError as error:
            print(f"benchmarks.protocols: {error}", file=sys.stderr)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
