"""Protects the whole study: what it trains and leaves, that mistakes come first, and resuming."""

import json
import pathlib
import runpy
import shutil

import jax
import numpy as np
import pytest

import primia_jax
from primia_jax.campaigns.study import check, running
from primia_jax.config import ExperimentConfig, from_config_dict, to_config_dict
from primia_jax.core import storage
from primia_jax.errors import ConfigError, DataError
from primia_jax.experiment import checked
from primia_jax.federated.trained_model import load_trained
from tests.campaigns.study import made_up

ROOT = pathlib.Path(__file__).parents[3]
MODES = ("federated_secure", "federated", "local")


def _config(**study):
    config = to_config_dict(ExperimentConfig())
    config.name = "tiny"
    config.data.image_size = 16
    config.data.phantom.n_train = 180
    config.data.phantom.n_test = 45
    config.data.phantom.difficulty = 0.0
    config.model.name = "simple"
    config.model.width = 4
    config.training.batch_size = 8
    config.training.learning_rate = 1e-2
    config.federated.rounds = 2
    config.evaluation.bootstrap = 100
    config.runtime.driver = "local"
    config.runtime.threads = 1
    config.study.seeds = (2,)
    config.study.second_n_test = 30
    config.study.min_per_class = 3
    config.study.update(study)
    return config


