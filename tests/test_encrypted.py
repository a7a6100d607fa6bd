"""Encrypted diagnosis of files: what `predict` says, the files it leaves, and its mistakes.

One tiny network, trained for one round, is diagnosed with in this process, by the command line, and
with real actors.
"""

import csv
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import traceback
from typing import ClassVar

import jax
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

import primia_jax
from primia_jax import encrypted, experiment
from primia_jax.config import to_plain
from primia_jax.encrypted import description, parties, predicting
from primia_jax.encrypted.parties import Received
from primia_jax.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    ProtocolError,
    StorageError,
)
from primia_jax.experiment import checked
from primia_jax.mpc import inference
from primia_jax.runtime import LocalDriver

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import smoke  # noqa: E402

SETTINGS = {
    "data.image_size": 16,
    "data.dicom_guard": "warn",  # there is a CT slice among the films
    "data.phantom.n_train": 60,
    "data.phantom.n_test": 15,
    "model.width": 4,
    "model.pooling": "avg",
    "federated.mode": "local",
    "federated.rounds": 1,
    "training.learning_rate": 0.05,  # so large that the classes are told apart at once
    "runtime.driver": "local",
    "evaluation.bootstrap": 10,
}
PARTIES = {"data_owner", "model_owner", "crypto_provider"}
CLOSE = 0.005  # of probabilities: fixed point, and signs of values near zero


def make_config(**others):
    config = smoke.get_config()
    config.update_from_flattened_dict({**SETTINGS, **others})
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return primia_jax.train(make_config(), tmp_path_factory.mktemp("trained")).workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """The trained model in a folder of the test's own, nothing encrypted yet."""
    return shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("encrypted*"))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A picture of 8 bits, a CT slice of pydicom's in a folder of its own, and what is no image."""
    folder = tmp_path_factory.mktemp("films")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 31))
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "film.png")
    (folder / "inner").mkdir()
    shutil.copy(str(get_testdata_file("CT_small.dcm", download=False)), folder / "inner" / "ct.dcm")
    (folder / "notes.png").write_text("not an image")
    return folder


def rows(folder):
    """The rows of diagnosed images."""
    table = csv.DictReader((folder / "predictions.csv").open())
    return [row for row in table if row["class"]]


def check_predictions(secret, clear):
    """The same files, classes and probabilities."""
    assert secret.names == clear.names and secret.skipped == clear.skipped
    assert secret.class_names == clear.class_names
    np.testing.assert_allclose(secret.probabilities, clear.probabilities, atol=CLOSE)
    np.testing.assert_allclose(secret.probabilities.sum(1), 1, atol=1e-5)
    second, first = np.sort(clear.probabilities, axis=1)[:, -2:].T
    assert (first - second).min() > 2 * CLOSE, "too close to tell: train longer"
    assert secret.classes() == clear.classes()


