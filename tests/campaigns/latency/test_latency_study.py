"""The latency study: its statistics, its tables, and a tiny one from end to end."""

import csv
import dataclasses
import json
import math
import pathlib
import runpy

import flax.linen as nn
import numpy as np
import pytest
from scipy import stats

from primia_jax.campaigns.latency import Network, Study, campaign, check, report, run
from primia_jax.campaigns.latency.actors import in_cluster
from primia_jax.campaigns.latency.networks import NETWORKS, films
from primia_jax.campaigns.latency.results import Cell, Layer, Session, Validation, compare
from primia_jax.config import ExperimentConfig, LatencyStudyConfig, from_config_dict
from primia_jax.errors import ConfigError, DataError

TITLES = {"net": "A net", "other": "Another"}


def made_study():
    """Numbers that are easily checked: seconds are latency + what each protocol has of its own."""
    own = {"fss": (0.1, 0.2, 0.3), "ariann": (1.0, 1.1, 1.2), "securenn": (2.0, 2.2, 2.4)}
    cells = [
        Cell(network, protocol, latency, mbps, tuple(latency / 10 + s for s in seconds),
             (0.0, 0.1, 0.2), 1000, 0 if protocol == "securenn" else 10**6, 5.0)
        for network in ("net", "other")
        for protocol, seconds in own.items()
        for mbps in (10000.0, 1000.0)
        for latency in (0.0, 10.0, 100.0)
    ]  # fmt: skip
    layers = [Layer("net", p, stage, {"data_owner": 0.001, "model_owner": 0.002}, 500, 2)
              for p in own for stage in ("", "image", "relu", "outputs")]  # fmt: skip
    return Study(
        {"seed": 0, "latency_study": {"pooling": "avg"}, "mpc": {"ring_bits": 32}},
        {"processor": "made up", "cores": "2", "backend": "cpu", "begun": "never"},
        "a command",
        tuple(cells),
        tuple(layers),
        tuple(Session("net", p, 0.1, 10, 1e-4, ("<b>loud</b>",)) for p in own),
        (Validation("net", "fss", 10.0, 1000.0, (1.1, 1.3), (1.0, 1.0, 1.0)),),
    )


