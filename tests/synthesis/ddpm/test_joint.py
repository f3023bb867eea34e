"""`pixel_ddpm_joint`, and objects read from masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from option_generators import MODEL, hull, make_sample

from boxtwin.synthesis.ddpm.joint import read_mask
from boxtwin.synthesis.ddpm.model import ModelSettings, PixelModel
from boxtwin.synthesis.silhouettes import draw


@pytest.mark.parametrize("degrees", [0, 30, 80, -50])
def test_objects_are_read_from_a_noisy_mask(degrees: float) -> None:
    sure, unsure = hull(30, 30, np.radians(degrees), 26, 9), hull(90, 70, 0.3, 24, 9)
    mask = 2 * draw([sure], 120, 120) + draw([unsure], 120, 120) - 1
    mask += np.random.default_rng(0).normal(0, 0.7, mask.shape).astype(np.float32)
    parts = sorted(read_mask(mask, 0.6, 10), key=lambda part: part[0].x)
    assert len(parts) == 2
    assert parts[0][1] > 0.6 > parts[1][1]
    for (silhouette, _), shape in zip(parts, (sure, unsure), strict=True):
        np.testing.assert_allclose(silhouette.box(), shape.box(), atol=5)
    slim = read_mask(mask, 0.2, 10)
    assert max(silhouette.breadth / silhouette.length for silhouette, _ in slim) <= 0.2 + 1e-9
    assert read_mask(mask, 0.6, 100) == []
    assert read_mask(-np.ones((4, 4), np.float32), 0.6, 1) == []


def test_a_joint_model_guesses_masks_or_takes_them_as_given(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png")
    model = PixelModel("test", ModelSettings(**{**MODEL, "train_steps": 1}))
    model.fit([sample], tmp_path)
    both = torch.randn(1, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    assert model.with_mask(both, 0.5).shape == both.shape
    assert model.given_mask(both[:, :1])(both[:, :1], 0.5).shape == (1, 1, 16, 24)
    assert np.isfinite(float(model.loss(model.net, model.crops([sample]), torch.Generator().manual_seed(1))))
