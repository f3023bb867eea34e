import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from encoding import encode
from pycocotools import mask

from boxtwin.detector.decode import grid_of
from boxtwin.detector.loss import Crowds, Losses, assign, complete_iou, detection_loss, ignored, in_crowds
from boxtwin.detector.options import LossOptions, ObjectnessTarget

ANCHORS = (((90.0, 60.0), (15.0, 120.0)), ((9.0, 13.0), (23.0, 27.0)))
STRIDES = (32, 16)
SHAPES = [(4, 4), (8, 8)]
FIRST = [0, 16, 32, 96]  # place of each anchor's first cell
RECIPE = LossOptions(objectness_target=ObjectnessTarget.one)


def box(cx: float, cy: float, w: float, h: float) -> list[float]:
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def place(boxes: list[list[float]], images: list[int], cells_per_object: int = 1) -> list[tuple[int, int, int]]:
    found = assign(
        torch.tensor(boxes).view(-1, 4),
        torch.tensor(images, dtype=torch.long),
        SHAPES,
        ANCHORS,
        STRIDES,
        cells_per_object=cells_per_object,
    )
    return sorted(zip(found.image.tolist(), found.place.tolist(), found.object.tolist(), strict=True))


def test_the_best_shape_answers_at_the_cell_of_the_centre() -> None:
    boxes = [box(40, 70, 88, 61), box(100, 20, 9, 13), box(127, 127, 24, 26)]
    assert place(boxes, [0, 1, 1]) == [
        (0, FIRST[0] + 2 * 4 + 1, 0),
        (1, FIRST[2] + 1 * 8 + 6, 1),
        (1, FIRST[3] + 7 * 8 + 7, 2),
    ]


def test_a_centre_on_the_border_belongs_to_the_last_cell() -> None:
    assert place([box(128, 128, 9, 13)], [0]) == [(0, FIRST[2] + 63, 0)]


def test_further_anchors_of_a_fitting_shape_answer_too() -> None:
    # 30 x 40 overlaps 90 x 60 by .222, 15 x 120 by .25 and 23 x 27 by .5175, but 9 x 13 by .0975 only.
    assert place([box(8, 8, 30, 40)], [0]) == [(0, FIRST[0], 0), (0, FIRST[1], 0), (0, FIRST[3], 0)]


def test_one_object_per_place_its_best_anchor_first() -> None:
    same = box(8, 8, 23, 27)
    assert place([same, same], [0, 0]) == [(0, FIRST[3], 1)]
    # The second would like the first's place as a further anchor, and does not get it.
    found = place([same, box(8, 8, 11, 15)], [0, 0])
    assert (0, FIRST[3], 0) in found
    assert (0, FIRST[2], 1) in found


def test_the_nearest_cells_answer_too() -> None:
    # Centre at (24, 36) of the fine head's 16-pixel cells: column 1, right half of it; row 2, upper half.
    boxes = [box(28, 36, 23, 27)]
    found = place(boxes, [0], cells_per_object=3)
    assert found == [(0, FIRST[3] + row * 8 + column, 0) for row, column in ((1, 1), (2, 1), (2, 2))]
    corner = place([box(2, 126, 23, 27)], [0], cells_per_object=3)  # neighbours outside the image do not exist
    assert corner == [(0, FIRST[3] + 7 * 8, 0)]


def test_a_neighbour_gives_way_to_an_object_of_the_cell() -> None:
    # The second's centre lies in a cell that is the first's neighbour.
    first, second = box(30, 24, 23, 27), box(40, 24, 23, 27)
    found = place([second, first], [0, 0], cells_per_object=3)
    assert (0, FIRST[3] + 1 * 8 + 1, 1) in found
    assert (0, FIRST[3] + 1 * 8 + 2, 0) in found


def test_three_cells_can_reach_the_centre() -> None:
    raw = quiet(1, 1)
    truth = torch.tensor([box(28, 36, 23, 27)])
    grid = grid_of(raw, ANCHORS, STRIDES)
    for row, column in ((1, 1), (2, 1), (2, 2)):
        index = FIRST[3] + row * 8 + column
        t = encode(truth, grid.at(torch.tensor([index])), scale_xy=2.0)
        raw[1][0, 1, row, column] = torch.cat((t[0], torch.tensor([15.0, 15.0])))
    assert float(loss_of(raw, truth, [0], [0], cells_per_object=3, scale_xy=2.0).total) < 1e-3