def test_the_test_is_students_with_pooled_variance():
    """By its formula (Student 1908), not only by the function that computes it."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 0.2, 20), rng.normal(1.3, 0.4, 15)
    pooled = (19 * a.var(ddof=1) + 14 * b.var(ddof=1)) / 33
    t = (a.mean() - b.mean()) / math.sqrt(pooled * (1 / 20 + 1 / 15))
    found = compare(a, b)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), 33))
    assert found.p_value == stats.ttest_ind(a, b).pvalue
    assert found.reduction_percent == pytest.approx(100 * (b.mean() - a.mean()) / b.mean())


def test_faster_is_a_positive_reduction_and_no_spread_no_test():
    assert compare([1.0, 1.0], [2.0, 2.0]) == (50.0, None)
    assert compare([3.0, 3.0], [2.0, 2.0]).reduction_percent == pytest.approx(-50)
    assert compare([1.0, 1.1], [1.1, 1.0]) == (pytest.approx(0), pytest.approx(1))


def test_cells_are_compared_with_the_baseline_under_the_same_link():
    study = made_study()
    cell = study.cell("net", "fss", 10.0, 1000.0)
    found = study.compared(cell)
    assert found.reduction_percent == pytest.approx(100 * (1 - 1.2 / 3.2))
    assert found.p_value == stats.ttest_ind([1.1, 1.2, 1.3], [3.0, 3.2, 3.4]).pvalue
    assert study.compared(study.cell("net", "securenn", 10.0, 1000.0)) == (None, None)
    without = dataclasses.replace(
        study, cells=tuple(c for c in study.cells if c.protocol != "securenn")
    )
    assert without.compared(cell) == (None, None)
    assert "against" not in " ".join(report.paper_table(without, 1000.0, TITLES).heads)


def test_every_line_has_plain_numbers():
    lines = [line for line in made_study().lines(["net"]) if line["benchmark"] == "protocols"]
    assert len(lines) == 3 * 2 * 3
    for line in lines:
        missing = {"reduction_vs_securenn", "p_value"} if line["protocol"] == "securenn" else set()
        for key in ("latency_ms", "bandwidth_mbps", "seconds", "seconds_sd", "online_bytes",
                    "key_bytes", "round_trips", "offline_seconds", "reduction_vs_securenn",
                    "p_value"):  # fmt: skip
            if key in missing:
                assert line[key] is None
            else:
                assert type(line[key]) in (int, float) and math.isfinite(line[key])
    assert json.loads(json.dumps(lines)) == lines


def test_the_table_has_the_papers_form():
    table = report.paper_table(made_study(), 1000.0, TITLES)
    assert table.heads == ["network", "latency", "fss, s", "ariann, s", "securenn, s",
                           "fss against securenn", "ariann against securenn",
                           "published"]  # fmt: skip
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[0] for row in rows] == ["A net", "", "", "Another", "", ""]
    assert rows[1][1:] == [
        "10 ms", "1.200 ± 0.100", "2.100 ± 0.100", "3.200 ± 0.200",
        "−62.5 %, p < 0.001", "−34.4 %, p = 0.001", "−35 %",
    ]  # fmt: skip
    assert [row[-1] for row in rows[:3]] == ["-", "−35 %", "−47 %"]


def test_a_study_comes_back_from_its_file(tmp_path):
    study = made_study()
    study.write(tmp_path / "study.json")
    assert Study.read(tmp_path / "study.json") == study
    for text in ("{", "[]", "{}", '{"format": 2}', '{"format": 1, "cells": [{"what": 1}]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match="no study that can be read"):
            Study.read(tmp_path / "bad.json")


def test_the_report_is_made_from_the_file_alone_and_escapes_names(tmp_path):
    report.write_report(made_study(), tmp_path, TITLES)
    page = (tmp_path / "report.html").read_text()
    assert "<b>loud</b>" not in page and "&lt;b&gt;loud" in page
    for word in (
        "−62.5 %, p &lt; 0.001",
        "arXiv:2012.06354",
        "A net",
        "masked",
        "1.20",
        "a command",
    ):
        assert word in page
    assert page.count("data:image/png") == 4  # latency, traffic, and the layers of two networks
    assert "http://" not in page and "https://" not in page and "<script" not in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"networks": ("lenet", "lent")}, "'lent' is none of lenet"),
        ({"networks": ("lenet", "lenet")}, "each of them once"),
        ({"protocols": ()}, "at least one"),
        ({"protocols": ("fs",)}, "did you mean 'fss'"),
        ({"latencies_ms": (10.0, 10.0)}, "latencies_ms"),
        ({"validated": "vgg"}, "config.latency_study.validated: 'vgg'"),
        ({"latencies_ms": (0.0, 100.0)}, "validation_latencies_ms: 10 is none of"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tmp_path, changes, words):
    config = ExperimentConfig(latency_study=dataclasses.replace(LatencyStudyConfig(), **changes))
    with pytest.raises(ConfigError, match=words):
        run(config, tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("variant", ["full", "quick"])
def test_the_shipped_study_names_what_there_is(variant):
    path = pathlib.Path(__file__).parents[3] / "configs" / "latency_study.py"
    config = runpy.run_path(str(path))["get_config"](variant)
    check(from_config_dict(ExperimentConfig, config).latency_study)


def test_lenet_is_the_published_one():
    """Its sizes, but for the full connections between its convolutions and the plain outputs."""
    params = NETWORKS["lenet"].params("avg", 0)["params"]
    shapes = {name: layer["kernel"].shape for name, layer in params.items()}
    assert shapes == {"Conv_0": (5, 5, 1, 6), "Conv_1": (5, 5, 6, 16), "Dense_0": (400, 120),
                      "Dense_1": (120, 84), "Dense_2": (84, 10)}  # fmt: skip


def test_films_are_fresh_and_reproducible():
    calibration, images = films(16, 5, 0)
    assert calibration.shape == (8, 16, 16, 1) and images.shape == (5, 16, 16, 1)
    assert len({image.tobytes() for image in [*calibration, *images]}) == 13
    assert np.array_equal(films(16, 5, 0)[1], images) and images.max() <= 1


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(2, (3, 3), strides=4)(x))
        return nn.Dense(2)(x.mean((1, 2)))


def _tiny(pooling):
    return Tiny()


NETWORK = {"tiny": Network("Tiny", 16, _tiny)}
CONFIG = ExperimentConfig(
    latency_study=LatencyStudyConfig(
        networks=("tiny",), latencies_ms=(0.0, 100.0), repetitions=2, validated=""
    )
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A study of one convolution by all protocols, as it is left in a folder."""
    folder = tmp_path_factory.mktemp("study")
    steps = []
    study = run(CONFIG, folder, networks=NETWORK, progress=lambda *step: steps.append(step))
    assert steps[0] == ("tiny", 0, 9) and steps[-1] == ("tiny", 9, 9)
    return study, folder


