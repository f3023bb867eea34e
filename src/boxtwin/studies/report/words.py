"""Templates of the report: ``sentences.jinja`` words values in plain text, ``page.html`` lays out the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from boxtwin.studies.conditions import condition_name
from boxtwin.studies.inference import LEAST_PAIRS
from boxtwin.studies.report.numbers import METRICS, number, several

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
SHOWN = ("map_50", "map", "count_mae")  # metrics of a comparison, in the order that sentences name them


def _in_order(differences: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, differences[name]) for name in SHOWN]


ENVIRONMENT.filters |= {
    "metric": lambda value, name: METRICS[name].form(value),
    "signed": lambda value, name: METRICS[name].form(value, signed=True),
    "share": lambda value: f"{100 * value:.0f} %",
    "fixed": number,
    "several": several,
    "capital": lambda text: text[:1].upper() + text[1:],
    "in_order": _in_order,
}
ENVIRONMENT.globals |= {
    "METRICS": METRICS,
    "LEAST_PAIRS": LEAST_PAIRS,
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
