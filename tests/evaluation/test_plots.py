"""Plots of figures by class, and text in any script in all pictures."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from boxtwin import lettering as letters
from boxtwin.datasets.image_io import read_image
from boxtwin.evaluation.plots import count_scatter, precision_recall_curve
from boxtwin.lettering import class_colour, drawable, lettering, put, shorten, shorten_path

WORLD = [
    '船 $a_b$ / "Schiff"',
    "粒子, %s {x}",
    "русский ü",
    "한국어 漢字 汉字 かな",
    "العربية",
    "עברית",
    "हिन्दी",
    "ไทย",
    "_x^2$",
]


def columns(*counts: list[int]) -> np.ndarray:
    return np.array(counts, dtype=np.int64).T.reshape(-1, len(counts))


@pytest.mark.parametrize(
    ("true", "found"),
    [
        (columns([]), columns([])),
        (columns([0]), columns([0])),
        (columns([3, 3, 0]), columns([3, 0, 0])),
        (columns([i % 4 for i in range(50)] + [95]), columns([2] * 50 + [40])),
        (columns([1] * 5000), columns([1] * 5000)),
        (columns([1, 0, 4], [0, 0, 0], [2, 9, 1]), columns([1, 0, 3], [0, 1, 0], [2, 9, 30])),
        (columns(*[[n, 1] for n in range(30)]), columns(*[[n, 0] for n in range(30)])),
    ],
)
def test_any_counts_are_drawn_with_a_scatter_for_each_class(
    true: np.ndarray, found: np.ndarray, tmp_path: Path
) -> None:
    classes = (WORLD * 5)[: true.shape[1]]
    count_scatter(true, found, tmp_path / "counts.png", classes)
    picture = read_image(tmp_path / "counts.png")
    panels = 1 if len(classes) == 1 else 1 + min(11, int((true.sum(axis=0) + found.sum(axis=0) > 0).sum()))
    assert picture.shape[1] / picture.shape[0] == pytest.approx({1: 1, 4: 3 / 2, 12: 4 / 3}[panels], abs=0.01)


def test_every_class_with_objects_has_a_curve_in_its_colour(tmp_path: Path) -> None:
    recall = np.linspace(0, 1, 101)
    curves = np.stack([1 - recall, np.full(101, np.nan), np.where(recall < 0.5, 0.9, 0.2)])

    def seen(classes: int) -> list[bool]:
        precision_recall_curve(recall, curves[:classes], tmp_path / "pr.png", WORLD[:classes])
        picture = read_image(tmp_path / "pr.png").astype(int)
        wanted = [[int(class_colour(label)[i : i + 2], 16) for i in (1, 3, 5)] for label in range(classes)]
        return [bool((np.abs(picture - colour).sum(axis=-1) < 12).any()) for colour in wanted]

    assert seen(3) == [True, False, True]
    assert seen(1) == [False]
    precision_recall_curve(recall, curves[1:2], tmp_path / "none.png", ["a"])
    assert (tmp_path / "none.png").stat().st_size > 1000


@pytest.mark.parametrize("name", WORLD)
def test_names_in_any_script_are_drawn_as_they_are(name: str) -> None:
    assert drawable(name) == name
    figure = Figure(figsize=(4, 1))
    figure.text(0.1, 0.4, name, **lettering(name))
    figure.draw_without_rendering()  # a missing glyph is a warning, which tests take for an error


def test_what_no_font_has_is_written_as_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawable("a\nb\U0010fffd") == "a\\nb\\U0010fffd"
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(letters, "_packaged", lambda: ())
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    letters._family_of.cache_clear()
    try:
        assert drawable("船ü") == "\\u8239ü"
    finally:
        letters._family_of.cache_clear()


def test_names_are_cut_and_paths_lose_their_folders() -> None:
    assert shorten("a/b") == "a/b"
    assert shorten_path("folder/船.png") == "船.png"
    assert shorten("very" * 40, 12) == "veryv…ryvery"
    text = Figure().text(0, 0, "")
    put(text, "_$x$ 船")
    assert (text.get_text(), text.get_parse_math()) == ("_$x$ 船", False)
    assert len({class_colour(label) for label in range(60)}) == 60
