"""Encrypted inference of a ResNet-18 beside the same network in the clear.

    python -m benchmarks.encrypted_inference [--image_size=224] [--stem_pool=avg|max]
        [--platform=cpu|gpu|tpu] [--ring_bits=32] [--model=resnet18] [--without_ray]

The network has torchvision's architecture for colour images and 3 classes, with random weights.
Everything is measured in one process but for the last two lines: each party's clock advances by its
own computing, so that the critical path is what three machines like this one would need. Prints
JSON lines:

- `compile`: seconds until the first diagnosis was there, less those of a second one.
- `online`: `plaintext_ms` is the fastest jitted float32 forward pass of the project; both are
  measured in a process that keeps freed memory, as those of a diagnosis do;
  `online_over_plaintext` the computing on the critical path over it; `online_bytes` both ways;
  `round_trips`.
- `offline`: `key_bytes` that the party with most receives before the image comes, the other
  party's part included; `offline_over_plaintext`: computing of all parties for set-up and one key.
- `latency`: seconds of the online phase at 10 and 100 ms one way and 1 Gbit/s, and their ratio to
  computing + bytes / bandwidth + round trips · 2 · latency; with a batch of 8, for each image.
- `throughput`: images a minute at batch 8, online and with the offline phase.
- `ray`: three Ray actors with 100 ms injected, keys prepared: wall-clock over the virtual clocks'
  prediction, and each party's largest resident memory.
"""

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.flags import at_least
from primia_jax import environment

environment.set_up_process()

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--image_size", type=at_least(32), default=224)
parser.add_argument("--stem_pool", choices=("avg", "max"), default="avg")
parser.add_argument("--model", default="resnet18")
parser.add_argument("--platform", default="")
parser.add_argument("--ring_bits", type=int, default=0)
parser.add_argument("--sign_slack_bits", type=int, default=-1)
parser.add_argument("--batch", type=at_least(1), default=8)
parser.add_argument("--repetitions", type=at_least(1), default=15)
parser.add_argument("--without_ray", action="store_true")
FLAGS = parser.parse_args()
if FLAGS.platform:
    os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(FLAGS.platform, FLAGS.platform)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from primia_jax import models  # noqa: E402
from primia_jax.config import ModelConfig, MpcConfig  # noqa: E402
from primia_jax.mpc import inference, scaling  # noqa: E402
from primia_jax.mpc.circuit import Circuit  # noqa: E402
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER, fss  # noqa: E402
from primia_jax.runtime import Link, Trace  # noqa: E402

GIGABIT = 1e9
KINDS = ("auto", "xla", "im2col")


def main() -> None:
    settings = {"image_size": FLAGS.image_size, "stem_pool": FLAGS.stem_pool}
    settings |= {"model": FLAGS.model, "platform": jax.default_backend()}

    def show(benchmark: str, **figures: Any) -> None:
        print(json.dumps({"benchmark": benchmark, **settings, **figures}), flush=True)

    config = mpc_config()
    params, images = weights_and_images(FLAGS.batch)
    start = time.perf_counter()
    program = make_program(params, images, config)
    program.run(images[:1])
    first = time.perf_counter() - start
    start = time.perf_counter()
    set_up = program.set_up()
    offline = program.prepare()
    program.run(images[:1])
    again = time.perf_counter() - start
    show("compile", compile_seconds=round(first - again, 1))

    forward = plaintext(params, images[:1])
    clear, traces, offlines = [], [], [offline]
    with environment.memory_kept():  # as in the parties' processes; for both
        for _ in range(FLAGS.repetitions):  # in turns, so that a busy machine slows both alike
            clear.append(min(timed(run) for run in forward for _ in range(3)))
            offlines.append(program.prepare())
            traces.append(program.run(images[:1])[1])
    plain, online = min(clear), min(traces, key=lambda trace: trace.seconds)
    show(
        "online",
        plaintext_ms=round(plain * 1e3, 2),
        online_ms=round(online.seconds * 1e3, 2),
        online_over_plaintext=round(online.seconds / plain, 2),
        online_over_plaintext_median=round(
            statistics.median(t.seconds for t in traces) / statistics.median(clear), 2
        ),
        online_bytes=online.bytes_sent,
        round_trips=online.round_trips,
    )
    cheapest = min(offlines, key=lambda trace: trace.compute_seconds)
    show(
        "offline",
        key_bytes=max(received(cheapest).values()),
        offline_ms=round(cheapest.compute_seconds * 1e3, 1),
        set_up_ms=round(set_up.compute_seconds * 1e3, 1),
        set_up_bytes=set_up.bytes_sent,
        offline_over_plaintext=round(
            (cheapest.compute_seconds + set_up.compute_seconds) / plain, 2
        ),
    )
    latency(program, images, online, show)
    if not FLAGS.without_ray:
        ray_line(program, config, images[:1], online, show)


