"""The lines of a store's manifest: which of them count, and what they are held against."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.boxes import xyxy_to_xywh
from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.image_io import pixels_sha256, read_image
from boxtwin.datasets.sample import Judgement, Sample
from boxtwin.files import writing

log = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
NAMED = 5  # files that a message names
CHECKSUM = "crc32"  # of the rest of a line; lines of earlier versions have none


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """All lines, oldest first; those cut short by a kill do not count, nor damaged ones, which a warning names."""
    return [line for line, _ in _lines(file)]


def lines_without_checksum(folder: Path) -> set[tuple[str, int]]:
    """Source and variation of those whose newest line an earlier version wrote."""
    newest = {(line["source"], line["variation"]): checked for line, checked in _lines(folder / MANIFEST)}
    return {key for key, checked in newest.items() if not checked}


def _lines(file: Path) -> list[tuple[dict[str, Any], bool]]:
    """The whole lines, and whether each has a checksum."""
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines: list[tuple[dict[str, Any] | None, bool]] = []
    has_come = False  # a line with a checksum
    for encoded in whole.split(b"\n")[:-1]:
        line, has_checksum = _read_line(encoded)
        has_come = has_come or has_checksum
        lines.append((line if has_checksum == has_come else None, has_checksum))  # earlier versions' lines come first
    damaged = [number for number, (line, _) in enumerate(lines, start=1) if line is None]
    if damaged:
        log.warning(
            "%s: %d damaged line(s) are left out, such as line %d; what they record counts as missing",
            *(file, len(damaged), damaged[0]),
        )
    return [(line, has_checksum) for line, has_checksum in lines if line is not None]


def append_line(file: Path, *lines: dict[str, Any]) -> None:
    """Add a line, or several, that outlive a power cut: what they name may have been paid for."""
    with writing(file), file.open("ab") as manifest:
        for line in lines:
            manifest.write(json.dumps(line | {CHECKSUM: _checksum(line)}).encode() + b"\n")
        manifest.flush()
        os.fsync(manifest.fileno())


def _read_line(encoded: bytes) -> tuple[dict[str, Any] | None, bool]:
    """A line without its checksum, None where it is damaged; and whether it has one."""
    try:
        line = json.loads(encoded)
        checksum = line.pop(CHECKSUM, None)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None, False
    return (line if checksum in (None, _checksum(line)) else None), checksum is not None


def _checksum(line: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(line).encode()):08x}"


def labels_entry(judgement: Judgement) -> dict[str, Any]:
    """What a line says of its labels: decisions by kind, and each box with its evidence."""
    decisions = Counter(box.decision for box in judgement.boxes)
    return {
        **{decision: decisions[decision] for decision in ("kept", "shifted", "dropped", "added")},
        "refused": judgement.refused,
        **({} if judgement.minutes is None else {"minutes": judgement.minutes}),
        "boxes": [asdict(box) for box in judgement.boxes],
    }


def mend(file: Path) -> None:
    """Cut off a last line that a kill left unfinished: what is appended must start on a line of its own."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def valid_lines(folder: Path, sources: Iterable[Sample]) -> dict[tuple[str, int], dict[str, Any]]:
    """The lines whose image is there as recorded and whose source has not changed since, by source and variation; the
    newest one counts.
    """
    fingerprints = {source.name: fingerprint(source) for source in sources}
    newest = {(line["source"], line["variation"]): line for line in whole_lines(folder / MANIFEST)}
    return {
        key: line
        for key, line in newest.items()
        if fingerprints.get(line["source"]) == line["source_fingerprint"] and image_is_whole(folder, line)
    }


def image_is_whole(folder: Path, line: dict[str, Any]) -> bool:
    """Whether the image of a line is there, byte for byte; each file is read once, unless it changes."""
    image = folder / line["image"]
    try:
        state = image.stat()
    except OSError:
        return False
    if not image.is_relative_to(folder) or ".." in image.parts[len(folder.parts) :]:  # of a foreign store
        return False
    return _sha256_of(image, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns) == line["image_sha256"]


def tell_of_damage(folder: Path, missing: Iterable[tuple[str, int]]) -> None:
    """Warn of images among the ``missing`` that have a line: their files are gone, or are not as they were."""
    newest = {(line["source"], line["variation"]): line for line in whole_lines(folder / MANIFEST)}
    lost = [newest[key] for key in missing if key in newest]
    damaged = [line["image"] for line in lost if not image_is_whole(folder, line)]
    if damaged:
        log.warning(
            "%s: %d image(s) are missing or damaged and are made again, such as %s",
            *(folder, len(damaged), ", ".join(damaged[:NAMED])),
        )


@lru_cache(maxsize=1 << 16)
def _sha256_of(path: Path, *state: int) -> str:  # noqa: ARG001, the state is part of the key
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(sample: Sample) -> str:
    """Pixels and labels of a source in one hash: variations of either older version are not of this image."""
    total = hashlib.sha256(sample.sha256.encode())
    for array in (sample.boxes, sample.labels, sample.crowd):
        total.update(array.tobytes())
    return total.hexdigest()


def as_coco(
    folder: Path, lines: Iterable[dict[str, Any]], classes: Sequence[str], category_ids: Sequence[int]
) -> dict[str, Any]:
    """What ``lines`` name and is there, as a COCO detection set; dropped boxes are left out.

    Images that are not used are among them, with the reason as ``refused`` and ``"confirmed": false``, so that a person
    can mend their boxes and confirm them.
    """
    newest = {(line["source"], line["variation"]): line for line in lines if image_is_whole(folder, line)}
    images: list[dict[str, Any]] = []
    annotations: list[tuple[int, int, list[int | float], int | float, bool]] = []
    for image_id, (_, line) in enumerate(sorted(newest.items()), start=1):
        pixels = read_image(folder / line["image"])
        height, width = pixels.shape[:2]
        images.append(
            {"id": image_id, "file_name": line["image"], "width": width, "height": height}
            | {key: line[key] for key in ("source", "variation", "generator", "seed")}
            # Labels that come back from a person are of these pixels, not of any others under the same name.
            | {"pixels_sha256": pixels_sha256(pixels)}
            | ({} if (refused := line["labels"]["refused"]) is None else {"refused": refused, "confirmed": False})
        )
        for box in line["labels"]["boxes"]:
            if box["decision"] == "dropped":
                continue
            x, y, w, h = xyxy_to_xywh(np.array(box["box"])).tolist()
            annotations.append((image_id, category_ids[box["label"]], [x, y, w, h], w * h, False))
    return coco_content(images, annotations, zip(category_ids, classes, strict=True))
