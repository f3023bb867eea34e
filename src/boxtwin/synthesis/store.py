"""The on-disk store of variations: made once, whole or not at all, resumed after a kill, shared by all runs.

A store is a folder ``<generator>-<key>``. A variation exists if it has a line in ``manifest.jsonl`` that its file
matches. Images are written before lines, so that a kill leaves nothing incomplete behind.

Stores of the same pixels with other labels hold the same images: the second reuses those of the first, as hard links
if the disk has them, and judges them anew. Images that could not be made are in ``refused.jsonl`` until they are.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from boxtwin.datasets.image_io import Pixels, encode_png, read_image
from boxtwin.datasets.sample import Dataset, Judge, Judgement, Lineage, Sample
from boxtwin.datasets.variation_names import image_name
from boxtwin.errors import InputError
from boxtwin.files import exclusive_lock, link_file, remove_leftovers, remove_unwritten, write_bytes_atomically
from boxtwin.hardware import peak_memory
from boxtwin.synthesis.constants import GIVE_UP_AFTER
from boxtwin.synthesis.fitness import unfit
from boxtwin.synthesis.generator import Generator, Json, Model, Refused, Request, Variation
from boxtwin.synthesis.identity import IDENTITY, UNLABELLED, identity_of, read_identity, write_identity
from boxtwin.synthesis.manifest import (
    LEARNING,
    MANIFEST,
    REFUSED,
    Claimed,
    Key,
    RefusedRecord,
    VariationRecord,
    append_line,
    as_coco,
    fingerprint,
    manifest_lines,
    recheck_old_lines,
    refused_lines,
    truncate_incomplete_line,
    valid_lines,
    warn_of_damage,
    write_coco,
)

log = logging.getLogger(__name__)

MODELS = "models"  # below the folder of all stores: what generators have learnt


@dataclass
class StoreUpdate:
    """What one call of `Library.make` did: counts of images, dollars, and the seconds of learning and drawing."""

    made: int = 0
    existing: int = 0
    fit_seconds: float = 0.0
    vary_seconds: float = 0.0
    refused: int = 0  # by the generator, in this call
    reused: int = 0  # from a store with the same pixels; not among `made`
    cost_usd: float = 0.0
    peak_memory: tuple[str, int] = ("process", 0)  # the most of any variation, see `boxtwin.hardware.peak_memory`


class Library:
    """The store of one generator's variations of one data set.

    Args:
        root: folder of all stores.
        generator: what makes the variations.
        training: the split's training images. A learning generator sees these, and no others of the data set.
        judge: decides what becomes of each box (`boxtwin.labels`); it may be None until something is to be made.
        labels: all that its decisions follow from; stores differ by it.
        dataset: its name is part of the key, its classes are those of the COCO file.
        unlabelled: a hash of real images beside the data set, and of their labels, that the generator learns from too.
            `more` must have them before anything is made; None: there are none.
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
        dataset: Dataset,
        seed: int,
        unlabelled: str | None = None,
    ) -> None:
        if synthetic := [sample.name for sample in training if sample.lineage is not None]:
            raise ValueError(f"a generator learns from real images only, got {', '.join(synthetic[:10])}")
        self.generator, self.training = generator, tuple(training)
        self.judge, self.dataset, self.seed = judge, dataset, seed
        self.more: tuple[Sample, ...] | None = () if unlabelled is None else None  # images, see ``unlabelled``
        self.identity = identity_of(
            generator, training, dataset=dataset.name, labels=labels, seed=seed, unlabelled=unlabelled
        )
        former = replace(self.identity, parameters=self.identity.parameters | generator.former_parameters())
        if (root / f"{generator.name}-{former.key}" / MANIFEST).exists():
            self.identity = former
        self.key = self.identity.key
        self.root = root
        self.folder = root / f"{generator.name}-{self.key}"
        self.manifest = self.folder / MANIFEST

    def relabelled(self, labels: Json, judge: Judge) -> Library:
        """The store of the same pixels with labels of another kind; each reuses the other's images."""
        unlabelled = dict(self.identity.training).get(UNLABELLED)
        other = Library(
            self.root,
            self.generator,
            self.training,
            judge=judge,
            labels=labels,
            dataset=self.dataset,
            seed=self.seed,
            unlabelled=unlabelled,
        )
        other.more = self.more
        return other

    def make(self, sources: Sequence[Sample], per_image: int, *, use_generator: bool = True) -> StoreUpdate:
        """Make what is missing of the first ``per_image`` variations of every source.

        Waits for other processes. Without ``use_generator``, variations are only reused from other stores.
        """
        if per_image == 0:
            return StoreUpdate()
        _check_sources(sources, self.dataset.samples)
        lock = self.folder / ".lock"
        with exclusive_lock(lock, f"another process is making {self.folder}; waiting for it"):
            try:
                return self._make(sources, per_image, use_generator)
            except InputError:  # before anything was made, such as a missing checkpoint
                remove_unwritten(self.folder, {IDENTITY, lock.name})
                raise

    def variations(self, sources: Sequence[Sample], per_image: int) -> tuple[Sample, ...]:
        """The first ``per_image`` variations of every source as samples, in the order of the sources.

        Those that were refused, or whose labels were, are left out. Raises InputError if one was never asked for.
        """
        lines, refused = valid_lines(self.folder, sources), self.refused(sources)
        wanted = [(source.name, number) for source in sources for number in range(1, per_image + 1)]
        known = lines.keys() | refused.keys()
        if missing := [f"{name} v{number:02d}" for name, number in wanted if (name, number) not in known]:
            named = ", ".join(missing[:10])
            raise InputError(f"{self.folder} lacks {len(missing)} variation(s), {named}: run generate.py")
        return self._samples(sources, [lines[key] for key in wanted if key in lines])

    def all_variations(self, sources: Sequence[Sample]) -> tuple[Sample, ...]:
        """Every variation of ``sources`` that is there and whose labels were not refused, in order."""
        order = {source.name: index for index, source in enumerate(sources)}
        lines = valid_lines(self.folder, sources).values()
        return self._samples(sources, sorted(lines, key=lambda line: (order[line.source], line.variation)))

    def missing(self, sources: Sequence[Sample], per_image: int) -> tuple[Request, ...]:
        """What `make` would ask the generator for: neither here nor in a store with the same pixels."""
        existing = valid_lines(self.folder, sources).keys() | self._in_other_stores(sources).keys()
        return tuple(request for request in self._requests(sources, per_image) if request.key not in existing)

    def judged(self, sources: Sequence[Sample], per_image: int) -> list[VariationRecord]:
        """The manifest's lines of what is there of the first ``per_image`` variations of every source."""
        return [line for line in valid_lines(self.folder, sources).values() if line.variation <= per_image]

    def refused(self, sources: Sequence[Sample]) -> dict[Key, RefusedRecord]:
        """The variations of ``sources`` as they are that could not be made, with the newest reason."""
        newest = {line.key: line for line in refused_lines(self.folder)}
        made = valid_lines(self.folder, sources) if newest else {}
        fingerprints = {source.name: fingerprint(source) for source in sources if newest}
        return {
            key: line
            for key, line in newest.items()
            if key not in made and fingerprints.get(line.source) == line.source_fingerprint
        }

    def lines(self) -> list[VariationRecord]:
        """The manifest's whole lines, oldest first."""
        return manifest_lines(self.folder)

    def _requests(self, sources: Sequence[Sample], per_image: int) -> list[Request]:
        wanted = [(source, number) for number in range(1, per_image + 1) for source in sources]
        return [Request(source, number, self._seed_of(source, number)) for source, number in wanted]

    def _make(self, sources: Sequence[Sample], per_image: int, use_generator: bool) -> StoreUpdate:
        for file in (MANIFEST, REFUSED, LEARNING):
            truncate_incomplete_line(self.folder / file)
        remove_leftovers(self.folder)
        write_identity(self.folder, self.identity, reproducible=self.generator.reproducible)
        existing = recheck_old_lines(self.folder, sources)
        requests = [request for request in self._requests(sources, per_image) if request.key not in existing]
        warn_of_damage(self.folder, (request.key for request in requests))
        known = len(sources) * per_image - len(requests)
        if requests and self.judge is None:
            raise ValueError(f"{self.folder}: no judge of labels has been set")
        reused = self._reuse(requests) if requests else set()
        update = StoreUpdate(existing=known, reused=len(reused))
        if left := [request for request in requests if use_generator and request.key not in reused]:
            self._draw(left, update)
        if requests or known:
            # In any call: the process may have been killed before it, or the data set has changed since.
            images = (*self.dataset.samples, *self.training, *sources)
            write_coco(
                self.folder / "annotations.json",
                as_coco(self.folder, images, self.dataset.classes, self.dataset.category_ids),
            )
        return update

    def _draw(self, requests: Sequence[Request], update: StoreUpdate) -> None:
        """Have the generator make what is asked for, and count it in ``update``.

        What was refused before is asked for last, and is no reason to give up: it is known to fail.
        InputError if `GIVE_UP_AFTER` others in a row fail for a reason that may recur.
        """
        models = self.root / MODELS
        models.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        if self.more is None:
            raise ValueError(f"{self.folder}: the unlabelled images to learn from have not been set")
        self.generator.fit((*self.training, *self.more), models)
        fitted = last = time.perf_counter()
        append_line(self.folder / LEARNING, {"seconds": round(fitted - started, 4)})
        name, failed_in_a_row = self.generator.name, 0
        refused_before = self.refused([request.source for request in requests])
        requests = sorted(requests, key=lambda request: request.key in refused_before)
        drawn: Any = self.generator.vary(requests)
        progress = tqdm(drawn, total=len(requests), desc=f"{name}: variations", unit="image")
        for request, outcome in zip(requests, progress, strict=True):
            if outcome.request != request:
                raise ValueError(f"{name} gave variations in another order than asked for")
            now = time.perf_counter()
            if isinstance(outcome, Refused):
                log.warning("%s v%02d: %s", request.source.name, request.variation, outcome.reason)
                refused = RefusedRecord(**self._about(request), reason=outcome.reason, cost_usd=outcome.cost_usd)
                append_line(self.folder / REFUSED, vars(refused))
                update.refused += 1
                update.cost_usd += outcome.cost_usd
                failed_in_a_row += outcome.may_recur and request.key not in refused_before
                if failed_in_a_row == GIVE_UP_AFTER and (left := len(requests) - update.made - update.refused):
                    drawn.close()  # it may hold a lock
                    paid = f". Paid so far: {update.cost_usd:.2f} USD" if update.cost_usd else ""
                    raise InputError(
                        f"{name}, model {self._model().id}: {failed_in_a_row} images in a row failed, so {left} more "
                        f"were not tried; run the same command again to continue. Last failure: {outcome.reason}{paid}"
                    )
            else:
                failed_in_a_row = 0
                peak = peak_memory()
                update.peak_memory = max(update.peak_memory, peak, key=lambda each: each[1])
                self._store(outcome, now - last, {f"peak_memory_{peak[0]}": peak[1]})
                update.made += 1
                update.cost_usd += outcome.cost_usd
            last = now
        update.fit_seconds, update.vary_seconds = fitted - started, time.perf_counter() - fitted

    def _model(self) -> Model:
        return self.generator.model() or Model("none", None)

    def _about(self, request: Request) -> dict[str, Any]:
        return {
            "source": request.source.name,
            "source_sha256": request.source.sha256,
            "source_fingerprint": fingerprint(request.source),
            "variation": request.variation,
            "seed": request.seed,
            "generator": self.generator.name,
        }

    def _store(self, variation: Variation, seconds: float, measured: dict[str, Json]) -> None:
        source, pixels = variation.request.source, variation.pixels
        original = source.read()
        if pixels.shape != original.shape or pixels.dtype != original.dtype:
            raise ValueError(
                f"{self.generator.name}, {source.name}: {original.shape} pixels of {original.dtype} were expected, "
                f"{pixels.shape} and {pixels.dtype} came"
            )
        image, content = image_name(*variation.request.key), encode_png(pixels)
        write_bytes_atomically(self.folder / image, content)
        line = VariationRecord(
            **self._about(variation.request),
            image=image,
            image_sha256=hashlib.sha256(content).hexdigest(),
            parameters=self.identity.parameters,
            model=self._model(),
            seconds=round(seconds, 4),
            cost_usd=variation.cost_usd,
            record=variation.record | measured,
            claimed=Claimed(variation.boxes.tolist(), variation.labels.tolist()),
            **self._judged(original, variation, image),
        )
        append_line(self.manifest, line.to_json())

    def _judged(self, original: Pixels, variation: Variation, image: str) -> dict[str, Any]:
        """The fields of a `VariationRecord` that compare the variation with its source."""
        pixels = variation.pixels
        if (reason := unfit(original, pixels)) is not None:
            judgement = Judgement((), refused=reason)
        else:
            assert self.judge is not None
            crowds = variation.request.source.crowds
            judgement = self.judge(original, pixels, variation.boxes, variation.labels, image, crowds)
        return {"unchanged": np.array_equal(original, pixels), "labels": judgement}

    def _reuse(self, requests: Sequence[Request]) -> set[Key]:
        """Link what stores with the same pixels have, and judge it in this store's way."""
        others = self._in_other_stores([request.source for request in requests])
        shared = [request for request in requests if request.key in others]
        description = f"{self.generator.name}: labels of existing variations"
        for request in tqdm(shared, desc=description, unit="image", disable=not others):
            folder, line = others[request.key]
            image, source = image_name(*request.key), request.source
            link_file(folder / line.image, self.folder / image)
            if self.generator.boxes == "carried":  # stores of earlier versions claim none for `Folder`
                boxes, labels = source.object_boxes, source.object_labels
            else:
                boxes = np.array(line.claimed.boxes, dtype=source.boxes.dtype).reshape(-1, 4)
                labels = np.array(line.claimed.labels, dtype=np.int64)
            variation = Variation(request, read_image(self.folder / image), boxes, labels)
            line = replace(line, image=image, **self._judged(source.read(), variation, image))
            append_line(self.manifest, line.to_json())
        return {request.key for request in shared}

    def _in_other_stores(self, sources: Sequence[Sample]) -> dict[Key, tuple[Path, VariationRecord]]:
        """Folder and line of variations that stores with the same pixels and other labels have."""
        others: dict[Key, tuple[Path, VariationRecord]] = {}
        for folder in sorted(self.root.glob(f"{self.generator.name}-*")):
            if folder == self.folder or not (folder / MANIFEST).exists():
                continue
            try:
                identity = read_identity(folder)
            except InputError as error:
                log.warning("%s; nothing is reused from there", error)
                continue
            if replace(identity, labels=self.identity.labels) == self.identity:
                others |= {key: (folder, line) for key, line in valid_lines(folder, sources).items()}
        return others

    def _seed_of(self, source: Sample, number: int) -> int:
        digest = hashlib.sha256(f"{self.seed}/{source.name}/{number}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def _samples(self, sources: Sequence[Sample], lines: Iterable[VariationRecord]) -> tuple[Sample, ...]:
        """Those of the lines whose labels were not refused, as samples with numbers from 1."""
        by_name = {source.name: source for source in sources}
        usable = [line for line in lines if line.labels.refused is None]
        return tuple(self.sample_of(by_name[line.source], line, number) for number, line in enumerate(usable, start=1))

    def sample_of(self, source: Sample, line: VariationRecord, image_id: int) -> Sample:
        """The variation of a line of the manifest, with the boxes that were not dropped and the crowds of its source.

        Most generators keep a crowd. Of one that is painted over, the area is left out of training all the same.
        """
        boxes = [box for box in line.labels.boxes if box.decision != "dropped"]
        made = source.variation(
            self.folder / line.image,
            np.array([box.box for box in boxes], dtype=np.float32).reshape(-1, 4),
            np.array([box.label for box in boxes], dtype=np.int64),
            lineage=Lineage(line.source, line.generator, line.variation, line.seed),
            sha256=line.image_sha256,
        )
        is_crowd = source.crowd
        return replace(
            made,
            name=f"{self.folder.name}/{line.image}",
            image_id=image_id,
            boxes=np.concatenate([made.boxes, source.boxes[is_crowd]]),
            labels=np.concatenate([made.labels, source.labels[is_crowd]]),
            areas=np.concatenate([made.areas, source.areas[is_crowd]]),
            crowd=np.repeat([False, True], [len(boxes), is_crowd.sum()]),
        )


def _check_sources(sources: Iterable[Sample], others: Iterable[Sample]) -> None:
    """Raise an error for synthetic sources, and for names of variations that ``others`` of the data set would have too.

    Runs on other splits may make variations of these in the same store.
    """
    names: dict[str, set[str]] = defaultdict(set)
    for each in others:
        names[image_name(each.name, 1)].add(each.name)
    for source in sources:
        if source.lineage is not None:
            raise ValueError(f"variations are made of real images only; {source.name} is synthetic")
        for other in sorted(names[image_name(source.name, 1)] - {source.name}):
            raise InputError(
                f"variations of {source.name} and {other} would share names, since the two differ in their ending "
                "only, or in a folder's separator that is '__' in the other; rename one of them"
            )
