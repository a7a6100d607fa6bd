"""A report holds what its record declares public, and nothing else leaves a party."""

import dataclasses

import numpy as np
import pytest

from primia_jax.errors import ProtocolError
from primia_jax.runtime import LocalDriver, Locally
from primia_jax.runtime.reports import Report, check_plain, check_record


@dataclasses.dataclass(frozen=True)
class Counted(Report):
    images: int
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Undeclared:
    images: int


def _smuggling():
    report = Counted(1)
    object.__setattr__(report, "names", ("DOE_JANE.png",))
    return report


@pytest.mark.parametrize("report", (None, Counted(3), Counted(3, 0.5)))
def test_declared_fields_may_leave(report):
    check_record("data_owner", report)


@pytest.mark.parametrize(
    "report",
    (
        {"images": 3}, [3], 3, "DOE_JANE.png", np.zeros(2), Undeclared(3), _smuggling(),
        Counted("DOE_JANE.png"), Counted(np.int64(3)), Counted((1, 2)), Counted(True), Report,
    ),
)  # fmt: skip
def test_anything_else_is_refused_without_being_shown(report):
    with pytest.raises(ProtocolError, match="data_owner may not report") as caught:
        check_record("data_owner", report)
    assert "DOE" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_refused_report_changes_no_state():
    driver = LocalDriver({"alice": lambda: 1}, check_report=check_record)
    with pytest.raises(ProtocolError, match="alice may not report a int"):
        driver.run({"alice": Locally(lambda state: (state + 1, state))})
    assert driver.states == {"alice": 1}
    driver.run({"alice": Locally(lambda state: (state + 1, Counted(state)))})
    assert driver.states == {"alice": 2}


@pytest.mark.parametrize(
    "report", (None, True, {"loss": 0.5, "validation": {"confusion": [[1, 2], [3, 4]]}}, ("a", 1))
)
def test_figures_of_a_training_may_leave(report):
    check_plain("hospital_0", report)


@pytest.mark.parametrize(
    "report",
    (
        np.zeros(3), {"model": [np.zeros(3)]}, b"bytes", Undeclared(3), "x" * 501,
        {"pixels": [0] * 10_000}, [[{"state": object()}]],
    ),
)  # fmt: skip
def test_states_and_anything_large_stay_at_the_hospital(report):
    """Old code gave whoever operates a run any report, a hospital's whole state too."""
    with pytest.raises(ProtocolError, match="hospital_0 may not report"):
        check_plain("hospital_0", report)