def check_trace(path, count):
    """A trace viewer can open it: three processes, spans, and messages from one to another."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    trace = json.loads(path.read_text(), parse_constant=refuse)
    events = trace["traceEvents"]
    parties = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert set(parties.values()) == PARTIES and len(parties) == 3
    assert {e["ph"] for e in events} == {"M", "X", "s", "f"}
    assert all(e["pid"] in parties and e["name"] for e in events)
    spans = [e for e in events if e["ph"] == "X"]
    assert {parties[e["pid"]] for e in spans} == PARTIES
    assert all(e["ts"] >= 0 and e["dur"] > 0 for e in spans)
    assert {"image", "outputs"} <= {e["name"] for e in spans}
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys()
    for key, start in starts.items():
        assert start["ts"] <= ends[key]["ts"] and start["pid"] != ends[key]["pid"]
    images = trace["otherData"]["images"]
    assert [image["image"] for image in images] == list(range(1, count + 1))
    assert sum(e["args"]["bytes"] for e in starts.values()) == images[0]["bytes_sent"] > 0
    assert len({image["bytes_sent"] for image in images}) == 1, "every image costs the same"
    assert all(image["seconds"] > 0 and image["round_trips"] >= 4 for image in images)


@pytest.mark.parametrize("chosen", ("", "film.png", "inner/ct.dcm"), ids=("folder", "png", "dicom"))
def test_diagnoses_are_those_of_predict(chosen, workdir, films):
    steps = []
    diagnosis = primia_jax.predict_encrypted(
        make_config(),
        str(workdir),
        films / chosen,
        progress=lambda done, total, trace: steps.append((done, total, trace)),
    )
    secret = primia_jax.read_predictions(diagnosis.folder)
    clear = primia_jax.predict(make_config(), workdir, films / chosen)
    check_predictions(secret, clear)
    assert secret.names == ([pathlib.Path(chosen).name] if chosen else ["film.png", "inner/ct.dcm"])
    assert [name for name, _ in secret.skipped] == ([] if chosen else ["notes.png"])

    for name, remark in zip(secret.names, secret.remarks):
        assert remark.startswith("modality CT") == name.endswith("ct.dcm")
    count = diagnosis.images
    assert count == len(secret.names)
    assert [(done, total) for done, total, _ in steps] == [(i, count) for i in range(count + 1)]
    assert tuple(trace for _, _, trace in steps) == (None, *diagnosis.traces)
    check_trace(workdir / "trace.json", count)


# --- who gets the diagnosis


class Recorded(LocalDriver):
    """A driver that keeps all reports; they are what whoever operates the run is told."""

    reports: ClassVar[list] = []

    def run(self, *arguments, **more):
        reports, trace = super().run(*arguments, **more)
        self.reports.append(reports)
        return reports, trace


def test_only_the_data_owners_folder_holds_anything_of_an_image(
    workdir, tmp_path, monkeypatch, capfd
):
    """Old code reported names and probabilities to the operator and wrote them into the workdir."""
    monkeypatch.setattr(experiment, "LocalDriver", Recorded)
    monkeypatch.setattr(Recorded, "reports", [])
    images, own = tmp_path / "patients", tmp_path / "own"
    images.mkdir()
    own.mkdir()
    own.chmod(0o755)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20)).astype(np.uint8)
    Image.fromarray(pixels).save(images / "DOE_JANE.png")
    (images / "ROE_JOHN.png").write_text("not an image")
    before = set(workdir.rglob("*"))
    config = make_config(**{"runtime.data_owner_folder": str(own)})
    diagnosis = primia_jax.predict_encrypted(config, workdir, images)

    told = [report for reports in Recorded.reports for report in reports.values()]
    assert {report for report in told if report is not None} == {Received(images=1)}
    assert {field.name for field in dataclasses.fields(diagnosis)} == {"images", "traces", "folder"}

    secret = primia_jax.read_predictions(own)
    assert secret.names == ["DOE_JANE.png"] and secret.skipped[0][0] == "ROE_JOHN.png"
    secrets = ["DOE", "ROE", "JANE", "JOHN", *(f"{p:.6f}" for p in secret.probabilities[0])]
    written = {path for path in workdir.rglob("*") if path.is_file()} - before
    assert {path.name for path in written} >= {"trace.json", "encrypted.json"}
    texts = [path.read_bytes().decode("latin-1") for path in written]
    texts += [repr(diagnosis), repr(Recorded.reports), *capfd.readouterr()]
    for text in texts:
        assert not [secret for secret in secrets if secret in text]
    assert own.stat().st_mode & 0o777 == 0o755  # it was there
    assert (own / "predictions.csv").stat().st_mode & 0o777 == 0o600


def test_one_diagnosis_at_a_time_writes_into_the_data_owners_folder(tmp_path):
    """From whatever workdirs; old code had the later one replace the table of the other."""
    config = experiment.checked(make_config())
    own = tmp_path / "own"

    def begun(run):
        maker = parties.party_makers(config, tmp_path, str(tmp_path), own, run)["data_owner"]
        return next(parties.introduction()["data_owner"](maker()))

    try:
        begun("first")  # waits for the model owner
        begun("first")
        (own / "predictions.csv").write_text("of the first run")
        with pytest.raises(StorageError, match="another encrypted diagnosis writes into"):
            begun("second")
        parties.release("second")
        with pytest.raises(StorageError, match="another encrypted diagnosis writes into"):
            begun("second")
        assert (own / "predictions.csv").read_text() == "of the first run"
        parties.release("first")
        begun("second")
        assert not (own / "predictions.csv").exists()
    finally:
        parties.release("first"), parties.release("second")


def test_what_is_wrong_with_files_stays_with_the_data_owner(workdir, films, tmp_path):
    folder = tmp_path / "DOE_JANE"
    shutil.copytree(films, folder, ignore=lambda *_: ["film.png", "inner"])
    with pytest.raises(DataError, match=r"see .*data_owner/errors\.txt") as caught:
        primia_jax.predict_encrypted(make_config(), workdir, folder)
    assert "notes.png" not in str(caught.value)
    errors = workdir / "data_owner" / "errors.txt"
    assert "notes.png" in errors.read_text() and errors.stat().st_mode & 0o777 == 0o600
    table = primia_jax.read_predictions(workdir / "data_owner")
    assert table.names == [] and [name for name, _ in table.skipped] == ["notes.png"]


def failing_at(monkeypatch, at, error):
    """Has the data owner's part fail at its image number `at`."""
    original, count = parties._Outcome, []

    def outcome(*arguments):
        count.append(1)
        if len(count) == at:
            raise error
        return original(*arguments)

    monkeypatch.setattr(parties, "_Outcome", outcome)