def mpc_config() -> MpcConfig:
    """The defaults, but for what the flags say."""
    changed = {}
    if FLAGS.ring_bits:
        changed["ring_bits"] = FLAGS.ring_bits
    if FLAGS.sign_slack_bits >= 0:
        changed["sign_slack_bits"] = FLAGS.sign_slack_bits
    return MpcConfig(**changed)


def model_config(convolution: str = "xla") -> ModelConfig:
    return ModelConfig(
        name=FLAGS.model, channels=3, pooling=FLAGS.stem_pool, convolution=convolution
    )


def apply_fn(params: Any, images: Any, convolution: str = "xla") -> Any:
    """The network."""
    return models.build(model_config(convolution), 3).apply(params, images, train=False)


def weights_and_images(n_images: int) -> tuple[Any, np.ndarray]:
    """Random weights, and images [n s s 3] in [0, 1]."""
    module = models.build(model_config(), 3)
    params = models.init(module, jax.random.key(0), FLAGS.image_size, 3)
    size = (n_images, FLAGS.image_size, FLAGS.image_size, 3)
    images = np.random.default_rng(0).uniform(size=size).astype(np.float32)
    return jax.tree.map(np.asarray, params), images


def make_program(params: Any, images: np.ndarray, config: MpcConfig) -> inference.SecureProgram:
    return inference.encrypt(apply_fn, params, images[:1], calibration=images, config=config)


def plaintext(params: Any, images: np.ndarray) -> list[Callable[[], Any]]:
    """The forward pass in the clear, in each way that the project has."""
    held = jax.device_put(params), jax.device_put(images)
    runs = []
    for kind in KINDS:
        compiled = jax.jit(functools.partial(apply_fn, convolution=kind))
        jax.block_until_ready(compiled(*held))
        runs.append(lambda compiled=compiled: jax.block_until_ready(compiled(*held)))
    return runs


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def received(trace: Trace) -> dict[str, int]:
    """Bytes that reach each party."""
    found: dict[str, int] = {}
    for message in trace.messages:
        found[message.receiver] = found.get(message.receiver, 0) + message.n_bytes
    return found


def expected_seconds(trace: Trace, compute: float, latency_s: float) -> float:
    """Computing + bytes / bandwidth + round trips · 2 · latency."""
    return compute + 8 * trace.bytes_sent / GIGABIT + trace.round_trips * 2 * latency_s


