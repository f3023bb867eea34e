from typing import Any

import numpy as np
import pytest

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import CrowdAreas, Detections
from boxtwin.labels import carry
from boxtwin.labels.carry import Carry
from boxtwin.labels.ensemble import Ensemble, Member
from boxtwin.labels.options import NewObjects

BOX = np.array([[20.0, 10, 32, 16]], dtype=np.float32)
ONE = np.array([1])


def scene(
    seed: int = 0,
    ship: bool = True,
    shape: tuple[int, ...] = (40, 60),
    unit: int = 1,
    at: tuple[int, int] = (20, 10),
    dark: bool = False,
) -> np.ndarray:
    """Dark speckle with a textured bright object of 12 x 6 pixels, in [20, 10, 32, 16]; or the other way round."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(10, 30, size=shape)
    if ship:
        x, y = at
        pixels[y : y + 6, x : x + 12] += np.random.default_rng(99).integers(80, 200, size=(6, 12, *shape[2:]))
    pixels = 255 - pixels if dark else pixels
    return (pixels * unit).astype(np.uint8 if unit == 1 else np.uint16)


def blobs(label: int = 1, score: float = 0.9, above: float = 60) -> Member:
    """A detector that works: boxes of what is brighter than the rest, by connected components."""
    import cv2

    def detect(pixels: Pixels) -> Detections:
        values = (pixels if pixels.ndim == 2 else pixels.mean(axis=2)).astype(np.float64)
        values *= 255 / np.iinfo(pixels.dtype).max
        _, _, stats, _ = cv2.connectedComponentsWithStats((values > above).astype(np.uint8))
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h, area in stats[1:].tolist() if area > 8], dtype=float)
        n = len(boxes)
        return Detections(boxes.reshape(-1, 4), np.full(n, score), np.full(n, label))

    return Member(detect, (0.5,) * 3, (0.6,) * 3)


LOOKS: list[dict[str, Any]] = [{}, {"shape": (40, 60, 3)}, {"unit": 257}, {"dark": True}]


@pytest.mark.parametrize("look", LOOKS)
def test_the_same_image_keeps_every_box(look: dict[str, Any]) -> None:
    (propagated,) = Carry()(scene(**look), scene(**look), BOX, ONE).boxes
    assert list(propagated.box) == [20, 10, 32, 16]
    assert (propagated.label, propagated.decision) == (1, "kept")
    assert propagated.evidence["correlation"] == propagated.evidence["response"] == 1
    assert propagated.evidence["match"] == pytest.approx(1, abs=1e-4)
    assert (propagated.evidence["shift_x"], propagated.evidence["shift_y"]) == (0, 0)
    assert propagated.evidence["contrast"] == propagated.evidence["contrast_source"]
    assert abs(propagated.evidence["contrast"] or 0) > 5
    assert propagated.evidence["detector"] is None


@pytest.mark.parametrize("look", LOOKS)
def test_kept_in_new_speckle_dropped_when_gone_and_shifted_when_moved(look: dict[str, Any]) -> None:
    source = scene(0, **look)
    (there,) = Carry()(source, scene(1, **look), BOX, ONE).boxes
    (gone,) = Carry()(source, scene(1, ship=False, **look), BOX, ONE).boxes
    (moved,) = Carry()(source, scene(1, at=(27, 7), **look), BOX, ONE).boxes
    assert [there.decision, gone.decision, moved.decision] == ["kept", "dropped", "shifted"]
    assert list(moved.box) == [27, 7, 39, 13]
    assert (moved.evidence["shift_x"], moved.evidence["shift_y"]) == (7, -3)
    assert list(gone.box) == list(there.box) == [20, 10, 32, 16]
    assert (there.evidence["correlation"] or 0) > 0.9
    assert abs(gone.evidence["correlation"] or 0) < 0.4


def test_an_object_that_turned_into_its_opposite_is_not_the_same_object() -> None:
    before = np.full((40, 60), 100, dtype=np.uint8)
    after = before.copy()
    before[10:16, 20:32], after[10:16, 20:32] = 200, 10
    assert Carry()(before, after, BOX, ONE).boxes[0].decision == "dropped"


def test_an_object_that_has_merely_faded_is_there_whatever_a_detector_misses() -> None:
    before, after = scene(0), scene(1)
    after[10:16, 20:32] = 20 + (after[10:16, 20:32] - 20.0) * 0.5
    blind = Ensemble([blobs(above=150)])
    (propagated,) = Carry(detectors=blind)(before, after, BOX, ONE).boxes
    assert propagated.evidence["detector"] == 0 < 0.9 == propagated.evidence["detector_source"]
    assert propagated.decision == "kept"


def test_an_object_seen_in_one_channel_only() -> None:
    """Red on green of the same brightness: the mean of the channels shows nothing."""
    rng = np.random.default_rng(0)

    def picture(ship: bool) -> np.ndarray:
        pixels = rng.integers(80, 120, size=(40, 60, 3))
        if ship:
            pixels[10:16, 20:32] = [190, 10, 100]
        return pixels.astype(np.uint8)

    source = picture(True)
    assert Carry()(source, picture(True), BOX, ONE).boxes[0].decision == "kept"
    assert Carry()(source, picture(False), BOX, ONE).boxes[0].decision == "dropped"


@pytest.mark.parametrize("side", [4, 20, 60])
def test_from_four_pixels_to_half_the_image(side: int) -> None:
    rng = np.random.default_rng(3)

    def picture(at: int | None) -> np.ndarray:
        pixels = rng.integers(10, 30, size=(120, 120))
        if at is not None:
            pixels[at : at + side, at : at + side] += 100
        return pixels.astype(np.uint8)

    box = np.array([[30, 30, 30 + side, 30 + side]], dtype=np.float32)
    decide = [Carry()(picture(30), picture(at), box, ONE).boxes[0] for at in (30, None, 36)]
    assert [propagated.decision for propagated in decide] == ["kept", "dropped", "shifted"]
    assert decide[2].box == (36, 36, 36 + side, 36 + side)


def test_two_boxes_do_not_end_on_one_object() -> None:
    """The left one of two alike is lost: it must not be found in its neighbour."""

    def picture(seed: int, left: bool) -> np.ndarray:
        pixels = np.random.default_rng(seed).integers(10, 30, size=(40, 60))
        for x in (20, 28) if left else (28,):
            pixels[10:16, x : x + 5] += 150
        return pixels.astype(np.uint8)

    boxes = np.array([[20, 10, 25, 16], [28, 10, 33, 16]], dtype=np.float32)
    left, right = Carry()(picture(0, True), picture(1, False), boxes, np.array([0, 0])).boxes
    assert [left.decision, right.decision] == ["dropped", "kept"]


def test_where_objects_were_put_by_the_generator_all_are_kept_with_how_they_stand_out() -> None:
    """The source may have nothing at that place: it is no evidence."""
    (new,) = Carry(exact=True)(scene(0, ship=False), scene(1), BOX, ONE).boxes
    (faint,) = Carry(exact=True)(scene(0), scene(1, ship=False), BOX, ONE).boxes
    assert [new.decision, faint.decision] == ["kept", "kept"]
    assert set(new.evidence) == set(faint.evidence) == {"contrast"}
    assert new.evidence["contrast"] > 5  # type: ignore[operator]
    assert abs(faint.evidence["contrast"]) < 0.5  # type: ignore[arg-type]
    colour = np.stack([scene(2, ship=False), scene(1), scene(3, ship=False)], axis=-1)  # it stands out in green alone
    (green,) = Carry(exact=True)(colour, colour, BOX, ONE).boxes
    assert green.evidence["contrast"] > 5  # type: ignore[operator]


def test_what_appeared_out_of_nothing_is_refused_or_labelled_or_ignored() -> None:
    before, after = scene(0), scene(1)
    after[28:34, 40:52] += 120
    judge = {
        what.value: Carry(new_objects=what, detectors=Ensemble([blobs()]))(before, after, BOX, ONE)
        for what in NewObjects
    }
    assert judge["refuse"].refused == "hallucinated objects: 1, at [40, 28, 52, 34]"
    assert judge["label"].refused is judge["ignore"].refused is None
    kept, added = judge["label"].boxes
    assert (kept.decision, added.decision, added.box, added.label) == ("kept", "added", (40, 28, 52, 34), 1)
    assert [box.decision for box in judge["ignore"].boxes] == ["kept"]
    assert kept.evidence["detector"] == kept.evidence["detector_source"] == 0.9
    # In a crowd of its class it is one of the crowd.
    for what, label, more in ((NewObjects.refuse, 1, 0), (NewObjects.label, 1, 0), (NewObjects.label, 0, 1)):
        crowds = CrowdAreas(np.array([[38, 20, 60, 40]], dtype=np.float32), np.array([label]))
        judged = Carry(new_objects=what, detectors=Ensemble([blobs()]))(before, after, BOX, ONE, "", crowds)
        assert (judged.refused, len(judged.boxes)) == (None, 1 + more)


def test_what_the_source_has_too_is_nothing_new() -> None:
    """Land and buoys: unlabelled, and found by a detector in both."""
    before, after = scene(0), scene(1)
    for pixels in (before, after):
        pixels[28:34, 40:52] += 120
    assert Carry(detectors=Ensemble([blobs()]))(before, after, BOX, ONE).refused is None
    # Also where the detector missed it in the source: the pixels are the same.
    before[28:34, 40:52] -= 100
    before[28:34, 40:52] += 60
    member = blobs(above=110)
    assert len(member.detect(before).boxes) < len(member.detect(after).boxes)
    assert Carry(detectors=Ensemble([member]))(before, after, BOX, ONE).refused is None


def test_detectors_speak_for_an_object_whose_pixels_are_all_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same place, quite another look: the pixels do not tell, the detector does."""
    before, after = scene(0), scene(1, ship=False)
    after[10:16, 20:32:4] = 250
    after[10:16, 21:32:4] = 61
    after[10:16, 22:32:4] = 61
    after[10:16, 23:32:4] = 61
    monkeypatch.setattr(carry, "PRESENT_RESPONSE", 0.9)
    monkeypatch.setattr(carry, "ABSENT_RESPONSE", 0.85)
    assert Carry()(before, after, BOX, ONE).boxes[0].decision == "dropped"
    looks = Carry(detectors=Ensemble([blobs()]))
    assert looks(before, after, BOX, ONE).boxes[0].decision == "kept"
    # Another class on the same spot is no witness.
    other = Carry(NewObjects.ignore, detectors=Ensemble([blobs(label=0)]))
    assert other(before, after, BOX, ONE).boxes[0].decision == "dropped"