def test_errors_of_the_data_owner_stay_with_it_and_diagnoses_before_them_too(
    workdir, films, monkeypatch
):
    """Its decoders, JAX and the protocol may quote an image in any exception."""
    own = workdir / "data_owner"
    own.mkdir()
    for name in ("predictions.csv", "errors.txt"):
        (own / name).write_text("of an earlier run")
    with monkeypatch.context() as patched:
        failing_at(patched, 2, ValueError("DOE JANE"))
        with pytest.raises(DataError, match=r"image 2 cannot be diagnosed; see .*errors\.txt") as e:
            primia_jax.predict_encrypted(make_config(), workdir, films)
    assert "DOE" not in "".join(traceback.format_exception(e.value))
    assert "DOE JANE" in (own / "errors.txt").read_text()
    partly = primia_jax.read_predictions(own)
    assert partly.names == ["film.png"]
    assert ("inner/ct.dcm", "not diagnosed: the run ended before") in partly.skipped
    assert (own / "previous" / "1" / "predictions.csv").read_text() == "of an earlier run"

    def unreadable(*_):
        raise RuntimeError("DOE JANE")

    monkeypatch.setattr(parties, "read_inputs", unreadable)
    with pytest.raises(DataError, match="no image can be used; see") as e:
        primia_jax.predict_encrypted(make_config(), workdir, films)
    assert "DOE" not in "".join(traceback.format_exception(e.value))
    assert "DOE JANE" in (own / "errors.txt").read_text()
    assert not (own / "predictions.csv").exists()


def test_without_a_margin_a_white_pixel_is_within_the_range(workdir, tmp_path):
    Image.fromarray(np.full((20, 20), 255, np.uint8)).save(tmp_path / "white.png")
    config = make_config(**{"mpc.margin": 1.0})  # where layers leave their ranges, it is flagged
    diagnosis = primia_jax.predict_encrypted(config, workdir, tmp_path / "white.png")
    secret = primia_jax.read_predictions(diagnosis.folder)
    clear = primia_jax.predict(config, workdir, tmp_path / "white.png")
    is_close = np.allclose(secret.probabilities, clear.probabilities, atol=CLOSE)
    assert secret.in_range == (False,) or is_close


