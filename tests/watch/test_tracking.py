"""MLflow, where it is asked for: what is logged, and that no training is lost for it.

MLflow is not installed for the tests; `Mlflow` stands for it.
"""

import sys
import types
from collections import namedtuple

import pytest

import primia_jax
from primia_jax.config import ExperimentConfig, to_config_dict
from primia_jax.errors import ConfigError

Param = namedtuple("Param", "key value")
Metric = namedtuple("Metric", "key value timestamp step")


class Mlflow(types.ModuleType):
    """What of MLflow is used; it keeps what it was given."""

    def __init__(self):
        super().__init__("mlflow")
        self.uris, self.experiments, self.names, self.ended = [], {}, [], []
        self.params, self.metrics, self.files = {}, [], []
        self.broken = False

    def MlflowClient(self, tracking_uri):
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name):
        if name in self.experiments:
            return types.SimpleNamespace(experiment_id=self.experiments[name])
        return None

    def create_experiment(self, name):
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment_id, run_name):
        self.names.append((experiment_id, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run{len(self.names)}"))

    def update_run(self, run_id, status):
        self.ended.append((run_id, status))

    def log_batch(self, run_id, metrics=(), params=()):
        if self.broken:
            raise OSError("no route to host")
        assert len(params) <= 100
        self.params |= {(run_id, p.key): p.value for p in params}
        self.metrics += metrics

    def log_artifact(self, run_id, path):
        self.files.append(path.rpartition("/")[2])

    def set_terminated(self, run_id, status):
        self.ended.append((run_id, status))


@pytest.fixture
def mlflow(monkeypatch):
    module = Mlflow()
    entities = types.ModuleType("mlflow.entities")
    entities.Param, entities.Metric = Param, Metric
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return module


@pytest.fixture
def config():
    config = to_config_dict(ExperimentConfig())
    config.name = "films"
    config.data.image_size = 16
    config.data.phantom.update(n_train=60, n_test=6)
    config.model.update(name="simple", width=4)
    config.federated.update(rounds=2, sync_every=1, sync_unit="steps", mode="federated")
    for name in config.augmentation:
        if name.endswith("_p"):
            config.augmentation[name] = 0.0
    config.runtime.update(driver="local", mlflow="http://tracking:5000")
    return config


def test_a_run_and_its_resumption(mlflow, config, tmp_path):
    folder = tmp_path / "run"
    primia_jax.train(config, folder, judge=False, on_round=lambda line: False)
    assert mlflow.names == [("0", "run")] and mlflow.uris == ["http://tracking:5000"]
    assert mlflow.params["run1", "training.learning_rate"] == "0.001"
    assert mlflow.params["run1", "federated.early_stopping.enabled"] == "False"
    primia_jax.train(config, folder, resume=True)
    assert mlflow.ended == [("run1", "FINISHED"), ("run1", "RUNNING"), ("run1", "FINISHED")]
    logged = {(m.key, m.step): m.value for m in mlflow.metrics}
    for number in (1, 2):
        assert ("validation_mcc/all", number) in logged and ("loss/hospital_2", number) in logged
    assert ("test/accuracy", 0) in logged and ("validation/mcc", 0) in logged
    assert not any(key.startswith("round/") for key, _ in logged)
    assert mlflow.files.count("report.html") == 1 and "rounds.jsonl" in mlflow.files


def test_a_lost_server_costs_no_training(mlflow, config, tmp_path, capsys):
    def on_round(line):
        mlflow.broken = True
        return True

    result = primia_jax.train(config, tmp_path, judge=False, on_round=on_round)
    assert result.metrics["rounds"] == 2
    said = capsys.readouterr().out
    assert said.count("MLflow at http://tracking:5000 is no longer logged to: no route") == 1


def test_a_server_that_does_not_answer_is_told_before_the_training(mlflow, config, tmp_path):
    mlflow.broken = True
    with pytest.raises(ConfigError, match=r"config\.runtime\.mlflow = .*no route to host"):
        primia_jax.train(config, tmp_path)
    assert not (tmp_path / "rounds.jsonl").exists()


def test_without_mlflow_one_line_says_what_is_missing(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'primia_jax\[mlflow\]'") as caught:
        primia_jax.train(config, tmp_path)
    assert len(str(caught.value).splitlines()) == 1 and not list(tmp_path.iterdir())


def test_an_error_of_the_training_is_noted_and_passes_through(mlflow, config, tmp_path):
    def on_round(line):
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        primia_jax.train(config, tmp_path, judge=False, on_round=on_round)
    assert mlflow.ended == [("run1", "FAILED")]
