"""Types of flags for `argparse`: wrong values are refused before anything is measured."""

from collections.abc import Callable


def at_least(low: int) -> Callable[[str], int]:
    """A whole number of at least `low`."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < low:
            raise ValueError
        return value

    whole_number.__name__ = f"whole number (at least {low})"
    return whole_number


def several_at_least(low: int) -> Callable[[str], list[int]]:
    """Different whole numbers of at least `low`, with commas between, in ascending order."""
    each = at_least(low)

    def whole_numbers(text: str) -> list[int]:
        return sorted({each(part) for part in text.split(",")})

    whole_numbers.__name__ = f"list of whole numbers (at least {low}, with commas between)"
    return whole_numbers