def latency(
    program: inference.SecureProgram, images: np.ndarray, online: Trace, show: Callable[..., None]
) -> None:
    """One image and a batch at 10 and 100 ms; and the batch's throughput."""
    batch = program.for_batch(len(images))
    batch.run(images)  # compiles
    line, throughput = {}, {}
    for name, runner, inputs in (("", program, images[:1]), ("_batch", batch, images)):
        runner.prepare(2)
        here = [runner.run(inputs)[1] for _ in range(2)]
        compute = min(trace.seconds for trace in here)
        if not name:
            compute = min(compute, online.seconds)
        for milliseconds in (10, 100):
            runner.prepare(2)
            runs = [
                runner.run(inputs, latency_s=milliseconds / 1e3, bandwidth_bps=GIGABIT)[1]
                for _ in range(2)
            ]
            trace = min(runs, key=lambda found: found.seconds)
            key = f"seconds_{milliseconds}ms{name}"
            line[key] = round(trace.seconds / len(inputs), 4)
            line[key + "_over_expected"] = round(
                trace.seconds / expected_seconds(trace, compute, milliseconds / 1e3), 3
            )
        if name:
            offline = runner.offline_trace.compute_seconds / 2
            throughput = {
                "batch": len(inputs),
                "throughput_images_per_minute": round(60 * len(inputs) / compute, 1),
                "with_offline": round(60 * len(inputs) / (compute + offline), 1),
            }
    show("latency", **line)
    show("throughput", **throughput)


# --- three Ray actors


def public_circuit(ranges: scaling.Ranges, config: MpcConfig) -> Circuit:
    """What each actor builds from public knowledge."""
    shape = (1, FLAGS.image_size, FLAGS.image_size, 3)
    module = models.build(model_config(), 3)
    shapes = jax.eval_shape(lambda: models.init(module, jax.random.key(0), FLAGS.image_size, 3))
    example = jax.ShapeDtypeStruct(shape, np.float32)
    plan = inference.lower_network(apply_fn, shapes, example, config)
    return Circuit(plan, scaling.choose(plan, ranges, config), config)


def make_owner(ranges: scaling.Ranges, config: MpcConfig) -> Any:
    return fss.model_owner(public_circuit(ranges, config), weights_and_images(1)[0])


def ray_line(
    program: inference.SecureProgram,
    config: MpcConfig,
    images: np.ndarray,
    online: Trace,
    show: Callable[..., None],
) -> None:
    """The same parties as actors."""
    import sys

    import ray.cloudpickle

    from primia_jax.runtime import ray_driver

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ranges, link = program.ranges, Link(0.1, GIGABIT)
    makers = {
        DATA_OWNER: lambda: fss.data_owner(public_circuit(ranges, config)),
        MODEL_OWNER: lambda: make_owner(ranges, config),
        CRYPTO_PROVIDER: lambda: fss.provider(public_circuit(ranges, config)),
    }
    infer = {
        DATA_OWNER: functools.partial(fss.infer_data_owner, image=images),
        MODEL_OWNER: fss.infer_model_owner,
    }
    threads = ray_driver.Placement(threads=os.cpu_count() or 1)
    walls, runs = [], 3
    with ray_driver.cluster(None):
        driver = ray_driver.RayDriver(
            makers, link, dict.fromkeys(makers, threads), timeout_s=600, sealed=True
        )
        driver.run(
            {
                DATA_OWNER: fss.set_up_data_owner,
                MODEL_OWNER: fss.set_up_model_owner,
                CRYPTO_PROVIDER: fss.set_up_provider,
            }
        )
        numbers = tuple(range(runs))
        driver.run(
            {
                DATA_OWNER: functools.partial(fss.prepare_data_owner, numbers=numbers),
                MODEL_OWNER: functools.partial(fss.prepare_model_owner, numbers=numbers),
                CRYPTO_PROVIDER: functools.partial(fss.prepare_provider, numbers=numbers),
            }
        )
        for _ in range(runs):  # the first one compiles
            _, trace = driver.run(infer)
            walls.append(trace.seconds)
        peaks = driver.peak_bytes()
        driver.close()
    predicted = expected_seconds(online, online.seconds, 0.1)
    show(
        "ray",
        ray_seconds_100ms=round(min(walls), 3),
        ray_over_virtual=round(min(walls) / predicted, 3),
        peak_party_bytes=max(peaks.values()),
        peak_bytes=peaks,
    )


if __name__ == "__main__":
    main()
