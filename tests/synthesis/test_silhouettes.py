import math

import cv2
import numpy as np
import pytest

from boxtwin.synthesis.silhouettes import Silhouette, draw, silhouettes_of


def hull(x: float, y: float, heading: float, length: float, breadth: float) -> Silhouette:
    return Silhouette(float(x), float(y), float(heading), float(length), float(breadth))


def scene(shape: Silhouette, size: int = 120, contrast: float = 5.0, noise: float = 1.0) -> np.ndarray:
    """Normal noise with a turned rectangle on it, drawn by OpenCV."""
    values = np.random.default_rng(0).normal(0, noise, (size, size)).astype(np.float32)
    rectangle = ((shape.x - 0.5, shape.y - 0.5), (shape.length, shape.breadth), math.degrees(shape.heading))
    inside = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(inside, np.rint(cv2.boxPoints(rectangle)).astype(np.int32), 1)
    return values + contrast * inside


def difference(a: float, b: float) -> float:
    """Between two headings, bow and stern being alike."""
    return abs((math.degrees(a - b) + 90) % 180 - 90)


@pytest.mark.parametrize("degrees", [-80, -45, -20, 10, 30, 45, 60, 75])
@pytest.mark.parametrize("contrast", [5.0, -5.0])
def test_the_heading_of_a_known_rectangle_is_found(degrees: float, contrast: float) -> None:
    true = hull(60.3, 58.7, math.radians(degrees), 48, 11)
    (found,) = silhouettes_of(scene(true, contrast=contrast), true.box()[None])
    assert difference(found.heading, true.heading) < 6
    assert found.length == pytest.approx(true.length, rel=0.15)
    assert found.breadth == pytest.approx(true.breadth, abs=4)
    np.testing.assert_allclose(found.box(), true.box(), atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 90])
def test_an_object_along_an_axis_fills_its_box(degrees: float) -> None:
    true = hull(60, 60, math.radians(degrees), 40, 10)
    (found,) = silhouettes_of(scene(true), true.box()[None])
    assert difference(found.heading, true.heading) < 6
    np.testing.assert_allclose(found.box(), true.box(), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "box"),
    [
        (np.zeros((50, 50), np.float32), [10, 10, 30, 20]),  # nothing there
        (np.random.default_rng(0).normal(size=(50, 50)), [10, 10, 13, 30]),  # too narrow
        (np.random.default_rng(0).normal(size=(50, 50)), [-5, -5, 60, 60]),  # all of the image
        (np.random.default_rng(0).normal(size=(50, 50)), [70, 70, 90, 95]),  # outside
    ],
)
def test_without_a_heading_the_box_is_filled(values: np.ndarray, box: list[float]) -> None:
    (found,) = silhouettes_of(values, np.array([box], dtype=np.float32))
    np.testing.assert_allclose(found.box(), box)
    assert min(abs(math.sin(found.heading)), abs(math.cos(found.heading))) < 1e-9


def test_no_boxes_give_no_silhouettes() -> None:
    assert silhouettes_of(np.zeros((4, 4)), np.zeros((0, 4))) == []
    assert draw([], 4, 5).shape == (4, 5)
    assert draw([], 4, 5).sum() == 0


@pytest.mark.parametrize("degrees", [0, 17, 90, 133])
def test_a_drawn_silhouette_has_its_area_and_its_box(degrees: float) -> None:
    shape = hull(30.5, 28.25, math.radians(degrees), 30, 8)
    mask = draw([shape], 64, 64)
    assert mask.sum() == pytest.approx(30 * 8, rel=0.03)
    rows, columns = np.nonzero(mask > 0)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(seen, shape.box(), atol=1.3)
    clipped = draw([shape.moved(0.0, 0.0, 0.0)], 64, 64)
    assert 0 < clipped.sum() < 0.4 * mask.sum()
