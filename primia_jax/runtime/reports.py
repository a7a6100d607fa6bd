"""Reports: what a party tells whoever operates a run, as records whose fields are all public.

Whoever operates a run sees every report. So a report is declared beforehand, field by field, and a
party's host refuses anything else, in the party's own process, before it leaves. Results that
belong to a party (probabilities, names of files) are never reports: the party writes them into its
own folder.

This guards against programs that report more than was declared. It is no guard against an operator
who sends other programs, as the drivers of this package let it.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import numpy as np

from primia_jax.errors import ProtocolError

Check = Callable[[str, Any], None]  # (party, report); raises ProtocolError
_KINDS = (bool, int, float, str)
_MOST_VALUES = 10_000  # of a plain report: a few metrics of each class and confusion matrices
_MOST_LETTERS = 500


@dataclasses.dataclass(frozen=True)
class Report:
    """Base of all records that may be reported: frozen dataclasses with plain fields alone.

    A field is annotated bool, int, float or str, which also says what may stand in it.
    """


def check_record(party: str, report: Any) -> None:
    """Accepts None and records whose fields hold what their class declares.

    Raises:
      ProtocolError: for anything else; it does not show what the report holds.
    """
    if report is None:
        return
    kind = type(report)
    if not issubclass(kind, Report):
        raise ProtocolError(
            f"{party} may not report a {kind.__name__}: only fields that a record declares public "
            "leave a party (runtime.reports)"
        )
    declared = typing.get_type_hints(kind)
    extra = sorted(vars(report).keys() - declared.keys())
    for name in (*declared, *extra):
        value = getattr(report, name)
        if name in extra or type(value) not in _KINDS or type(value) is not declared[name]:
            raise ProtocolError(
                f"{party} may not report {name} of {kind.__name__} as a {type(value).__name__}: "
                "it is not declared so"
            )


def check_plain(party: str, report: Any) -> None:
    """Accepts None and small trees of numbers and short texts: figures of a training.

    Arrays, states and anything as large as images or a model are refused. Which figures are
    reported is documented, not checked: see `federated.hospital`.

    Raises:
      ProtocolError: for anything else; it does not show what the report holds.
    """
    left, values = [report], 0
    while left:
        node = left.pop()
        if isinstance(node, dict):
            left += [*node.keys(), *node.values()]
        elif isinstance(node, (list, tuple)):
            left += node
        elif not (
            node is None
            or isinstance(node, (bool, int, float, np.number, np.bool_))
            or (isinstance(node, str) and len(node) <= _MOST_LETTERS)
        ):
            raise ProtocolError(
                f"{party} may not report a {type(node).__name__}: only numbers and short texts "
                "leave a party (runtime.reports)"
            )
        values += 1
        if values > _MOST_VALUES:
            raise ProtocolError(f"{party} may not report more than {_MOST_VALUES} values")
