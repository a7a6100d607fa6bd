"""The sign of life: a living run is told from a dead one, on this machine and elsewhere."""

import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from primia_jax.errors import StorageError
from primia_jax.watch import heartbeat
from primia_jax.watch.heartbeat import Heartbeat


def test_it_says_how_a_run_ends(tmp_path):
    with Heartbeat(tmp_path, "training") as heart:
        heart.stage("saving")
        heart.update(round=3)
        status = heartbeat.read(tmp_path)
        assert status["stage"] == "saving" and status["round"] == 3 and heartbeat.alive(status)
    assert heartbeat.read(tmp_path)["state"] == "finished"
    for error, state in (
        (ValueError("two\nlines"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
    ):
        with pytest.raises(type(error)), Heartbeat(tmp_path, "training"):
            raise error
        status = heartbeat.read(tmp_path)
        assert status["state"] == state and not heartbeat.alive(status)
        assert status.get("message") == ("two" if state == "failed" else None)
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_killed_process_is_dead_and_a_number_used_again_is_another_process(tmp_path):
    code = (
        "import sys, pathlib, time; from primia_jax.watch.heartbeat import Heartbeat\n"
        "with Heartbeat(pathlib.Path(sys.argv[1]), 'training'): print(flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    status = heartbeat.read(tmp_path)
    assert heartbeat.alive(status) and status["pid"] == process.pid
    assert not heartbeat.alive({**status, "process": "1"})
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert heartbeat.read(tmp_path)["state"] == "running" and not heartbeat.alive(status)
    process.stdout.close()


def test_of_another_machine_only_the_age_is_known():
    status = {"state": "running", "host": "elsewhere", "pid": os.getpid(), "heard": 1000.0}
    assert heartbeat.alive(status, now=1030.0)
    assert not heartbeat.alive(status, now=2000.0)


def test_only_another_machines_heartbeat_shuts_a_folder(tmp_path):
    """On this machine the lock decides, which ends with its process."""
    with heartbeat.only_writer(tmp_path, "a search"), Heartbeat(tmp_path, "search"):
        status = heartbeat.read(tmp_path)
        with heartbeat.only_writer(tmp_path, "a diagnosis"):
            pass
    (tmp_path / "status.json").write_text(json.dumps({**status, "host": "elsewhere"}))
    with (
        pytest.raises(StorageError, match=f"a search goes on in .*{os.getpid()} on elsewhere"),
        heartbeat.only_writer(tmp_path, "a diagnosis"),
    ):
        raise AssertionError


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"state": "running"}'])
def test_a_damaged_file_is_no_living_run(text, tmp_path):
    (tmp_path / "status.json").write_text(text)
    status = heartbeat.read(tmp_path)
    assert status is None or not heartbeat.alive(status)
    with heartbeat.only_writer(tmp_path, "a training"):
        pass


def test_it_beats_between_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "_BEAT_S", 0.01)
    with Heartbeat(tmp_path, "training"):
        first = heartbeat.read(tmp_path)["heard"]
        while heartbeat.read(tmp_path)["heard"] == first:
            pass
    last = heartbeat.read(tmp_path)["heard"]
    assert last > first and heartbeat.read(tmp_path)["state"] == "finished"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"status\.json cannot be written"):
        Heartbeat(tmp_path / "file", "training").__enter__()


def test_what_it_holds_is_for_people_too(tmp_path):
    with Heartbeat(tmp_path, "training"):
        fields = json.loads((tmp_path / "status.json").read_text())
    assert fields["host"] == platform.node() and fields["kind"] == "training"
