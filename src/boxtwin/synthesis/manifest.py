"""The records of a store: lines of ``manifest.jsonl`` and ``refused.jsonl``, which are valid and usable, and costs."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from boxtwin.boxes import xyxy_to_xywh
from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.image_io import pixels_sha256, read_image
from boxtwin.datasets.sample import Judgement, PropagatedBox, Sample
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically, writing
from boxtwin.synthesis.fitness import unfit
from boxtwin.synthesis.generator import Json, Model

log = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
REFUSED = "refused.jsonl"
LEARNING = "learning.jsonl"  # the seconds that each call of the generator's `fit` took
NAMED = 5  # files that a message names
LEAST_OBJECTS = 0.1  # boxes of variations, as a share of the objects of their sources: fewer are warned of
PIXELS = "pixels_sha256"  # of an image in the COCO file
CHECKSUM = "crc32"  # of the rest of a line; lines of earlier versions have none

Key = tuple[str, int]  # source and variation
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """What was asked for."""

    source: str  # its name in the data set
    source_sha256: str
    source_fingerprint: str  # see `fingerprint`
    variation: int  # from 1
    seed: int
    generator: str

    @property
    def key(self) -> Key:
        """Source and variation."""
        return self.source, self.variation


@dataclass(frozen=True, kw_only=True)
class RefusedRecord(RequestRecord):
    """One line of ``refused.jsonl``: a variation that could not be made."""

    reason: str
    cost_usd: float = 0.0  # what was paid nevertheless; earlier versions did not record it


class Claimed(NamedTuple):
    """Boxes (xyxy, pixels) and labels that the generator says are in an image."""

    boxes: list[list[float]]
    labels: list[int]


@dataclass(frozen=True, kw_only=True)
class VariationRecord(RequestRecord):
    """One line of ``manifest.jsonl``: a variation that is in the store."""

    image: str  # its path in the store
    image_sha256: str
    parameters: dict[str, Json]  # of the generator
    model: Model  # its id is "none" if there is no model
    seconds: float
    cost_usd: float
    record: dict[str, Json] = field(default_factory=dict)  # more that the generator says
    claimed: Claimed
    unchanged: bool = False  # whether all pixels equal the source's
    labels: Judgement

    def to_json(self) -> dict[str, Any]:
        """The content of the line."""
        decisions = Counter(box.decision for box in self.labels.boxes)
        content = vars(self) | {"model": self.model._asdict(), "claimed": self.claimed._asdict()}
        content["labels"] = {
            **{decision: decisions[decision] for decision in ("kept", "shifted", "dropped", "added")},
            "refused": self.labels.refused,
            **({} if self.labels.minutes is None else {"minutes": self.labels.minutes}),
            "boxes": [vars(box) | {"box": list(box.box)} for box in self.labels.boxes],
        }
        if not self.unchanged:
            del content["unchanged"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> VariationRecord:
        """The record of a line; raises KeyError or TypeError if something is missing."""
        labels = content["labels"]
        boxes = tuple(PropagatedBox(**(box | {"box": tuple(box["box"])})) for box in labels["boxes"])
        known = {entry.name: content[entry.name] for entry in fields(cls) if entry.name in content}
        known["model"], known["claimed"] = Model(**content["model"]), Claimed(**content["claimed"])
        return cls(**known | {"labels": Judgement(boxes, labels["refused"], labels.get("minutes"))})


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """All lines, oldest first, without incomplete and damaged ones; damaged ones are warned of."""
    return [line for line, _ in _lines(file, dict)]


def manifest_lines(folder: Path) -> list[VariationRecord]:
    """The whole lines of a store's manifest, oldest first."""
    return [line for line, _ in _lines(folder / MANIFEST, VariationRecord.from_json)]


def newest_lines(folder: Path) -> dict[Key, VariationRecord]:
    """The newest line of each variation."""
    return {line.key: line for line in manifest_lines(folder)}


def lines_without_checksum(folder: Path) -> set[Key]:
    """Source and variation of those whose newest line an earlier version wrote."""
    checked = {line.key: checksum for line, checksum in _lines(folder / MANIFEST, VariationRecord.from_json)}
    return {key for key, checksum in checked.items() if not checksum}


def refused_lines(folder: Path) -> list[RefusedRecord]:
    """The whole lines of ``refused.jsonl``, oldest first."""
    return [line for line, _ in _lines(folder / REFUSED, lambda content: RefusedRecord(**content))]


def _lines(file: Path, parse: Callable[[dict[str, Any]], Parsed]) -> list[tuple[Parsed, bool]]:
    """The whole lines, and whether each has a checksum; lines of earlier versions, which have none, come first."""
    lines: list[tuple[Parsed, bool]] = []
    damaged, checked = [], False
    for number, encoded in enumerate(file.read_bytes().split(b"\n")[:-1] if file.exists() else (), start=1):
        try:
            line = json.loads(encoded)
            checksum = line.pop(CHECKSUM, None)
            checked = checked or checksum is not None
            if checked and checksum != _checksum(line):
                raise ValueError("its content does not have its checksum")
            lines.append((parse(line), checked))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            damaged.append(number)
    if damaged:
        named = f"{len(damaged)} damaged line(s) are left out, such as line {damaged[0]}"
        log.warning("%s: %s; what they record counts as missing", file, named)
    return lines


