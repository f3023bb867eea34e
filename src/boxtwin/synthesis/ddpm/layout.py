"""New layouts: objects moved, turned, added and removed, drawn by the model where a new mask shows them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm.auto import tqdm

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.ddpm.base import Canvas, PixelGenerator
from boxtwin.synthesis.ddpm.layout_plan import Chances, Thing, plan, things_of
from boxtwin.synthesis.ddpm.model import ModelSettings
from boxtwin.synthesis.ddpm.sampling import Image, match_grain, object_mask
from boxtwin.synthesis.ddpm.training_crops import planes_of
from boxtwin.synthesis.diffusers_pipelines.local_painting import Brush, paint, soft_zone, traces
from boxtwin.synthesis.generator import Json, Knowledge, Request, Variation
from boxtwin.synthesis.silhouettes import Silhouette, draw, silhouettes_of

REACH = 48  # pixels from an object in which its side lobes are looked for when it goes
# Pixels of an object beyond its silhouette that go with it to the new place.
RIM = 1.5


class PixelLayout(PixelGenerator):
    """The source with some of its objects elsewhere, at other angles, gone, or joined by objects of other images.

    Noise is put only where something changes. An old place is repainted from pure noise as ground, together with the
    side lobes that hang together with the object. At a new place the object is put down as it was seen, turned, and
    redrawn from noise of `object_strength` by the network, which is shown its silhouette there; 1 leaves nothing of
    what was put down, and the silhouette alone decides. The box is the tight box of the silhouette.

    Objects at the border, close to another or on busy ground stay where they are: nobody knows what is behind them. New
    places are as calm as the old ones. A source in which nothing can change comes back as it was; the manifest's record
    counts the changes.

    Args:
        move, turn_only, remove: probabilities that an object moves (and turns), turns in place, goes.
        turn: greatest angle in degrees by which an object is turned, 0 for images that have an up and a down.
        add: greatest number of added objects, of the training images or of the source itself.
        object_strength: time in [0, 1] to which an object at its new place is noised.
        margin: pixels over which painted ground goes over into old; also the clearance between objects.
        steps, eta, rho: of the sampler, as of `PixelDDPM`.
        settings: of the model; see `ModelSettings`. It has to learn all noise levels, and silhouettes.
    """

    name = "pixel_ddpm_layout"
    boxes: Knowledge = "exact"

    def __init__(
        self,
        *,
        move: float,
        turn_only: float,
        remove: float,
        turn: float,
        add: int,
        object_strength: float,
        margin: int,
        steps: int,
        eta: float,
        rho: float,
        **settings: Unpack[ModelSettings],
    ) -> None:
        super().__init__(**settings)
        self.check(
            {"move": move, "turn_only": turn_only, "remove": remove, "object_strength": object_strength, "eta": eta},
            {"steps": (steps, 1), "add": (add, 0), "margin": (margin, 1)},
        )
        if move + turn_only + remove > 1:
            raise InputError(f"{self.name}: move + turn_only + remove is at most 1, got {move + turn_only + remove}")
        if not 0 <= turn <= 180:
            raise InputError(f"{self.name}: turn lies between 0 and 180 degrees, got {turn}")
        if rho <= 0:
            raise InputError(f"{self.name}: rho is positive, got {rho}")
        if settings["mask"] != "silhouettes":
            raise InputError(f"{self.name}: mask={settings['mask']} does not say how objects lie; use mask=silhouettes")
        self.check_strength(repainting=1.0)
        self.chances = Chances(move=move, turn_only=turn_only, remove=remove, add=add, turn=float(turn))
        self.object_strength = object_strength
        self.brush = Brush(steps=steps, rho=rho, eta=eta, margin=margin)
        self._donors: list[Thing] = []

    def drawing(self) -> dict[str, Json]:
        """Chances of changes, strength and sampler."""
        chances, brush = self.chances, self.brush
        return {
            "move": chances.move,
            "turn_only": chances.turn_only,
            "remove": chances.remove,
            "turn": chances.turn,
            "add": chances.add,
            "object_strength": self.object_strength,
            "margin": brush.margin,
            "steps": brush.steps,
            "eta": brush.eta,
            "rho": brush.rho,
        }

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Train or load the model, and look at the objects of the training images."""
        super().fit(training, folder)
        self._donors = []
        for sample in tqdm(training, desc="looking at objects", unit="image", mininterval=1.0, leave=False):
            if len(sample.object_boxes):
                encoded = self.network.tone.encode(planes_of(sample.read(), self.network.image_channels))
                self._donors += [thing for _, thing in things_of(encoded, sample, self.brush.margin)]

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        """The source in a new layout."""
        source = request.source
        rng = np.random.default_rng(request.seed)
        noise = torch.Generator().manual_seed(request.seed)
        changes = plan(canvas.encoded, source, self._donors, self.chances, self.brush.margin, rng)
        silhouettes = dict(enumerate(silhouettes_of(canvas.encoded.mean(axis=0), source.boxes)))
        gone = {change.old for change in changes if change.old is not None}
        x = canvas.x
        # 1. Old places become ground.
        for change in changes:
            if change.old is not None:
                del silhouettes[change.old]
                x = self._erase(canvas, x, source.boxes, change.old, silhouettes, noise)
        # 2. New places get their objects.
        standing = list(silhouettes.values())
        for change in changes:
            if change.new is not None:
                standing.append(change.new)
                x = self._put(canvas, x, change.thing, change.new, standing, noise)
        pixels = canvas.pixels(x) if changes else canvas.like.copy()
        stay = [index for index in np.flatnonzero(~source.crowd).tolist() if index not in gone]
        new = [(change.new.box(), change.thing.label) for change in changes if change.new is not None]
        counts = Counter(change.kind for change in changes)
        return Variation(
            request=request,
            pixels=pixels,
            boxes=np.array([*source.boxes[stay], *(box for box, _ in new)], dtype=source.boxes.dtype).reshape(-1, 4),
            labels=np.array([*source.labels[stay], *(label for _, label in new)], dtype=source.labels.dtype),
            record={kind: counts[kind] for kind in ("moved", "turned", "removed", "added")},
        )

    def _erase(
        self,
        canvas: Canvas,
        x: Image,
        boxes: Float[np.ndarray, "n 4"],
        index: int,
        left: dict[int, Silhouette],
        noise: torch.Generator,
    ) -> Image:
        height, width = canvas.height, canvas.width
        others = object_mask(boxes[sorted(left)], height, width) > 0
        spare = soft_zone(others, 2) > 0
        values = x[0, :, :height, :width].mean(dim=0).cpu().numpy()
        zone = soft_zone(traces(values, boxes[index].astype(np.float64), REACH, spare), self.brush.margin)
        zone[spare] = 0
        return paint(canvas, x, draw(list(left.values()), height, width), zone, self.brush, noise)

    def _put(
        self,
        canvas: Canvas,
        x: Image,
        thing: Thing,
        new: Silhouette,
        standing: Sequence[Silhouette],
        noise: torch.Generator,
    ) -> Image:
        height, width = canvas.height, canvas.width
        shape = draw([new], height, width)
        put = _put_down(thing, new, x[0, :, :height, :width].cpu().numpy())
        sketch = canvas.showing(put)
        zone = soft_zone(shape > 0, self.brush.margin) * np.float32(self.object_strength)
        mask = draw(standing, height, width)
        # Padding is painted from the image without the object; it is cut off in the end.
        made = paint(canvas, sketch.x, mask, zone, self.brush, noise)
        seen = draw([thing.silhouette], *thing.patch.shape[1:])
        pattern = torch.from_numpy(thing.patch)[None].to(made), torch.from_numpy(seen)[None, None].to(made)
        return match_grain(made, canvas.mask(shape), *pattern)


def _put_down(thing: Thing, new: Silhouette, ground: Float[np.ndarray, "c h w"]) -> Float[np.ndarray, "c h w"]:
    """The object as it was seen, turned to its new heading, upon the ground; nothing of its old ground comes along."""
    turn, old = new.heading - thing.silhouette.heading, thing.silhouette
    c, s = math.cos(turn), math.sin(turn)
    # Maps a point of the patch to the image; OpenCV counts from the centre of the first pixel.
    matrix = np.array([[c, -s, new.x - 0.5], [s, c, new.y - 0.5]])
    matrix[:, 2] -= matrix[:, :2] @ np.array([old.x - 0.5, old.y - 0.5])
    size = (ground.shape[2], ground.shape[1])
    turned = np.stack([cv2.warpAffine(plane, matrix, size, flags=cv2.INTER_LINEAR) for plane in thing.patch])
    alpha = draw([new.grown(RIM)], ground.shape[1], ground.shape[2])
    there: Bool[np.ndarray, "h w"] = cv2.warpAffine(np.ones(thing.patch.shape[1:], np.float32), matrix, size) > 0.99
    alpha = alpha * there
    return (ground + alpha * (turned - ground)).astype(np.float32)