def test_a_tiny_study_from_end_to_end(tiny):
    study, folder = tiny
    assert {cell.protocol for cell in study.cells} == {"fss", "ariann", "securenn"}
    assert len(study.cells) == 3 * 2 * 3
    for cell in study.cells:
        assert len(cell.seconds) == len(cell.offline_seconds) == 2 and min(cell.seconds) > 0
        assert (cell.key_bytes == 0) == (cell.protocol == "securenn")
        here = study.cell(cell.network, cell.protocol, 0.0, cell.bandwidth_mbps)
        for near, far in zip(here.seconds, cell.seconds):
            added = 2 * cell.round_trips * cell.latency_ms / 1e3
            assert near <= far <= near + added + 1e-9
    trips = {cell.protocol: cell.round_trips for cell in study.cells}
    assert trips["fss"] < trips["ariann"] < trips["securenn"]
    assert all(session.error < 0.02 for session in study.sessions)
    assert {layer.name for layer in study.layers} >= {"image", "outputs"}
    assert Study.read(folder / "study.json") == study


def test_it_leaves_tables_pictures_and_a_page(tiny):
    _, folder = tiny
    for name in ("study_latency.png", "study_traffic.png", "study_layers_tiny.png", "report.html"):
        assert (folder / name).stat().st_size > 1000
    with open(folder / "tables" / "cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18 and float(rows[0]["seconds"]) > 0
    assert (folder / "tables" / "paper.csv").read_text().startswith("network,latency,")


def test_with_resume_only_the_report_is_made_anew(tiny, monkeypatch):
    study, folder = tiny
    monkeypatch.setattr(campaign, "measure", None)  # would fail if it were called
    (folder / "report.html").unlink()
    assert run(CONFIG, folder, networks=NETWORK, resume=True) == study
    assert (folder / "report.html").exists()
    other = dataclasses.replace(
        CONFIG, latency_study=dataclasses.replace(CONFIG.latency_study, repetitions=3)
    )
    with pytest.raises(ConfigError, match=r"settings: config.latency_study.repetitions = 2, now 3"):
        run(other, folder, networks=NETWORK, resume=True)


def test_an_earlier_study_is_moved_aside(tmp_path, monkeypatch):
    made_study().write(tmp_path / "study.json")

    def stop(*_):
        raise ConfigError("stop")

    monkeypatch.setattr(campaign, "measure", stop)
    with pytest.raises(ConfigError, match="stop"):
        run(CONFIG, tmp_path, networks=NETWORK)
    assert Study.read(tmp_path / "previous" / "1" / "study.json") == made_study()
    assert not (tmp_path / "study.json").exists()


@pytest.mark.slow
def test_actors_run_what_was_measured(ray_cluster):
    """The smallest network by one protocol over real processes; their messages really wait."""
    study = LatencyStudyConfig(validation_latencies_ms=(0.0, 20.0), validation_repetitions=1)
    config = ExperimentConfig(latency_study=study)
    near, far = in_cluster("lenet", NETWORKS["lenet"], config, "securenn")
    assert (near.latency_ms, far.latency_ms, far.bandwidth_mbps) == (0.0, 20.0, 1000.0)
    assert far.wall_seconds[0] >= 43 * 0.02  # its one-way messages, which sleep so long