def _attack(config, folder, resume, progress):
    progress("local", 0, 1)
    return made_up.inversion()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study from end to end; only the attack is made up."""
    folder = tmp_path_factory.mktemp("study")
    said = []
    study = primia_jax.study(
        _config(), folder, command="the <command>", attack=_attack,
        progress=lambda *what: said.append(what),
    )  # fmt: skip
    return study, said


def test_a_study_leaves_every_file(finished):
    study, said = finished
    tables = json.loads((study.workdir / "tables.json").read_text())
    assert {"table_1a", "table_1b", "table_1c", "inversion", "equivalence"} <= set(tables)
    assert tables["inversion"]["rows"] and tables["equivalence"]["test_2"]["verdict"]
    assert [r["key"] for r in tables["table_1a"]["raters"]] == list(MODES)
    for mode in MODES:
        assert (study.workdir / f"{mode}_2" / "metrics.json").exists()
    html = (study.workdir / "report.html").read_text()
    assert "the &lt;command&gt;" in html and "Model inversion" in html
    assert (study.workdir / "tables.md").stat().st_size
    totals = {total for _, _, total in said}
    assert said[-1] == ("done", 5, 5) and totals == {5}


def test_every_mode_is_judged_on_the_same_images_as_its_own_run(finished):
    """Test Set 1 of the study is that of each run: the scores are the same."""
    study, _ = finished
    for row in study.tables["table_1a"]["raters"]:
        own = json.loads((study.workdir / f"{row['key']}_2" / "metrics.json").read_text())
        scores = row["sets"]["test_1"]
        for name in ("mcc", "accuracy", "roc_auc"):
            assert scores[name]["mean"] == pytest.approx(own["test"][name]), (row["key"], name)
        validated = row["sets"]["validation"]["mcc"]["mean"]
        assert validated == pytest.approx(own["validation"]["mcc"]), row["key"]
    lines = (study.workdir / "predictions.csv").read_text().splitlines()
    sizes = sum(part["n"] for part in study.tables["sets"].values())
    assert len(lines) == 1 + sizes * len(MODES)


def test_all_modes_start_from_the_same_model_and_train_on_the_same_images(tmp_path):
    """Without a learning rate the weights stay as they were: the same in all modes.

    The secure sum rounds to 24 fractional bits.
    """
    config = _config(inversion=False, modes=("federated_secure", "local"))
    config.training.learning_rate = 0.0
    config.training.end_learning_rate = 0.0
    config.federated.rounds = 1
    primia_jax.study(config, tmp_path)
    weights = {
        mode: load_trained(tmp_path / f"{mode}_2", checked(config)).variables["params"]
        for mode in ("federated_secure", "local")
    }
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2**-23, rtol=0), *weights.values()
    )
    used = [json.loads((tmp_path / f"{mode}_2" / "data.json").read_text()) for mode in weights]
    assert used[0] == used[1]


def test_the_local_batch_is_that_of_all_hospitals():
    for pooled, expected in ((True, 24), (False, 8)):
        config = checked(_config(pooled_batch=pooled, seeds=(0, 7)))
        runs = {(mode, seed): settings for mode, seed, settings in running._runs(config)}
        assert len(runs) == 6
        assert runs["local", 7].training.batch_size == expected
        assert runs["federated", 7].training.batch_size == 8
        assert {s.data.seed for s in runs.values()} == {0}
        assert {seed: s.seed for (_, seed), s in runs.items()} == {0: 0, 7: 7}


def test_resuming_trains_only_what_is_missing(finished, monkeypatch, tmp_path):
    """A finished run is kept; one that was cut off goes on; readings may be added."""
    study, _ = finished
    folder = tmp_path / "D"
    shutil.copytree(study.workdir, folder)
    trained = []
    train = primia_jax.train
    monkeypatch.setattr(
        running.experiment, "train",
        lambda settings, folder, **kw: trained.append(folder.name) or train(settings, folder, **kw),
    )  # fmt: skip
    (folder / "federated_2" / "report.html").unlink()
    before = (folder / "local_2" / "rounds.jsonl").stat().st_mtime_ns
    readings = tmp_path / "readings.csv"
    names = running.gather(checked(_config())).sets[1].names
    readings.write_text(
        "image,reader,label\n" + "".join(f"{n},{r},viral\n" for n in names for r in ("A", "B"))
    )
    again = primia_jax.study(_config(readers=str(readings)), folder, resume=True, attack=_attack)
    assert trained == ["federated_2"]
    assert (folder / "local_2" / "rounds.jsonl").stat().st_mtime_ns >= before
    assert again.tables["table_1a"]["raters"][:3] == study.tables["table_1a"]["raters"]
    assert [r["title"] for r in again.tables["table_1a"]["raters"]][3:] == ["A", "B"]
    other = _config()
    other.training.learning_rate = 2e-2
    with pytest.raises(ConfigError, match=r"training\.learning_rate"):
        primia_jax.study(other, folder, resume=True, attack=_attack)


def test_an_earlier_study_is_moved_aside(tmp_path):
    (tmp_path / "local_2").mkdir()
    (tmp_path / "tables.json").write_text("old")
    (tmp_path / "mine.txt").write_text("kept")
    storage.move_aside(tmp_path, running._own(tmp_path))
    assert (tmp_path / "previous" / "1" / "tables.json").read_text() == "old"
    assert (tmp_path / "previous" / "1" / "local_2").is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "previous"]


def test_a_failing_attack_costs_no_tables(finished, tmp_path):
    study, _ = finished
    folder = tmp_path / "D"
    shutil.copytree(study.workdir, folder)

    def fails(*_):
        raise ConfigError("config.audit.settings: no")

    with pytest.raises(ConfigError, match="audit"):
        primia_jax.study(_config(), folder, resume=True, attack=fails)
    tables = json.loads((folder / "tables.json").read_text())
    assert tables["table_1a"]["raters"] and tables["inversion"] is None


@pytest.mark.parametrize(
    ("study", "error", "message"),
    [
        ({"seeds": ()}, ConfigError, r"config.study.seeds = \(\): name at least one"),
        ({"seeds": (1, 1)}, ConfigError, "each of them once"),
        ({"modes": ("local", "federate")}, ConfigError, "'federate' is none of federated_secure"),
        ({"modes": ("local", "federated")}, ConfigError, "'federated_secure' is missing"),
        ({"readers": "/nowhere.csv"}, DataError, "/nowhere.csv cannot be read"),
        ({"min_per_class": 30}, DataError, "is too small"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(tmp_path, study, error, message):
    folder = tmp_path / "D"
    with pytest.raises(error, match=message):
        primia_jax.study(_config(**study), folder)
    assert not folder.exists()


def test_a_mistake_in_the_readings_leaves_an_earlier_study_alone(finished, tmp_path):
    study, _ = finished
    readings = tmp_path / "readings.csv"
    readings.write_text("image,reader,label\nno.png,A,viral\n")
    before = sorted(path.name for path in study.workdir.iterdir())
    with pytest.raises(DataError, match="1 image is not in Test Set 1"):
        primia_jax.study(_config(readers=str(readings)), study.workdir)
    assert sorted(path.name for path in study.workdir.iterdir()) == before


@pytest.mark.parametrize("variant", ["full", "quick"])
def test_the_shipped_configuration_is_sound(variant):
    module = runpy.run_path(str(ROOT / "configs" / "study.py"))
    config = checked(from_config_dict(ExperimentConfig, module["get_config"](variant)))
    check(config)
    running.gather(config)
    with pytest.raises(ConfigError, match="there are full and quick"):
        module["get_config"]("other")
