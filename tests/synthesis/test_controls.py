from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from written_samples import write_sample

from boxtwin.boxes import iou_matrix
from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis import constants, controls
from boxtwin.synthesis.controls import CopyPaste, Repeat
from boxtwin.synthesis.generator import Generator, Request, Variation
from boxtwin.synthesis.silhouettes import Silhouette, draw

SETTINGS: dict[str, Any] = {"mirror": True, "turns": True}
OBJECT = 200  # brightness of objects, on a background far below


def make_sample(
    folder: Path,
    name: str,
    boxes: Any = ((20, 30, 32, 35),),
    background: Any = 20,
    shape: tuple[int, ...] = (96, 128),
    dtype: Any = np.uint8,
    crowd: Any = None,
) -> Sample:
    """Objects of brightness OBJECT plus their label, with one dark corner that tells how they were turned."""
    rng = np.random.default_rng(sum(name.encode()))
    scale = 257 if dtype == np.uint16 else 1
    pixels = background * np.ones(shape) + rng.uniform(-2, 2, size=shape)
    for label, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[y1:y2, x1:x2] = OBJECT + label
        pixels[y1, x1] = 90
    written = np.rint(pixels * scale).astype(dtype)
    return write_sample(folder, name, written, boxes, labels=np.arange(len(boxes)), crowd=crowd)


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "FEATHER", 3)


