"""The command line: a mistake is one clear line and an exit code, before Ray starts."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def launch(*arguments, **options):
    command = [sys.executable, "-m", "primia_jax.launch", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--config.federated.moed=local"], 2, ["moed", "mode"]),
        (["--config.federated.mode=locla"], 2, ["config.federated.mode", "'locla'", "local"]),
        (["--config.training.batch_size=many"], 2, ["batch_size", "many"]),
        (["--config.privacy.epsilon=eight"], 2, ["--config.privacy.epsilon", "eight"]),
        (["--config.training.batch_size=0"], 2, ["config.training.batch_size = 0", "[1, 4096]"]),
        (["--config.federated.hospitals=1"], 2, ["hospitals = 1", "at least 3"]),
        (
            ["--config.federated.hospitals=2"],
            2,
            ["each learns the other's", "min_participants = 2"],
        ),
        (["--config.secure_aggregation.min_participants=4"], 2, ["there are only 3 hospitals"]),
        (["--config.runtime.hospital_actors=9"], 2, ["hospital_actors = 9", "only 3 hospitals"]),
        (
            ["--config.runtime.hospital_actors=2", "--config.runtime.hospital_resource={site}"],
            2,
            ["hospital_resource", "hospital_actors = 2", "set one"],
        ),
        (["--config.data.source=folder"], 2, ["config.data.path"]),
        (["--config.model.norm=group", "--config.federated.batch_norm=fedbn"], 2, ["fedbn"]),
        (["--mode=fly"], 2, ["fly", "train"]),
        (["--unknown_flag=1"], 2, ["unknown_flag"]),
        (["--mode=predict"], 2, ["--input"]),
        (["--config.secure_aggregation.frac_bits=50"], 2, ["overflow", "2^"]),
        (["--config.secure_aggregation.word_bits=32"], 2, ["overflow", "2^31", "word_bits to 64"]),
        (
            [
                "--config.secure_aggregation.word_bits=32",
                "--config.federated.optimizer_state=average",
            ],
            2,
            ["word_bits = 32 is too coarse", "keep or reset"],
        ),
        (
            ["--config.data.source=folder", "--config.data.path=/no/such"],
            3,
            ["/no/such", "test_path"],
        ),
        (["--ray_address=127.0.0.1:1"], 5, ["127.0.0.1:1"]),
        (["--mode=evaluate"], 4, ["no checkpoint"]),
        (["--mode=export"], 4, ["no checkpoint"]),
        (["--format=orbax"], 2, ["--format goes with --mode=export, not --mode=train"]),
        (["--mode=audit"], 4, ["no run to attack", "--config.federated.record_updates=true"]),
        (
            ["--mode=benchmark", "--config.latency_study.networks=lent"],
            2,
            ["'lent'", "mean 'lenet'"],
        ),
        (
            ["--mode=benchmark", "--config.latency_study.protocols=aby"],
            2,
            ["'aby'", "fss | ariann"],
        ),
        (["resume"], 2, ["'resume'", "belongs to no flag", "--resume"]),
        (["--config.nosuch=1"], 2, ["--config.nosuch: the configuration has no such key"]),
        (["--config.federated.roundz=1"], 2, ["--config.federated.roundz", "did you mean rounds?"]),
        (
            ["--mode=benchmark", "--config.latency_study.repetitions=1"],
            2,
            ["repetitions = 1", "[2, "],
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line(tmp_path, arguments, code, words):
    result = launch("--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", *arguments)
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("primia_jax: "), result.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workdir=x"], "--config"),
        (["--config=configs/audit.py:slow", "--workdir=x"], "full and quick"),
        (["--config=configs/smoke.py"], "--workdir"),
        (["--config=configs/nothing.py", "--workdir=x"], "configs/nothing.py"),
        (["--config=configs/smok.py", "--workdir=x"], "there are configs/audit.py, "),
        (["--config.data.path=films", "--workdir=x"], "give --config=configs/NAME.py too"),
        (["--config=configs/latency_study.py:fast", "--workdir=x"], "full and quick"),
    ],
)
def test_missing_flags_are_named(arguments, words):
    result = launch(*arguments)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1 and words in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config=configs/smoke.py", "--workdir=~/nothing", "--resume"),
        ("--config=~/smoke.py", "--workdir=~/nothing", "--resume"),
    ],
)
def test_a_run_that_was_not_begun_cannot_be_resumed(arguments, tmp_path):
    (tmp_path / "smoke.py").write_text((ROOT / "configs" / "smoke.py").read_text())
    result = launch(*arguments, env=os.environ | {"HOME": str(tmp_path)})
    assert result.returncode == 4 and len(result.stderr.strip().splitlines()) == 1
    assert f"there is no run to resume in {tmp_path / 'nothing'}" in result.stderr
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 5, "'127.0.0.1:1' (RAY_ADDRESS in the environment)"),
        (("--config.runtime.driver=local",), 2, "RAY_ADDRESS=127.0.0.1:1 in the environment"),
    ],
)
def test_a_cluster_named_by_the_environment_is_not_blamed_on_a_flag(
    arguments, code, words, tmp_path
):
    arguments = ("--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", *arguments)
    result = launch(*arguments, env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"})
    assert result.returncode == code and len(result.stderr.strip().splitlines()) == 1
    assert words in result.stderr and "--ray_address" not in result.stderr


def test_a_closed_pipe_is_quiet(tmp_path):
    """Nobody reads what status prints: neither a traceback nor a word."""
    read, write = os.pipe()
    os.close(read)
    try:
        (tmp_path / "status.json").write_text("{}")
        result = subprocess.run(
            [sys.executable, "-c", CLOSED], cwd=ROOT, stdout=write, stderr=subprocess.PIPE
        )
    finally:
        os.close(write)
    assert result.returncode == 141 and result.stderr == b""


CLOSED = """
from primia_jax import launch
launch.main = lambda _: print("something")
launch.run()
"""


WAITING = """
from primia_jax import environment, launch
environment.set_up_process(1)
from primia_jax.runtime import Receive
from primia_jax.runtime.ray_driver import RayDriver, cluster
def waits(state, sender):
    yield Receive(sender)
def main(_):
    with cluster(None):
        driver = RayDriver({"alice": int, "bob": int})
        print("ready", flush=True)
        driver.run({"alice": lambda s: waits(s, "bob"), "bob": lambda s: waits(s, "alice")})
launch.main = main
launch.run()
"""


def test_sigterm_ends_the_actors_and_is_one_line():
    """Real actors in the midst of a run: Ray's own handler would end the process with code 1."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, "-"], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert errors == "primia_jax: terminated; go on with --resume\n"
    with pytest.raises(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, 0)
