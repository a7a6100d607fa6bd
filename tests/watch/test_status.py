"""`--mode=status`: from the files alone, of runs that go on, ended, or died."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import rich.console

import primia_jax
from primia_jax.config import ExperimentConfig, to_config_dict
from primia_jax.errors import CheckpointError, StorageError
from primia_jax.watch import heartbeat, status

ROOT = pathlib.Path(__file__).parents[2]
NOW = 10_000.0


def launch(*arguments):
    command = [sys.executable, "-m", "primia_jax.launch", "--mode=status", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def drawn(found):
    """The table as it stands on a terminal of 80 columns."""
    console = rich.console.Console(width=80)
    with console.capture() as capture:
        console.print(found.table())
    assert max(map(len, capture.get().splitlines())) <= 80
    return capture.get()


def cells(text, first):
    row = next(line for line in text.splitlines() if line.startswith(f"{first} "))
    joined = re.sub(r" (?=(?:[kMGT]?B|s|min)\b)", "~", row)  # a number and its unit
    return [cell.replace("~", " ") for cell in joined.split()]


def write(folder, lines=(), **fields):
    """A run on another machine, heard of half a minute ago."""
    folder.mkdir(parents=True, exist_ok=True)
    start = {"kind": "training", "state": "running", "host": "elsewhere", "pid": 7, "name": "films",
             "stage": "training", "stage_since": NOW - 40, "heard": NOW - 30}  # fmt: skip
    (folder / "status.json").write_text(json.dumps({**start, **fields}))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def round_lines(number, mcc, best=False, **more):
    site = {"loss": 0.4, "validation_loss": 0.5, "validation_accuracy": 0.8, "samples": 1200,
            "bytes_sent": 1e6, "rss_bytes": 3e8, "process": "a:1"}  # fmt: skip
    return [
        {"round": number, "site": "hospital_0", **site, **more},
        {"round": number, "site": "all", "score": {"name": "MCC", "value": mcc}, "seconds": 60.0,
         "bytes_sent": 2e6, "best": best},
    ]  # fmt: skip


SITES = {
    "hospital_0": {"round": 2, "heard": NOW - 40},
    "hospital_1": {"round": 1, "heard": NOW - 100},
}


def test_a_training_that_goes_on(tmp_path):
    lines = [*round_lines(1, 0.5), *round_lines(2, 0.7, best=True)]
    found = status.read(
        write(tmp_path, lines, round=2, rounds=10, sites=SITES, round_ended=NOW - 40), NOW
    )
    assert found.well and found.eta() == 8 * 60 - 40
    text = "\n".join(found.lines())
    assert "training “films”" in text and "running (process 7 on elsewhere)" in text
    assert "round 2 of 10 complete; training for 40 s; ETA 7 min; sent 4.0 MB; RSS 300 MB" in text
    assert "best: round 2, validation MCC 0.700" in text
    assert cells(drawn(found), "hospital_0") == [
        *("hospital_0", "0.400", "0.500", "0.800", "1,200", "2.0 MB", "300 MB", "2", "40 s")
    ]
    assert cells(drawn(found), "hospital_1")[-2:] == ["1", "2 min"]
    assert "ε" not in drawn(found)


def test_tables_fit_80_columns(tmp_path):
    """With long names and large numbers nothing but the names is cut short."""
    name = "St. Mary of the Lake, Department of Radiology"
    (line, whole) = round_lines(200, 0.5, epsilon=123.456)
    line.update(site=name, samples=1_234_567, bytes_sent=999e6, rss_bytes=999e6)
    sites = {name: {"round": 200, "heard": NOW - 5900}}
    found = status.read(write(tmp_path, [line, whole], round=200, rounds=200, sites=sites), NOW)
    row = drawn(found).splitlines()[-1]
    assert row.startswith("St. Mary of the L…") and row.count("…") == 1
    for text in ("1,234,567", "999 MB 999 MB", "200 98 min", "123.46"):
        assert text in row


def test_runs_below_a_folder_are_listed(tmp_path):
    """Without --workdir: a line a run, the latest heard of first."""
    with pytest.raises(CheckpointError, match=r"no run in .* or in its folders; name one"):
        status.listing(tmp_path, NOW)
    write(tmp_path / "runs" / "old", name="old", heard=NOW - 60)
    write(tmp_path / "runs" / "new", name="new", heard=NOW - 5)
    write(tmp_path / "near", name="near", heard=NOW - 20)
    lines = status.listing(tmp_path, NOW)
    assert [line.split("”")[0].split("“")[1] for line in lines] == ["new", "near", "old"]


def test_epsilon_where_it_is_known(tmp_path):
    lines = round_lines(1, 0.5, epsilon=1.25)
    found = status.read(write(tmp_path, lines, round=1, rounds=10, sites=SITES), NOW)
    assert cells(drawn(found), "hospital_0")[-1] == "1.25"
    assert cells(drawn(found), "hospital_1")[-1] == "-"


def test_who_is_absent_is_named(tmp_path):
    lines = round_lines(1, 0.5)
    lines[-1]["absent"] = {"hospital_1": "its process died"}
    found = status.read(write(tmp_path, lines, round=1, rounds=10, sites=SITES), NOW)
    assert "hospital_1 took no part in round 1: its process died" in found.lines()


def test_who_is_not_there_yet_is_named(tmp_path):
    """Before the first round; later its line of rounds.jsonl tells."""
    about = dict(rounds=10, sites=SITES, absent={"hospital_1": "no node has the resource b"})
    found = status.read(write(tmp_path, [], round=0, **about), NOW)
    assert "hospital_1 is not there yet: no node has the resource b" in found.lines()
    found = status.read(write(tmp_path, round_lines(1, 0.5), round=1, **about), NOW)
    assert not any("hospital_1" in line for line in found.lines())


@pytest.mark.parametrize(
    ("fields", "state", "words"),
    [
        ({"heard": NOW - 3600}, "died", "last heard 60 min ago, training"),
        ({"state": "failed", "message": "the disk is full"}, "failed", "failed: the disk is full"),
        ({"state": "interrupted"}, "interrupted", "go on with --resume"),
        ({"state": "finished"}, "finished", "finished"),
        ({"state": "unheard of"}, "died", "dead"),
    ],
)
def test_runs_that_ended(fields, state, words, tmp_path):
    found = status.read(write(tmp_path, **fields), NOW)
    assert found.state == state and found.well == (state == "finished")
    assert words in "\n".join(found.lines())


def test_hardly_anything_is_known(tmp_path):
    (tmp_path / "status.json").write_text("{}")
    found = status.read(tmp_path, NOW)
    assert found.state == status.DIED and found.lines() and found.table() is None
    found = status.read(write(tmp_path, sites=SITES), NOW)
    assert found.eta() is None and "ETA -" in found.lines()[1]
    assert cells(drawn(found), "hospital_0")[1:6] == ["-"] * 5


def test_a_search_that_goes_on(tmp_path):
    counts = {"complete": 3, "pruned": 1, "diverged": 0, "failed": 1, "running": 2}
    folder = write(
        tmp_path, kind="search", trials=10, counts=counts, running=[5, 6], parallel=2,
        median_seconds=100.0, best={"number": 2, "mcc": 0.75},
    )  # fmt: skip
    write(folder / "trials" / "0005", round_lines(1, 0.25), round=1, rounds=4)
    found = status.read(folder, NOW)
    text = "\n".join(found.lines())
    assert "5 of 10 trials ended (3 complete, 1 pruned, 0 diverged, 1 failed)" in text
    assert "ETA 5 min" in text and "best: trial 2, validation MCC 0.750" in text
    assert cells(drawn(found), "5")[:4] == ["5", "1/4", "0.250", "0.250"]
    (folder / "status.json").write_text(json.dumps({"kind": "search", "state": "finished"}))
    assert status.read(folder, NOW).table() is None


def test_of_a_real_training(tmp_path):
    config = to_config_dict(ExperimentConfig())
    config.data.image_size = 16
    config.data.phantom.update(n_train=60, n_test=6)
    config.model.update(name="simple", width=4)
    config.federated.update(rounds=1, sync_every=1, sync_unit="steps")
    for name in config.augmentation:
        if name.endswith("_p"):
            config.augmentation[name] = 0.0
    config.runtime.driver = "local"
    seen = []

    def look(line):
        seen.append(status.read(tmp_path))
        return True

    primia_jax.train(config, tmp_path, on_round=look, judge=False)
    (during,) = seen
    assert during.state == "running" and "round 1 of 1 complete" in during.lines()[1]
    assert cells(drawn(during), "hospital_2")[6].endswith("B")
    after = status.read(tmp_path)
    assert after.state == "finished" and "best: round 1" in after.lines()[2]
    # Another process in the same folder is refused, even to begin anew.
    fields = heartbeat.read(tmp_path)
    fields.update(state="running", host="elsewhere", heard=4e9)
    (tmp_path / "status.json").write_text(json.dumps(fields))
    with pytest.raises(StorageError, match="a training goes on"):
        primia_jax.train(config, tmp_path)
    shown = launch(f"--workdir={tmp_path}")
    assert shown.returncode == 0 and "hospital_2" in shown.stdout
    fields["heard"] = 0
    (tmp_path / "status.json").write_text(json.dumps(fields))
    assert launch(f"--workdir={tmp_path}").returncode == 1


def test_where_there_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=f"no run in {tmp_path}"):
        status.read(tmp_path)
    shown = launch(f"--workdir={tmp_path}")
    assert shown.returncode == 4 and shown.stderr.startswith("primia_jax: no run in")
    assert len(shown.stderr.strip().splitlines()) == 1


def test_a_pipe_is_no_status(tmp_path):
    """Nobody would write to it: reading must not wait."""
    os.mkfifo(tmp_path / "status.json")
    with pytest.raises(CheckpointError, match="no run in"):
        status.read(tmp_path, NOW)