def test_the_operator_opens_neither_the_model_nor_the_images(workdir, films, monkeypatch):
    """Every party's files are opened in its own process; here, by its own program."""
    opened = []

    class Empty(LocalDriver):
        def __init__(self, parties, *arguments, **more):
            super().__init__(dict.fromkeys(parties, lambda: None), *arguments, **more)

        def run(self, programs, *arguments, **more):
            opened.append(sorted(programs))
            raise ClusterError("no party is there")

    monkeypatch.setattr(experiment, "LocalDriver", Empty)
    for module, name in ((description, "load_trained"), (parties, "read_inputs")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("opened by the operator"))
    monkeypatch.setattr(description, "make_test_plan", lambda *_: pytest.fail("calibrated"))
    with pytest.raises(ClusterError):
        primia_jax.predict_encrypted(make_config(), workdir, films)
    assert opened == [sorted(PARTIES)]


def test_latency_of_the_configuration_is_paid(workdir, films):
    config = make_config(**{"runtime.latency_s": 10.0})
    diagnosis = primia_jax.predict_encrypted(config, workdir, films / "film.png")
    (trace,) = diagnosis.traces
    assert trace.seconds > 2 * 10.0 * trace.round_trips


# --- what all parties know of the model


def test_the_description_is_stored_and_used_again(workdir, monkeypatch):
    config, path = checked(make_config()), workdir / "checkpoints" / description.FILE
    first = encrypted.describe(config, workdir)
    stored = json.loads(path.read_text())
    assert set(stored) == {f.name for f in dataclasses.fields(first)} | {"digest", "remarks"}
    assert "digest" not in first.to_plain(), "others would recognise weights by it"
    assert "remarks" not in first.to_plain(), "they follow from weights and images"
    assert stored["mpc"] == to_plain(config.mpc) and stored["ranges"]["image"] == 1.0
    assert not any(isinstance(value, list) and len(value) > 100 for value in stored.values())

    def refuse(config):
        raise AssertionError("calibrated again")

    monkeypatch.setattr(description, "make_test_plan", refuse)
    assert encrypted.describe(config, workdir) == first
    assert json.loads(path.read_text()) == stored


@pytest.mark.parametrize(
    "changed", ({"margin": 3.0}, {"ring_bits": 64, "effective_bits": 20}, {"sign_slack_bits": 0})
)
def test_other_settings_make_it_anew(changed, workdir):
    path = workdir / "checkpoints" / description.FILE
    first = encrypted.describe(checked(make_config()), workdir)
    others = {f"mpc.{key}": value for key, value in changed.items()}
    second = encrypted.describe(checked(make_config(**others)), workdir)
    ranges = first.ranges._replace(headroom=second.ranges.headroom)  # follows the settings
    mpc = dataclasses.replace(first.mpc, **changed)
    assert second == dataclasses.replace(first, mpc=mpc, ranges=ranges)
    assert json.loads(path.read_text())["mpc"] == to_plain(second.mpc)
    assert second.circuit().fingerprint != first.circuit().fingerprint


def test_a_model_that_rounding_spoils_is_reported_to_its_owner_alone(workdir):
    """Each time, by a line without figures: these follow from weights and images."""
    config, path = checked(make_config(**{"mpc.sign_tolerance": 1.0})), description.FILE
    for _ in range(2):  # made, and read again
        with pytest.warns(
            inference.PrecisionWarning, match=r"see remarks in .*encrypted\.json"
        ) as caught:
            made = encrypted.describe(config, workdir)
        assert len(caught) == 1 and "%" not in str(caught[0].message)
    (remark,) = json.loads((workdir / "checkpoints" / path).read_text())["remarks"]
    assert "% of their root mean square" in remark
    assert b"remark" not in made.message()["description"].tobytes()