def append_line(file: Path, *lines: dict[str, Any]) -> None:
    """Add a line, or several, that outlive a power cut: what they record may have been paid for."""
    with writing(file), file.open("ab") as manifest:
        for line in lines:
            manifest.write(json.dumps(line | {CHECKSUM: _checksum(line)}).encode() + b"\n")
        manifest.flush()
        os.fsync(manifest.fileno())


def _checksum(line: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(line).encode()):08x}"


def truncate_incomplete_line(file: Path) -> None:
    """Cut off a last line that a kill left unfinished: what is appended must start on a line of its own."""
    if file.exists():
        content = file.read_bytes()
        if len(content) > (whole := content.rfind(b"\n") + 1):
            os.truncate(file, whole)


def valid_lines(folder: Path, sources: Iterable[Sample]) -> dict[Key, VariationRecord]:
    """The newest line of each variation, if its image is there as recorded and its source has not changed since."""
    fingerprints = {source.name: fingerprint(source) for source in sources}
    return {
        key: line
        for key, line in newest_lines(folder).items()
        if fingerprints.get(line.source) == line.source_fingerprint and image_is_whole(folder, line)
    }


def recheck_old_lines(folder: Path, sources: Sequence[Sample]) -> dict[Key, VariationRecord]:
    """The `valid_lines` of a store, after those of earlier versions were checked for `unfit` variations.

    Earlier versions kept those, and trained on them as on empty scenes. Each checked line is written again with a
    checksum, so that this happens once; to be called under the store's lock.
    """
    lines, by_name = valid_lines(folder, sources), {source.name: source for source in sources}
    checked: list[VariationRecord] = []
    for key in sorted(lines_without_checksum(folder) & lines.keys()):
        line = lines[key]
        if line.labels.refused is None and (reason := unfit(by_name[key[0]].read(), read_image(folder / line.image))):
            line = replace(line, labels=Judgement((), reason))
        checked.append(line)
    if not checked:
        return lines
    if refused := [line for line in checked if line is not lines[line.key]]:
        named = "; ".join(f"{line.image} ({line.labels.refused})" for line in refused[:NAMED])
        number = f"{len(refused)} of {len(checked)} image(s) made by an earlier version"
        log.warning("%s: %s cannot be learnt from and are refused: %s", folder, number, named)
    append_line(folder / MANIFEST, *(line.to_json() for line in checked))
    return valid_lines(folder, sources)


def image_is_whole(folder: Path, line: VariationRecord) -> bool:
    """Whether the image of a line is there, byte for byte; each file is read once, unless it changes."""
    image = folder / line.image
    try:
        state = image.stat()
    except OSError:
        return False
    if not image.is_relative_to(folder) or ".." in image.parts[len(folder.parts) :]:  # of a foreign store
        return False
    return sha256_of(image, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns) == line.image_sha256


def warn_of_damage(folder: Path, missing: Iterable[Key]) -> None:
    """Warn of images among the ``missing`` that have a line: their files are missing or changed."""
    newest = newest_lines(folder)
    lost = [newest[key] for key in missing if key in newest]
    if damaged := [line.image for line in lost if not image_is_whole(folder, line)]:
        named = ", ".join(damaged[:NAMED])
        log.warning(f"{folder}: {len(damaged)} image(s) are missing or damaged and are made again, such as {named}")


@lru_cache(maxsize=1 << 16)
def sha256_of(file: Path, *state: int) -> str:  # noqa: ARG001
    """Hash of a file's content, which is read again if its ``state`` (size, time of change) is another."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def content_hash(file: Path) -> str:
    """Hash of a file's content, which is read once as long as size and time of change stay the same."""
    return sha256_of(file.resolve(), file.stat().st_size, file.stat().st_mtime_ns)


def fingerprint(sample: Sample) -> str:
    """Hash of the pixels and labels of a source: variations of another version of either are not of this image."""
    total = hashlib.sha256(sample.sha256.encode())
    for array in (sample.boxes, sample.labels, sample.crowd):
        total.update(array.tobytes())
    return total.hexdigest()


def as_coco(
    folder: Path, sources: Iterable[Sample], classes: Sequence[str], category_ids: Sequence[int]
) -> dict[str, Any]:
    """The images of a store as a COCO detection set, without dropped boxes.

    Variations of images that are none of the ``sources``, or not of them as they are, are left out. Unused images are
    among them, as ``refused`` for a reason and ``"confirmed": false``, for a person to correct.
    """
    images: list[dict[str, Any]] = []
    annotations: list[tuple[int, int, list[int | float], int | float, bool]] = []
    by_name = {source.name: source for source in sources}
    for image_id, (_, line) in enumerate(sorted(valid_lines(folder, by_name.values()).items()), start=1):
        source, refused = by_name[line.source], line.labels.refused
        images.append(
            {"id": image_id, "file_name": line.image, "width": source.width, "height": source.height}
            | {key: getattr(line, key) for key in ("source", "variation", "generator", "seed", "image_sha256")}
            | ({} if refused is None else {"refused": refused, "confirmed": False})
        )
        for box in line.labels.boxes:
            if box.decision != "dropped":
                x, y, w, h = xyxy_to_xywh(np.array(box.box)).tolist()
                annotations.append((image_id, category_ids[box.label], [x, y, w, h], w * h, False))
    return coco_content(images, annotations, zip(category_ids, classes, strict=True))


