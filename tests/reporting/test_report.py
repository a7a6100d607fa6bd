"""The report is one complete page: every section, nothing loaded from elsewhere, names escaped."""

import base64
import dataclasses
import functools
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from primia_jax.config.schema import to_plain
from primia_jax.config.sections import DataConfig, ExperimentConfig, RuntimeConfig, TrainingConfig
from primia_jax.data import Dataset
from primia_jax.errors import StorageError
from primia_jax.evaluation.metrics import evaluate_predictions
from primia_jax.evaluation.record import RunRecord
from primia_jax.reporting import figures
from primia_jax.reporting.report import render, write_report
from primia_jax.reporting.settings import settings_table
from primia_jax.tasks import Classification, Evaluation

SECTIONS = (
    *("summary", "limits", "warnings", "performance", "confusion", "roc", "calibration", "sites"),
    *("samples", "training", "data", "skipped", "cost", "settings", "provenance"),
)


class Page(HTMLParser):
    """What a browser would make of a page: its ids, its tags, what it loads, and its text."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"unclosed {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "data", "action"):
                self.sources.append(value)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] != "style":
            self.text += data


def figures_of(names, labels, probabilities, sites, files=None):
    """Figures of a test of so many images."""
    n, rng = len(labels), np.random.default_rng(1)
    data = Dataset(
        images=rng.integers(0, 256, (n, 16, 16, 1), dtype=np.uint8),
        labels=labels.astype(np.int32),
        names=tuple(files or (f"image_{i}.png" for i in range(n))),
        patients=np.arange(n).astype(str),
        sites=sites,
        class_names=tuple(names),
    )
    task = Classification(tuple(names))
    scores = task.evaluate(probabilities, data, n_bootstrap=20)
    return task.figures(Evaluation(data, probabilities, scores))


@functools.cache
def made_up_predictions(k=3):
    """Labels and probabilities [90 k]."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % k
    logits = rng.normal(size=(90, k))
    logits[np.arange(90), labels] += 1
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@functools.cache
def made_up_run(k: int = 3, sites: int = 3, rounds: int = 4) -> RunRecord:
    """A plausible run with every part filled in."""
    names = ("normal", "bacterial", "viral", "other")[:k]
    labels, probabilities = made_up_predictions(k)
    hospitals = [f"hospital_{i}" for i in range(sites)]
    where = np.array(hospitals)[np.arange(90) // 2 % sites]
    lines = []
    for r in range(1, rounds + 1):
        for i, site in enumerate(hospitals):
            line = {"round": r, "site": site, "loss": 1 / r + i, "validation_loss": 1.5 / r}
            lines.append(line | {"samples": 10, "steps": 5, "bytes_sent": 1e6, "stopped": r == 3})
        scores = {"mcc": 0.1 * r, "accuracy": 0.2 * r}
        line = {"round": r, "site": "all", "validation": scores, "best": r in (1, 3)}
        lines.append(line | {"score": {"name": "MCC", "value": 0.1 * r}})
    config = ExperimentConfig(name="Chest <b>films</b>", training=TrainingConfig(batch_size=7))
    return RunRecord(
        config=to_plain(config),
        mode="federated_secure",
        class_names=names,
        data_summary=[
            {"site": site, "split": "train", "counts": [100] * k, "patients": 250}
            for site in hospitals
        ],
        skipped=[("broken.png", "truncated")],
        rounds=lines,
        phases={"training": {"seconds": 100.0, "bytes": 5e6}, "testing": {"seconds": 2.0}},
        figures=figures_of(names, labels, probabilities, where),
        warnings=["few viral images"],
        versions={"jax": "0.10"},
        command="python -m primia_jax.launch --config=chest.py",
        finished="3 March 2026",
    )


@pytest.fixture
def unplotted(monkeypatch):
    """Plots left blank, where a test is about the rest of the page."""
    monkeypatch.setattr(figures, "data_uri", lambda figure: "data:image/svg+xml;base64,")


@pytest.mark.parametrize("k", [2, 3, 4])
def test_every_section_is_there(tmp_path, k):
    path = tmp_path / "report.html"
    run = made_up_run(k)
    write_report(path, run)
    page = Page(path.read_text(encoding="utf-8"))
    assert set(SECTIONS) <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    labels, probabilities = made_up_predictions(k)
    test = evaluate_predictions(labels, probabilities, run.class_names, n_bootstrap=20)
    low, high = test["intervals"]["mcc"]
    for words in (
        *("no medical device", "secure aggregation", "3 hospitals", "synthetic"),
        *(f"{test['mcc']:.2f}", f"{low:.2f} to {high:.2f}", "kept model: round 3"),
        *("batch_size", "broken.png", "truncated", "few viral images", "image_"),
        *(f"{300 * k:,} training images", "5.0 MB", "2 min", "round 3", "3 March 2026"),
    ):
        assert words in page.text, words
    assert list(tmp_path.iterdir()) == [path]  # no partial file is left


def test_nothing_is_loaded_from_elsewhere():
    text = render(made_up_run())
    page = Page(text)
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|//\w+\.\w+/|url\(|@import", text)
    assert "script" not in page.tags and "link" not in page.tags
    images = [s for s in page.sources if s.startswith("data:image/svg+xml;base64,")]
    assert len(images) == 5  # ROC, calibration, two losses, validation
    for image in images:
        svg = ElementTree.fromstring(base64.b64decode(image.split(",")[1]))
        links = [
            value
            for element in svg.iter()
            for name, value in element.attrib.items()
            if name.endswith("href")
        ]
        assert all(link.startswith("#") for link in links)


def test_names_cannot_become_markup(unplotted):
    evil = "<script>alert('x')</script>"
    run = made_up_run()
    config = dict(run.config, name=evil)
    config["data"] = dict(config["data"], path=evil, source=evil)
    run = dataclasses.replace(
        run,
        config=config,
        class_names=(evil, "a & b", "$x_1$"),
        data_summary=[{"site": evil, "split": evil, "counts": {evil: 3}, "patients": 1}],
        skipped=[(evil, evil)],
        rounds=[dict(line, site=evil) for line in run.rounds],
        phases={evil: {"seconds": 1.0, "bytes": 1}},
        warnings=[evil],
        versions={evil: evil},
        command=evil,
    )
    figures = figures_of(
        run.class_names, *made_up_predictions(), np.array([evil] * 90), [evil] * 90
    )
    text = render(dataclasses.replace(run, figures=figures))
    assert "<script" not in text
    assert Page(text).text.count(evil) > 30


def test_absent_parts_are_left_out():
    page = Page(render(RunRecord(config={}, mode="local", class_names=("a", "b"))))
    assert set(page.ids) == {"limits", "settings"}
    assert "No test set was evaluated" in page.text


OPTIONAL = [field.name for field in dataclasses.fields(RunRecord)]
OPTIONAL = [name for name in OPTIONAL if name not in ("class_names", "loss_name")]


@pytest.mark.parametrize("part", OPTIONAL)
def test_each_part_may_be_absent(part, unplotted):
    blank = RunRecord(config={}, mode="", class_names=("a", "b"))
    Page(render(dataclasses.replace(made_up_run(), **{part: getattr(blank, part)})))


def test_rounds_with_holes(unplotted):
    """Values may be absent, None or not finite; a diverged run still gets its report."""
    rounds: list[dict[str, Any]] = [
        {"site": "a", "loss": 1.0},
        {"loss": 1.0, "round": 1},
        {"round": 1, "site": "a"},
        {"round": 1, "site": "b", "loss": None, "validation_loss": float("nan"), "steps": None},
        {"round": 2, "site": "a", "loss": float("inf"), "seconds": 1.0},
        {"round": 2, "site": "a", "loss": 0.25, "compute_seconds": 60.0},
        {"round": 2, "site": "all", "validation": None},
        {"round": 3, "site": "all", "validation": {"mcc": None, "confusion": [[1]]}, "best": None},
    ]
    page = Page(render(dataclasses.replace(made_up_run(), rounds=rounds)))
    assert "Training loss" in page.text and "Validation loss" not in page.text
    assert "60 s" in page.text


def test_many_sites_share_one_curve():
    page = Page(render(made_up_run(sites=30, rounds=2)))
    assert "mean of the sites" in page.text


def test_classes_missing_from_the_test_set():
    run, (_, probabilities) = made_up_run(), made_up_predictions()
    sites = np.array(["a", "b", "c"] * 30)
    for labels in (np.zeros(90, int), np.arange(90) % 2):
        figures = figures_of(run.class_names, labels, probabilities, sites)
        text = render(dataclasses.replace(run, figures=figures))
        assert "–" in Page(text).text


def test_the_same_run_gives_the_same_bytes():
    assert render(made_up_run()) == render(made_up_run())


def test_what_is_simulated_is_said(unplotted):
    config = ExperimentConfig(
        data=DataConfig(source="folder", partition="dirichlet"),
        runtime=RuntimeConfig(driver="local", latency_s=0.1, bandwidth_bps=1e8),
    )
    run = dataclasses.replace(made_up_run(), config=to_plain(config), mode="federated")
    text = Page(render(run)).text
    for words in (
        "dirichlet",
        "one process",
        "100 ms",
        "100 Mbit/s",
        "patient data",
        "not secured",
    ):
        assert words in text
    assert "synthetic" not in text


def test_mistakes_are_named(tmp_path):
    run = made_up_run()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"report\.html cannot be written") as caught:
        write_report(tmp_path / "file" / "report.html", run)
    assert "\n" not in str(caught.value)


def test_settings_that_differ_come_first():
    config = to_plain(ExperimentConfig(seed=3))
    config["training"]["batch_size"] = 99
    config["unheard_of"] = "x"
    changed, rows = settings_table(config)
    assert [(row.name, row.value, row.default) for row in changed] == [
        ("seed", "3", "0"),
        ("training.batch_size", "99", "16"),
        ("unheard_of", "x", "–"),
    ]
    assert len(rows) > 60 and all(row.doc for row in rows if row.name != "unheard_of")
