"""`pixel_ddpm_joint`, and objects read from masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from option_generators import MODEL, hull, make_sample

from boxtwin.synthesis.ddpm.mask_reading import read_mask
from boxtwin.synthesis.ddpm.model import PixelModel
from boxtwin.synthesis.silhouettes import draw


@pytest.mark.parametrize("degrees", [0, 30, 80, -50])
def test_objects_are_read_from_a_noisy_mask(degrees: float) -> None:
    sure, unsure = hull(30, 30, np.radians(degrees), 26, 9), hull(90, 70, 0.3, 24, 9)
    mask = 2 * draw([sure], 120, 120) + draw([unsure], 120, 120) - 1
    mask += np.random.default_rng(0).normal(0, 0.7, mask.shape).astype(np.float32)
    readings = sorted(read_mask(mask, 0.6, 10), key=lambda reading: reading.silhouette.x)
    assert len(readings) == 2
    assert readings[0].sure > 0.6 > readings[1].sure
    for reading, shape in zip(readings, (sure, unsure), strict=True):
        np.testing.assert_allclose(reading.silhouette.box(), shape.box(), atol=5)
        rows, columns = np.nonzero(reading.pixels)
        assert reading.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    slim = read_mask(mask, 0.2, 10)
    assert max(reading.silhouette.breadth / reading.silhouette.length for reading in slim) <= 0.2 + 1e-9
    assert read_mask(mask, 0.6, 100) == []
    assert read_mask(-np.ones((4, 4), np.float32), 0.6, 1) == []


def test_a_joint_model_guesses_masks_or_takes_them_as_given(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png")
    model = PixelModel("test", {**MODEL, "train_steps": 1})  # type: ignore[typeddict-item]
    model.fit([sample], tmp_path)
    both = torch.randn(1, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    assert model.with_mask(both, 0.5).shape == both.shape
    assert model.given_mask(both[:, :1])(both[:, :1], 0.5).shape == (1, 1, 16, 24)
    assert np.isfinite(float(model.loss(model.net, model.crops([sample]), torch.Generator().manual_seed(1))))
