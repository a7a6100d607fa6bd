"""Values of a table or folder that look like slips: ask the user rather than guess."""

import re
from collections.abc import Iterable

_NOT_A_VALUE = frozenset({"nan", "n/a", "#n/a", "null", "<na>"})  # what table programs write


def is_missing_marker(text: str) -> bool:
    """True if `text` is what a table program writes for an empty cell, such as "nan"."""
    return text.strip().lower() in _NOT_A_VALUE


def alike(values: Iterable[str]) -> tuple[str, str] | None:
    """Two different values that differ only in case or spaces, or None if there are none."""
    first: dict[str, str] = {}
    for value in dict.fromkeys(values):
        other = first.setdefault(re.sub(r"\s+", "", value).casefold(), value)
        if other != value:
            return other, value
    return None
