"""Flags of the benchmarks: single and odd values give figures, or one line before the first."""

import pytest

from benchmarks import federated_round, many_hospitals, secure_aggregation


@pytest.mark.parametrize(
    "module, flag, expected",
    [
        (federated_round, "--rounds=0", "whole number (at least 1)"),
        (federated_round, "--steps=two", "whole number (at least 1)"),
        (many_hospitals, "--hospitals=", "list of whole numbers (at least 1"),
        (many_hospitals, "--hospitals=6,7", "--hospitals=7: no 7 hospitals can sum"),
        (many_hospitals, "--actors=0", "whole number (at least 1)"),
        (secure_aggregation, "--hospitals=2", "list of whole numbers (at least 3"),
        (secure_aggregation, "--hospitals=7", "--hospitals=7: no 7 hospitals can sum"),
        (secure_aggregation, "--dropout=0.9", "--dropout: expected numbers in"),
        (secure_aggregation, "--size=0", "whole number (at least 1)"),
        (secure_aggregation, "--runs=0", "whole number (at least 1)"),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_is_measured(capsys, module, flag, expected):
    with pytest.raises(SystemExit) as ended:
        module.parse([flag])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_numbers_of_hospitals_are_sorted_and_single():
    assert secure_aggregation.parse(["--hospitals=10,3,10"]).hospitals == [3, 10]
    assert secure_aggregation.parse(["--quick"]).hospitals == [3, 10, 50]
    assert many_hospitals.parse([]).hospitals == [10, 40]


@pytest.mark.parametrize(
    "flags, ratios",
    [
        (["--hospitals=3"], 0),
        (["--hospitals=3", "--dropout=0.1"], 0),  # nobody drops out
        (["--hospitals=10", "--dropout=0.1"], 0),
        (["--hospitals=3,6", "--dropout=0"], 1),
    ],
)
def test_single_sums_are_measured(monkeypatch, flags, ratios):
    """A sum alone, or none without dropouts, has nothing to be compared with."""
    rows = []
    sums = secure_aggregation.secure_sum
    monkeypatch.setattr(secure_aggregation, "show", lambda row, figures: rows.append(row))
    monkeypatch.setattr(
        secure_aggregation, "secure_sum", lambda n, *given: sums(min(n, 10), *given)
    )  # in place of many hospitals
    given = secure_aggregation.parse([*flags, "--size=10", "--quick"])
    monkeypatch.setattr(secure_aggregation, "parse", lambda: given)
    secure_aggregation.main()
    assert rows.count("growth") == ratios and rows[-1] == "many_hospitals"
