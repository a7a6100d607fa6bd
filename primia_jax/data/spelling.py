"""Values of a table or folder that look like slips: ask the user rather than guess."""

import re
import unicodedata
from collections.abc import Iterable

# What table programs write for an empty cell.
_NOT_A_VALUE = frozenset({"nan", "na", "n/a", "#n/a", "#na", "nat", "null", "<na>"})


def is_missing_marker(text: str) -> bool:
    """True if `text` is what a table program writes for an empty cell, such as "nan"."""
    return text.strip().lower() in _NOT_A_VALUE


def alike_but_for_zeros(values: Iterable[str]) -> tuple[str, str] | None:
    """Two different values that are the same without leading zeros of their numbers, or None."""
    first: dict[str, str] = {}
    for value in dict.fromkeys(values):
        other = first.setdefault(re.sub(r"(?<!\d)0+(?=\d)", "", value), value)
        if other != value:
            return other, value
    return None


def alike(values: Iterable[str]) -> tuple[str, str] | None:
    """Two different values that differ only in case, spaces or invisible letters, or None.

    Letters with accents count as the same however they are put together (Unicode's NFKC).
    """
    first: dict[str, str] = {}
    for value in dict.fromkeys(values):
        shown = "".join(char for char in value if unicodedata.category(char) != "Cf")
        key = re.sub(r"\s+", "", unicodedata.normalize("NFKC", shown)).casefold()
        other = first.setdefault(key, value)
        if other != value:
            return other, value
    return None
