"""`pixel_ddpm_layout` and its plans."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from option_generators import fitted, layout, make_sample, one

from boxtwin.datasets.image_io import read_image
from boxtwin.synthesis.ddpm.base import soft_zone
from boxtwin.synthesis.ddpm.layout import LayoutSettings, object_patches, plan, traces


def test_a_layout_changes_what_it_says_and_leaves_the_rest(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", (160, 160), ships=((30, 40, 0.5), (110, 110, -0.9)))
    generator = fitted(tmp_path, layout(move=0.0, turn_only=0.0, remove=0.0, add=1), [sample])
    source = read_image(sample.path)
    for seed in range(4):
        made = one(generator, sample, seed)
        changes = sum(int(str(count)) for count in made.record.values())
        assert changes == 1
        assert len(made.boxes) == 2 + int(str(made.record["added"]))
        # Only around the new box, and around an old one that is gone, is anything new.
        near = np.zeros(source.shape, dtype=bool)
        for x1, y1, x2, y2 in [*made.boxes[-1:], *(b for b in sample.boxes if not (made.boxes == b).all(1).any())]:
            near[max(int(y1) - 56, 0) : int(y2) + 56, max(int(x1) - 56, 0) : int(x2) + 56] = True
        np.testing.assert_array_equal(made.pixels[~near], source[~near])
        assert (made.pixels != source).any()


def test_a_crowd_and_an_object_at_the_border_stay_where_they_are(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", (120, 120), ships=((4, 60, 1.5), (60, 60, 0.4)), crowd=1)
    encoded = read_image(sample.path).astype(np.float32)[None] / 50
    assert list(object_patches(encoded, sample, 6)) == []
    made = one(fitted(tmp_path, layout(move=1.0, turn_only=0.0, remove=0.0, add=0), [sample]), sample)
    np.testing.assert_array_equal(made.pixels, read_image(sample.path))
    assert set(made.record.values()) == {0}


def test_plans_keep_clear_of_everything_and_stay_inside(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", (200, 200), ships=((40, 40, 0.5), (150, 60, 1.0), (90, 150, -0.4)))
    encoded = np.log1p(read_image(sample.path).astype(np.float32)[None] / 20)
    donors = [patch for _, patch in object_patches(encoded, sample, 6)]
    assert len(donors) == 3
    kinds = set()
    for seed in range(30):
        settings = LayoutSettings(move=0.4, turn_only=0.3, remove=0.1, add=3, turn=180.0, margin=6)
        changes = plan(encoded, sample, donors, settings, np.random.default_rng(seed))
        assert changes
        gone = {change.old for change in changes}
        boxes = [box for index, box in enumerate(sample.boxes) if index not in gone]
        boxes += [change.new.box() for change in changes if change.new is not None]
        for at, (x1, y1, x2, y2) in enumerate(boxes):
            assert min(x1, y1) >= 0
            assert max(x2, y2) <= 200
            for u1, v1, u2, v2 in boxes[:at]:
                assert not (x1 < u2 and u1 < x2 and y1 < v2 and v1 < y2)
        kinds |= {change.kind for change in changes}
        for change in changes:
            if change.kind == "turned" and change.new is not None and change.old is not None:
                middle = (sample.boxes[change.old][:2] + sample.boxes[change.old][2:]) / 2
                np.testing.assert_allclose([change.new.x, change.new.y], middle, atol=1e-3)
    assert kinds == {"moved", "turned", "removed", "added"}


def test_traces_follow_side_lobes_and_spare_others() -> None:
    values = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    values[45:55, 45:55] += 8
    values[49:51, 20:45] += 4  # a lobe
    values[80:85, 80:85] += 8  # something else, not attached
    box = np.array([45.0, 45.0, 55.0, 55.0])
    found = traces(values, box, 40, np.zeros((100, 100), dtype=bool))
    assert found[45:55, 45:55].all()
    assert found[49:51, 22:45].mean() > 0.9
    assert not found[80:85, 80:85].any()
    assert found.mean() < 0.1
    spare = np.zeros((100, 100), dtype=bool)
    spare[:, 50:] = True
    assert not traces(values, box, 40, spare)[:, 50:].any()
    zone = soft_zone(found, 4)
    assert (zone[found] == 1).all()
    assert (zone[cv2.dilate(found.astype(np.uint8), np.ones((15, 15))) == 0] == 0).all()
