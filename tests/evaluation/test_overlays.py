from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.sample import Detections, Lineage, Sample
from boxtwin.evaluation.matching import match, match_detections
from boxtwin.evaluation.overlays import (
    DPI,
    LEGEND,
    TILE,
    _busiest_window,
    _new_boxes,
    contact_sheet,
    draw_boxes,
    pick_examples,
    show_image,
    side_by_side,
)
from boxtwin.evaluation.resampled_ap import RECALLS, ResampledAP
from boxtwin.lettering import class_colour

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))


def make_sample(
    folder: Path,
    name: str,
    pixels: np.ndarray,
    boxes: ArrayLike = (),
    labels: ArrayLike | None = None,
    crowd: ArrayLike | None = None,
    image_id: int = 1,
) -> Sample:
    write_png(folder / name, pixels)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    n = len(boxes)
    return Sample(
        name=name,
        path=folder / name,
        width=pixels.shape[1],
        height=pixels.shape[0],
        image_id=image_id,
        boxes=boxes,
        labels=np.zeros(n, int) if labels is None else np.asarray(labels),
        areas=np.ones(n),
        crowd=np.zeros(n, bool) if crowd is None else np.asarray(crowd),
    )


def detections(boxes: ArrayLike, scores: Sequence[float] | np.ndarray, labels: ArrayLike | None = None) -> Detections:
    labels = np.zeros(len(scores), int) if labels is None else np.asarray(labels)
    return Detections(np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores, np.float32), labels)


def holds_colour(picture: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(picture.astype(int) - wanted).sum(axis=-1) < 12).any())


