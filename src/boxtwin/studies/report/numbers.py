"""How numbers are written in tables, sentences and plots alike."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric of the test images and the unit that it is shown in."""

    name: str
    factor: float  # to the unit shown
    decimals: int
    unit: str
    lower_is_better: bool = False

    @property
    def gain(self) -> str:
        """What an improvement is called."""
        return f"{'fall of' if self.lower_is_better else 'gain in'} {self.name}, {self.unit}"

    def form(self, value: float, *, signed: bool = False) -> str:
        """A value in the unit shown; `-` where it is not known."""
        return number(self.factor * value, self.decimals, signed)


METRICS = {
    "map": Metric("AP", 100.0, 1, "points"),
    "map_50": Metric("AP50", 100.0, 1, "points"),
    "count_mae": Metric("count MAE", 1.0, 2, "objects an image", lower_is_better=True),
    "count_bias": Metric("bias", 1.0, 2, "objects an image"),
    "count_threshold": Metric("threshold", 1.0, 3, "confidence"),
}


def number(value: float, decimals: int, signed: bool = False) -> str:
    """A number with so many decimals, never -0; `-` where it is not known."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    return text.replace("-", "+" if signed else "") if float(text) == 0 else text


def several(amount: int, word: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{amount} {word}{'' if amount == 1 else 's'}"
