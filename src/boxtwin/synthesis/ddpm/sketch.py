"""New layouts in the look of the real sensor: a sketch with exact boxes, redrawn by the model of real images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float

from boxtwin.datasets.sample import Sample
from boxtwin.datasets.simulated_sar.scenes import MIN_IMAGE_SIZE, simulate_scene
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import planes_of
from boxtwin.synthesis.controls import CopyPaste
from boxtwin.synthesis.ddpm.base import Canvas, the_one_class
from boxtwin.synthesis.ddpm.whole_image import PixelDDPM
from boxtwin.synthesis.generator import Request, Variation

SKETCHES = ("copy_paste", "sar_scenes")
SHIP = 18  # pixels: the longer side of simulated ships in the median
MOST_SCALE = 4.0
TILE = 32  # pixels
KNEE = 6.0  # median deviations above the sea: hardly any speckle is brighter
LEAST_SIDE = 3  # pixels: the part of a simulated ship that a border leaves has a box from this side on


@dataclass(kw_only=True, eq=False)
class PixelSketch(PixelDDPM):
    """SDEdit that starts from a sketch instead of the source.

    With `sketch` "copy_paste" the sketch is the source with objects of the training images pasted into it; the noise
    hides the paste's seams and its foreign ground. With "sar_scenes" it is a simulated scene that has only size,
    brightness and contrast from the source, at a scale that makes its ships as long as the training images' objects
    (in the median); the noise hides the simulation's look, as far as `strength` reaches.

    Strengths and texture refer to the sketch; pastes are mirrored if `mirror` is set.
    """

    sketch: str  # one of `SKETCHES`
    turns: bool  # turn pasted objects by multiples of 90 degrees at random

    name = "pixel_ddpm_sketch"
    boxes = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sketch not in SKETCHES:
            raise InputError(f"{self.name}: sketch is {' or '.join(SKETCHES)}, got {self.sketch!r}")
        self._paste = CopyPaste(mirror=self.mirror, turns=self.turns)

    def version(self, training: Sequence[Sample]) -> int:  # noqa: ARG002
        """2 of simulated scenes, which were fitted to the images in another way before."""
        return 2 if self.sketch == "sar_scenes" else 1

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Train or load the model, and cut out the objects to paste.

        Raises:
            InputError: simulated ships are asked for and the objects are of several classes.
        """
        if self.sketch == "sar_scenes":
            ship = the_one_class(training)
            if ship is None:
                raise InputError(
                    f"{self.name}: sketch=sar_scenes draws ships, one class; the training images have objects of "
                    "several classes: use sketch=copy_paste"
                )
            self._ship, self._scale = ship, _scale_to(training)
        else:
            self._paste.fit(training, folder)
        super().fit(training, folder)

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        source = request.source
        if self.sketch == "sar_scenes":
            sketch, boxes = self._simulated(canvas, request.seed)
            labels = np.full(len(boxes), self._ship, dtype=source.labels.dtype)
            shown = boxes
        else:
            (pasted,) = self._paste.vary([request])
            sketch, boxes, labels = canvas.showing(self.encoded(pasted.pixels)), pasted.boxes, pasted.labels
            shown = np.concatenate([boxes, source.boxes[source.crowd]])
        return Variation(request, self.redraw(sketch, shown, request.seed), boxes, labels)

    def _simulated(self, canvas: Canvas, seed: int) -> tuple[Canvas, Float[np.ndarray, "n 4"]]:
        height, width = canvas.height, canvas.width
        side = max(math.ceil(max(height, width) / self._scale), MIN_IMAGE_SIZE)
        (chip,) = simulate_scene(np.random.default_rng(seed), chips=1, size=side)
        scaled = round(side * self._scale)
        how = cv2.INTER_AREA if scaled < side else cv2.INTER_CUBIC
        pixels = chip.pixels if scaled == side else cv2.resize(chip.pixels, (scaled, scaled), interpolation=how)
        scene = self.network.tone.encode(planes_of(pixels, canvas.encoded.shape[0])[:, :height, :width])
        # The sea gets the level and the speckle of the source's.
        level, spread = _ground(canvas.encoded)
        scene_level, scene_spread = _ground(scene)
        scene = (scene - scene_level) * (spread / scene_spread) + level
        if chip.pixels.max() == np.iinfo(chip.pixels.dtype).max:  # brighter than it can show
            scene = _up_to(float(self.network.tone.encode(np.ones(1))[0]), scene, level + KNEE * spread)
        corners = np.array(chip.boxes, dtype=np.float32).reshape(-1, 4) * np.float32(scaled / side)
        corners = np.minimum(corners, np.array([width, height, width, height], dtype=np.float32))
        whole = (corners[:, 2:] - corners[:, :2]).min(axis=1, initial=np.inf) >= LEAST_SIDE
        return canvas.showing(scene.astype(np.float32)), corners[whole]


def _scale_to(training: Sequence[Sample]) -> float:
    lengths = [
        side for sample in training for side in (sample.object_boxes[:, 2:] - sample.object_boxes[:, :2]).max(axis=1)
    ]
    return float(np.clip(np.median(lengths) / SHIP, 1 / MOST_SCALE, MOST_SCALE)) if lengths else 1.0


def _up_to(white: float, values: Float[np.ndarray, "c h w"], knee: float) -> Float[np.ndarray, "c h w"]:
    """Stretch what is above ``knee`` until the brightest is ``white``; nothing is made darker."""
    top = float(values.max())
    if not knee < top < white:
        return values
    return np.where(values > knee, knee + (values - knee) * ((white - knee) / (top - knee)), values)


def _ground(values: Float[np.ndarray, "c h w"]) -> tuple[float, float]:
    """Level and spread of what lies between objects: the median tile of the darker half, and its median deviation.

    Over a whole image the deviation would be that of land from sea, where there is land.
    """
    channels, height, width = values.shape
    tile = min(TILE, height, width)
    rows, columns = height // tile, width // tile
    tiles = values[:, : rows * tile, : columns * tile].reshape(channels, rows, tile, columns, tile)
    tiles = tiles.transpose(1, 3, 0, 2, 4).reshape(rows * columns, -1)
    levels = np.median(tiles, axis=1)
    spreads = np.median(np.abs(tiles - levels[:, None]), axis=1)
    dark = levels <= np.median(levels)
    return float(np.median(levels[dark])), max(float(np.median(spreads[dark])), 1e-3)