def vary(
    training: list[Sample],
    source: Sample,
    seed: int = 0,
    *,
    pastes: int = 4,
    least: int | None = None,
    tolerance: float = 0.5,
    **settings: Any,
) -> Any:
    """A variation with ``least`` (all of them, if None) to ``pastes`` objects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, "MOST_PASTES", pastes)
        patch.setattr(controls, "LEAST_PASTES", pastes if least is None else least)
        patch.setattr(controls, "TOLERANCE", tolerance)
        generator: Generator = CopyPaste(**{**SETTINGS, **settings})
        generator.fit(training, source.path.parent)
        (variation,) = generator.vary([Request(source, 1, seed)])
    return variation


def bright_box(pixels: np.ndarray, box: np.ndarray) -> bool:
    """Whether the box, and nothing next to it, holds an object's pixels."""
    x1, y1, x2, y2 = box.astype(int)
    inside = pixels[y1:y2, x1:x2]
    around = pixels[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] > 150
    return bool((inside > 150).sum() == inside.size - 1 and around.sum() == inside.size - 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_repeat_is_the_source(tmp_path: Path, dtype: Any) -> None:
    source = make_sample(tmp_path, "a.png", dtype=dtype)
    generator: Generator = Repeat()
    generator.fit([], tmp_path)
    for variation in generator.vary([Request(source, 1, 1), Request(source, 2, 2)]):
        assert isinstance(variation, Variation)
        np.testing.assert_array_equal(variation.pixels, read_image(source.path))
        assert variation.pixels.dtype == dtype
        np.testing.assert_array_equal(variation.boxes, source.boxes)


@pytest.mark.parametrize("seed", range(6))
def test_pasted_objects_fill_their_boxes_and_overlap_nothing(tmp_path: Path, seed: int) -> None:
    donor = make_sample(tmp_path, "a.png", ((20, 30, 32, 35), (60, 60, 66, 80)))
    source = make_sample(tmp_path, "b.png", ((70, 10, 90, 22),))
    variation = vary([donor], source, seed)
    assert len(variation.boxes) == 5
    np.testing.assert_array_equal(variation.boxes[0], source.boxes[0])
    assert all(bright_box(variation.pixels, box) for box in variation.boxes)
    assert (variation.boxes >= 0).all()
    assert (variation.boxes <= [128, 96, 128, 96]).all()
    assert (iou_matrix(variation.boxes, variation.boxes) - np.eye(5) <= 1e-6).all()
    for (x1, y1, x2, y2), label in zip(variation.boxes.astype(int), variation.labels, strict=True):
        assert np.median(variation.pixels[y1:y2, x1:x2]) == pytest.approx(OBJECT + label, abs=2)  # its own label
    # Outside of the pastes and their margins, nothing has changed.
    untouched = np.ones((96, 128), dtype=bool)
    for x1, y1, x2, y2 in variation.boxes[1:].astype(int):
        untouched[y1 - 3 : y2 + 3, x1 - 3 : x2 + 3] = False
    np.testing.assert_array_equal(variation.pixels[untouched], read_image(source.path)[untouched])


def test_fractional_boxes_keep_their_fractions_when_turned(tmp_path: Path) -> None:
    donor = make_sample(tmp_path, "a.png")
    object.__setattr__(donor, "boxes", np.array([[20.25, 30.5, 31.75, 34.5]], dtype=np.float32))
    empty = make_sample(tmp_path, "b.png", ())
    sizes = {tuple(vary([donor], empty, seed, pastes=1).boxes[0] % 1) for seed in range(20)}
    # Eight symmetries of fractions .25 and .75 (mirror images of one another) across, .5 and .5 down.
    assert sizes == {(0.25, 0.5, 0.75, 0.5), (0.5, 0.25, 0.5, 0.75)}


def test_without_turns_and_mirrors_an_object_stays_as_it_is(tmp_path: Path) -> None:
    donor, empty = make_sample(tmp_path, "a.png"), make_sample(tmp_path, "b.png", ())
    corners: dict[bool, set[tuple[Any, ...]]] = {False: set(), True: set()}
    for turns in corners:
        for seed in range(12):
            made = vary([donor], empty, seed, pastes=1, turns=turns, mirror=turns)
            x1, y1, x2, y2 = made.boxes[0].astype(int)
            patch = made.pixels[y1:y2, x1:x2]
            corners[turns].add((patch.shape, *np.argwhere(patch < 150)[0].tolist()))
    assert corners[False] == {((5, 12), 0, 0)}
    assert len(corners[True]) >= 5


def test_objects_go_where_the_background_is_like_their_own(tmp_path: Path) -> None:
    background = np.full((96, 128), 20.0)
    background[:, 64:] = 100  # land
    donor = make_sample(tmp_path, "a.png")
    source = make_sample(tmp_path, "b.png", (), background)
    boxes = np.concatenate([vary([donor], source, seed).boxes for seed in range(10)])
    assert len(boxes) >= 20
    assert (boxes[:, 2] + 3 <= 64).all()
    nowhere = make_sample(tmp_path, "c.png", (), 100)
    variation = vary([donor], nowhere)
    np.testing.assert_array_equal(variation.pixels, read_image(nowhere.path))
    assert variation.boxes.shape == (0, 4)


def test_a_paste_takes_the_level_of_its_new_place(tmp_path: Path) -> None:
    donor, source = make_sample(tmp_path, "a.png", background=20), make_sample(tmp_path, "b.png", (), 30)
    variation = vary([donor], source, pastes=1, tolerance=20.0)
    (x1, y1, x2, y2) = variation.boxes[0].astype(int)
    assert np.median(variation.pixels[y1:y2, x1:x2]) == OBJECT + 10
    rim = np.concatenate([variation.pixels[y1 - 1, x1:x2], variation.pixels[y2, x1:x2]])
    assert rim.mean() == pytest.approx(30, abs=1)


def test_cut_off_crowded_and_neighbouring_objects_are_not_copied(tmp_path: Path) -> None:
    at_border = make_sample(tmp_path, "a.png", ((0, 10, 12, 20),))
    neighbours = make_sample(tmp_path, "b.png", ((40, 40, 50, 46), (51, 40, 60, 46)))
    crowd = make_sample(tmp_path, "c.png", ((40, 40, 50, 46),), crowd=[True])
    source = make_sample(tmp_path, "d.png", ())
    variation = vary([at_border, neighbours, crowd], source)
    np.testing.assert_array_equal(variation.pixels, read_image(source.path))
    # A crowd in the source is no object of the variation, but its place is taken.
    everywhere = make_sample(tmp_path, "e.png", ((0, 0, 128, 96),), background=20, crowd=[True])
    assert len(vary([make_sample(tmp_path, "f.png")], everywhere).boxes) == 0


def test_nothing_to_copy_gives_the_source(tmp_path: Path) -> None:
    empty = make_sample(tmp_path, "a.png", ())
    variation = vary([empty], empty)
    np.testing.assert_array_equal(variation.pixels, read_image(empty.path))
    assert variation.boxes.shape == (0, 4)
    assert variation.labels.shape == (0,)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((96, 128, 3), np.uint8), ((96, 128), np.uint16), ((96, 128, 3), np.uint16)]
)
def test_channels_and_depth_are_kept(tmp_path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    donor = make_sample(tmp_path, "a.png", shape=shape, dtype=dtype)
    other = make_sample(tmp_path, "b.png")  # grey, 8 bit: of no use here
    source = make_sample(tmp_path, "c.png", (), shape=shape, dtype=dtype)
    variation = vary([donor, other], source, tolerance=1.0)
    assert variation.pixels.shape == shape
    assert variation.pixels.dtype == dtype
    assert len(variation.boxes) == 4
    assert len(vary([other], source).boxes) == 0


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png")
    generator = CopyPaste(**SETTINGS)
    generator.fit([sample], tmp_path)
    first, other, again = generator.vary([Request(sample, 1, 5), Request(sample, 2, 6), Request(sample, 3, 5)])
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert (first.pixels != other.pixels).any()
    counts = {len(vary([sample], sample, seed, least=0).boxes) for seed in range(20)}
    assert len(counts) > 2


@pytest.mark.parametrize("length", [24, 12])  # of a hull, and of a round object of 12 pixels
def test_boxes_of_turned_and_stretched_objects_are_those_of_their_outlines(tmp_path: Path, length: int) -> None:
    at_rest = Silhouette(48.0, 48.0, 0.6, float(length), 6.0)
    hull = draw([at_rest], 96, 96) if length > 12 else cv2.circle(np.zeros((96, 96), np.float32), (48, 48), 6, 1, -1)
    rows, columns = np.nonzero(hull > 0.5)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    pixels = np.rint(20 + 180 * hull + np.random.default_rng(0).uniform(-2, 2, hull.shape)).astype(np.uint8)
    donor = write_sample(tmp_path, "a.png", pixels, [box])
    empty = make_sample(tmp_path, "b.png", ())
    shapes = []
    for seed in range(12):
        made = vary([donor], empty, seed, pastes=1, angle=180.0, stretch=0.3, turns=False, tolerance=20.0)
        bright = np.nonzero(made.pixels > 110)
        seen = [bright[1].min(), bright[0].min(), bright[1].max() + 1, bright[0].max() + 1]
        np.testing.assert_allclose(made.boxes[0], seen, atol=2)
        shapes.append(made.boxes[0, 2:] - made.boxes[0, :2])
    assert np.ptp(shapes, axis=0).min() > (8 if length > 12 else 2)


def test_along_outlines_objects_with_near_neighbours_are_pasted_without_these(tmp_path: Path) -> None:
    pixels = np.full((96, 128), 20, np.uint8)
    for x in (40, 55):  # two cells of 13 pixels, two pixels apart
        cv2.circle(pixels, (x, 40), 6, OBJECT, -1)
    neighbours = write_sample(tmp_path, "a.png", pixels, [(34, 34, 47, 47), (49, 34, 62, 47)])
    source = make_sample(tmp_path, "b.png", ())
    assert len(vary([neighbours], source).boxes) == 0
    made = vary([neighbours], source, outlines=True, tolerance=20.0)
    assert len(made.boxes) == 4
    bright = cv2.connectedComponentsWithStats((made.pixels > 110).astype(np.uint8))[2][1:, :4]
    seen = sorted((x, y, x + width, y + height) for x, y, width, height in bright.tolist())
    np.testing.assert_allclose(sorted(made.boxes.tolist()), seen, atol=1)


def test_brightness_changes_the_contrast_of_objects_alone(tmp_path: Path) -> None:
    donor, source = make_sample(tmp_path, "a.png"), make_sample(tmp_path, "b.png", ())
    levels = []
    for seed in range(8):
        made = vary([donor], source, seed, pastes=1, brightness=0.2)
        x1, y1, x2, y2 = made.boxes[0].astype(int)
        levels.append(float(np.median(made.pixels[y1:y2, x1:x2])))
        made.pixels[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = 20
        np.testing.assert_allclose(made.pixels.astype(float), 20, atol=3)
    assert 20 + 180 * 0.8 - 2 <= min(levels) < 190
    assert 210 < max(levels) <= 20 + 180 * 1.2 + 2


def test_structured_grounds_without_objects_are_pasted_beside_the_objects(tmp_path: Path) -> None:
    land = np.full((96, 128), 20.0)
    land[60:, 80:] = np.kron(np.random.default_rng(0).uniform(0, 140, size=(3, 4)), np.ones((12, 12)))
    donor = make_sample(tmp_path, "a.png", ((20, 30, 32, 35),), land)
    source = make_sample(tmp_path, "b.png", ((70, 10, 90, 22),))
    changed = 0
    for seed in range(16):
        made = vary([donor], source, seed, grounds=2)
        np.testing.assert_array_equal(made.boxes[0], source.boxes[0])
        assert all(bright_box(made.pixels, box) for box in made.boxes)
        for x1, y1, x2, y2 in made.boxes.astype(int):
            made.pixels[y1 - 3 : y2 + 3, x1 - 3 : x2 + 3] = 20
        changed += int((made.pixels > 30).any())
    assert 6 <= changed < 16
    calm = make_sample(tmp_path, "c.png", ())
    np.testing.assert_array_equal(vary([calm], calm, grounds=2).pixels, read_image(calm.path))


@pytest.mark.parametrize(
    "change", [{"angle": 181.0}, {"stretch": 1.0}, {"stretch": -0.1}, {"brightness": 1.1}, {"grounds": -1}]
)
def test_settings_of_pastes_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        CopyPaste(**SETTINGS | change)


def test_objects_are_cut_out_first_and_parameters_hold_former_settings(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="call fit first"):
        next(CopyPaste(**SETTINGS).vary([Request(make_sample(tmp_path, "a.png"), 1, 0)]))
    former = constants.FORMER_SETTINGS["controls.CopyPaste"]
    assert CopyPaste(**SETTINGS).parameters() == former | SETTINGS
    assert CopyPaste(**SETTINGS | {"angle": 90.0}).parameters() == former | SETTINGS | {"angle": 90.0}
