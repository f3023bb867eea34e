import numpy as np
import pytest
import torch
from pycocotools import mask

from boxtwin import boxes as B


def random_xyxy(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 100, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(0, 60, (n, 2))], axis=1)


def test_the_first_pixel() -> None:
    box = np.array([0.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(B.xyxy_to_xywh(box), [0, 0, 1, 1])
    assert B.area_xyxy(box) == 1


@pytest.mark.parametrize("shape", [(4,), (0, 4), (7, 4), (2, 3, 4)])
def test_any_shape_of_boxes(shape: tuple[int, ...]) -> None:
    boxes = random_xyxy(int(np.prod(shape[:-1]))).reshape(shape)
    np.testing.assert_allclose(B.xyxy_to_xywh(boxes)[..., 2:], boxes[..., 2:] - boxes[..., :2], atol=1e-12)
    assert B.clip_xyxy(boxes, 50, 40).shape == shape
    assert B.area_xyxy(boxes).shape == shape[:-1]


@pytest.mark.parametrize("n", [0, 1, 9])
def test_torch_says_the_same_as_numpy(n: int) -> None:
    boxes = random_xyxy(n, 1)
    np.testing.assert_array_equal(B.area_xyxy(torch.from_numpy(boxes)).numpy(), B.area_xyxy(boxes))


@pytest.mark.parametrize("seed", range(5))
def test_iou_agrees_with_pycocotools(seed: int) -> None:
    a, b = random_xyxy(12, seed), random_xyxy(9, seed + 100)
    oracle = mask.iou(B.xyxy_to_xywh(a), B.xyxy_to_xywh(b), np.zeros(len(b), dtype=np.uint8))
    np.testing.assert_allclose(B.iou_matrix(a, b), oracle, atol=1e-12)


def test_iou_agrees_with_counting_pixels() -> None:
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 20, (10, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 12, (10, 2))], axis=1)
    covered = np.zeros((10, 40, 40), dtype=bool)
    for plane, (x1, y1, x2, y2) in zip(covered, boxes, strict=True):
        plane[y1:y2, x1:x2] = True
    both = (covered[:, None] & covered[None]).sum(axis=(2, 3))
    either = (covered[:, None] | covered[None]).sum(axis=(2, 3))
    np.testing.assert_allclose(B.iou_matrix(boxes.astype(float), boxes.astype(float)), both / either)


def test_boxes_without_area_overlap_by_zero() -> None:
    flat = np.array([[5.0, 5, 5, 5], [5, 5, 9, 5], [0, 0, 10, 10]])
    iou = B.iou_matrix(flat, flat)
    np.testing.assert_array_equal(iou, [[0, 0, 0], [0, 0, 0], [0, 0, 1]])
    inside_out = np.array([[9.0, 9, 5, 5]])
    assert B.area_xyxy(inside_out) == [0]
    np.testing.assert_array_equal(B.iou_matrix(inside_out, flat), np.zeros((1, 3)))


def test_touching_boxes_do_not_overlap() -> None:
    left, right = np.array([[0.0, 0, 5, 5]]), np.array([[5.0, 0, 10, 5]])
    assert B.iou_matrix(left, right) == 0


def test_clipping() -> None:
    boxes = np.array([[-5.0, -5, 5, 5], [90, 40, 120, 70], [200, 200, 210, 210], [10, 10, 20, 20]])
    clipped = B.clip_xyxy(boxes, 100, 50)
    np.testing.assert_array_equal(clipped, [[0, 0, 5, 5], [90, 40, 100, 50], [100, 50, 100, 50], [10, 10, 20, 20]])
    assert B.area_xyxy(clipped)[2] == 0
    np.testing.assert_array_equal(B.clip_xyxy(clipped, 100, 50), clipped)


def test_a_wrong_last_axis_is_refused() -> None:
    for function in (B.xyxy_to_xywh, B.area_xyxy):
        with pytest.raises(ValueError, match=r"length 4.*\(3, 5\)"):
            function(np.zeros((3, 5)))
