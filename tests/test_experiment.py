"""The smoke configuration from end to end: real Ray actors, the files they leave, and resuming."""

import contextlib
import csv
import inspect
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import primia_jax
from primia_jax.errors import CheckpointError, ClusterError, ConfigError, DataError
from primia_jax.predictions import read_predictions
from primia_jax.runtime import ray_driver
from primia_jax.workdir import Workdir

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import smoke  # noqa: E402


def smoke_config(mode="federated_secure", driver="local", **data):
    config = smoke.get_config()
    config.federated.mode = mode
    config.runtime.driver = driver
    config.data.update(data)
    return config


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    """One secure run in this process."""
    return primia_jax.train(smoke_config(), tmp_path_factory.mktemp("local"), command="the command")


def test_real_actors_give_the_same_figures(local_run, tmp_path):
    """Every message through Ray: bit for bit what one process gives."""
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "primia_jax.launch",
            "--config=configs/smoke.py",
            f"--workdir={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "round 6/6" in result.stdout
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == json.loads((local_run.workdir / "metrics.json").read_text())
    for name in ("config.json", "rounds.jsonl", "report.html", "timing.json"):
        assert (tmp_path / name).stat().st_size, name
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_path_in_place_of_a_configuration():
    """Research code passes a configuration; whoever passes a file's name is told how."""
    with pytest.raises(ConfigError, match=r"config is 'configs/demo.py'; pass what get_config\(\)"):
        primia_jax.train("configs/demo.py", "nowhere")


def test_what_a_run_leaves(local_run):
    metrics = json.loads((local_run.workdir / "metrics.json").read_text())
    assert metrics == local_run.metrics
    assert metrics["mode"] == "federated_secure" and metrics["rounds"] == 6
    for key in ("mcc", "accuracy", "roc_auc"):
        low, high = metrics["test"]["intervals"][key]
        assert low <= metrics["test"][key] <= high
    lines = [json.loads(x) for x in (local_run.workdir / "rounds.jsonl").read_text().splitlines()]
    assert [(x["round"], x["site"]) for x in lines[:4]] == [
        (1, "hospital_0"), (1, "hospital_1"), (1, "hospital_2"), (1, "all"),
    ]  # fmt: skip
    assert {"loss", "validation_loss", "samples", "seconds", "bytes_sent"} <= set(lines[0])
    report = (local_run.workdir / "report.html").read_text()
    assert "the command" in report and "hospital_1" in report


@pytest.mark.parametrize("mode", ["local", "federated"])
def test_other_modes(mode, tmp_path):
    metrics = primia_jax.train(smoke_config(mode), tmp_path).metrics
    assert metrics["mode"] == mode and 0 <= metrics["test"]["accuracy"] <= 1


def test_the_same_run_twice_moves_the_first_aside(local_run, tmp_path):
    first = primia_jax.train(smoke_config("federated"), tmp_path).metrics
    second = primia_jax.train(smoke_config("federated"), tmp_path).metrics
    assert first == second
    assert json.loads((tmp_path / "previous" / "1" / "metrics.json").read_text()) == first


