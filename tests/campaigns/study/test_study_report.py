"""Protects what readers of a study see: the tables in every form, and what the words say."""

import csv
import io
import itertools
import json
import re

import pytest

from primia_jax.campaigns.study import report, tables, text
from primia_jax.reporting import tables as layout
from primia_jax.reporting.tables import Cell, Table
from tests.campaigns.study import made_up


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A study with readers, several seeds and a table of inversions, written."""
    folder = tmp_path_factory.mktemp("study")
    found, sets, raters = made_up.found(inversion=made_up.inversion())
    json.dumps(found, allow_nan=False)  # as tables.json
    report.write(folder, found, report.Drawn(sets, raters, made_up.CLASSES))
    return folder, found


def test_table_1a_has_the_papers_layout(written):
    """Raters down; under each score the three sets side by side; `-` for what is not there."""
    _, found = written
    table = tables.table_1a(found)
    assert [row[0].text for row in table.rows] == [
        "Federated secure", "Federated non-secure", "Locally trained", "Dr. A_1",
        "Dr. B (30 of 60 images)",
    ]  # fmt: skip
    assert table.heads[1:4] == ["Validation", "Test Set 1", "Test Set 2"]
    assert [name for name, _ in table.groups] == [
        "Accuracy", "Sensitivity (specificity)", "ROC-AUC", "MCC",
    ]  # fmt: skip
    assert sum(n for _, n in table.groups) == len(table.heads) - 1
    reader = table.rows[3]
    assert [cell.text for cell in reader[1:4]] == ["-", "0.50", "-"]
    assert [cell.text for cell in reader[7:10]] == ["-", "-", "-"]  # no curve of one point
    for told in reader[5][:2]:
        assert re.fullmatch(r"\d\.\d\d/\d\.\d\d/\d\.\d\d", told)


def test_tables_fit_80_columns(written):
    """On a terminal wide tables go on below, and every number of the Markdown form is there."""
    _, found = written
    text = report.as_text(found)
    assert max(map(len, text.splitlines())) <= 80
    for table in tables.all_tables(found):
        shown = layout.plain(table)
        for cell in itertools.chain.from_iterable(row[1:] for row in table.rows):
            assert cell.text in shown and cell.note in shown


def test_tables_1b_and_1c_are_square(written):
    _, found = written
    for table in (tables.table_1b(found), tables.table_1c(found)):
        assert len(table.rows) == len(table.heads) - 1 == 5
        texts = [[cell.text for cell in row[1:]] for row in table.rows]
        assert [texts[i][i] for i in range(5)] == ["-"] * 5
        assert texts == [list(column) for column in zip(*texts)]
    assert any(cell.bold for row in tables.table_1b(found).rows for cell in row)
    models = tables.table_1b(found, "test_2")
    assert len(models.rows) == 3 and models.name == "table_1b_test_2"  # readings are of Test Set 1


def test_every_file_is_there_and_holds_the_same_numbers(written):
    folder, found = written
    names = {path.name for path in (folder / "tables").iterdir()}
    for name in ("table_1a", "table_1b", "table_1c", "equivalence", "inversion"):
        assert {f"{name}.csv", f"{name}.tex"} <= names, name
    with open(folder / "tables" / "table_1a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    row = next(r for r in rows if (r["rater"], r["set"], r["score"]) == ("local", "test_1", "mcc"))
    mcc = found["table_1a"]["raters"][2]["sets"]["test_1"]["mcc"]
    assert float(row["mean"]) == mcc["mean"] and float(row["low"]) == mcc["low"]
    markdown = (folder / "tables.md").read_text()
    assert markdown.count("\n| ---") + markdown.count("\n| -") >= 8
    assert tables.number(mcc["mean"]) in markdown


def test_markdown_keeps_its_columns():
    table = Table("t", "A | B", ["", "x"], [[Cell("a|b"), Cell("1", "note", bold=True)]])
    heads, rule, row = layout.markdown(table).splitlines()[2:5]
    assert row == "| a\\|b | **1** (note) |"
    assert len(heads) == len(rule) == len(row)


def test_latex_is_whole(written):
    """Every line of a table has as many cells as its columns; what TeX would read is escaped."""
    folder, _ = written
    for path in (folder / "tables").glob("*.tex"):
        source = path.read_text()
        begun = re.findall(r"\\begin\{(\w+)\}", source)
        assert begun == re.findall(r"\\end\{(\w+)\}", source)[::-1], path
        columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", source)[1])
        body = source.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
        for line in body.strip().splitlines():
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
        assert "<" not in re.sub(r"\$[^$]*\$", "", source), path
        assert source.isascii(), [c for c in source if not c.isascii()]
    assert r"Dr. A\_1" in (folder / "tables" / "table_1a.tex").read_text()


def test_csv_quotes_what_it_must():
    rows = list(csv.reader(io.StringIO(layout.as_csv([{"a": "x, y", "b": None}]))))
    assert rows == [["a", "b"], ["x, y", ""]]


def test_the_page_holds_all_within_it_and_escapes_names(written):
    folder, _ = written
    html = (folder / "report.html").read_text()
    assert "A study &lt;made up&gt;" in html and "<made up>" not in html
    assert "viral_&lt;&amp;&gt;" in html
    assert html.count("data:image/png;base64,") >= 3
    assert not re.search(r'(src|href)="(?!data:|#|local_)', html)
    for name in ("mcc", "roc", "equivalence"):
        assert (folder / f"study_{name}.png").stat().st_size > 5000


def test_a_study_of_one_seed_without_readers_second_set_or_attack(tmp_path):
    found, sets, raters = made_up.found(seeds=(0,), readers=False, sets=("validation", "test_1"))
    report.write(tmp_path, found, report.Drawn(sets, raters, made_up.CLASSES))
    table = tables.table_1a(found)
    assert table.rows[0][3].text == "-"  # there is no Test Set 2
    assert "±" not in "".join(cell.text for row in table.rows for cell in row)
    html = (tmp_path / "report.html").read_text()
    assert "No human readings" in html and "trained once" in html
    assert "Model inversion" not in html


def _said(topic, **arguments):
    found, _, _ = made_up.found(**arguments)
    return next(words for name, words in text.conclusions(found) if name.startswith(topic))


def test_the_conclusion_says_what_the_numbers_say():
    assert "is not shown, nor is" in _said("Whether secure", wrong_secure=3, wrong_local=3)
    worse = _said("Whether secure", wrong_secure=30, wrong_local=3)
    assert "secure aggregation is worse" in worse and "−0.6" in worse
    better = _said("Whether secure", wrong_secure=3, wrong_local=30)
    assert "secure aggregation is better" in better
    assert "finds no difference" in _said("Whether the models", wrong_secure=3, wrong_local=3)
    differing = _said("Whether the models", wrong_secure=30, wrong_local=3)
    words = "locally trained is right more often than federated secure in 2 of 2 trainings"
    assert words in differing
    assert "almost perfect" in _said("How far", wrong_secure=3, wrong_local=3)
    assert "has not learnt its task" in _said("How well", wrong_secure=50, wrong_local=50)
    readers = _said("Models and readers")
    assert "Dr. A_1 (60 images read)" in readers and "Right more often than this reader" in readers
    assert "Dr. B (30 images read)" in readers


@pytest.mark.parametrize(
    ("difference", "p", "words"),
    [(1.0, 1e-4, "gives less away"), (-1.0, 1e-4, "gives more away"), (1.0, 0.4, "no difference")],
)
def test_the_conclusion_on_inversion_either_way(difference, p, words):
    said = _said("What can be stolen", inversion=made_up.inversion(difference, p))
    assert words in said and "recovers the control image" in said


def test_an_attack_that_fails_its_control_is_said_to_mean_nothing():
    said = _said("What can be stolen", inversion=made_up.inversion(recovered=False))
    assert "nothing can be said of it" in said
    assert "secure" not in said  # no verdict follows


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.03, 0.01, "equivalence is not shown, nor is a difference"),
        (-0.05, -0.01, "is worse, since the interval leaves out 0; whether by more"),
        (0.01, 0.05, "is better, since"),
        (-0.08, 0.01, "lies outside it, but the interval includes 0"),
    ],
)
def test_what_is_said_where_the_margin_is_not_decided(low, high, words):
    found, _, _ = made_up.found()
    for judged in found["equivalence"].values():
        judged["difference"] |= {"mean": (low + high) / 2, "low": low, "high": high}
        judged["verdict"] = "undecided"
    said = dict(text.conclusions(found))["Whether secure aggregation costs accuracy"]
    assert said.count(words) == 2


def test_equivalence_is_said_where_it_is_shown():
    found, _, _ = made_up.found()
    for judged in found["equivalence"].values():
        judged["difference"] |= {"mean": 0.0, "low": -0.01, "high": 0.01}
        judged["verdict"] = "equivalent"
    said = dict(text.conclusions(found))["Whether secure aggregation costs accuracy"]
    assert said.count("the two are equivalent") == 2


@pytest.mark.parametrize(
    ("kappa", "word"),
    [(-0.1, "poor"), (0.2, "slight"), (0.41, "moderate"), (0.8, "substantial"),
     (0.81, "almost perfect")],
)  # fmt: skip
def test_landis_and_koch(kappa, word):
    assert text.agreement_word(kappa) == word


@pytest.mark.parametrize(
    ("value", "shown"), [(0.996, "0.996"), (1.0, "1.00"), (-0.001, "0.00"), (-0.25, "−0.25")]
)
def test_scores_are_not_rounded_to_perfection(value, shown):
    assert tables.number(value) == shown


def test_figures_have_three_digits():
    values = (1234.5, 12.345, 0.0123, 0.0000123, 0.0, -2.5)
    shown = ["1234", "12.3", "0.0123", "1.2e−05", "0.00", "−2.50"]
    assert [tables.figure(v) for v in values] == shown
