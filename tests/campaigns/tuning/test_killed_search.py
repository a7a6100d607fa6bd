"""`--mode=tune` as a process that is really killed, and goes on with what it had."""

import json
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from primia_jax.evaluation.record import read_rounds
from primia_jax.watch import heartbeat, status

ROOT = pathlib.Path(__file__).parents[3]
SMALL = (
    "--config.runtime.driver=local",
    "--config.data.image_size=16",
    "--config.data.phantom.n_train=60",
    "--config.model.width=4",
    "--config.federated.rounds=3",
    "--config.federated.sync_every=2",
    "--config.federated.sync_unit=steps",
    "--config.tuning.parallel=1",
    "--config.tuning.trials=2",
)


def command(folder, *more):
    start = [sys.executable, "-m", "primia_jax.launch", "--config=configs/tune.py:quick"]
    return [*start, "--mode=tune", f"--workdir={folder}", *more]


def rounds(folder):
    """{trial: its complete rounds}, by its files."""
    return {
        path.parent.name: sum(line["site"] == "all" for line in read_rounds(path))
        for path in sorted(folder.glob("trials/*/rounds.jsonl"))
    }


def kill_when(folder, reached, *more):
    """Kills a search as soon as `reached` is true of the rounds of its trials."""
    process = subprocess.Popen(command(folder, *more), cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not reached(rounds(folder)):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended by itself"


def killed_and_resumed(folder, reached, *more):
    """What the search says that goes on with a killed one."""
    kill_when(folder, reached, *more)
    assert status.read(folder).state == status.DIED
    before = rounds(folder)
    done = subprocess.run(
        command(folder, "--resume", *more), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sum(rounds(folder).values()) >= sum(before.values())
    assert heartbeat.read(folder)["state"] == "finished"
    with sqlite3.connect(folder / "study.db") as file:
        states = [state for (state,) in file.execute("select state from trials")]
    assert "RUNNING" not in states and "WAITING" not in states
    return done.stdout


@pytest.mark.slow
def test_killed_in_a_round(tmp_path):
    said = killed_and_resumed(tmp_path, lambda trials: trials.get("0000", 0) >= 1, *SMALL)
    assert "trial 1: complete" in said and "(2 of 2)" in said
    assert rounds(tmp_path)["0001"] == 3
    assert (tmp_path / "best_config.py").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_over_real_actors(tmp_path):
    """Two trials at a time, each with actors of its own; then the best configuration trains."""
    folder = tmp_path / "search"
    said = killed_and_resumed(folder, lambda trials: sum(trials.values()) >= 7)
    assert "(4 of 4)" in said
    trained = subprocess.run(
        [
            *(sys.executable, "-m", "primia_jax.launch", f"--config={folder / 'best_config.py'}"),
            *("--mode=train", f"--workdir={tmp_path / 'best'}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    metrics = json.loads((tmp_path / "best" / "metrics.json").read_text())
    best = heartbeat.read(folder)["best"]
    assert metrics["validation"]["mcc"] == best["mcc"] and metrics["test"]["n"] == 60