def test_training_anew_takes_the_description_along(workdir, films):
    """It belongs to the model that is moved aside."""
    encrypted.describe(checked(make_config()), workdir)
    primia_jax.train(make_config(seed=1), workdir)
    assert not (workdir / "checkpoints" / description.FILE).exists()
    assert (workdir / "previous" / "1" / "checkpoints" / description.FILE).exists()


def test_a_damaged_description_is_told(workdir):
    config, path = checked(make_config()), workdir / "checkpoints" / description.FILE
    encrypted.describe(config, workdir)
    path.write_text(path.read_text()[:100])
    with pytest.raises(CheckpointError, match=r"encrypted\.json cannot be read"):
        encrypted.describe(config, workdir)


def test_other_weights_or_a_changed_file_calibrate_anew(workdir, monkeypatch):
    """Ranges of another model would flag nothing and prove nothing."""
    config, path = checked(make_config()), workdir / "checkpoints" / description.FILE
    first = encrypted.describe(config, workdir)
    good = path.read_text()
    model = description.load_trained(workdir, config)
    scaled = jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(40), model.variables)
    other = encrypted.describe(config, workdir, dataclasses.replace(model, variables=scaled))
    assert other.ranges.outputs != first.ranges.outputs
    calls, original = [], inference.calibrated
    monkeypatch.setattr(
        inference, "calibrated", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    damaged = ('"image": NaN', '"image": -1.0', '"image": "x"', '"image": null', '"image": 2.0')
    texts = [good.replace('"image": 1.0', change) for change in damaged]
    for text in [*texts[:: len(texts) - 1], "{}"]:  # each calibrates for a second
        path.write_text(text)
        assert encrypted.describe(config, workdir) == first
        assert path.read_text() == good
    assert len(calls) == 3
    for text in ("[]", "7", "{"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"encrypted\.json cannot be read"):
            encrypted.describe(config, workdir)


def _changed(plain, **changes):
    for key, value in changes.items():
        plain[key] = value
    return {"description": np.frombuffer(json.dumps(plain).encode(), np.uint8)}


def test_a_description_travels_as_it_is_and_nothing_else_is_taken(workdir):
    config = checked(make_config())
    first = encrypted.describe(config, workdir)
    assert description.received(first.message(), config.mpc) == first
    assert "/" not in first.message()["description"].tobytes().decode(), "a path of the owner's"
    other = dataclasses.replace(config.mpc, margin=3.0)
    with pytest.raises(ProtocolError, match=r"another config\.mpc"):
        description.received(first.message(), other)
    ranges = first.to_plain()["ranges"]
    short = first.ranges._replace(gates=first.ranges.gates[1:])
    with pytest.raises(ProtocolError, match="ranges of gates are not those of its network"):
        dataclasses.replace(first, ranges=short).circuit()
    wrong = (
        {"image_size": 10**9}, {"image_size": "16"}, {"class_names": [1, 2]}, {"round": None},
        {"ranges": {"image": float("nan")}}, {"ranges": {}}, {"model": {"name": "lent"}},
        *({"ranges": {**ranges, **bad}} for bad in (
            {"image": -1.0}, {"image": [1.0]}, {"gates": None}, {"outputs": [float("inf")]},
            {"headroom": [0.5]}, {"spreads": [-1.0]}, {"products": ["x"]},
        )),
    )  # fmt: skip
    for changes in wrong:
        with pytest.raises(ProtocolError, match="description cannot be used") as caught:
            description.received(_changed(first.to_plain(), **changes), config.mpc)
        assert "\n" not in str(caught.value)
    for message in ({}, {"description": np.zeros(3, np.uint8)}, np.zeros(2)):
        with pytest.raises(ProtocolError, match="description cannot be used"):
            description.received(message, config.mpc)


# --- mistakes


def test_mistakes_are_named(workdir, films, tmp_path):
    def diagnose(path=films / "film.png", folder=workdir, **settings):
        primia_jax.predict_encrypted(make_config(**settings), folder, path)

    with pytest.raises(CheckpointError, match=r"model\.width = 4.*--config\.model\.width=4"):
        diagnose(**{"model.width": 8})
    with pytest.raises(DataError, match="nothing: no such file or folder"):
        diagnose(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no image can be used; see .*errors\.txt"):
        diagnose(films / "notes.png")
    with pytest.raises(ConfigError, match=r"config\.mpc\.effective_bits = 31"):
        diagnose(**{"mpc.effective_bits": 31})
    with pytest.raises(ConfigError, match="ray_address"):
        primia_jax.predict_encrypted(make_config(), workdir, films, ray_address="auto")
    (table,) = workdir.rglob("predictions.csv")  # of notes.png
    assert "data_owner" in table.parts and not (workdir / "trace.json").exists()


def test_without_a_model_no_party_is_started(films, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "open_driver", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*--mode=train"):
        primia_jax.predict_encrypted(make_config(), tmp_path, films)


def launch(*arguments, **settings):
    flags = [f"--config.{key}={value}" for key, value in {**SETTINGS, **settings}.items()]
    command = [sys.executable, "-m", "primia_jax.launch", "--config=configs/smoke.py"]
    return subprocess.run([*command, *flags, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    (
        (["--mode=predict", "--input={empty}", "--workdir={empty}"], 4, ["no checkpoint"]),
        (["--mode=predict", "--workdir={run}"], 2, ["--input"]),
        (["--mode=train", "--workdir={empty}"], 2, ["--encrypted", "--mode=train"]),
        (
            ["--mode=predict", "--input={empty}", "--workdir={run}"],
            3,
            ["no image can be used", "errors.txt"],
        ),
    ),
    ids=("no model", "no input", "training", "no images"),
)
def test_a_mistake_is_one_line(arguments, code, words, trained, tmp_path):
    paths = {"empty": tmp_path, "run": trained}
    result = launch("--encrypted", *(argument.format(**paths) for argument in arguments))
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("primia_jax: "), result.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("protocol", (pytest.param("ariann", marks=pytest.mark.slow), "securenn"))
def test_published_protocols_say_the_same(protocol, workdir, films):
    config = make_config(**{"mpc.protocol": protocol, "mpc.ariann_compare_bits": 64})
    diagnosis = primia_jax.predict_encrypted(config, workdir, films / "film.png")
    secret = primia_jax.read_predictions(diagnosis.folder)
    check_predictions(secret, primia_jax.predict(config, workdir, films / "film.png"))
    check_trace(workdir / "trace.json", 1)


@pytest.mark.parametrize("protocol", ("fss", pytest.param("securenn", marks=pytest.mark.slow)))
def test_real_actors(protocol, workdir, films):
    """By the command line, every message sealed and through Ray."""
    result = launch(
        "--mode=predict",
        "--encrypted",
        f"--input={films}",
        f"--workdir={workdir}",
        **{"runtime.driver": "ray", "runtime.threads": 1, "mpc.protocol": protocol},
    )
    assert result.returncode == 0, result.stderr
    check_trace(workdir / "trace.json", 2)
    secret = primia_jax.read_predictions(workdir / "data_owner")
    check_predictions(secret, primia_jax.predict(make_config(), workdir, films))
    for words in ("diagnosed 2 images", "data_owner/predictions.csv", "between the three parties"):
        assert words in result.stdout, result.stdout
    assert "round trips" in result.stdout and "encrypted diagnosis" in result.stdout
    assert "film" not in result.stdout.replace(str(films), "") and "notes" not in result.stdout
    for party, peer in (("data_owner", "model_owner"), ("crypto_provider", "data_owner")):
        assert (workdir / party / "identity.key").stat().st_mode & 0o777 == 0o600
        assert peer in json.loads((workdir / party / "peers.json").read_text())
