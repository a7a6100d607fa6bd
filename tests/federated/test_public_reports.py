"""Hospitals and model owner report records of public fields to the operator, and nothing else."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest
from tiny import config_with

from primia_jax import experiment
from primia_jax.core.records import Record, declaration
from primia_jax.data import make_plan
from primia_jax.encrypted import parties
from primia_jax.errors import ProtocolError
from primia_jax.evaluation.metrics import metrics_from_confusion
from primia_jax.federated import hospital, records
from primia_jax.federated.aggregation import OWNER
from primia_jax.federated.federation import Federation
from primia_jax.tasks import Classification

SECURITY = pathlib.Path(__file__).parents[2] / "docs" / "security.md"


@dataclasses.dataclass(frozen=True)
class Named(records.SiteRound):
    """A report with a field more."""

    patient: str = "DOE_JANE"


def named(report):
    fields = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    return Named(**fields)


def attached(report):
    object.__setattr__(report, "probabilities", np.ones(3))
    return report


MUTATIONS = {
    "a dict": lambda report: {**report.line(), "patient": "DOE_JANE"},
    "a derived record": named,
    "an attribute": attached,
    "an array": lambda report: dataclasses.replace(report, loss=np.ones(3)),
    "probabilities": lambda report: dataclasses.replace(report, loss=(0.1, 0.9)),
    "a name": lambda report: dataclasses.replace(report, process="DOE_JANE"),
    "the owner's record": lambda report: records.OwnerSetUp(0.5, 0.2),
    "a state": lambda report: Record(),
}


def test_a_hospital_that_reports_more_is_refused(tmp_path, monkeypatch):
    """Mutated programs of one hospital, in a training as the verbs start it."""
    config = config_with(runtime={"driver": "local"})
    plan = make_plan(config)
    names = tuple(site.site for site in plan.sites)
    train_round = hospital.train_round
    with experiment.training_driver(config, plan, None, workdir=tmp_path) as driver:
        federation = Federation(driver, config, names, tmp_path)
        federation.set_up()
        for mutation in MUTATIONS.values():

            def mutated(state, *given, mutation=mutation, **named):
                state, report = yield from train_round(state, *given, **named)
                return state, mutation(report) if state.name == "hospital_1" else report

            monkeypatch.setattr(hospital, "train_round", mutated)
            before = dict(driver.states)
            with pytest.raises(ProtocolError, match="hospital_1 may not report") as caught:
                federation.train_round(1)
            assert "DOE" not in str(caught.value) and driver.states == before
        monkeypatch.undo()
        reports, _ = federation.train_round(1)
    assert {type(reports[name]) for name in names} == {records.SiteRound}
    assert type(reports[OWNER]) is records.RoundSummary


def test_scores_are_the_metrics_again():
    matrix = np.asarray([[3, 1], [0, 0]])
    for names in (("a", "b"), ("normal", "bacterial")):
        metrics, task = metrics_from_confusion(matrix, names), Classification(names)
        assert records.Scores.of(matrix.ravel()).metrics(task) == metrics
        with_loss = {**metrics, "loss": 0.5}
        assert records.Scores.of(matrix.ravel(), 0.5).metrics(task) == with_loss


def test_the_page_on_security_lists_all_public_fields():
    """The table is the declaration of every record that a party may report."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|[^|]*\| (.*) \|$", SECURITY.read_text(), re.M)
    listed = {kind: (party, re.findall(r"`(\w+)`", fields)) for kind, party, fields in rows}
    parts = (
        ("hospital", records.HOSPITAL),
        ("model owner", records.MODEL_OWNER),
        ("data owner", parties.REPORTS.kinds[parties.DATA_OWNER]),
    )
    expected = {}
    for party, kinds in parts:
        for kind in kinds:
            known = expected.get(kind.__name__)
            expected[kind.__name__] = (
                f"{known[0]}, {party}" if known else party,
                list(declaration(kind)),
            )
    expected["Scores"] = ("within others", list(declaration(records.Scores)))
    assert listed == expected
