"""What a training comes to when parts of it fail: real actors, real kills, the same figures.

Every test is a row of docs/faults.md, which `make test-all` writes.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import ray

import primia_jax
from primia_jax.errors import PartyLost
from primia_jax.federated.aggregation import OWNER, PROVIDER
from primia_jax.runtime import ray_driver
from primia_jax.workdir import Workdir

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from configs import smoke  # noqa: E402

SAME = "the round is begun again; the same figures as without the fault"


def config_with(driver="ray", **changes):
    config = smoke.get_config()
    config.data.image_size = 16
    config.model.width = 8
    config.federated.rounds = 4
    config.runtime.driver = driver
    config.runtime.threads = 1
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The figures of a run that nothing happens to."""
    return primia_jax.train(config_with("local"), tmp_path_factory.mktemp("whole")).metrics


@pytest.fixture
def driver(monkeypatch):
    """The drivers that runs start, as they start them."""
    started = []

    class Kept(ray_driver.RayDriver):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(ray_driver, "RayDriver", Kept)
    return started


def after_round(number, act):
    """An `on_round` that does something a moment after a round's end."""

    def on_round(line):
        if line["round"] == number:
            timer = threading.Timer(0.05, act)
            timer.daemon = True
            timer.start()
        return True

    return on_round


def lines_of_all(workdir):
    return [line for line in Workdir(workdir).rounds() if line["site"] == "all"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "party",
    (
        pytest.param("hospital_1", marks=pytest.mark.fault("a hospital's process is killed", SAME)),
        pytest.param(OWNER, marks=pytest.mark.fault("the model owner's process is killed", SAME)),
        pytest.param(
            PROVIDER,
            marks=pytest.mark.fault(
                "the crypto provider's process is killed, and a hospital's", SAME
            ),
        ),
    ),
)
def test_a_killed_party_comes_back(party, ray_cluster, driver, unbroken, tmp_path):
    def kill():
        for name in {party, "hospital_0"} if party == PROVIDER else {party}:
            ray.kill(driver[0].actors[name])

    found = primia_jax.train(config_with(), tmp_path, on_round=after_round(2, kill))
    assert found.metrics == unbroken
    assert [line["round"] for line in lines_of_all(tmp_path)] == [1, 2, 3, 4]
    assert all(not line["absent"] for line in lines_of_all(tmp_path))


