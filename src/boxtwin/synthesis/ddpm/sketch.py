"""New layouts in the look of the real sensor: a sketch with exact boxes, redrawn by the model of real images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from boxtwin.datasets.levels import measure_levels
from boxtwin.datasets.sample import Sample
from boxtwin.datasets.simulated_sar.scenes import MIN_IMAGE_SIZE, SIMULATION, simulate_scene
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Boxes, planes_of
from boxtwin.synthesis.controls import CopyPaste, PasteSettings
from boxtwin.synthesis.ddpm.base import Canvas, the_one_class
from boxtwin.synthesis.ddpm.whole_image import PixelDDPM
from boxtwin.synthesis.generator import Request, Variation, settings_of
from boxtwin.synthesis.sensor import KNEE, ground, longer_sides, up_to

SKETCHES = ("copy_paste", "sar_scenes")
SHIP = 24  # pixels: the longer side of simulated ships in the median
MOST_SCALE = 4.0
LEAST_SIDE = 3  # pixels: the part of a simulated ship that a border leaves has a box from this side on


@dataclass(kw_only=True, eq=False)
class PixelSketch(PasteSettings, PixelDDPM):
    """SDEdit that starts from a sketch instead of the source.

    With `sketch` "copy_paste" it is the source with objects of the training images pasted into it. With "sar_scenes" it
    is a simulated scene of the source's size, brightness and contrast, whose ships are as long as the training images'
    objects (in the median). The noise hides seams, and the look of the simulation.

    Strengths and texture refer to the sketch; pastes are mirrored if `mirror` is set.
    """

    sketch: str  # one of `SKETCHES`

    name = "pixel_ddpm_sketch"
    boxes = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sketch not in SKETCHES:
            raise InputError(f"{self.name}: sketch={self.sketch} must be {' or '.join(SKETCHES)}")
        self.check(self.name)
        settings: dict[str, Any] = settings_of(self, of=PasteSettings)
        self._paste = CopyPaste(mirror=self.mirror, **settings)

    def version(self, training: Sequence[Sample]) -> int:
        """From 2 on of simulated scenes: before, they were fitted to the images in another way.

        One more where images have 16 bit: before, the brightest pixels got the full scale of the file, not of the data.
        """
        deep = any(sample.bits > 8 for sample in training)
        return SIMULATION + 1 + deep if self.sketch == "sar_scenes" else super().version(training)

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Train or load the model, and cut out the objects to paste; simulated scenes refuse several classes."""
        if self.sketch == "sar_scenes":
            self._ship = the_one_class(f"{self.name}: sketch=sar_scenes", training, "sketch=copy_paste")
            lengths = longer_sides(training)
            self._white = 1.0
            if any(sample.bits > 8 for sample in training):
                self._white = measure_levels(training, Sample.read).levels.full_scale / np.iinfo(np.uint16).max
            self._scale = float(np.clip(np.median(lengths) / SHIP, 1 / MOST_SCALE, MOST_SCALE)) if lengths else 1.0
        else:
            self._paste.fit(training, folder)
        super().fit(training, folder)

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        source = request.source
        if self.sketch == "sar_scenes":
            sketch, boxes = self._simulated(canvas, request.seed)
            labels, crowds = np.full(len(boxes), self._ship, dtype=source.labels.dtype), source.boxes[:0]
        else:
            (pasted,) = self._paste.vary([request])
            sketch, boxes, labels = canvas.showing(self.encoded(pasted.pixels)), pasted.boxes, pasted.labels
            crowds = source.boxes[source.crowd]
        pixels = self.redraw(sketch, np.concatenate([boxes, crowds]), request.seed)
        return Variation(request, pixels, boxes, labels)

    def _simulated(self, canvas: Canvas, seed: int) -> tuple[Canvas, Boxes]:
        height, width = canvas.height, canvas.width
        side = max(math.ceil(max(height, width) / self._scale), MIN_IMAGE_SIZE)
        (chip,) = simulate_scene(np.random.default_rng(seed), chips=1, size=side)
        scaled = round(side * self._scale)
        how = cv2.INTER_AREA if scaled < side else cv2.INTER_CUBIC
        pixels = chip.pixels if scaled == side else cv2.resize(chip.pixels, (scaled, scaled), interpolation=how)
        scene = self.network.tone.encode(planes_of(pixels, canvas.encoded.shape[0])[:, :height, :width])
        # The sea gets the level and the speckle of the source's.
        level, spread = ground(canvas.encoded)
        scene_level, scene_spread = ground(scene)
        scene = (scene - scene_level) * (spread / scene_spread) + level
        white = float(self.network.tone.encode(np.full(1, self._white))[0])
        if chip.pixels.max() == np.iinfo(chip.pixels.dtype).max:  # brighter than it can show
            scene = up_to(white, scene, level + KNEE * spread)
        if self._white < 1:  # a file's own full scale cuts off what is brighter in any case
            scene = np.minimum(scene, white)
        corners = np.array(chip.boxes, dtype=np.float32).reshape(-1, 4) * np.float32(scaled / side)
        corners = np.minimum(corners, np.array([width, height, width, height], dtype=np.float32))
        whole = (corners[:, 2:] - corners[:, :2]).min(axis=1, initial=np.inf) >= LEAST_SIDE
        return canvas.showing(scene.astype(np.float32)), corners[whole]