def test_nothing_is_assigned_to_nothing() -> None:
    assert place([], []) == []


def test_only_predictions_of_the_same_image_are_ignored() -> None:
    predicted = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 4]], [[0, 0, 10, 10], [50, 50, 60, 60]]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 50, 50]])
    result = ignored(predicted, boxes, torch.tensor([0, 1]))
    assert result.tolist() == [[True, False], [False, False]]
    assert not ignored(predicted, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).any()


def numpy_ciou(a: np.ndarray, b: np.ndarray) -> float:
    """Zheng et al. 2020, equations 7 to 11, one pair of boxes."""
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    wa, ha, wb, hb = a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]
    iou = w * h / (wa * ha + wb * hb - w * h)
    rho2 = ((a[0] + a[2]) / 2 - (b[0] + b[2]) / 2) ** 2 + ((a[1] + a[3]) / 2 - (b[1] + b[3]) / 2) ** 2
    c2 = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    v = 4 / math.pi**2 * (math.atan(wb / hb) - math.atan(wa / ha)) ** 2
    alpha = v / (1 - iou + v) if v > 0 else 0.0
    return float(iou - rho2 / c2 - alpha * v)


def test_ciou_is_the_papers() -> None:
    random = np.random.default_rng(0)
    corner = random.uniform(0, 40, (100, 2, 2))
    boxes = np.concatenate((corner, corner + random.uniform(1, 60, (100, 2, 2))), axis=2)
    ours = complete_iou(torch.from_numpy(boxes[:, 0]), torch.from_numpy(boxes[:, 1]))
    np.testing.assert_allclose(ours, [numpy_ciou(a, b) for a, b in boxes], atol=1e-6)
    same = torch.from_numpy(boxes[:, 0])
    torch.testing.assert_close(complete_iou(same, same), torch.ones(100, dtype=torch.float64))


def test_ciou_has_a_finite_gradient_for_boxes_without_area() -> None:
    flat = torch.tensor([[5.0, 5, 5, 5], [5, 5, 9, 5]], requires_grad=True)
    complete_iou(flat, torch.tensor([[0.0, 0, 10, 10]] * 2)).sum().backward()  # type: ignore[no-untyped-call]
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def loss_of(
    raw: tuple[torch.Tensor, ...],
    boxes: torch.Tensor,
    labels: list[int],
    images: list[int],
    *,
    crowds: Crowds | None = None,
    **recipe: Any,
) -> Losses:
    return detection_loss(
        raw,
        boxes,
        torch.tensor(labels, dtype=torch.long),
        torch.tensor(images, dtype=torch.long),
        ANCHORS,
        STRIDES,
        replace(RECIPE, **recipe),
        crowds,
    )


def quiet(batch: int, classes: int) -> tuple[torch.Tensor, ...]:
    maps = tuple(torch.zeros(batch, 2, *shape, 5 + classes) for shape in SHAPES)
    for level in maps:
        level[..., 4] = -15.0
    return maps


def test_perfect_predictions_cost_nothing() -> None:
    raw = quiet(2, 3)
    boxes = torch.tensor([box(40, 70, 80, 66), box(100, 20, 9, 13)])
    grid = grid_of(raw, ANCHORS, STRIDES)
    places = torch.tensor([FIRST[0] + 2 * 4 + 1, FIRST[2] + 1 * 8 + 6])
    t = encode(boxes, grid.at(places), scale_xy=1.0)
    raw[0][0, 0, 2, 1] = torch.cat((t[0], torch.tensor([15.0, -15, 15, -15])))
    raw[1][1, 0, 1, 6] = torch.cat((t[1], torch.tensor([15.0, 15, -15, -15])))
    losses = loss_of(raw, boxes, [1, 0], [0, 1])
    assert float(losses.total) < 1e-3
    wrong = loss_of(raw, boxes, [1, 2], [0, 1])
    assert float(wrong.classes) > 1
    assert float(wrong.box) < 1e-3


def test_objectness_is_a_cross_entropy_without_the_ignored() -> None:
    raw = quiet(1, 1)
    for level in raw:
        level[..., 4] = -2.0
    # 22 x 26 in the cell (1, 1) of the fine head: its best anchor is 23 x 27; the prediction there overlaps by .77.
    # The neighbour's prediction, shifted by half a cell towards it, overlaps by more than half, and is let off.
    raw[1][0, 1, 1, 2, 0] = -12.0
    losses = loss_of(raw, torch.tensor([box(27, 24, 22, 26)]), [0], [0])
    positive, negative = math.log1p(math.exp(2)), math.log1p(math.exp(-2))
    assert float(losses.objectness) == pytest.approx((positive + (2 * 16 + 2 * 64 - 2) * negative) / 2, rel=1e-5)


