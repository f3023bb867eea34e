"""A simulated data set changed to look like the sensor of a split's training images; its boxes stay."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.sample import Sample
from boxtwin.files import atomic_path, lock_beside, write_bytes_atomically
from boxtwin.synthesis.ddpm.base import Canvas
from boxtwin.synthesis.ddpm.whole_image import PixelDDPM
from boxtwin.synthesis.generator import Json, hash_of
from boxtwin.synthesis.manifest import fingerprint
from boxtwin.synthesis.sensor import calm_statistics, dithered, is_enlarged, level_of, matched, seen

NEAREST = 3  # training images, one of which a chip is matched to
VERSION = 1  # raised whenever the same settings and images give other pixels


@dataclass(frozen=True)
class Redrawing:
    """How simulated images are changed.

    Each is matched (`boxtwin.synthesis.sensor.matched`) to a training image, one of the three with the nearest level: a
    great change of level saturates land, or shows where it was saturated. Then a diffusion model of the training images
    redraws it, if there is one. It starts from the matched image, because it has learnt neither the level nor the
    speckle of others, and keeps that image's histogram and texture.

    Args:
        simulation: all that the simulated images follow from.
        training: the split's training images: no others may be learnt from.
        side: pixels of a detector's input, in which it sees the training images.
        model: draws with the strength that it is set to; None: no diffusion.
    """

    simulation: Json
    training: Sequence[Sample]
    side: int
    model: PixelDDPM | None

    @cached_property
    def key(self) -> str:
        """Twelve hexadecimal digits: a hash of all that the changed images follow from."""
        drawn = self.model and {"version": self.model.version(self.training), **self.model.parameters()}
        training = [[sample.name, fingerprint(sample)] for sample in self.training]
        version = VERSION + is_enlarged(self.training, self.side)
        return hash_of([version, self.simulation, training, self.side, drawn])[:12]

    def make(self, root: Path, simulate: Callable[[], object], models: Path) -> Path:
        """The folder of the changed images of the data set in ``root``, made if it is missing, beside it.

        It appears whole or not at all; of two processes, one waits for the other. ``simulate`` makes the data set in
        ``root``, and ``models`` is the folder of what generators have learnt.
        """
        folder = root.with_name(f"{root.name}-{self.key}")
        with lock_beside(folder, "is making"):
            if not folder.exists():
                simulate()
                if self.model:
                    self.model.fit(self.training, models)
                with atomic_path(folder) as partial:
                    self._write(root, partial)
        return folder

    def _write(self, root: Path, folder: Path) -> None:
        content: dict[str, Any] = json.loads((root / "annotations.json").read_text(encoding="utf-8"))
        boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            boxes[annotation["image_id"]].append([x, y, x + width, y + height])
        grey = [seen(sample, self.side) for sample in self.training]
        statistics = [
            calm_statistics(dithered(pixels, np.random.default_rng(place))) for place, pixels in enumerate(grey)
        ]
        levels = np.array([level_of(each) for each in statistics])
        for image in tqdm(content["images"], desc="changing simulated images", unit="image"):
            # With and without diffusion, a chip is matched to the same image.
            rng = np.random.default_rng(np.random.SeedSequence([VERSION, image["id"]]))
            name = f"images/{image['file_name']}"
            chip = read_image(root / name)
            near = np.argsort(np.abs(levels - level_of(calm_statistics(dithered(chip, rng)))), kind="stable")[:NEAREST]
            pixels = matched(chip, statistics[int(rng.choice(near))], rng)
            if self.model:
                canvas = Canvas(self.model.network, pixels, name)
                corners = np.array(boxes[image["id"]], dtype=np.float32).reshape(-1, 4)
                with torch.inference_mode():
                    pixels = self.model.redraw(canvas, corners, int(rng.integers(2**31)))
            write_png(folder / name, pixels)
        write_bytes_atomically(folder / "annotations.json", json.dumps(content).encode())