@pytest.mark.slow
@pytest.mark.fault("a process that several hospitals share is killed", SAME)
def test_hospitals_that_share_a_process_come_back_together(ray_cluster, driver, unbroken, tmp_path):
    begun, ended = {}, {}

    def kill():
        begun.update(driver[0].actors)
        ray.kill(driver[0].actors["hospital_2"])

    def on_round(line):
        ended.update(driver[0].actors)
        return after_round(2, kill)(line)

    config = config_with(runtime__hospital_actors=2)
    found = primia_jax.train(config, tmp_path, on_round=on_round)
    assert found.metrics == unbroken
    assert ended["hospital_0"] == ended["hospital_2"] != begun["hospital_2"]
    assert ended["hospital_1"] == begun["hospital_1"]
    assert [line["round"] for line in lines_of_all(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.fault(
    "a hospital is gone for good", "the others go on; report and log name it and its rounds"
)
def test_the_others_go_on_without_it(ray_cluster, driver, monkeypatch, tmp_path):
    def gone(self, name, timeout_s=0.0):
        raise PartyLost("no such machine", (name,))

    monkeypatch.setattr(ray_driver.RayDriver, "revive", gone)
    kill = after_round(2, lambda: ray.kill(driver[0].actors["hospital_1"]))
    config = config_with(secure_aggregation__min_participants=2)
    found = primia_jax.train(config, tmp_path, on_round=kill)
    assert found.metrics["rounds"] == 4
    absent = [line["round"] for line in lines_of_all(tmp_path) if "hospital_1" in line["absent"]]
    assert absent in ([3, 4], [4])
    assert any("hospital_1 took no part in" in warning for warning in found.warnings)


@pytest.mark.slow
@pytest.mark.fault("a hospital's machine freezes", f"it is ended at the deadline; {SAME}")
def test_a_frozen_hospital_is_ended(ray_cluster, driver, unbroken, tmp_path):
    def freeze():
        (line,) = [
            x for x in Workdir(tmp_path).rounds() if x["site"] == "hospital_2" and x["round"] == 2
        ]
        os.kill(int(line["process"].rpartition(":")[2]), signal.SIGSTOP)

    config = config_with(runtime__round_deadline_s=20.0)
    found = primia_jax.train(config, tmp_path, on_round=after_round(2, freeze))
    assert found.metrics == unbroken


@pytest.mark.slow
@pytest.mark.fault("links are slow and uneven", "it takes longer; the same figures")
def test_slow_links(ray_cluster, unbroken, tmp_path):
    config = config_with(runtime__latency_s=0.1, runtime__jitter_s=0.1)
    assert primia_jax.train(config, tmp_path).metrics == unbroken


@pytest.mark.slow
@pytest.mark.fault("a worker node of a cluster is lost", SAME)
def test_a_lost_node(tmp_path):
    """Two workers; the raylet of one is killed, and its actors with it."""
    flags = ["--config=configs/smoke.py", "--config.data.image_size=16", "--config.model.width=8",
             "--config.federated.rounds=8", "--config.runtime.threads=1",
             "--config.runtime.revive_timeout_s=300"]  # fmt: skip
    train = [sys.executable, "-m", "primia_jax.launch", *flags]
    whole = subprocess.run(
        [*train, "--config.runtime.driver=local", f"--workdir={tmp_path / 'whole'}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    environment = {
        **os.environ,
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    broken = Workdir(tmp_path / "broken")
    cluster = subprocess.Popen(
        ["launch/local_cluster.sh", "--workers=2", "--", *train,
         f"--workdir={broken.path}", "--ray_address=$RAY_ADDRESS"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        while cluster.poll() is None and len(broken.rounds()) < 4:
            time.sleep(0.05)
        killed = kill_raylet("worker_2", cluster.pid)
        output, _ = cluster.communicate(timeout=400)
    finally:
        cluster.terminate()
    assert killed and cluster.returncode == 0, output
    assert "begun again" in output, output
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "broken")
    )
    assert first == second


LATE = """
import sys, time
from ray.cluster_utils import Cluster
import primia_jax
from tests.chaos.test_faults import config_with

cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 2, "resources": {"hospital_0": 1, "hospital_1": 1}})
config = config_with(
    federated__rounds=60, secure_aggregation__min_participants=2,
    runtime__hospital_resource="{site}", runtime__revive_timeout_s=1.0,
    runtime__ray_auth="none")  # Ray's cluster for tests has no tokens

def on_round(line):
    if line["round"] == 1:
        cluster.add_node(num_cpus=1, resources={"hospital_2": 1})
    time.sleep(1)
    return bool(line["absent"])

primia_jax.train(config, sys.argv[1], ray_address=cluster.address, on_round=on_round, judge=False)
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.fault(
    "a hospital's machine is not there at the start",
    "the training begins without it, if the quorum allows; it joins once its machine does",
)
def test_a_machine_that_comes_later(tmp_path):
    """A node joins the cluster after round 1; the training ends with the round it takes part in."""
    done = subprocess.run(
        [sys.executable, "-c", LATE, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "waiting for hospital_2, " in done.stdout
    assert "hospital_2 is not there yet, round 1 goes without it: no node" in done.stdout
    lines = lines_of_all(tmp_path)
    assert set(lines[0]["absent"]) == {"hospital_2"} and not lines[-1]["absent"]
    sites = [line["site"] for line in Workdir(tmp_path).rounds() if line["round"] == 1]
    assert "hospital_2" not in sites
    assert lines[-1]["samples"] > lines[0]["samples"]


def kill_raylet(resource, script):
    """Kills the raylet that offers `resource`, of the cluster that `script` started."""
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_text()
            if "raylet/raylet" in command and resource in command and descends(process, script):
                os.kill(int(process.name), signal.SIGKILL)
                return True
    return False


def descends(process, ancestor):
    while process.name not in ("0", "1"):
        if process.name == str(ancestor):
            return True
        process = process.parent / (process / "stat").read_text().rpartition(")")[2].split()[1]
    return False