def test_each_object_is_matched_once_best_score_first(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", np.zeros((50, 50), np.uint8), [[0, 0, 10, 10], [20, 20, 40, 40]])
    found = detections([[0, 0, 10, 9], [0, 0, 10, 10], [30, 30, 40, 40]], [0.4, 0.9, 0.8])
    matches = match(sample, found)
    assert matches.right.tolist() == [False, True, False]  # second best on the same object; overlap of 1/4
    assert matches.missed.tolist() == [False, True]
    assert not matches.ignored.any()


def test_classes_and_crowds_are_kept_apart(tmp_path: Path) -> None:
    pixels = np.zeros((90, 90), np.uint8)
    boxes, labels = [[0, 0, 10, 10], [40, 40, 90, 90]], [1, 0]
    sample = make_sample(tmp_path, "a.png", pixels, boxes, labels, crowd=[False, True])
    found = detections([[0, 0, 10, 10], [50, 50, 60, 60], [50, 50, 60, 60]], [0.9, 0.8, 0.7], labels=[0, 0, 1])
    matches = match(sample, found)
    assert matches.right.tolist() == [False, False, False]
    assert matches.ignored.tolist() == [False, True, False]
    assert matches.missed.tolist() == [True]


def test_matching_agrees_with_coco_recall(tmp_path: Path) -> None:
    """At IoU 0.5, the greatest recall with precision above 0 is the share of objects that `match` calls found."""
    rng = np.random.default_rng(0)
    samples, found = [], {}
    for image_id in range(1, 9):
        corner = rng.uniform(0, 300, (6, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(20, 60, (6, 2))], axis=1)
        samples.append(make_sample(tmp_path, f"{image_id}.png", np.zeros((4, 4), np.uint8), boxes, image_id=image_id))
        found[image_id] = detections(boxes + rng.normal(0, 6, boxes.shape), rng.random(6))
    missed = sum(int(match(sample, found[sample.image_id]).missed.sum()) for sample in samples)
    (precision,) = ResampledAP.of(match_detections(samples, found, 1)).curves()
    assert 0 < missed < 48
    assert abs(RECALLS[precision > 0].max() - (1 - missed / 48)) < 0.01


def test_examples_are_fixed_and_range_from_empty_to_crowded(tmp_path: Path) -> None:
    pixels = np.zeros((9, 9), np.uint8)
    samples = [make_sample(tmp_path, f"{n}.png", pixels, [[0, 0, 3, 3]] * n, image_id=n) for n in (4, 0, 9, 1, 2, 30)]
    assert [s.image_id for s in pick_examples(samples, 3)] == [0, 2, 30]
    assert pick_examples(samples[::-1], 3) == pick_examples(samples, 3)
    assert len(pick_examples(samples, 99)) == 6


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((64, 64), 30, np.uint8),
        np.random.default_rng(0).integers(0, 4000, (40, 90, 3)).astype(np.uint16),
        np.zeros((70, 30), np.uint16),
        np.zeros((1, 1), np.uint8),
        np.zeros((3, 2000, 3), np.uint8),
    ],
)
def test_any_image_can_be_pictured(pixels: np.ndarray, tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a $x$ 船_^.png", pixels, [[0, 0, 1, 1]])
    empty = make_sample(tmp_path, "e.png", pixels, image_id=2)
    found = {1: detections([[0, 0, 1, 1]], [0.9]), 2: detections([[0, 0, 1, 1]], [0.8])}
    side_by_side([sample, empty], found, 0.5, tmp_path / "out.png", ["ship", "buoy"])
    contact_sheet([sample, empty], [[sample], []], tmp_path / "sheet.png", ["ship", "buoy"])
    assert min(read_image(tmp_path / "out.png").shape[:2]) > 200
    assert min(read_image(tmp_path / "sheet.png").shape[:2]) > 300


def test_right_wrong_and_missed_are_told_apart(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", np.zeros((80, 80), np.uint8), [[5, 5, 25, 25], [50, 50, 70, 70]])
    colours = {"right": "#52e06b", "wrong": "#ff5a5f", "missed": "#ffd23f"}

    def seen(found: Detections, threshold: float = 0.5) -> set[str]:
        side_by_side([sample], {1: found}, threshold, tmp_path / "out.png", ["ship"])
        picture = read_image(tmp_path / "out.png")[60:]  # below the legend
        return {name for name, colour in colours.items() if holds_colour(picture, colour)}

    assert seen(NOTHING) == {"missed"}
    assert seen(detections(sample.boxes, [0.9, 0.8])) == {"right"}
    assert seen(detections(sample.boxes, [0.9, 0.3])) == {"right", "missed"}
    assert seen(detections([[30, 5, 45, 20]], [0.7])) == {"wrong", "missed"}


def test_images_without_an_entry_and_crowded_images_are_shown(tmp_path: Path) -> None:
    boxes = np.tile([[1.0, 1.0, 9.0, 9.0]], (200, 1))
    sample = make_sample(tmp_path, "a.png", np.zeros((20, 20), np.uint8), boxes, crowd=np.arange(200) % 2 == 0)
    side_by_side([sample], {}, 0.5, tmp_path / "out.png", ["ship"])
    side_by_side([sample], {1: detections(boxes, np.ones(200))}, 0.5, tmp_path / "out.png", ["ship"])


def test_contact_sheet_puts_variations_beside_their_source(tmp_path: Path) -> None:
    source = make_sample(tmp_path, "a.png", np.full((60, 60), 80, np.uint8), [[10, 10, 20, 30]])
    made = [
        replace(
            make_sample(tmp_path, f"v{n}.png", np.full((60, 60), 80 + n, np.uint8), source.boxes),
            lineage=Lineage("a.png", "pixel_ddpm", n, 0),
        )
        for n in (1, 2, 3)
    ]
    contact_sheet([source], [made], tmp_path / "sheet.png", columns=3)
    sheet = read_image(tmp_path / "sheet.png")
    legend, sheet = np.split(sheet, [round(LEGEND * DPI)])
    assert holds_colour(legend, "#4cc9f0")
    for row in np.array_split(sheet, 2):  # whole images, close-ups
        found = [holds_colour(part, "#4cc9f0") for part in np.array_split(row, 3, axis=1)]
        assert found == [True, False, False]  # source blue, variations yellow
    contact_sheet([source] * 3, [made[:1]] * 3, tmp_path / "beside.png", columns=4)  # two by two, the last place empty
    sheet = read_image(tmp_path / "beside.png")[round(LEGEND * DPI) :]
    half = sheet.shape[1] // 2
    assert holds_colour(sheet[: sheet.shape[0] // 2, half:], "#4cc9f0")
    assert holds_colour(sheet[sheet.shape[0] // 2 :, :half], "#4cc9f0")
    assert (sheet[sheet.shape[0] // 2 :, half:] == sheet[-1, -1]).all()


def test_close_ups_show_the_objects_that_variations_add(tmp_path: Path) -> None:
    """The objects of the source are unchanged, so a close-up of them would show nothing of the variation."""
    black = np.zeros((200, 200), np.uint8)
    source = make_sample(tmp_path, "a.png", black, [[10, 10, 30, 30], [20, 10, 40, 30]])
    pasted = [[150, 140, 170, 160]]
    added = make_sample(tmp_path, "v.png", black, [*source.boxes.tolist(), *pasted])
    assert _new_boxes(source, [source, None, added]).tolist() == pasted
    left, top, right, bottom = _busiest_window(source, _new_boxes(source, [added]))
    assert left < 150 < 170 < right <= 200
    assert top < 140 < 160 < bottom <= 200
    assert _busiest_window(source, _new_boxes(source, [source]))[:2] == (0, 0)
    assert len(_new_boxes(make_sample(tmp_path, "e.png", black), [])) == 0
    contact_sheet([source], [[added]], tmp_path / "sheet.png", columns=2)
    close_up = np.array_split(np.array_split(read_image(tmp_path / "sheet.png"), 2)[1], 2, axis=1)
    assert [holds_colour(part, colour) for part, colour in zip(close_up, ("#4cc9f0", "#ffd23f"), strict=True)] == [
        False,
        True,
    ]


def test_rows_are_as_high_as_their_images(tmp_path: Path) -> None:
    wide = make_sample(tmp_path, "a.png", np.zeros((60, 120), np.uint8), [[10, 10, 20, 30]])
    square = make_sample(tmp_path, "b.png", np.zeros((120, 120), np.uint8), [[10, 10, 20, 30]])
    sheets = []
    for place, source in enumerate((wide, square)):
        contact_sheet([source], [[source]], tmp_path / f"{place}.png", columns=2)
        sheets.append(read_image(tmp_path / f"{place}.png").shape[:2])
    assert sheets[0][1] == sheets[1][1]
    assert sheets[1][0] - sheets[0][0] == pytest.approx(TILE * DPI / 2, abs=1)


def test_a_choice_of_images_is_said_to_be_one(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", np.zeros((40, 40), np.uint8))
    legends = []
    for number in (None, 1, 30):
        side_by_side([sample], {}, 0.5, tmp_path / "out.png", ["ship"], number)
        legends.append(read_image(tmp_path / "out.png")[: round(LEGEND * DPI)])
    assert (legends[0] == legends[1]).all()
    assert (legends[0] != legends[2]).any()


def test_classes_have_colours_of_their_own_and_a_legend(tmp_path: Path) -> None:
    pixels, boxes = np.zeros((80, 80), np.uint8), [[5, 5, 25, 25], [50, 50, 70, 70]]
    sample = make_sample(tmp_path, "a.png", pixels, boxes, labels=[0, 2])
    found = detections(boxes, [0.9, 0.4], labels=[0, 2])
    classes = ["a", "b", "c"]

    def seen(name: str) -> list[bool]:
        picture = read_image(tmp_path / name)
        return [holds_colour(picture, class_colour(label)) for label in range(3)]

    side_by_side([sample], {}, 0.5, tmp_path / "out.png", classes)
    assert seen("out.png") == [True, False, True]
    contact_sheet([sample], [[sample]], tmp_path / "sheet.png", classes)
    assert seen("sheet.png") == [True, False, True]
    alone = make_sample(tmp_path, "b.png", pixels, boxes)
    side_by_side([alone], {}, 0.5, tmp_path / "one.png", ["a"])
    assert seen("one.png") == [False, False, False]
    # Each class from its own threshold on.
    wrong_at = {}
    for name, thresholds in (("low", (0.5, 0.5, 0.3)), ("high", (0.95, 0.5, 0.5))):
        side_by_side([sample], {1: found}, thresholds, tmp_path / "out.png", classes)
        picture = read_image(tmp_path / "out.png")[100:]
        wrong_at[name] = holds_colour(picture, "#ffd23f")  # missed
    assert wrong_at == {"low": False, "high": True}


def test_a_real_chip_can_be_pictured(tmp_path: Path, hrsid200: Path) -> None:
    pixels = read_image(min((hrsid200 / "JPEGImages").glob("*.jpg")))
    sample = make_sample(tmp_path, "chip.png", pixels, [[300, 300, 380, 340]])
    side_by_side([sample], {1: detections([[301, 299, 380, 342]], [0.77])}, 0.5, tmp_path / "out.png", ["ship"])
    assert read_image(tmp_path / "out.png").std() > 5


@pytest.mark.parametrize("caption", ["a 0.9", "red blood cell 0.93", "細胞 0.93"])
def test_captions_stay_inside_the_picture(caption: str) -> None:
    figure = Figure(figsize=(3.2, 3.2), dpi=110)
    axes = figure.subplots()
    show_image(axes, np.zeros((200, 200), np.uint8))
    boxes = np.array([[x, y, x + 9, y + 9] for x, y in zip(range(0, 191, 10), range(5, 190, 9), strict=False)], float)
    draw_boxes(axes, boxes, colour="#00ff00", captions=[caption] * len(boxes))
    figure.canvas.draw()
    inside = axes.get_window_extent()
    extents = [text.get_window_extent() for text in axes.texts]
    assert len(extents) == len(boxes)
    assert all(inside.x0 - 1 <= each.x0 and each.x1 <= inside.x1 + 1 for each in extents)


def test_close_ups_have_captions_of_visible_boxes_alone() -> None:
    figure = Figure(figsize=(3.2, 3.2), dpi=110)
    axes = figure.subplots()
    show_image(axes, np.zeros((200, 200), np.uint8), (50, 50, 100, 100))
    outside = [[10, 60, 40, 90], [110, 60, 150, 90], [60, 10, 90, 40], [60, 120, 90, 180]]
    visible = [[60, 60, 90, 90], [40, 55, 70, 95], [80, 80, 150, 150], [60, 40, 90, 120], [55, 30, 95, 99]]
    boxes = np.array([*outside, *visible], float)
    draw_boxes(axes, boxes, colour="#00ff00", captions=[*("out" for _ in outside), *("in" for _ in visible)])
    figure.canvas.draw()
    inside = axes.get_window_extent()
    assert [text.get_text() for text in axes.texts] == ["in"] * len(visible)
    for extent in (each.get_window_extent() for each in axes.texts):
        assert inside.x0 - 1 <= extent.x0 < extent.x1 <= inside.x1 + 1
        assert inside.y0 - 1 <= extent.y0 < extent.y1 <= inside.y1 + 1
