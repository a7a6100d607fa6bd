"""A report holds what its record declares public, and nothing else leaves a party."""

import dataclasses
import pickle
from typing import Annotated

import numpy as np
import pytest

from primia_jax.core.records import Name, Only, Record, Text, declaration
from primia_jax.errors import ProtocolError
from primia_jax.runtime import LocalDriver, Locally

Key = Annotated[str, Text("[0-9a-f]{4}")]


@dataclasses.dataclass(frozen=True)
class Inner(Record):
    recall: dict[Name, float | None]


@dataclasses.dataclass(frozen=True)
class Counted(Record):
    images: int
    seconds: float | None = None
    key: Key | None = None
    sites: tuple[Name, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()
    inner: Inner | None = None


@dataclasses.dataclass(frozen=True)
class Derived(Counted):
    names: str = "DOE_JANE.png"


@dataclasses.dataclass(frozen=True)
class Undeclared:
    images: int


@dataclasses.dataclass(frozen=True)
class Careless(Record):
    text: str
    values: list[int]


CHECK = Only({"alice": (Counted, Careless)}, frozenset({"hospital_0", "normal"}))


def _smuggling(report, **fields):
    for name, value in fields.items():
        object.__setattr__(report, name, value)
    return report


@pytest.mark.parametrize(
    "report",
    (
        None, Counted(3), Counted(3, 0.5), Counted(3, float("nan")), Counted(1, key="00ff"),
        Counted(1, sites=("hospital_0",)), Counted(1, rows=((1, 2), (3, 4))),
        Counted(1, inner=Inner({"normal": None, "hospital_0": 0.5})),
    ),
)  # fmt: skip
def test_declared_fields_may_leave(report):
    CHECK("alice", report)
    pickle.loads(pickle.dumps(CHECK))("alice", report)


@pytest.mark.parametrize(
    "report",
    (
        {"images": 3}, [3], 3, "DOE_JANE.png", np.zeros(2), Undeclared(3), Counted, Inner({}),
        Derived(3), _smuggling(Counted(1), names=("DOE_JANE.png",)), Counted("DOE_JANE.png"),
        Counted(np.int64(3)), Counted((1, 2)), Counted(True), Counted(None), Counted(1, 2),
        Counted(1, np.zeros(3)), Counted(1, key="DOE_JANE"), Counted(1, key="00ff\n"),
        Counted(1, sites=("DOE_JANE",)), Counted(1, sites=["hospital_0"]), Counted(1, sites="a"),
        Counted(1, rows=((1.0,),)), Counted(1, rows=(np.zeros(2, int),)), Counted(1, inner={}),
        Counted(1, rows=((0,) * 100,) * 100), Counted(1, inner=Inner({"DOE_JANE": 0.5})),
        Counted(1, inner=_smuggling(Inner({}), names="DOE_JANE")), Careless("a", ()),
        Careless("hospital_0", [1]),
    ),
)  # fmt: skip
def test_anything_else_is_refused_without_being_shown(report):
    """Free texts and lists are refused even where a record declares them."""
    with pytest.raises(ProtocolError, match="alice may not report") as caught:
        CHECK("alice", report)
    assert "DOE" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_party_reports_its_own_records_alone():
    with pytest.raises(ProtocolError, match="bob may not report a record of another kind"):
        CHECK("bob", Counted(3))
    CHECK("bob", None)


def test_a_refused_report_changes_no_state():
    driver = LocalDriver({"alice": lambda: 1}, check_report=CHECK)
    with pytest.raises(ProtocolError, match="alice may not report a int"):
        driver.run({"alice": Locally(lambda state: (state + 1, state))})
    assert driver.states == {"alice": 1}
    driver.run({"alice": Locally(lambda state: (state + 1, Counted(state)))})
    assert driver.states == {"alice": 2}


def test_a_declaration_in_words():
    assert declaration(Counted) == {
        "images": "int",
        "seconds": "float or none",
        "key": "text `[0-9a-f]{4}` or none",
        "sites": "list of name",
        "rows": "list of list of int",
        "inner": "Inner or none",
    }