def write_coco(file: Path, content: dict[str, Any]) -> None:
    """Write what `as_coco` gives into its store, unless the ``file`` says the same.

    Labels that come back from a person are of these pixels, not of any others under the same name: each image gets the
    hash of its pixels.
    """
    try:
        written = json.loads(file.read_bytes())
        same = [{key: value for key, value in each.items() if key != PIXELS} for each in written["images"]]
        if written | {"images": same} == content and all(PIXELS in each for each in written["images"]):
            return
    except (OSError, ValueError, KeyError, AttributeError, TypeError):  # there is none, or it is damaged
        pass
    images = [
        each | {PIXELS: pixels_sha256(read_image(file.parent / str(each["file_name"])))} for each in content["images"]
    ]
    write_bytes_atomically(file, json.dumps(content | {"images": images}).encode())


def check_usable(
    store: str,
    lines: Sequence[VariationRecord],
    refused: Iterable[RefusedRecord],
    *,
    wanted: int,
    training: Mapping[str, int],
    repeats: bool,
) -> None:
    """Log how many of the ``wanted`` variations of a run can be used, if not all can, and whether objects are lost.

    ``store`` is its folder, ``lines`` are of the variations that are there, ``refused`` of those that could not be
    made. ``training`` has the number of objects by the name of a training image; ``repeats`` allows variations that
    equal their sources.

    Raises:
        InputError: none of a training image can be used; training would be on real images alone.
    """
    examples: dict[str, list[str]] = defaultdict(list)  # by kind of reason, which stands before a colon
    reasons = {line.key: line.labels.refused for line in lines if line.labels.refused}
    for (source, number), reason in (reasons | {line.key: line.reason for line in refused}).items():
        kind, _, more = reason.partition(": ")
        examples[kind].append(f"{source} v{number:02d}{f': {more}' if more else ''}")
    left_out = sum(map(len, examples.values()))
    by_number = sorted(examples.items(), key=lambda item: -len(item[1]))
    summary = "\n".join(f"  {len(some)} {kind}, such as {some[0]}" for kind, some in by_number)
    if not any(line.source in training and not line.labels.refused for line in lines):
        raise InputError(
            f"{store}: no variation of a training image can be used, so training would be on real images alone. "
            f"{left_out} of {wanted} are left out:\n{summary}\n  Refused images are marked in annotations.json there: "
            "correct and confirm them (labels=manual), or make variations in another way"
        )
    if left_out:
        log.warning("%s: %d of %d variations are left out:\n%s", store, left_out, wanted, summary)
    used = [line for line in lines if line.source in training and not line.labels.refused]
    objects = sum(training[line.source] for line in used)
    left = sum(box.decision != "dropped" for line in used for box in line.labels.boxes)
    if left < LEAST_OBJECTS * objects:
        log.warning(
            "%s: %d variations of training images have %d boxes; with all objects of their sources they would have %d. "
            "The detector would learn that they are nearly empty: look at the contact sheet and the label card, and "
            "take another generator or strength, or let people draw the boxes (labels=manual)",
            *(store, len(used), left, objects),
        )
    unchanged = [line for line in lines if line.unchanged]
    if unchanged and not repeats:
        share, example = f"{len(unchanged)} of {wanted}", f"{unchanged[0].source} v{unchanged[0].variation:02d}"
        log.warning(
            f"{store}: {share} variations equal their sources, such as {example}: they bring nothing new. Take another "
            "generator, or a setting of this one that changes more, such as a higher strength"
        )


def store_costs(
    folder: Path, lines: Sequence[VariationRecord], refused: Sequence[RefusedRecord] = (), *, by_hand: bool
) -> dict[str, float]:
    """Metrics of what the variations of ``lines`` cost, whichever run or command paid for it; unknown ones are missing.

    ``refused`` are all attempts at variations of the same images that came to nothing.

    The learning that images reused from another store needed is not known. With ``by_hand``, a person made the labels:
    each line records the minutes, or they are unknown.
    """
    costs = {
        "time/store_vary": math.fsum(line.seconds for line in lines),
        "data/cost_usd": math.fsum([*(line.cost_usd for line in lines), *(line.cost_usd for line in refused)]),
    }
    if learning := whole_lines(folder / LEARNING):
        costs["time/store_fit"] = math.fsum(call["seconds"] for call in learning)
    minutes = [line.labels.minutes for line in lines if line.labels.refused is None] if by_hand else []
    known = [value for value in minutes if value is not None]
    if len(known) == len(minutes):
        costs["data/label_minutes"] = math.fsum(known)
    return costs
