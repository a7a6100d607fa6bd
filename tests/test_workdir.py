"""A workdir has one writer, is resumed only where a run was begun, and is for its owner alone."""

import contextlib
import dataclasses
import json
import os
import pathlib
import stat
import sys
import threading
import types

import pytest

import primia_jax
from primia_jax import experiment
from primia_jax.campaigns import latency
from primia_jax.core import locks
from primia_jax.errors import CheckpointError, ConfigError, StorageError
from primia_jax.federated import checkpoints
from primia_jax.workdir import Workdir

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs import smoke


def _config():
    config = smoke.get_config()
    config.runtime.driver = "local"
    config.federated.record_updates = True
    config.tuning.space = ("training.learning_rate log 0.001 0.1",)
    return config


def _benchmark(config, folder, **options):
    return latency.run(experiment.checked(config), folder, **options)


RESUMED = {
    "train": primia_jax.train,
    "tune": primia_jax.tune,
    "audit": primia_jax.audit,
    "study": primia_jax.study,
    "benchmark": _benchmark,
}


@pytest.mark.parametrize("verb", RESUMED.values(), ids=RESUMED)
def test_nothing_can_be_resumed_where_nothing_was_begun(verb, tmp_path):
    with pytest.raises(CheckpointError, match="there is no run to resume in") as error:
        verb(_config(), tmp_path / "nothing", resume=True)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@contextlib.contextmanager
def _held(folder):
    """Another thread is at work in `folder`."""
    locked, over = threading.Event(), threading.Event()

    def work():
        with locks.lock_folder(folder, "a training"):
            locked.set()
            over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    locked.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("verb", RESUMED.values(), ids=RESUMED)
def test_a_second_run_in_a_folder_is_refused_and_moves_nothing(verb, tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text("of the first")
    monkeypatch.setattr(experiment, "make_plan", lambda _: pytest.fail("read the images"))
    with _held(tmp_path), pytest.raises(StorageError, match="a training goes on in"):
        verb(_config(), tmp_path)
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_what_a_run_has_begun_is_its_owners_alone(tmp_path):
    config = experiment.checked(_config())
    plan = types.SimpleNamespace(
        fingerprint="f", used={"a"}, used_patients=set(), used_numbers=set(), compared=set()
    )
    directory = Workdir(tmp_path / "run")
    former = os.umask(0o002)
    try:
        directory.begin(config, plan)
        directory.append_rounds([{"round": 1, "site": "all"}])
        with directory.tensorboard(1) as writer:
            writer.add_scalar("a", 1.0, 1)
    finally:
        os.umask(former)
    events = [*(tmp_path / "run" / "tensorboard").iterdir()]
    assert events and {stat.S_IMODE(p.stat().st_mode) for p in events} == {0o600}
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "run").iterdir()}
    assert modes.pop("tensorboard") == 0o700 and set(modes.values()) == {0o600}
    assert {"config.json", "data.json", "rounds.jsonl"} <= set(modes)
    directory.append_rounds([{"round": 2, "site": "all"}])
    assert [line["round"] for line in directory.rounds()] == [1, 2]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": "f"}'])
def test_a_damaged_record_of_the_images_is_one_line(content, tmp_path):
    config = experiment.checked(_config())
    plan = types.SimpleNamespace(
        fingerprint="f", used={"a"}, used_patients=set(), used_numbers=set(), compared=set()
    )
    directory = Workdir(tmp_path)
    directory.begin(config, plan)
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"data\.json") as error:
        directory.resume(config, plan)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"null", b"[1, 2]", b"[" * 100_000, b"\xff\xfe", b"{}", b'{"round": [], "site": "a"}', None],
    ids=["null", "list", "deep", "encoding", "empty", "no round", "folder"],
)
@pytest.mark.parametrize("name", ["config.json", "rounds.jsonl"])
@pytest.mark.fault("a file of the run is damaged", "the command ends with one line")
def test_a_damaged_file_of_the_run_is_one_line(content, name, tmp_path):
    config = experiment.checked(_config())
    plan = types.SimpleNamespace(
        fingerprint="f", used={"a"}, used_patients=set(), used_numbers=set(), compared=set()
    )
    directory = Workdir(tmp_path)
    directory.begin(config, plan)
    directory.append_rounds([{"round": 1, "site": "all"}])
    checkpoints.commit(directory.checkpoints, checkpoints.Progress(1, 1))
    assert directory.resume(config, plan).round == 1
    path = tmp_path / name
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content + b"\n")
    with pytest.raises((CheckpointError, ConfigError)) as error:
        directory.resume(config, plan)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_home_folder_in_a_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=str(tmp_path / "runs")):
        primia_jax.train(_config(), "~/runs", resume=True)
    config = _config()
    config.data.path, config.model.pretrained = "~/films/{site}", "~/weights.pth"
    config.privacy.ledger, config.study.readers = "~/ledgers", "no~tilde.csv"
    config = experiment.checked(dataclasses.replace(experiment.checked(config)))
    assert config.data.path == str(tmp_path / "films" / "{site}")
    assert config.model.pretrained == str(tmp_path / "weights.pth")
    assert config.privacy.ledger == str(tmp_path / "ledgers")
    assert config.study.readers == "no~tilde.csv"


def test_the_configuration_is_written_last(tmp_path, monkeypatch):
    """A run whose beginning was cut short cannot be resumed by half."""
    config = experiment.checked(_config())
    plan = types.SimpleNamespace(
        fingerprint="f", used=set(), used_patients=set(), used_numbers=set(), compared=set()
    )
    Workdir(tmp_path).begin(config, plan)
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert max(times, key=times.get) == "config.json"
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == config.seed


@pytest.mark.parametrize("verb", [primia_jax.train, primia_jax.tune], ids=["train", "tune"])
@pytest.mark.parametrize("name", ["missing.pth", "weights.npz"])
def test_pretrained_weights_that_cannot_be_are_refused_first(verb, name, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "make_plan", lambda _: pytest.fail("read the images"))
    config = _config()
    config.model.pretrained = str(tmp_path / name)
    with pytest.raises(CheckpointError, match=name) as error:
        verb(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
