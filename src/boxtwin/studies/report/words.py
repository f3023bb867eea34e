"""How values become text: numbers in the units shown, and the templates of the report."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxtwin.evaluation.pages import templates
from boxtwin.studies.condition_names import condition_name
from boxtwin.studies.dose_response import MARGINS
from boxtwin.studies.inference import LEAST_BARS, LEAST_PAIRS, LEVEL
from boxtwin.studies.suspects import APPLIED_FROM


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


ENVIRONMENT = templates(Path(__file__).parent)
SHOWN = ("map_50", "map", "count_mae")  # metrics of a comparison, in the order that sentences name them


ENVIRONMENT.filters |= {
    "metric": lambda value, name: METRICS[name].form(value),
    "signed": lambda value, name: METRICS[name].form(value, signed=True),
    "share": lambda value: f"{100 * value:.0f} %",
    "fixed": number,
    "several": several,
    "capital": lambda text: text[:1].upper() + text[1:],
    # Columns of differences, for which a study without variations has no values.
    "compared": lambda headings, alone: [h for h in headings if not alone or ("vs x0" not in h and h != "p")],
    "in_order": lambda differences: [(name, differences[name]) for name in SHOWN],
}
ENVIRONMENT.globals |= {
    "METRICS": METRICS,
    "LEAST_BARS": LEAST_BARS,
    "LEAST_PAIRS": LEAST_PAIRS,
    "LEVEL": LEVEL,
    "APPLIED_FROM": APPLIED_FROM,
    "MARGINS": MARGINS,
    "INF": math.inf,
    "condition_name": condition_name,
}


def paragraphs(macro: str, **values: Any) -> list[str]:
    """The paragraphs that a macro of ``sentences.jinja`` gives, each on one line."""
    text = str(getattr(ENVIRONMENT.get_template("sentences.jinja").module, macro)(**values))
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def sentence(macro: str, **values: Any) -> str:
    """Like `paragraphs`, of a macro that gives one."""
    return " ".join(paragraphs(macro, **values))


ENVIRONMENT.globals |= {"sentence": sentence, "paragraphs": paragraphs}
