"""Records: reports of a party to whoever operates a run, declared public field by field.

Whoever operates a run sees every report. So each is a frozen dataclass that names its fields and
what may stand in them, and the process that hosts a party refuses anything else before it leaves
(`Only`). Results that belong to a party (probabilities, names of files) are never reports: the
party writes them into its own folder.

A field may hold: bool, int, float; None; a text that its declaration describes (`Text`); a tuple or
a dictionary of such values; another record. Arrays and free texts are refused.

This guards against programs that report more than was declared. It is no guard against an operator
who sends other programs, as the drivers of this package let it, nor does it judge the value of a
declared number.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

from primia_jax.errors import ProtocolError

Check = Callable[[str, Any], None]  # (party, report); raises ProtocolError
_MOST_VALUES = 10_000  # of a report: a few metrics of each class and confusion matrices


class Text(NamedTuple):
    """Declaration of a text, in `Annotated[str, Text(…)]`."""

    pattern: str = ""  # regular expression of the whole; empty: one of the run's public names


Name = Annotated[str, Text()]  # of a hospital or a class, public from the start of the run


@dataclasses.dataclass(frozen=True)
class Record:
    """Base of all records that may be reported: frozen dataclasses."""


@dataclasses.dataclass(frozen=True)
class Only:
    """A check that accepts None and certain records, if their fields hold what they declare.

    Attributes:
      kinds: of the records that each party may report, by its name; a class derived from one of
        them is another kind. Parties that are not named report nothing.
      names: public from the start of the run: what `Name` may be.
    """

    kinds: Mapping[str, tuple[type[Record], ...]]
    names: frozenset[str] = frozenset()

    def __call__(self, party: str, report: Any) -> None:
        """Checks one report.

        Raises:
          ProtocolError: for anything else; it does not show what the report holds.
        """
        if report is None:
            return
        kind = type(report)
        if kind not in self.kinds.get(party, ()):
            raise ProtocolError(
                f"{party} may not report a {_shown(kind)}: only fields that a record declares "
                "public leave a party (core.records)"
            )
        extra = vars(report).keys() - _declared(kind).keys()
        if extra:
            raise ProtocolError(
                f"{party} may not report {len(extra)} more fields than {kind.__name__} declares"
            )
        left = _MOST_VALUES
        for name, hint in _declared(kind).items():
            n_values = _count(getattr(report, name), hint, self.names)
            if n_values is None or n_values > left:
                raise ProtocolError(
                    f"{party} may not report what stands in {name} of {kind.__name__}: it is not "
                    "declared so"
                )
            left -= n_values


def declaration(kind: type[Record]) -> dict[str, str]:
    """Fields of a record with their types in words, for documents."""
    return {name: _words(hint) for name, hint in _declared(kind).items()}


def _declared(kind: type[Record]) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _count(value: Any, hint: Any, names: frozenset[str]) -> int | None:
    """Number of values in `value`; None if it is not what `hint` declares."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        (text,) = hint.__metadata__
        if type(value) is not str:
            return None
        known = re.fullmatch(text.pattern, value) if text.pattern else value in names
        return 1 if known else None
    if kind in (types.UnionType, typing.Union):
        counts = (_count(value, each, names) for each in arguments)
        return next((count for count in counts if count is not None), None)
    if kind is tuple and type(value) is tuple:
        return _total(_count(each, arguments[0], names) for each in value)
    if kind is dict and type(value) is dict:
        pairs = (zip(arguments, item) for item in value.items())
        return _total(_count(each, part, names) for pair in pairs for part, each in pair)
    if type(value) is not hint:
        return None
    if not issubclass(hint, Record):
        return 1 if hint in (bool, int, float, types.NoneType) else None
    if vars(value).keys() != _declared(hint).keys():
        return None
    return _total(
        _count(getattr(value, name), part, names) for name, part in _declared(hint).items()
    )


def _total(counts: Iterable[int | None]) -> int | None:
    total = 1
    for count in counts:
        if count is None or (total := total + count) > _MOST_VALUES:
            return None
    return total


def _words(hint: Any) -> str:
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        pattern = hint.__metadata__[0].pattern
        return f"text `{pattern}`" if pattern else "name"
    if kind in (types.UnionType, typing.Union):
        return " or ".join(map(_words, arguments))
    if kind is tuple:
        return f"list of {_words(arguments[0])}"
    if kind is dict:
        return f"{_words(arguments[1])} by {_words(arguments[0])}"
    return "none" if hint is types.NoneType else hint.__name__


def _shown(kind: type) -> str:
    """Name of a type; a record that is not among those expected may be named after anything."""
    return "record of another kind" if issubclass(kind, Record) else kind.__name__
