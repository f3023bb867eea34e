"""Where the files of cells are to be read: in their own folders, or in copies of what MLflow has of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from boxtwin.evaluation.examples import EXAMPLES_FILE
from boxtwin.studies.conditions import FINISHED, Cell

LABEL_CARD, QUALITY_CARD = "label_card", "quality_card"  # .json and .png in the folder of a cell
# What the report reads beside the evidence. Cells of older versions keep the second card with their run only.
CARD_FILES = tuple(f"{card}{ending}" for card in (LABEL_CARD, QUALITY_CARD) for ending in (".json", ".png"))
SHOWN_FILES = (EXAMPLES_FILE, *CARD_FILES)
NO_COPIES: Mapping[str, Path] = MappingProxyType({})


class Kept:
    """Files that cells keep, by name.

    Args:
        copies: by run id, a folder that has what a cell's own folder lacks.
    """

    def __init__(self, copies: Mapping[str, Path] = NO_COPIES) -> None:
        self._copies = dict(copies)

    def find(self, cell: Cell, name: str) -> Path | None:
        """A file of a cell; None if it keeps none of that name."""
        folders = [Path(cell.output_dir)] if cell.output_dir else []
        if cell.run_id in self._copies:
            folders += [self._copies[cell.run_id], self._copies[cell.run_id] / "store"]
        return next((folder / name for folder in folders if (folder / name).is_file()), None)


def first_runs(cells: Sequence[Cell]) -> list[Cell]:
    """The finished cell of the first seed of each condition, those with the most variations first: what is shown."""
    chosen: dict[tuple[object, ...], Cell] = {}
    for cell in sorted(cells, key=lambda cell: (cell.split, -cell.variations, cell.generator, cell.seed, cell.run_id)):
        if cell.status == FINISHED:
            key = (cell.dataset, cell.detector, cell.setting, cell.steps, cell.split, cell.generator, cell.variations)
            chosen.setdefault((*key, *sorted(cell.condition.items())), cell)
    return list(chosen.values())