def test_an_object_that_moved_and_changed_is_found_by_the_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry, "SHIFT_CORRELATION", 0.9)
    before, after = scene(0), scene(1, ship=False)
    after[13:19, 27:39] = np.random.default_rng(5).integers(61, 250, size=(6, 12))
    assert Carry()(before, after, BOX, ONE).boxes[0].decision == "dropped"
    judged = Carry(detectors=Ensemble([blobs()]))(before, after, BOX, ONE)
    assert judged.refused is None
    (moved,) = judged.boxes
    assert (moved.decision, moved.box) == ("shifted", (27, 13, 39, 19))


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 60, 40],
        [59.2, 39.5, 60, 40],
        [0, 0, 0.4, 0.3],
        [0, 5, 60, 6],
        [59.999, 0, 60, 40],
        [20.4, 10.2, 20.6, 10.3],
    ],
)
def test_boxes_at_borders_smaller_than_a_pixel_and_as_large_as_the_image(box: list[float]) -> None:
    (propagated,) = Carry()(scene(0), scene(1), np.array([box], dtype=np.float32), ONE).boxes
    assert all(np.isfinite(value) for value in propagated.evidence.values() if value is not None)
    assert 0 <= propagated.box[0] < propagated.box[2] <= 60.001
    assert 0 <= propagated.box[1] < propagated.box[3] <= 40.001
    if propagated.decision != "shifted":
        np.testing.assert_allclose(propagated.box, box, rtol=1e-6)


def test_flat_images() -> None:
    flat, other = np.full((40, 60), 9, dtype=np.uint8), np.full((40, 60), 10, dtype=np.uint8)
    for after, correlation in ((flat, 1), (other, 0)):
        (propagated,) = Carry()(flat, after, BOX, ONE).boxes
        assert propagated.evidence["correlation"] == correlation
        assert propagated.evidence["match"] == 0


def test_no_boxes() -> None:
    empty, no_labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    assert Carry()(scene(), scene(), empty, no_labels).boxes == ()
    refused = Carry(detectors=Ensemble([blobs()]))(scene(ship=False), scene(), empty, no_labels)
    assert refused.refused is not None


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(40, 60\) expected, \(40, 60, 3\) got"):
        Carry()(scene(), scene(shape=(40, 60, 3)), BOX, ONE)
