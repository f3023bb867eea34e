"""How many wrong labels the list of suspects finds: the list is compared with labels made wrong at random.

    python benchmarks/suspects.py multirun/hrsid_suspects

Takes finished runs and the labels of their test and validation images. Of the boxes, 10 % are removed and 5 % shifted
by a quarter to a half of their width and height in a random direction. Nothing is trained: runs have not learnt from
these images, so wrong labels there change nothing in them (but for the choice of checkpoint and thresholds on
validation images). A suspect is right if it points at a removed box (overlap 0.5), at a shifted label, or at the place
that this had. Labels that were wrong before count as found wrongly: precision is a lower bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from boxtwin.boxes import iou_matrix
from boxtwin.commands.review_suspects import best_condition, dataset_of, found_by, images_of
from boxtwin.datasets.sample import Sample
from boxtwin.studies.relabelled import FinishedRun, finished_run
from boxtwin.studies.runs import runs_in
from boxtwin.studies.suspects import KINDS, Suspect, find_suspects

RIGHT_PLACE = 0.5  # overlap of a suggested box with the object
LENGTHS = (10, 20, 50)  # of the list


class Error(NamedTuple):
    """A label that was made wrong: where the object is, and which label of its image was shifted; None: removed."""

    image_id: int
    box: np.ndarray
    label: int | None


def corrupted(
    samples: Sequence[Sample], rng: np.random.Generator, removed: float, shifted: float
) -> tuple[list[Sample], list[Error]]:
    """Samples with wrong labels, and what was done."""
    places = [(image, box) for image, sample in enumerate(samples) for box in np.flatnonzero(~sample.crowd).tolist()]
    order = rng.permutation(len(places)).tolist()
    first, second = round(removed * len(places)), round((removed + shifted) * len(places))
    gone = {places[number] for number in order[:first]}
    moved = {places[number] for number in order[first:second]}
    changed, errors = [], []
    for image, sample in enumerate(samples):
        boxes = sample.boxes.astype(np.float64)
        kept = [index for index in range(len(boxes)) if (image, index) not in gone]
        errors += [Error(sample.image_id, boxes[index], None) for index in range(len(boxes)) if index not in kept]
        for place, index in enumerate(kept):
            if (image, index) in moved:
                errors.append(Error(sample.image_id, boxes[index].copy(), place))
                angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.5)
                size = boxes[index, 2:] - boxes[index, :2]
                boxes[index] += np.tile(far * size * (np.cos(angle), np.sin(angle)), 2)
        arrays = {name: getattr(sample, name)[kept] for name in ("labels", "areas", "crowd")}
        changed.append(replace(sample, boxes=boxes[kept].astype(np.float32), annotations=(), **arrays))
    return changed, errors


def errors_found(suspects: Sequence[Suspect], errors: Sequence[Error]) -> list[set[int]]:
    """Of each suspect the errors that it points at."""

    def points_at(suspect: Suspect, error: Error) -> bool:
        if suspect.image_id != error.image_id:
            return False
        if suspect.index is not None and suspect.index == error.label:
            return True
        if suspect.kind != "missing" or suspect.suggested is None:
            return False
        return bool(iou_matrix(np.array([suspect.suggested]), error.box[None])[0, 0] >= RIGHT_PLACE)

    return [{n for n, error in enumerate(errors) if points_at(suspect, error)} for suspect in suspects]


def ids_of(samples: Sequence[Sample]) -> dict[str, int]:
    """Numbers of images by name."""
    return {sample.name: sample.image_id for sample in samples}


def measure(
    samples: Sequence[Sample], kept: Sequence[FinishedRun], draws: int, removed: float, shifted: float
) -> list[str]:
    """A line for each length of the list, and one for each kind of suspect in the whole list."""
    found = found_by(kept, ids_of(samples))
    by_length: dict[str, list[tuple[float, float, float]]] = {}
    by_kind: dict[str, list[tuple[int, int]]] = {kind: [] for kind in KINDS}
    for draw in range(draws):
        changed, errors = corrupted(samples, np.random.default_rng(draw), removed, shifted)
        suspects = find_suspects(changed, found)
        hits = errors_found(suspects, errors)
        lengths = {str(length): length for length in LENGTHS}
        lengths |= {"as many as wrong labels": len(errors), "whole": len(suspects)}
        for name, length in lengths.items():
            listed = hits[:length]
            right, recalled = sum(map(bool, listed)), len(set().union(*listed))
            line = (len(listed), right / max(len(listed), 1), recalled / max(len(errors), 1))
            by_length.setdefault(name, []).append(line)
        for kind in KINDS:
            of_kind = [bool(hit) for hit, suspect in zip(hits, suspects, strict=True) if suspect.kind == kind]
            by_kind[kind].append((len(of_kind), sum(of_kind)))
    lines = ["| list | suspects | precision | recall |", "|---|---|---|---|"]
    for name, values in by_length.items():
        number, precision, recall = np.mean(values, axis=0)
        low, high = np.min(values, axis=0)[1], np.max(values, axis=0)[1]
        lines.append(f"| {name} | {number:.0f} | {precision:.2f} ({low:.2f} to {high:.2f}) | {recall:.2f} |")
    for name, counts in by_kind.items():
        number, right = np.sum(counts, axis=0)
        if number:
            lines.append(f"| whole, {name} | {number / draws:.0f} | {right / number:.2f} | |")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of runs' folders, with detections.json and config.yaml")
    parser.add_argument("--only", default="", help="part of the names of the runs to take; default: the best condition")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="also with so many of the seeds")
    parser.add_argument("--draws", type=int, default=20, help="of wrong labels")
    parser.add_argument("--removed", type=float, default=0.10, help="share of the boxes")
    parser.add_argument("--shifted", type=float, default=0.05, help="share of the boxes")
    settings = parser.parse_args()
    runs = runs_in(settings.runs)
    if settings.only:
        kept = [each for run in runs if settings.only in run.output_dir and (each := finished_run(run, {})) is not None]
    else:
        kept = best_condition(runs, {})
    dataset, _ = dataset_of(kept[0], {})
    by_name = {sample.name: sample for sample in dataset.samples}
    samples = [by_name[str(entry["file_name"])] for images in images_of(kept) for entry in images]
    boxes = sum(len(sample.object_boxes) for sample in samples)
    clean = find_suspects(samples, found_by(kept, ids_of(samples)))
    print(f"{len(samples)} images, {boxes} labels; {len(clean)} suspects among the labels as they are")
    for number in [*settings.seeds, len(kept)]:
        ap50 = np.mean([each.run.metrics["test/map_50"] for each in kept[:number]])
        print(f"\n{number} runs ({kept[0].run.name.rsplit('-', 1)[0]}), AP50 {100 * ap50:.1f}\n")
        print("\n".join(measure(samples, kept[:number], settings.draws, settings.removed, settings.shifted)))


if __name__ == "__main__":
    main()
