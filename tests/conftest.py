"""Fixtures that several test files share: a tiny COCO data set on disk, and the real chips where they are at hand."""

import os

# Before torch is imported, here and in the commands that tests run: processes side by side have a core each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings
from ready_store import READY, copy_tables

from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.sample import Dataset

# The same examples in every run, and no limit on time: machines that run tests are busy.
settings.register_profile("boxtwin", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("boxtwin")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The weights of networks that tests make, and torch.rand, are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _ready_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """New MLflow stores, of this process and of the commands that tests run, are copies of one (`ready_store`)."""
    folder = tmp_path_factory.getbasetemp()
    os.environ[READY] = str((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "ready.db")
    copy_tables()
    yield
    del os.environ[READY]


@dataclass
class CocoSet:
    """A COCO data set on disk. Change `content` as a test needs it; `read` writes it down first, unless `by_hand`."""

    root: Path
    content: dict[str, Any]
    by_hand: bool = False

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def annotations(self) -> Path:
        return self.root / "annotations.json"

    def write(self) -> None:
        self.annotations.write_text(json.dumps(self.content))

    def read(self, **settings: Any) -> Dataset:
        if not self.by_hand:
            self.write()
        return read_coco(name="tiny", images=self.images, annotations=self.annotations, **settings)


MakeCoco = Callable[..., CocoSet]


@pytest.fixture
def make_coco(tmp_path: Path) -> MakeCoco:
    """Build a data set of bright rectangles on dark speckle.

    ``scenes`` gives the number of images per scene (names ``S00_0.png``, ``S00_1.png``, ``S01_0.png``, …); otherwise
    there are ``images`` images, each a scene of its own. ``sizes`` are (width, height), used in turn, as are
    ``channels`` (1 grey, 3 colour) and ``dtypes``. Image ``i`` holds ``objects[i % len(objects)]`` objects.
    """

    def make(
        *,
        images: int = 4,
        scenes: Sequence[int] | None = None,
        classes: Sequence[str] = ("ship",),
        sizes: Sequence[tuple[int, int]] = ((80, 64),),
        channels: Sequence[int] = (1,),
        dtypes: Sequence[Any] = (np.uint8,),
        objects: Sequence[int] = (2,),
        ending: str = ".png",
        seed: int = 0,
        folder: str = "coco",
    ) -> CocoSet:
        rng = np.random.default_rng(seed)
        built = CocoSet(tmp_path / folder, {"images": [], "annotations": [], "categories": []})
        built.images.mkdir(parents=True)
        # Numbers that start neither at 0 nor at 1: nothing may take an id for an index.
        built.content["categories"] = [{"id": 10 * n + 3, "name": name} for n, name in enumerate(classes)]
        members = scenes if scenes is not None else [1] * images
        names = [f"S{scene:02d}_{n}{ending}" for scene, size in enumerate(members) for n in range(size)]
        for index, name in enumerate(names):
            width, height = sizes[index % len(sizes)]
            dtype, depth = dtypes[index % len(dtypes)], channels[index % len(channels)]
            unit = 257 if dtype == np.uint16 else 1
            pixels = rng.integers(5, 40, size=(height, width) if depth == 1 else (height, width, depth))
            for _ in range(objects[index % len(objects)]):
                w, h = (int(value) for value in rng.integers(6, 14, size=2))
                x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
                pixels[y : y + h, x : x + w] = 220
                category = built.content["categories"][int(rng.integers(len(classes)))]["id"]
                built.content["annotations"].append(
                    {
                        "id": 500 + len(built.content["annotations"]),
                        "image_id": 100 + index,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
            done, encoded = cv2.imencode(ending, (pixels * unit).astype(dtype))
            assert done
            (built.images / name).write_bytes(encoded.tobytes())
            built.content["images"].append({"id": 100 + index, "file_name": name, "width": width, "height": height})
        built.write()
        return built

    return make


@pytest.fixture(scope="session")
def hrsid200() -> Path:
    """The folder of 200 real HRSID chips, which is no part of the project."""
    folder = Path(__file__).parents[1] / "../shared/data/hrsid200"
    if not folder.is_dir():
        pytest.skip(f"the real HRSID chips are not at {folder}")
    return folder.resolve()


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny diffusers pipeline (`tiny_pipelines`), such as ``tiny_pipeline("stable_diffusion")``.

    It is made once in a session, so tests that change one copy it first.
    """
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            import tiny_pipelines  # late: it takes seconds, and most tests need none

            made[kind] = getattr(tiny_pipelines, f"save_{kind}")(tmp_path_factory.mktemp("pipelines") / kind)
        return made[kind]

    return folder
