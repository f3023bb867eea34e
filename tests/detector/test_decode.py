from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from encoding import encode

from boxtwin.boxes import iou_matrix
from boxtwin.datasets.sample import Detections
from boxtwin.detector.decode import boxes_and_scores, grid_of
from boxtwin.detector.nms import MAX_CANDIDATES, detections_in_file, merge_tiles, non_maximum_suppression
from boxtwin.detector.options import Postprocessing
from boxtwin.detector.spec import DetectorSpec
from boxtwin.evaluation.count_intervals import CountCalibration
from boxtwin.mixing.letterbox import Letterbox

ANCHORS = (((90.0, 60.0), (40.0, 80.0)), ((10.0, 14.0), (23.0, 27.0)))
STRIDES = (32, 16)
SHAPES = ((4, 3), (8, 6))  # rows, columns


@pytest.fixture
def make_spec() -> Callable[..., DetectorSpec]:
    def make(**changes: Any) -> DetectorSpec:
        fields: dict[str, Any] = {"architecture": "yolov3_nano", "classes": ("ship",), "category_ids": (1,)}
        fields |= {"image_size": 1100, "white": 255, "boxtwin": "0"}
        return DetectorSpec(**fields | changes)

    return make


def empty_maps(batch: int, classes: int) -> tuple[torch.Tensor, ...]:
    maps = tuple(torch.zeros(batch, 2, rows, columns, 5 + classes) for rows, columns in SHAPES)
    for level in maps:
        level[..., 4] = -20.0
    return maps


def detect(raw: tuple[torch.Tensor, ...], letterbox: Letterbox, score_floor: float = 0.1) -> list[Detections]:
    settings = Postprocessing(score_floor=score_floor, nms_iou=0.5, max_detections=10)
    boxes, scores = boxes_and_scores(raw, ANCHORS, STRIDES, scale_xy=1.0)
    return [detections_in_file(*one, letterbox, settings) for one in zip(boxes.numpy(), scores.numpy(), strict=True)]


def test_decode_follows_the_papers_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = tuple(torch.randn(2, 2, *shape, 8, generator=generator) for shape in SHAPES)
    boxes, scores = (tensor.numpy() for tensor in boxes_and_scores(raw, ANCHORS, STRIDES, scale_xy=1.0))
    assert boxes.shape == (2, 2 * 12 + 2 * 48, 4)
    place = 0
    for level, group, stride in zip(raw, ANCHORS, STRIDES, strict=True):
        for a, (p_w, p_h) in enumerate(group):
            for c_y in range(level.shape[2]):
                for c_x in range(level.shape[3]):
                    t = level[1, a, c_y, c_x].numpy().astype(np.float64)
                    sigma = 1 / (1 + np.exp(-t))
                    b_x, b_y = (sigma[0] + c_x) * stride, (sigma[1] + c_y) * stride
                    b_w, b_h = p_w * np.exp(t[2]), p_h * np.exp(t[3])
                    expected = [b_x - b_w / 2, b_y - b_h / 2, b_x + b_w / 2, b_y + b_h / 2]
                    np.testing.assert_allclose(boxes[1, place], expected, rtol=1e-4, atol=1e-3)
                    np.testing.assert_allclose(scores[1, place], sigma[4] * sigma[5:], rtol=1e-5)
                    place += 1


@pytest.mark.parametrize("scale_xy", [1.0, 1.2, 2.0])
def test_decode_of_encode_is_the_box(scale_xy: float) -> None:
    generator = torch.Generator().manual_seed(1)
    raw = empty_maps(1, 1)
    grid = grid_of(raw, ANCHORS, STRIDES)
    places = torch.randperm(len(grid.strides), generator=generator)
    fraction = scale_xy * torch.rand(len(places), 2, generator=generator) - (scale_xy - 1) / 2
    centre = (grid.cells[places] + fraction) * grid.strides[places, None]
    half = torch.rand(len(places), 2, generator=generator) * 50 + 0.5
    boxes = torch.cat((centre - half, centre + half), dim=1)
    t = encode(boxes, grid.at(places), scale_xy=scale_xy)
    flat = torch.empty(len(places), 4)
    flat[places] = t
    start = 0
    for level in raw:
        count = level[0, ..., 0].numel()
        level[0, ..., :4] = flat[start : start + count].view(*level.shape[1:4], 4)
        start += count
    decoded = boxes_and_scores(raw, ANCHORS, STRIDES, scale_xy=scale_xy)[0][0, places]
    torch.testing.assert_close(decoded, boxes, rtol=1e-5, atol=1e-3)


def test_extreme_logits_stay_finite() -> None:
    for value in (-1e4, 1e4):
        raw = tuple(torch.full((1, 2, *shape, 6), value) for shape in SHAPES)
        assert all(torch.isfinite(tensor).all() for tensor in boxes_and_scores(raw, ANCHORS, STRIDES, scale_xy=1.0))


def test_detections_are_in_pixels_of_the_file() -> None:
    # A 200 x 400 file in a 128 x 96 input: scale 0.3, 18 pixels of padding left and right, 4 above.
    raw = empty_maps(2, 2)
    raw[1][0, 1, 2, 3, 4] = 3.0
    raw[1][0, 1, 2, 3, 5:] = torch.tensor([-9.0, 2.0])
    first, second = detect(raw, Letterbox(200, 400, 0.3, 18.0, 4.0), score_floor=0.01)
    sigmoid = 1 / (1 + np.exp(-np.array([3.0, 2.0])))
    np.testing.assert_allclose(first.scores, [sigmoid.prod()], rtol=1e-5)
    assert first.labels.tolist() == [1]
    centre = np.array([(3.5 * 16 - 18) / 0.3, (2.5 * 16 - 4) / 0.3])
    half = np.array([23, 27]) / 0.3 / 2
    np.testing.assert_allclose(first.boxes, [[*(centre - half), *(centre + half)]], rtol=1e-4)
    assert second.boxes.shape == (0, 4)
    assert second.scores.shape == second.labels.shape == (0,)


