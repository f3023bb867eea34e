import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.labels.card import _cases, _once, tally, write_card

EVIDENCE = {"response": 0.9, "contrast": 4.0, "contrast_source": 5.0, "match": 0.8, "detector": None}


def line(number: int, *decisions: str, refused: str | None = None, **evidence: Any) -> dict[str, Any]:
    boxes = [
        {"box": [10.0, 10.0, 22.0, 16.0], "label": 0, "decision": decision, "evidence": {**EVIDENCE, **evidence}}
        for decision in decisions
    ]
    counts = {name: decisions.count(name) for name in ("kept", "shifted", "dropped", "added")}
    claimed = [[11.0, 9.0, 23.0, 15.0] for decision in decisions if decision != "added"]
    return {
        "source": "a.png",
        "variation": number,
        "image": f"images/a/v{number:02d}.png",
        "claimed": {"boxes": claimed, "labels": [0] * len(claimed)},
        "labels": {**counts, "refused": refused, "boxes": boxes},
    }


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A source and its variations, in colour and 16 bit."""
    rng = np.random.default_rng(0)
    for name in ("a.png", *(f"store/images/a/v{number:02d}.png" for number in range(1, 15))):
        write_png(tmp_path / name, rng.integers(0, 4000, size=(40, 60, 3)).astype(np.uint16))
    return tmp_path / "store", {"a.png": lambda: read_image(tmp_path / "a.png")}


def test_counts_reasons_and_metrics(store: tuple[Path, dict[str, Any]]) -> None:
    folder, sources = store
    lines = [
        line(1, "kept", "kept", "added"),
        line(2, "kept", "shifted", "dropped", response=0.1),
        line(3, "kept", refused="objects out of nothing: 1, at [3, 4, 5, 6]"),
        line(4, refused="objects out of nothing: 2, at [7, 8, 9, 9]"),
        line(5, refused="not confirmed by a person"),
    ]
    assert tally(lines) == {"kept": 3, "shifted": 1, "dropped": 1, "added": 1, "images": 2, "refused": 3}
    write_card(folder, lines, sources)
    card = json.loads((folder / "label_card.json").read_text())
    assert {key: card[key] for key in tally(lines)} == tally(lines)
    assert card["reasons"] == {"objects out of nothing": 2, "not confirmed by a person": 1}
    assert [image["reason"] for image in card["refused_images"]] == [one["labels"]["refused"] for one in lines[2:]]
    response = card["evidence"]["response"]["decisions"]
    assert response["kept"]["boxes"] == 3
    assert response["dropped"]["quantiles"]["0.5"] == 0.1
    assert sum(response["kept"]["histogram"]) == 3
    assert card["evidence"]["contrast ratio"]["decisions"]["kept"]["quantiles"]["0.5"] == 0.8
    assert "detector" not in card["evidence"]  # nobody looked
    picture = read_image(folder / "label_card.png")
    assert picture.shape[0] > 1000  # histograms and four strips


def test_an_object_of_a_source_is_pictured_once() -> None:
    """Nine unchanged variations of one object would leave no room for others."""
    lines = [line(number, "kept", contrast=float(number)) for number in range(1, 10)]
    lines.append(line(10, "added", contrast=0.5))
    cases = _once(sorted(_cases(lines), key=lambda case: case.evidence["contrast"]))
    assert [(case.line["variation"], case.decision) for case in cases] == [(10, "added"), (1, "kept")]
    other = {**line(1, "kept"), "source": "b.png"}
    assert len(_once(_cases([lines[0], other]))) == 2


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [line(1)],
        [line(1, refused="not confirmed by a person")],
        [line(number, "kept") for number in range(1, 15)],
    ],
)
def test_stores_without_boxes_without_use_and_with_one_metric_only(
    store: tuple[Path, dict[str, Any]], lines: list[dict[str, Any]]
) -> None:
    folder, sources = store
    write_card(folder, lines, sources)
    assert json.loads((folder / "label_card.json").read_text())["images"] == tally(lines)["images"]
    assert (folder / "label_card.png").exists()


def test_where_contrast_is_all_there_is_the_faintest_come_first(store: tuple[Path, dict[str, Any]]) -> None:
    folder, sources = store
    lines = []
    for number, contrast in enumerate((5.0, 0.1, -4.0, -0.3), start=1):
        lines.append(line(number, "kept"))
        lines[-1]["labels"]["boxes"][0]["evidence"] = {"contrast": contrast}
    assert [case.line["variation"] for case in sorted(_cases(lines), key=lambda case: case.certainty)] == [2, 4, 3, 1]
    write_card(folder, lines, sources)
    assert list(json.loads((folder / "label_card.json").read_text())["evidence"]) == ["contrast"]


def test_boxes_without_evidence(store: tuple[Path, dict[str, Any]]) -> None:
    """As a person gives them."""
    folder, sources = store
    confirmed = line(1, "kept")
    confirmed["labels"]["boxes"][0]["evidence"] = {}
    confirmed["claimed"] = {"boxes": [], "labels": []}
    write_card(folder, [confirmed], sources)
    assert json.loads((folder / "label_card.json").read_text())["evidence"] == {}


def test_boxes_of_a_person_stand_beside_the_nearest_that_was_claimed(store: tuple[Path, dict[str, Any]]) -> None:
    confirmed = line(1, "shifted", "kept")
    confirmed["claimed"] = {"boxes": [[50, 50, 60, 60], [1, 2, 11, 12], [20, 20, 30, 30]], "labels": [0, 0, 0]}
    first, second = confirmed["labels"]["boxes"]
    first |= {"box": [2.0, 2.0, 12.0, 12.0], "evidence": {"moved": 1.0}}
    second |= {"box": [40.0, 5.0, 50.0, 15.0], "evidence": {}}
    assert [case.claimed for case in _cases([confirmed])] == [(1, 2, 11, 12), None]
    confirmed["labels"]["minutes"] = 1.5
    write_card(store[0], [confirmed], store[1])
    card = json.loads((store[0] / "label_card.json").read_text())
    assert list(card["evidence"]) == ["moved"]
    assert card["minutes"] == 1.5