@pytest.mark.slow
@pytest.mark.fault(
    "the command itself is killed, in and between rounds", "--resume goes on; the same figures"
)
def test_killed_at_any_moment_a_run_ends_with_the_same_metrics(tmp_path):
    """kill -9 once after a finished round and once in the middle of one."""
    flags = ["--config=configs/smoke.py", "--config.federated.mode=federated",
             "--config.runtime.driver=local", "--config.federated.rounds=8"]  # fmt: skip

    def command(folder, *more):
        return [sys.executable, "-m", "primia_jax.launch", *flags, f"--workdir={folder}", *more]

    whole = subprocess.run(command(tmp_path / "a"), cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    b = Workdir(tmp_path / "b")
    for after, more in ((1, ()), (4, ("--resume",))):
        process = subprocess.Popen(command(b.path, *more), cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and max([0, *(x["round"] for x in b.rounds())]) < after:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = subprocess.run(command(b.path, "--resume"), cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after round" in resumed.stdout
    a_metrics, b_metrics = (
        json.loads((tmp_path / x / "metrics.json").read_text()) for x in ("a", "b")
    )
    assert a_metrics == b_metrics
    numbers = [x["round"] for x in b.rounds() if x["site"] == "all"]
    assert numbers == list(range(1, 9))


def test_resume_with_other_settings_is_refused(local_run):
    config = smoke_config()
    config.training.batch_size = 4
    with pytest.raises(ConfigError, match=r"training\.batch_size = 8, now 4"):
        primia_jax.train(config, local_run.workdir, resume=True)


def test_resuming_a_finished_run_judges_it_again(local_run):
    shown = io.StringIO()
    again = primia_jax.train(smoke_config(), local_run.workdir, resume=True, stream=shown)
    assert again.metrics == local_run.metrics
    assert "already complete after round 6" in shown.getvalue()
    assert "going on" not in shown.getvalue()


def _damaged(weights):
    """A weight that is not a number."""
    tensors = load_file(weights)
    name = next(name for name in sorted(tensors) if "kernel" in name)
    tensors[name] = np.where(np.arange(tensors[name].size) == 3, np.nan, tensors[name].ravel())
    tensors[name] = tensors[name].astype(np.float32).reshape(load_file(weights)[name].shape)
    save_file(tensors, weights)


def _of_another_version(weights):
    path = weights.parent / "about.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 99'))


@pytest.mark.parametrize("change", [_damaged, _of_another_version])
def test_a_checkpoint_that_cannot_be_trusted_is_refused_in_one_line(local_run, tmp_path, change):
    shutil.copytree(local_run.workdir, tmp_path / "run")
    run, config = tmp_path / "run", smoke_config()
    for weights in (run / "checkpoints").glob("round_*/model.safetensors"):
        change(weights)
    Image.new("L", (40, 40), 7).save(tmp_path / "film.png")
    verbs = {
        "evaluate": lambda: primia_jax.evaluate(config, run),
        "predict": lambda: primia_jax.predict(config, run, tmp_path / "film.png"),
        "encrypted": lambda: primia_jax.predict_encrypted(config, run, tmp_path / "film.png"),
        "finished": lambda: primia_jax.train(config, run, resume=True),
        "resumed": lambda: primia_jax.train(config, run, resume=True),
    }
    for name, verb in verbs.items():
        if name == "resumed":
            latest = run / "checkpoints" / "latest.json"
            latest.write_text('{"round": 5, "best_round": 5}')
        with pytest.raises(CheckpointError, match=r"not finite|another version") as error:
            verb()
        assert "\n" not in str(error.value), name
    assert not (run / "predictions.csv").exists()


def test_a_file_name_that_is_not_utf8_is_diagnosed_too(local_run, tmp_path):
    for name in (b"a.png", b"M\xfcller.png", b"=1+1.png", b"line\nbreak.png"):
        Image.new("L", (40, 40), len(name)).save(tmp_path / os.fsdecode(name), "PNG")
    shutil.copytree(local_run.workdir, tmp_path / "run")
    primia_jax.predict(smoke_config(), tmp_path / "run", tmp_path)
    with open(tmp_path / "run" / "predictions.csv", encoding="utf-8", newline="") as file:
        names = {row["file"] for row in csv.DictReader(file)}
    assert {"a.png", "M\\xfcller.png", "'=1+1.png", "line\\nbreak.png"} <= names


def test_evaluate_agrees_with_the_training(local_run):
    scores = primia_jax.evaluate(smoke_config(), local_run.workdir)
    assert scores == local_run.metrics["test"]
    assert json.loads((local_run.workdir / "evaluation.json").read_text()) == scores


def test_predict_reads_files_of_any_size(local_run, tmp_path):
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(40, 31), (33, 90)]):
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.png").write_text("not an image")
    found = primia_jax.predict(smoke_config(), local_run.workdir, tmp_path)
    assert [name for name, _ in found.skipped] == ["notes.png"]
    rows = list(csv.DictReader((local_run.workdir / "predictions.csv").open()))
    assert [row["file"] for row in rows] == ["0.png", "1.png", "notes.png"]
    assert not rows[2]["class"] and rows[2]["remarks"]
    for row, p in zip(rows, found.probabilities):
        assert sum(float(row[f"p_{c}"]) for c in found.class_names) == pytest.approx(1, abs=1e-4)
        assert row["class"] == found.class_names[int(p.argmax())]
    with pytest.raises(DataError):
        primia_jax.predict(smoke_config(), local_run.workdir, tmp_path / "nothing")


def test_diagnoses_of_earlier_images_are_kept_and_do_not_stand_for_later_ones(local_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(local_run.workdir, run, ignore=shutil.ignore_patterns("predictions.csv"))
    (run / "predictions.csv").write_text("earlier\n")
    (tmp_path / "notes.png").write_text("not an image")
    moved = []
    with pytest.raises(DataError, match=r"1 of 1 images cannot be used, e\.g\. notes\.png"):
        primia_jax.predict(smoke_config(), run, tmp_path / "notes.png", tell=moved.append)
    assert len(moved) == 1 and "previous/1" in moved[0]
    assert (run / "previous" / "1" / "predictions.csv").read_text() == "earlier\n"
    table = read_predictions(run)
    assert table.names == [] and table.skipped[0][0] == "notes.png"


def test_a_checkpoint_of_another_network_is_named(local_run):
    config = smoke_config()
    config.model.width = 8
    with pytest.raises(CheckpointError, match=r"model\.width = 16.*--config\.model\.width=16"):
        primia_jax.evaluate(config, local_run.workdir)


def kermany(folder, n=12, size=24):
    """A small folder in the Kermany layout, three classes told apart by brightness."""
    rng = np.random.default_rng(0)
    names = {"NORMAL": ["IM-{:04d}-0001.jpeg"],
             "PNEUMONIA": ["person{}_bacteria_1.jpeg", "person{}_virus_2.jpeg"]}  # fmt: skip
    for split, count in (("train", n), ("test", n // 2)):
        for kind, patterns in names.items():
            (folder / split / kind).mkdir(parents=True)
            for j, pattern in enumerate(patterns):
                for i in range(count):
                    level = 40 + 80 * (j + (kind != "NORMAL"))
                    pixels = rng.normal(level, 15, (size, size + i)).clip(0, 255)
                    number = 1 + i + 1000 * j
                    path = folder / split / kind / pattern.format(number)
                    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_folders_train_too(tmp_path):
    kermany(tmp_path / "xray")
    config = smoke_config(source="folder", path=str(tmp_path / "xray"), partition="iid")
    metrics = primia_jax.train(config, tmp_path / "run").metrics
    assert metrics["test"]["n"] == 18
    assert set(metrics["test"]["sensitivity"]) == {"normal", "bacterial", "viral"}


def test_every_hospital_with_its_own_path(tmp_path):
    for i in range(3):
        kermany(tmp_path / f"hospital_{i}")
    config = smoke_config(
        source="folder",
        path=str(tmp_path / "{site}" / "train"),
        test_path=str(tmp_path / "hospital_0" / "test"),
    )
    metrics = primia_jax.train(config, tmp_path / "run").metrics
    assert metrics["test"]["n"] == 18


def _check_evaluation_of_another_folder(config, tmp_path):
    """As the data's path a part of it is judged, and that is said; as the test path all of it."""
    rng = np.random.default_rng(7)
    for name in ("NORMAL/IM-{:04d}-0001.png", "PNEUMONIA/person{}_bacteria_1.png",
                 "PNEUMONIA/person{}_virus_1.png"):  # fmt: skip
        for i in range(5000, 5010):
            path = tmp_path / "unseen" / name.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8)).save(path)
    other = config.copy_and_resolve_references()
    other.data.path = str(tmp_path / "unseen")
    part = primia_jax.evaluate(other, tmp_path / "run")
    assert part["n"] < 30 and f"{part['n']} of 30 images" in part["warnings"][0]
    other.data.path, other.data.test_path = "", str(tmp_path / "unseen")
    whole = primia_jax.evaluate(other, tmp_path / "run")
    assert whole["n"] == 30 and "warnings" not in whole


def test_other_images_than_those_trained_on(tmp_path):
    """A file more re-draws the split: the test images would no longer be unseen."""
    kermany(tmp_path / "xray")
    for split in ("NORMAL", "PNEUMONIA"):
        for path in (tmp_path / "xray" / "test" / split).iterdir():
            name = path.name.replace("IM-0", "IM-7").replace("person", "person77")
            path.rename(tmp_path / "xray" / "train" / split / name)
        (tmp_path / "xray" / "test" / split).rmdir()
    (tmp_path / "xray" / "test").rmdir()
    folder = tmp_path / "xray" / "train"
    config = smoke_config(source="folder", path=str(folder), partition="iid")
    config.federated.rounds = 1
    primia_jax.train(config, tmp_path / "run")
    assert "warnings" not in primia_jax.evaluate(config, tmp_path / "run")
    _check_evaluation_of_another_folder(config, tmp_path)
    config.seed = 5
    with pytest.raises(DataError, match=r"test images were used in training.*test_path") as caught:
        primia_jax.evaluate(config, tmp_path / "run")
    count = int(str(caught.value).split()[0])
    listed = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert len(listed) == count and all((folder / name).exists() for name in listed)
    config.seed = 0
    Image.fromarray(np.full((30, 30), 99, np.uint8)).save(
        tmp_path / "xray" / "train" / "NORMAL" / "IM-9999-0001.jpeg"
    )
    with pytest.raises(DataError, match="the images are no longer those"):
        primia_jax.train(config, tmp_path / "run", resume=True)


def test_a_class_without_test_images_and_sums_over_two_are_warned_of_at_the_start(tmp_path):
    kermany(tmp_path / "xray")
    for path in (tmp_path / "xray" / "test" / "PNEUMONIA").glob("*virus*"):
        path.unlink()
    config = smoke_config(source="folder", path=str(tmp_path / "xray"), partition="iid")
    config.federated.rounds = 1
    config.federated.hospitals = config.secure_aggregation.min_participants = 2
    shown = io.StringIO()
    warnings = primia_jax.train(config, tmp_path / "run", stream=shown).warnings
    assert len([text for text in warnings if "no test image is of class viral" in text]) == 1
    assert len([text for text in warnings if "each of them learns the other's update" in text]) == 1
    text = " ".join(shown.getvalue().split())
    for warning in ("no test image is of class viral", "each of them learns the other's update"):
        assert text.index(f"{warning}") < text.index("round 1"), "said before training"


def test_resuming_without_the_log_still_ends(tmp_path):
    config = smoke_config("federated")
    config.federated.rounds = 2
    first = primia_jax.train(config, tmp_path).metrics
    (tmp_path / "rounds.jsonl").unlink()
    again = primia_jax.train(config, tmp_path, resume=True).metrics
    lost = {"validation": None, "score": {"name": "MCC", "value": None}}
    assert again == {**first, **lost}


def test_what_is_left_of_a_run_is_never_mixed_into_another(tmp_path):
    config = smoke_config("federated")
    config.federated.rounds = 1
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "site": "all"}\n')
    primia_jax.train(config, tmp_path)
    assert len(Workdir(tmp_path).rounds()) == 4
    assert (tmp_path / "previous" / "1" / "rounds.jsonl").exists()


def test_more_hospitals_than_patients(tmp_path):
    kermany(tmp_path / "xray", n=2)
    config = smoke_config(source="folder", path=str(tmp_path / "xray"), partition="iid")
    config.federated.hospitals = 40
    with pytest.raises(DataError, match=r"patients.*40 hospitals"):
        primia_jax.train(config, tmp_path / "run")


def test_a_run_that_ended_early_is_not_trained_on(tmp_path):
    config = smoke_config("federated")
    config.model.norm = "group"
    config.training.learning_rate = config.training.end_learning_rate = 0.0
    config.federated.early_stopping.update(enabled=True, check_every=2, stop_after_rounds=1)
    first = primia_jax.train(config, tmp_path).metrics
    assert first["rounds"] < config.federated.rounds
    assert primia_jax.train(config, tmp_path, resume=True).metrics == first


@pytest.mark.parametrize("mode", ("federated", "federated_secure"))
def test_messages_of_a_training_are_sealed_between_actors(mode, monkeypatch, tmp_path):
    """Old code sent models, and in mode `federated` every hospital's update, in the open."""
    given = {}

    def driver(*arguments, **options):
        given.update(inspect.signature(RayDriver).bind(*arguments, **options).arguments)
        raise ClusterError("no party is there")

    RayDriver = ray_driver.RayDriver
    monkeypatch.setattr(ray_driver, "cluster", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(ray_driver, "RayDriver", driver)
    with pytest.raises(ClusterError):
        primia_jax.train(smoke_config(mode, "ray"), tmp_path)
    assert given["sealed"] is True