def test_boxes_are_clipped_and_those_in_the_padding_left_out() -> None:
    raw = empty_maps(1, 1)
    raw[0][0, 0, 0, 0, 4:] = 3.0  # 90 x 60 around (16, 16): reaches over the file's corner
    raw[1][0, 0, 0, 0, 4:] = 3.0  # 10 x 14 around (8, 8): in the padding
    (found,) = detect(raw, Letterbox(40, 30, 1.0, 13.0, 15.0))
    np.testing.assert_allclose(found.boxes, [[0, 0, 40, 30]])


def test_what_has_its_centre_in_another_tile_is_left_out() -> None:
    raw = empty_maps(1, 1)
    for column in (1, 4):  # centres at 24 and 72 of the input, 34 and 82 of the file
        raw[1][0, 0, 2, column, 4:] = 3.0
    lefts = []
    for own in ((-np.inf, -np.inf, 60.0, np.inf), (60.0, -np.inf, np.inf, np.inf)):
        (found,) = detect(raw, Letterbox(200, 128, 1.0, -10.0, 0.0, own=own))
        lefts.append(found.boxes[:, 0].tolist())
    assert lefts == [[29.0], [77.0]]


def test_tiles_of_an_image_become_one() -> None:
    def found(*boxes: tuple[float, ...]) -> Detections:
        values = np.array(boxes, dtype=float).reshape(-1, 5)
        return Detections(boxes=values[:, :4], scores=values[:, 4], labels=np.zeros(len(values), dtype=int))

    merged = merge_tiles(
        [
            (7, found((0, 0, 10, 10, 0.5))),
            (8, found((0, 0, 5, 5, 0.4), (40, 0, 50, 10, 0.3))),
            (7, found((1, 0, 11, 10, 0.9), (50, 50, 60, 60, 0.7))),  # the first once more, better placed
            (9, found()),
        ],
        Postprocessing(nms_iou=0.45, max_detections=10),
    )
    assert list(merged) == [7, 8, 9]
    assert merged[7].boxes.tolist() == [[1, 0, 11, 10], [50, 50, 60, 60]]
    assert merged[7].scores.tolist() == [0.9, 0.7]
    assert len(merged[8].boxes) == 2
    assert merged[9].boxes.shape == (0, 4)


def reference_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        rivals = [other for other in kept if labels[other] == labels[index]]
        if not rivals or iou_matrix(boxes[[index]], boxes[rivals]).max() <= threshold:
            kept.append(int(index))
    return kept


def test_nms_is_greedy_within_each_class() -> None:
    random = np.random.default_rng(0)
    for classes in (1, 3):
        corner = random.uniform(-30, 60, (200, 2))
        boxes = np.concatenate((corner, corner + random.uniform(5, 40, (200, 2))), axis=1)
        scores, labels = random.permutation(200) / 200 + 0.001, random.integers(0, classes, 200)
        kept = non_maximum_suppression(boxes, scores, labels, Postprocessing(nms_iou=0.45))
        assert kept.tolist() == reference_nms(boxes, scores, labels, 0.45)
        few = Postprocessing(nms_iou=0.45, max_detections=7)
        assert non_maximum_suppression(boxes, scores, labels, few).tolist() == kept.tolist()[:7]


def test_nms_of_nothing() -> None:
    assert (
        non_maximum_suppression(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int), Postprocessing()).tolist() == []
    )


def test_what_is_counted_is_never_too_much(make_spec: Callable[..., DetectorSpec]) -> None:
    """700 objects apart, in an image of a detector that keeps ten detections of an image."""
    left, top = (30.0 * values.reshape(-1) for values in np.meshgrid(np.arange(35), np.arange(20)))
    boxes = np.stack([left, top, left + 20, top + 20], axis=1).astype(np.float32)
    scores = np.linspace(0.9, 0.2, 700, dtype=np.float32)[:, None]
    spec = make_spec(max_detections=10, count_threshold=0.5)
    found = detections_in_file(boxes, scores, Letterbox(1100, 700, 1.0, 0.0, 0.0), spec)
    assert len(found.boxes) == (scores >= 0.5).sum() == 400
    few = make_spec(max_detections=10, count_threshold=0.899)
    assert len(detections_in_file(boxes, scores, Letterbox(1100, 700, 1.0, 0.0, 0.0), few).boxes) == 10
    # Intervals count with thresholds of their own.
    rows = CountCalibration(("a", "b"), np.array([[0.6], [0.3]]), np.zeros((2, 2), dtype=np.int64)).plain()
    wide = make_spec(max_detections=10, count_threshold=0.5, calibration=rows)
    assert len(detections_in_file(boxes, scores, Letterbox(1100, 700, 1.0, 0.0, 0.0), wide).boxes) == 600


def test_candidates_that_are_counted_are_never_too_many(make_spec: Callable[..., DetectorSpec]) -> None:
    left, top = (12.0 * values.reshape(-1) for values in np.meshgrid(np.arange(80), np.arange(50)))
    boxes = np.stack([left, top, left + 8, top + 8], axis=1).astype(np.float32)
    found = detections_in_file(
        boxes, np.full((4000, 1), 0.8, np.float32), Letterbox(1000, 700, 1.0, 0.0, 0.0), make_spec(count_threshold=0.5)
    )
    assert len(found.boxes) == 4000 > MAX_CANDIDATES
