"""The on-disk store of variations: made once, whole or not at all, resumed after a kill, shared by all runs.

A store is a folder ``<generator>-<key>``. Its truth is ``manifest.jsonl``: a variation exists when its line stands
there and its file matches the line. Images are written before lines, so that a kill leaves nothing half-made behind.

Stores of the same pixels with other labels hold the same images: the second takes them over from the first, as hard
links where the disk has them, and judges them anew. Images that a generator could not have are in ``refused.jsonl``,
with the reason, and are asked for again by the next call.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from boxtwin.boxes import area_xyxy
from boxtwin.datasets.image_io import Pixels, encode_png, read_image
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Judgement, Lineage, Sample
from boxtwin.datasets.variation_names import image_name
from boxtwin.errors import InputError
from boxtwin.files import exclusive_lock, link_file, remove_leftovers, write_bytes_atomically
from boxtwin.synthesis.costs import LEARNING
from boxtwin.synthesis.fitness import look_again, unfit
from boxtwin.synthesis.generator import Generator, Json, Refused, Request, Variation
from boxtwin.synthesis.identity import identity_of, key_of, read_identity, write_identity
from boxtwin.synthesis.manifest import (
    MANIFEST,
    append_line,
    as_coco,
    fingerprint,
    labels_entry,
    mend,
    tell_of_damage,
    valid_lines,
    whole_lines,
)

log = logging.getLogger(__name__)

REFUSED = "refused.jsonl"
MODELS = "models"  # below the folder of all stores: what generators have learnt

# Source, variation, the boxes and labels that the generator says are in it, and the image's path in the store.
Judge = Callable[[Pixels, Pixels, Float[np.ndarray, "n 4"], Int[np.ndarray, " n"], str], Judgement]


@dataclass(frozen=True)
class Made:
    """What one call of `Library.make` did: counts of images, dollars, and the seconds it took to learn and to draw."""

    made: int
    there: int
    fit_seconds: float
    vary_seconds: float
    refused: int = 0  # by the generator, in this call
    taken_over: int = 0  # from a store with the same pixels; not among `made`
    cost_usd: float = 0.0


class Library:
    """The store of one generator's variations of one data set.

    Args:
        root: folder of all stores.
        generator: what makes the variations.
        training: the split's training images, all that a learning generator may see.
        judge: decides what becomes of each box (`boxtwin.labels`). None: it takes time to get ready, and whoever wants
            something made sets it before.
        labels: all that its decisions follow from; stores differ by it.
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
        judge: Judge | None,
        labels: Json,
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
        self.identity = identity_of(generator, training, dataset=dataset, labels=labels, seed=seed)
        self.key = key_of(self.identity)
        self.root = root
        self.folder = root / f"{generator.name}-{self.key}"
        self.manifest = self.folder / MANIFEST

    def make(self, sources: Sequence[Sample], per_image: int, *, ask: bool = True) -> Made:
        """Make what is missing of the first ``per_image`` variations of every source.

        If another process is making the same store, wait for it. Shows a progress bar. Without ``ask`` the generator
        is left alone: what stores with the same pixels have is taken over, and that is all.
        """
        if per_image == 0:
            return Made(0, 0, 0.0, 0.0)
        _check_sources(sources)
        with exclusive_lock(self.folder / ".lock", f"another process is making {self.folder}; waiting for it"):
            return self._make(sources, per_image, ask)

    def variations(self, sources: Sequence[Sample], per_image: int) -> tuple[Sample, ...]:
        """The first ``per_image`` variations of every source as samples, in the order of the sources.

        Images that the generator could not have, or whose labels were not trusted, are left out.

        Raises:
            InputError: one is missing; `make` makes it.
        """
        lines, refused = valid_lines(self.folder, sources), self.refused(sources)
        wanted = [(source, number) for source in sources for number in range(1, per_image + 1)]
        missing = [
            f"{source.name} v{number:02d}"
            for source, number in wanted
            if (source.name, number) not in lines and (source.name, number) not in refused
        ]
        if missing:
            raise InputError(
                f"{self.folder} lacks {len(missing)} variation(s), {', '.join(missing[:10])}: run generate.py"
            )
        usable = [
            (source, lines[source.name, number])
            for source, number in wanted
            if (source.name, number) in lines and not lines[source.name, number]["labels"]["refused"]
        ]
        return tuple(self._sample(source, line, image_id) for image_id, (source, line) in enumerate(usable, start=1))

    def all_variations(self, sources: Sequence[Sample]) -> tuple[Sample, ...]:
        """Every variation of ``sources`` that is there and whose labels were trusted, sources and numbers in order."""
        lines, order = valid_lines(self.folder, sources), {source.name: index for index, source in enumerate(sources)}
        usable = [key for key, line in lines.items() if line["labels"]["refused"] is None]
        usable.sort(key=lambda key: (order[key[0]], key[1]))
        return tuple(
            self._sample(sources[order[key[0]]], lines[key], image_id) for image_id, key in enumerate(usable, start=1)
        )

    def missing(self, sources: Sequence[Sample], per_image: int) -> tuple[Request, ...]:
        """What `make` would ask the generator for: neither here nor in a store with the same pixels."""
        there, elsewhere = valid_lines(self.folder, sources), self._elsewhere(sources)
        return tuple(
            request
            for request in self._requests(sources, per_image)
            if _key(request) not in there and _key(request) not in elsewhere
        )

    def judged(self, sources: Sequence[Sample], per_image: int) -> list[dict[str, Any]]:
        """The manifest's lines of what is there of the first ``per_image`` variations of every source."""
        lines = valid_lines(self.folder, sources)
        return [line for (_, number), line in lines.items() if number <= per_image]

    def refused(self, sources: Sequence[Sample]) -> dict[tuple[str, int], dict[str, Any]]:
        """What the generator could not have of ``sources`` as they are, by source and variation, the newest reason."""
        lines = whole_lines(self.folder / REFUSED)
        if not lines:
            return {}
        fingerprints = {source.name: fingerprint(source) for source in sources}
        had = valid_lines(self.folder, sources)
        newest = {(line["source"], line["variation"]): line for line in lines}
        return {
            key: line
            for key, line in newest.items()
            if key not in had and fingerprints.get(line["source"]) == line["source_fingerprint"]
        }

    def lines(self) -> list[dict[str, Any]]:
        """The manifest's whole lines, oldest first."""
        return whole_lines(self.manifest)

    def _requests(self, sources: Sequence[Sample], per_image: int) -> list[Request]:
        return [
            Request(source, number, self._seed_of(source, number))
            for number in range(1, per_image + 1)
            for source in sources
        ]

    def _make(self, sources: Sequence[Sample], per_image: int, ask: bool) -> Made:
        for file in (self.manifest, self.folder / REFUSED, self.folder / LEARNING):
            mend(file)
        remove_leftovers(self.folder)
        write_identity(self.folder, self.identity)
        there = look_again(self.folder, sources)
        requests = [request for request in self._requests(sources, per_image) if _key(request) not in there]
        tell_of_damage(self.folder, map(_key, requests))
        known = len(sources) * per_image - len(requests)
        if not requests:
            if known and not self._annotations_are_fresh():  # killed between the last line and the COCO file
                self._write_annotations()
            return Made(0, known, 0.0, 0.0)
        if self.judge is None:
            raise ValueError(f"{self.folder}: no judge of labels has been set")
        taken_over = self._take_over(requests)
        requests = [request for request in requests if ask and _key(request) not in taken_over]
        started = time.perf_counter()
        if requests:
            models = self.root / MODELS
            models.mkdir(parents=True, exist_ok=True)
            self.generator.fit(self.training, models)
        fitted = time.perf_counter()
        if requests:
            append_line(self.folder / LEARNING, {"seconds": round(fitted - started, 4)})
        made, cost = self._draw(requests) if requests else (0, 0.0)  # all taken over: nothing was fitted
        self._write_annotations()
        return Made(
            made=made,
            there=known,
            fit_seconds=fitted - started,
            vary_seconds=time.perf_counter() - fitted,
            refused=len(requests) - made,
            taken_over=len(taken_over),
            cost_usd=cost,
        )

    def _draw(self, requests: Sequence[Request]) -> tuple[int, float]:
        """Have the generator make what is asked for; how many it made, and what they cost."""
        made, cost, last = 0, 0.0, time.perf_counter()
        progress = tqdm(
            self.generator.vary(requests), total=len(requests), desc=f"{self.generator.name}: variations", unit="image"
        )
        for request, outcome in zip(requests, progress, strict=True):
            if outcome.request != request:
                raise ValueError(f"{self.generator.name} gave variations in another order than asked for")
            now = time.perf_counter()
            if isinstance(outcome, Refused):
                log.warning("%s v%02d: %s", request.source.name, request.variation, outcome.reason)
                append_line(self.folder / REFUSED, self._about(request) | {"reason": outcome.reason})
            else:
                self._store(outcome, now - last)
                made, cost = made + 1, cost + outcome.cost_usd
            last = now
        return made, cost

    def _about(self, request: Request) -> dict[str, Any]:
        return {
            "source": request.source.name,
            "source_sha256": request.source.sha256,
            "source_fingerprint": fingerprint(request.source),
            "variation": request.variation,
            "seed": request.seed,
            "generator": self.generator.name,
        }

    def _store(self, variation: Variation, seconds: float) -> None:
        request = variation.request
        source = request.source
        original = source.read()
        if variation.pixels.shape != original.shape or variation.pixels.dtype != original.dtype:
            raise ValueError(
                f"{self.generator.name}, {source.name}: {original.shape} pixels of {original.dtype} were expected, "
                f"{variation.pixels.shape} and {variation.pixels.dtype} came"
            )
        image, content = image_name(source.name, request.variation), encode_png(variation.pixels)
        write_bytes_atomically(self.folder / image, content)
        model = self.generator.model()
        line = {
            **self._about(request),
            "image": image,
            "image_sha256": hashlib.sha256(content).hexdigest(),
            "parameters": self.identity["parameters"],
            "model": {"id": model.id, "revision": model.revision} if model else {"id": "none", "revision": None},
            "seconds": round(seconds, 4),
            "cost_usd": variation.cost_usd,
            "record": variation.record,
            "claimed": {"boxes": variation.boxes.tolist(), "labels": variation.labels.tolist()},
        }
        self._append(line, original, variation.pixels, variation.boxes, variation.labels)

    def _append(
        self,
        line: dict[str, Any],
        original: Pixels,
        pixels: Pixels,
        boxes: Float[np.ndarray, "n 4"],
        labels: Int[np.ndarray, " n"],
    ) -> None:
        """Judge a variation and add its line."""
        assert self.judge is not None
        reason = unfit(original, pixels)
        judge = self.judge if reason is None else lambda *_: Judgement((), refused=reason)
        judgement = judge(original, pixels, boxes, labels, line["image"])
        unchanged = {"unchanged": True} if np.array_equal(original, pixels) else {}
        append_line(self.manifest, line | unchanged | {"labels": labels_entry(judgement)})

    def _take_over(self, requests: Sequence[Request]) -> set[tuple[str, int]]:
        """Link what stores with the same pixels have, and judge it in this store's way."""
        elsewhere = self._elsewhere([request.source for request in requests])
        taken = set()
        for request in tqdm(
            [request for request in requests if _key(request) in elsewhere],
            desc=f"{self.generator.name}: labels of variations that are there",
            unit="image",
            disable=not elsewhere,
        ):
            folder, line = elsewhere[_key(request)]
            image, source = image_name(*_key(request)), request.source
            link_file(folder / line["image"], self.folder / image)
            if self.generator.boxes == "carried":  # stores of earlier versions claim none for `Folder`
                boxes, labels = source.object_boxes, source.object_labels
            else:
                boxes = np.array(line["claimed"]["boxes"], dtype=source.boxes.dtype).reshape(-1, 4)
                labels = np.array(line["claimed"]["labels"], dtype=np.int64)
            self._append(line | {"image": image}, source.read(), read_image(self.folder / image), boxes, labels)
            taken.add(_key(request))
        return taken

    def _elsewhere(self, sources: Sequence[Sample]) -> dict[tuple[str, int], tuple[Path, dict[str, Any]]]:
        """Folder and line of variations that stores with the same pixels and other labels have."""
        found = {}
        for folder in sorted(self.root.glob(f"{self.generator.name}-*")):
            if folder == self.folder or not (folder / MANIFEST).exists():
                continue
            try:
                identity = read_identity(folder)
            except InputError as error:
                log.warning("%s; nothing is taken over from there", error)
                continue
            if {**identity, "labels": None} == {**self.identity, "labels": None}:
                for key, line in valid_lines(folder, sources).items():
                    found[key] = (folder, line)
        return found

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
            bits=source.bits,
            reading=Reading(max_pixels=source.reading.max_pixels),
        )

    def _annotations_are_fresh(self) -> bool:
        annotations = self.folder / "annotations.json"
        return annotations.exists() and annotations.stat().st_mtime_ns >= self.manifest.stat().st_mtime_ns

    def _write_annotations(self) -> None:
        """The store as one COCO file, for any other tool."""
        content = as_coco(self.folder, self.lines(), self.classes, self.category_ids)
        write_bytes_atomically(self.folder / "annotations.json", json.dumps(content).encode())


def _key(request: Request) -> tuple[str, int]:
    return request.source.name, request.variation


def _check_sources(sources: Iterable[Sample]) -> None:
    names: dict[str, str] = {}
    for source in sources:
        if source.lineage is not None:
            raise ValueError(f"variations are made of real images only; {source.name} is synthetic")
        other = names.setdefault(image_name(source.name, 1), source.name)
        if other != source.name:
            raise InputError(
                f"variations of {other} and {source.name} would share names, since the two differ in their ending "
                "only, or in a folder's separator that is '__' in the other; rename one of them"
            )
