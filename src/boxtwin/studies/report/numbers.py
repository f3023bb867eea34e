"""How numbers are written in tables, sentences and plots alike: percent, counts, and what is not known."""

from __future__ import annotations

import math


def percent(value: float, *, signed: bool = False) -> str:
    """A share in percent, one decimal; `-` where it is not known."""
    return number(100 * value, 1, signed)


def count(value: float, *, signed: bool = False) -> str:
    """A number of objects, two decimals."""
    return number(value, 2, signed)


def number(value: float, decimals: int, signed: bool) -> str:
    """A number with so many decimals, never -0; `-` where it is not known."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    return text.replace("-", "+" if signed else "") if float(text) == 0 else text