def crowds_of(boxes: list[list[float]], images: list[int]) -> Crowds:
    return Crowds(torch.tensor(boxes).view(-1, 4), torch.tensor(images, dtype=torch.long))


def test_crowds_hold_the_predictions_that_coco_ignores_there() -> None:
    random = np.random.default_rng(0)
    corner = random.uniform(0, 100, (3, 40, 2))
    predicted = np.concatenate((corner, corner + random.uniform(0, 60, (3, 40, 2))), axis=2).astype(np.float32)
    crowds = np.array([[0, 0, 70, 50], [60, 60, 61, 61], [20, 10, 160, 160]], dtype=np.float32)
    found = in_crowds(torch.from_numpy(predicted), crowds_of(crowds.tolist(), [0, 0, 2]))
    for image, own in enumerate((crowds[:2], crowds[:0], crowds[2:])):
        if not len(own):
            assert not found[image].any()
            continue
        # COCO's overlap with a crowd is the part of the detection that lies in it.
        wide = [np.concatenate((each[:, :2], each[:, 2:] - each[:, :2]), axis=1) for each in (predicted[image], own)]
        overlaps = mask.iou(*(each.astype(np.float64) for each in wide), np.ones(len(own), dtype=np.uint8))
        np.testing.assert_array_equal(found[image], (overlaps > 0.5).any(axis=1))
        assert 0 < found[image].sum() < 40


def test_predictions_in_a_crowd_have_no_objectness_loss_but_objects_do() -> None:
    raw = quiet(2, 1)
    for level in raw:
        level[..., 4] = 2.0
    positive, negative = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    nothing = torch.zeros(0, 4)
    places = 2 * 16 + 2 * 64
    everywhere = crowds_of([[-500.0, -500, 700, 700]], [1])
    assert float(loss_of(raw, nothing, [], []).objectness) == pytest.approx(places * negative, rel=1e-5)
    assert float(loss_of(raw, nothing, [], [], crowds=everywhere).objectness) == pytest.approx(places * negative / 2)
    # An object with a box of its own is learnt, whatever crowd is around it.
    found = loss_of(raw, torch.tensor([box(24, 24, 22, 26)]), [0], [1], crowds=everywhere)
    assert float(found.objectness) == pytest.approx((places * negative + positive) / 3, rel=1e-5)


def test_objectness_can_follow_the_overlap() -> None:
    raw = quiet(1, 1)
    truth = torch.tensor([box(24, 24, 22, 26)])  # in the middle of its cell, anchor 23 x 27, whose box is predicted
    overlap = 22 * 26 / (23 * 27)
    for logit in (-15.0, math.log(overlap / (1 - overlap))):
        raw[1][0, 1, 1, 1, 4] = logit
        p = 1 / (1 + math.exp(-logit))
        expected = -overlap * math.log(p) - (1 - overlap) * math.log(1 - p)
        found = loss_of(raw, truth, [0], [0], objectness_target=ObjectnessTarget.iou).objectness
        assert float(found) == pytest.approx(expected / 2, rel=1e-3)


@pytest.mark.parametrize("classes", [1, 20])
def test_images_without_objects_have_a_finite_loss(classes: int) -> None:
    for count in (0, 2):
        raw = tuple(torch.zeros(3, 2, *shape, 5 + classes, requires_grad=True) for shape in SHAPES)
        boxes = torch.tensor([box(40, 70, 80, 66), box(100, 20, 9, 13)])[:count]
        losses = loss_of(raw, boxes, [0, classes - 1][:count], [1, 1][:count])
        losses.total.backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(losses.total)
        assert all(level.grad is not None and torch.isfinite(level.grad).all() for level in raw)
        assert (losses.box.item() == 0) == (count == 0)


def test_the_loss_is_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = tuple(torch.randn(2, 2, *shape, 6, generator=generator).bfloat16() for shape in SHAPES)
    boxes = torch.tensor([box(40, 70, 80, 66), box(100, 20, 9, 13)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = loss_of(raw, boxes, [0, 0], [0, 1])
    exact = loss_of(tuple(level.float() for level in raw), boxes, [0, 0], [0, 1])
    assert low.total.dtype == torch.float32
    assert float(low.total) == float(exact.total)
