"""The cards of the variation stores: of the labels of variations, and of their quality."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxtwin.studies.conditions import Row
from boxtwin.studies.runs import LABEL_CARD, QUALITY_CARD
from boxtwin.studies.study import Study


@dataclass(frozen=True)
class Card:
    """A card; ``kind`` is the name of its file and of the macro that words it."""

    kind: str
    content: dict[str, Any]
    picture: Path | None  # None where that is not at hand


@dataclass(frozen=True)
class StoreCards:
    """The cards of a store as one split sees it."""

    name: str
    used_by: tuple[str, ...]  # conditions
    cards: tuple[Card, ...]


def store_cards(study: Study) -> list[StoreCards]:
    """The cards of all stores that the runs used, once for each split, from the run with the most variations."""
    by_store: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(study.rows, key=lambda row: -row.variations):
        if row.variations:
            run = study.first_run(row)
            by_store[run.store or run.generator, run.split].append(row)
    stores = []
    for (store, split), rows in sorted(by_store.items()):
        cards = tuple(card for kind in (LABEL_CARD, QUALITY_CARD) if (card := _card(study, rows, kind)) is not None)
        if cards:
            stores.append(StoreCards(f"{store}, for {split}", tuple(row.name for row in reversed(rows)), cards))
    return stores


def _card(study: Study, rows: list[Row], kind: str) -> Card | None:
    for row in rows:
        file = study.file(row, f"{kind}.json")
        if file is not None:
            return Card(kind, json.loads(file.read_text()), study.file(row, f"{kind}.png"))
    return None
