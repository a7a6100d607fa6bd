"""Numbers as readers see them; a minus is a minus sign, and what is undefined is `-`."""

from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "-"


def number(value: float | None, digits: int = 2) -> str:
    """A score; 0.996 is not shown as 1.00, nor -0.001 as -0.00."""
    if value is None:
        return ABSENT
    text = f"{value:.{digits}f}"
    if float(text) == 1 and value < 1:
        text = f"{value:.{digits + 1}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference, with its sign."""
    return ABSENT if value is None else f"{value:+.{digits}f}".replace("-", "−")


def figure(value: float | None) -> str:
    """Three significant digits, without an exponent from 0.001 on."""
    if value is None:
        return ABSENT
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("-", "−")
    magnitude = int(f"{abs(value):e}".partition("e")[2])
    return f"{value:.{max(0, 2 - magnitude)}f}".replace("-", "−")


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.0f} %"


def interval(each: Mapping[str, Any], *, with_signs: bool = False) -> str:
    """LOW–HIGH of an estimate, or LOW to HIGH where signs would be read as dashes."""
    low, high = each["low"], each["high"]
    if low is None:
        return ""
    if with_signs or low < 0:
        return " to ".join(signed(v) if with_signs else number(v) for v in (low, high))
    return f"{number(low)}–{number(high)}"


def span(bounds: Sequence[float] | None) -> str:
    """LOW to HIGH with three significant digits; empty where there is no interval."""
    if not bounds or bounds[0] is None:
        return ""
    return f"{figure(bounds[0])} to {figure(bounds[1])}"


def p_value(p: float | None) -> str:
    """A p-value as a cell shows it."""
    if p is None:
        return ABSENT
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.995 else f"{p:.1f}"


def p_equals(p: float | None) -> str:
    """A p-value within a sentence: `p < 0.001` or `p = 0.012`."""
    text = p_value(p)
    return text if p is None else f"p {text}" if text.startswith("<") else f"p = {text}"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), *parts[-1:]] if len(parts) > 1 else parts)
