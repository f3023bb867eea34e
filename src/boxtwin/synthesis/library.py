"""The on-disk store of variations: made once, whole or not at all, resumed after a kill, shared by all cells.

A store is a folder ``<generator>-<key>``. Its truth is ``manifest.jsonl``: a variation exists when its line stands
there and its file matches the line. Images are written before lines, so that a kill leaves nothing half-made behind.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Float, Int
from tqdm import tqdm

from boxtwin.boxes import area_xyxy, xyxy_to_xywh
from boxtwin.datasets.images import Pixels, read_image, remove_leftovers, write_bytes_atomically, write_png
from boxtwin.datasets.sample import CarriedBox, Lineage, Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.generator import Generator, Request, Variation

log = logging.getLogger(__name__)

Judge = Callable[
    [Pixels, Pixels, Float[np.ndarray, "n 4"], Int[np.ndarray, " n"]],
    tuple[CarriedBox, ...],
]


@dataclass(frozen=True)
class Made:
    """What one call of `Library.make` did: a count of images, and the seconds it took to learn and to draw."""

    made: int
    there: int
    fit_seconds: float
    vary_seconds: float


class Library:
    """The store of one generator's variations of one data set.

    Args:
        root: folder of all stores.
        generator: what makes the variations.
        training: the split's training images, all that a learning generator may see.
        judge: decides what becomes of each box (`boxtwin.labels.transfer`).
        judge_name: its name; stores differ by it.
        dataset: name of the data set.
        classes, category_ids: as in `Dataset`, for the COCO file.
        seed: base of all seeds; one variation's is a hash of it, the source's name and the variation's number.
    """

    def __init__(
        self,
        root: Path,
        generator: Generator,
        training: Sequence[Sample],
        *,
        judge: Judge,
        judge_name: str,
        dataset: str,
        classes: Sequence[str],
        category_ids: Sequence[int],
        seed: int,
    ) -> None:
        self.generator = generator
        self.training = tuple(training)
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids)
        self.seed = seed
        self.judge = judge
        synthetic = [sample.name for sample in training if sample.lineage is not None]
        if synthetic:
            raise ValueError(f"a generator learns from real images only, got {', '.join(synthetic[:10])}")
        self.identity: dict[str, Any] = {
            "dataset": dataset,
            "generator": generator.name,
            "parameters": generator.parameters(),
            "labels": judge_name,
            "seed": seed,
            "training": [[sample.name, _fingerprint(sample)] for sample in training] if generator.learns else [],
        }
        self.key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = root / f"{generator.name}-{self.key}"
        self.manifest = self.folder / "manifest.jsonl"

    def make(self, sources: Sequence[Sample], per_image: int) -> Made:
        """Make what is missing of the first ``per_image`` variations of every source.

        If another process is making the same store, wait for it. Shows a progress bar.
        """
        if per_image == 0:
            return Made(0, 0, 0.0, 0.0)
        _check_sources(sources)
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process is making %s; waiting for it", self.folder)
            lock.acquire()
        try:
            return self._make(sources, per_image)
        finally:
            lock.release()

    def variations(self, sources: Sequence[Sample], per_image: int) -> tuple[Sample, ...]:
        """The first ``per_image`` variations of every source as samples, in the order of the sources.

        Raises:
            InputError: one is missing; `make` makes it.
        """
        lines = self._valid_lines(sources)
        wanted = [(source, number) for source in sources for number in range(1, per_image + 1)]
        missing = [f"{source.name} v{number:02d}" for source, number in wanted if (source.name, number) not in lines]
        if missing:
            raise InputError(
                f"{self.folder} lacks {len(missing)} variation(s), {', '.join(missing[:10])}: run generate.py"
            )
        return tuple(
            self._sample(source, lines[source.name, number], image_id)
            for image_id, (source, number) in enumerate(wanted, start=1)
        )

    def lines(self) -> list[dict[str, Any]]:
        """The manifest, oldest line first. A line cut short by a kill does not count."""
        if not self.manifest.exists():
            return []
        content = self.manifest.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()]

    def _make(self, sources: Sequence[Sample], per_image: int) -> Made:
        self._mend_manifest()
        remove_leftovers(self.folder)
        there = self._valid_lines(sources)
        requests = [
            Request(source, number, self._seed_of(source, number))
            for number in range(1, per_image + 1)
            for source in sources
            if (source.name, number) not in there
        ]
        known = len(sources) * per_image - len(requests)
        if not requests:
            if known and not self._annotations_are_fresh():  # a kill came between the last line and the COCO file
                self._write_annotations()
            return Made(0, known, 0.0, 0.0)
        write_bytes_atomically(self.folder / "store.json", json.dumps(self.identity, indent=1).encode())
        started = time.perf_counter()
        self.generator.fit(self.training, self.folder)
        fitted = time.perf_counter()
        progress = tqdm(
            self.generator.vary(requests), total=len(requests), desc=f"{self.generator.name}: variations", unit="image"
        )
        last = fitted
        with self.manifest.open("ab") as manifest:
            for request, variation in zip(requests, progress, strict=True):
                if variation.request != request:
                    raise ValueError(f"{self.generator.name} gave variations in another order than asked for")
                now = time.perf_counter()
                self._store(variation, now - last, manifest.write)
                # A line must outlive a power cut: what it names may have been paid for.
                manifest.flush()
                os.fsync(manifest.fileno())
                last = now
        self._write_annotations()
        return Made(len(requests), known, fitted - started, time.perf_counter() - fitted)

    def _store(self, variation: Variation, seconds: float, write: Callable[[bytes], object]) -> None:
        source = variation.request.source
        original = read_image(source.path)
        if variation.pixels.shape != original.shape or variation.pixels.dtype != original.dtype:
            raise ValueError(
                f"{self.generator.name}, {source.name}: {original.shape} pixels of {original.dtype} were expected, "
                f"{variation.pixels.shape} and {variation.pixels.dtype} came"
            )
        carried = self.judge(original, variation.pixels, variation.boxes, variation.labels)
        image = Path("images") / _folder_of(source.name) / f"v{variation.request.variation:02d}.png"
        write_png(self.folder / image, variation.pixels)
        decisions = Counter(box.decision for box in carried)
        line = {
            "source": source.name,
            "source_sha256": source.sha256,
            "source_fingerprint": _fingerprint(source),
            "variation": variation.request.variation,
            "image": image.as_posix(),
            "image_sha256": _sha256(self.folder / image),
            "seed": variation.request.seed,
            "generator": self.generator.name,
            "parameters": self.identity["parameters"],
            "model": {"id": "none (made here)", "revision": self.key},
            "seconds": round(seconds, 4),
            "cost_usd": 0.0,
            "labels": {
                **{decision: decisions[decision] for decision in ("kept", "shifted", "dropped")},
                "boxes": [asdict(box) for box in carried],
            },
        }
        write(json.dumps(line).encode() + b"\n")

    def _mend_manifest(self) -> None:
        """Cut off a last line that a kill left unfinished: what is appended must start on a line of its own."""
        if not self.manifest.exists():
            return
        content = self.manifest.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.manifest, whole)

    def _valid_lines(self, sources: Sequence[Sample]) -> dict[tuple[str, int], dict[str, Any]]:
        """The lines whose image is there as recorded and whose source has not changed since; the newest one counts."""
        fingerprints = {source.name: _fingerprint(source) for source in sources}
        newest = {(line["source"], line["variation"]): line for line in self.lines()}
        return {
            key: line
            for key, line in newest.items()
            if fingerprints.get(line["source"]) == line["source_fingerprint"] and self._image_is_whole(line)
        }

    def _image_is_whole(self, line: dict[str, Any]) -> bool:
        image = self.folder / line["image"]
        return image.is_file() and _sha256(image) == line["image_sha256"]

    def _seed_of(self, source: Sample, number: int) -> int:
        digest = hashlib.sha256(f"{self.seed}/{source.name}/{number}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def _sample(self, source: Sample, line: dict[str, Any], image_id: int) -> Sample:
        boxes = [box for box in line["labels"]["boxes"] if box["decision"] != "dropped"]
        corners = np.array([box["box"] for box in boxes], dtype=np.float32).reshape(-1, 4)
        return Sample(
            name=f"{self.folder.name}/{line['image']}",
            path=self.folder / line["image"],
            width=source.width,
            height=source.height,
            image_id=image_id,
            boxes=corners,
            labels=np.array([box["label"] for box in boxes], dtype=np.int64),
            areas=area_xyxy(corners).astype(np.float64),
            crowd=np.zeros(len(boxes), dtype=bool),
            group=source.group,
            lineage=Lineage(source.name, line["generator"], line["variation"], line["seed"]),
            sha256=line["image_sha256"],
        )

    def _annotations_are_fresh(self) -> bool:
        annotations = self.folder / "annotations.json"
        return annotations.exists() and annotations.stat().st_mtime_ns >= self.manifest.stat().st_mtime_ns

    def _write_annotations(self) -> None:
        """The store as one COCO file, for any other tool."""
        newest = {(line["source"], line["variation"]): line for line in self.lines() if self._image_is_whole(line)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, (_, line) in enumerate(sorted(newest.items()), start=1):
            height, width = read_image(self.folder / line["image"]).shape[:2]
            images.append(
                {"id": image_id, "file_name": line["image"], "width": width, "height": height}
                | {key: line[key] for key in ("source", "variation", "generator", "seed")}
            )
            for box in line["labels"]["boxes"]:
                if box["decision"] == "dropped":
                    continue
                x, y, w, h = xyxy_to_xywh(np.array(box["box"])).tolist()
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": self.category_ids[box["label"]],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
        categories = [
            {"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_bytes_atomically(self.folder / "annotations.json", json.dumps(content).encode())


def _check_sources(sources: Iterable[Sample]) -> None:
    folders: dict[str, str] = {}
    for source in sources:
        if source.lineage is not None:
            raise ValueError(f"variations are made of real images only; {source.name} is synthetic")
        other = folders.setdefault(_folder_of(source.name), source.name)
        if other != source.name:
            raise InputError(
                f"{other} and {source.name} differ in their ending only, so their variations would share a folder; "
                "rename one of them"
            )


def _folder_of(name: str) -> str:
    """Where variations of an image go: its path without the ending."""
    return Path(name).with_suffix("").as_posix()


def _fingerprint(sample: Sample) -> str:
    """Pixels and labels of a source in one hash: variations of either older version are not of this image."""
    total = hashlib.sha256(sample.sha256.encode())
    for array in (sample.boxes, sample.labels, sample.crowd):
        total.update(array.tobytes())
    return total.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
