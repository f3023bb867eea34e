"""`inpaint_background`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from option_generators import background, fitted, make_sample, one

from boxtwin.datasets.image_io import read_image


def test_a_repainted_background_leaves_every_pixel_of_every_box(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", dtype=np.uint16, crowd=1)
    made, source = one(fitted(tmp_path, background(), [sample]), sample), read_image(sample.path)
    same = made.pixels == source
    for x1, y1, x2, y2 in sample.boxes:
        assert same[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))].all()
    assert same.mean() < 0.5
    np.testing.assert_array_equal(made.boxes, sample.object_boxes)
