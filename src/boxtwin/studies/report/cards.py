"""What the cards of the variation stores say, for the report: of the labels of variations, and of their quality."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxtwin.studies.conditions import Row
from boxtwin.studies.report.numbers import number
from boxtwin.studies.report.words import sentence
from boxtwin.studies.runs import LABEL_CARD, QUALITY_CARD
from boxtwin.studies.study import Study

FIGURES = {
    "grey_levels": "grey levels: distance to the sources, in standard deviations",
    "looks": "speckle: equivalent number of looks, ratio to the sources",
    "fine_detail": "fine detail: power in the top octave, ratio to the sources",
    "nearest_real": "layout distance to the nearest real image, median",
    "siblings": "layout distance to other variations of the source, median",
    "test": "layout distance to the nearest test image, median",
}

Lines = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Card:
    """A card in words and as a picture (None where that is not at hand)."""

    title: str
    text: str
    table: Lines  # headings first; empty: none
    picture: Path | None


@dataclass(frozen=True)
class StoreCards:
    """The cards of a store as one split sees it."""

    name: str
    used_by: tuple[str, ...]  # conditions
    cards: tuple[Card, ...]


def store_cards(study: Study) -> list[StoreCards]:
    """The cards of all stores that the runs used, once for each split; stores of runs that keep none are left out.

    A store's card is taken from the run with the most variations: those of the others are among its own.
    """
    by_store: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(study.rows, key=lambda row: -row.variations):
        if row.variations:
            run = study.first_run(row)
            by_store[run.store or run.generator, run.split].append(row)
    stores = []
    for (store, split), rows in sorted(by_store.items()):
        cards = tuple(card for kind in KINDS if (card := _card(study, rows, kind)) is not None)
        if cards:
            stores.append(StoreCards(f"{store}, for {split}", tuple(row.name for row in reversed(rows)), cards))
    return stores


def _card(study: Study, rows: list[Row], kind: str) -> Card | None:
    for row in rows:
        run = study.first_run(row)
        file = study.files.find(run, f"{kind}.json")
        if file is not None:
            content = json.loads(file.read_text())
            title, lines = KINDS[kind]
            return Card(title, sentence(kind, card=content), lines(content), study.files.find(run, f"{kind}.png"))
    return None


def _evidence(content: dict[str, Any]) -> Lines:
    """Quantiles of the evidence for boxes, by what was decided of them."""
    lines = tuple(
        (
            name,
            decision,
            str(values["boxes"]),
            *(f"{values['quantiles'][share]:.2f}" for share in ("0.05", "0.5", "0.95")),
        )
        for name, figures in content["evidence"].items()
        for decision, values in figures["decisions"].items()
    )
    return (("evidence", "decision", "boxes", "lowest 5 %", "median", "highest 5 %"), *lines) if lines else ()


def _quality(content: dict[str, Any]) -> Lines:
    def shown(value: float | None) -> str:
        return "-" if value is None else number(value, 3)

    lines = tuple(
        (words, shown(figure["value"]), shown(figure["reference"]), figure["verdict"])
        for name, words in FIGURES.items()
        if (figure := content["figures"][name]) and (name != "looks" or content["speckle"] is not None)
    )
    return (("figure", "variations", "real images among themselves", "verdict"), *lines)


# Title and table of each card; its name is that of its file and of the macro that words it.
KINDS: dict[str, tuple[str, Callable[[dict[str, Any]], Lines]]] = {
    LABEL_CARD: ("Labels: what became of the boxes", _evidence),
    QUALITY_CARD: ("Looks: do they pass for real, and are they new", _quality),
}
