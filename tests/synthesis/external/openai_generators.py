"""The two generators of OpenAI's API, and stores of their variations.

Run as a script, this file makes a store in a process of its own, to be killed:
``python openai_generators.py <data set> <stores> <base url> <per image>``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.sample import Dataset
from boxtwin.labels.carry import Carry
from boxtwin.synthesis.external.openai_api import OpenAIEdit, OpenAIVariations
from boxtwin.synthesis.generator import Refused, Request, Variation
from boxtwin.synthesis.store import Library

if TYPE_CHECKING:
    from image_server import Record

SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"

SETTINGS: dict[str, Any] = {
    "model": "dall-e-2",
    "size": 256,
    "overlap": 32,
    "price_usd": 0.02,
    "timeout": 5.0,
    "max_tries": 3,
    "first_wait": 0.01,
}


def variations(server: Record, **changes: Any) -> OpenAIVariations:
    return OpenAIVariations(**{"base_url": server.url, **SETTINGS, **changes})


def edit(server: Record, **changes: Any) -> OpenAIEdit:
    settings = {"base_url": server.url, "prompt": "the same again", "quality": "high", "input_fidelity": None}
    return OpenAIEdit(**{**settings, **SETTINGS, "model": "gpt-image-2", **changes})


def open_library(dataset: Dataset, stores: Path, generator: Any, labels: str = "carry") -> Library:
    return Library(
        stores,
        generator,
        dataset.samples,
        judge=Carry(),
        labels=labels,
        dataset=dataset,
        seed=0,
    )


def outcomes(generator: Any, dataset: Dataset, folder: Path) -> list[Variation | Refused]:
    generator.fit(dataset.samples, folder)
    return list(generator.vary([Request(sample, 1, 7) for sample in dataset.samples]))


def reasons(found: list[Variation | Refused]) -> list[str | None]:
    return [outcome.reason if isinstance(outcome, Refused) else None for outcome in found]


if __name__ == "__main__":
    os.environ |= {"OPENAI_API_KEY": SECRET, "NO_PROXY": "127.0.0.1"}
    root, where, url, per_image = sys.argv[1:]
    data = read_coco(name="tiny", images=Path(root) / "images", annotations=Path(root) / "annotations.json")
    open_library(data, Path(where), OpenAIVariations(base_url=url, **SETTINGS)).make(data.samples, int(per_image))
