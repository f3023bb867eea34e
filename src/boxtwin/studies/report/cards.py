"""What the cards of the stores say, for the report: of the labels of their variations, and of the variations' looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxtwin.datasets.sample import DECISIONS
from boxtwin.labels.card import LabelCard
from boxtwin.quality.record import QualityReport
from boxtwin.studies.runs import LABEL_CARD, QUALITY_CARD, Cell, Kept, first_runs

FIGURES = {
    "grey_levels": "grey levels: distance to the sources, in standard deviations",
    "looks": "speckle: equivalent number of looks, ratio to the sources",
    "fine_detail": "fine detail: power in the top octave, ratio to the sources",
    "nearest_real": "layout distance to the nearest real image, median",
    "siblings": "layout distance to other variations of the source, median",
    "test": "layout distance to the nearest test image, median",
}


@dataclass(frozen=True)
class Card:
    """A card in words and as a picture (None where that is not at hand)."""

    title: str
    sentences: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]  # headings first; empty: none
    picture: Path | None


@dataclass(frozen=True)
class StoreCards:
    """The cards of a store as one split sees it."""

    name: str
    used_by: tuple[str, ...]  # conditions
    cards: tuple[Card, ...]


def store_cards(cells: Sequence[Cell], kept: Kept) -> list[StoreCards]:
    """The cards of all stores that the runs used, once for each split; stores of runs that keep none are left out.

    A store's card is taken from the run with the most variations: those of the others are among its own.
    """
    by_store: dict[tuple[str, str], list[Cell]] = {}
    for cell in first_runs(cells):
        if cell.variations:
            by_store.setdefault((cell.store or cell.generator, cell.split), []).append(cell)
    found = []
    for (store, split), members in sorted(by_store.items()):
        cards = tuple(
            card
            for name, read in ((LABEL_CARD, _label_card), (QUALITY_CARD, _quality_card))
            if (card := _first(members, name, read, kept)) is not None
        )
        if cards:
            users = tuple(f"{cell.split} x{cell.variations} {cell.generator}" for cell in reversed(members))
            found.append(StoreCards(f"{store}, for {split}", tuple(dict.fromkeys(users)), cards))
    return found


def _first(members: Sequence[Cell], name: str, read: Any, kept: Kept) -> Card | None:
    for cell in members:
        file = kept.find(cell, f"{name}.json")
        if file is not None:
            card: Card = read(json.loads(file.read_text()), kept.find(cell, f"{name}.png"))
            return card
    return None


def _label_card(content: LabelCard, picture: Path | None) -> Card:
    boxes = ", ".join(f"{content[decision]} {decision}" for decision in DECISIONS)
    sentences = [f"Boxes: {boxes}.", f"Images: {content['images']} used, {content['refused']} refused."]
    if content["reasons"]:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in content["reasons"].items())
        sentences.append(f"Refused because: {reasons}.")
    lines = [
        (
            name,
            decision,
            str(values["boxes"]),
            *(f"{values['quantiles'][share]:.2f}" for share in ("0.05", "0.5", "0.95")),
        )
        for name, figures in content["evidence"].items()
        for decision, values in figures["decisions"].items()
    ]
    table = (("evidence", "decision", "boxes", "lowest 5 %", "median", "highest 5 %"), *lines) if lines else ()
    return Card("Labels: what became of the boxes", tuple(sentences), table, picture)


def _quality_card(content: QualityReport, picture: Path | None) -> Card:
    images = content["images"]
    sentences = [
        f"Verdict: {content['verdict']}.",
        f"{images['variations']} variations of {images['sources']} sources, held against {images['real']} real images "
        f"to learn and choose from and {images['test']} test images.",
    ]
    if "advice" in content:  # cards of older versions have none
        sentences.insert(1, content["advice"])
    copies, matches = content["figures"]["nearest_real"]["copies"] or 0.0, content["figures"]["test"]["matches"]
    sentences.append(
        f"{100 * copies:.1f} % repeat a real image; {len(matches)} repeat more of a test image than their source."
    )
    lines = [
        (words, _number(content["figures"][name]["value"]), _number(content["figures"][name]["reference"]),
         content["figures"][name]["verdict"])
        for name, words in FIGURES.items()
        if name != "looks" or content["speckle"] is not None
    ]  # fmt: skip
    table = (("figure", "variations", "real images among themselves", "verdict"), *lines)
    return Card("Looks: do they pass for real, and are they new", tuple(sentences), table, picture)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
