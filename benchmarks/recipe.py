"""Rows of docs/detector.md: one change to the detector's recipe a row, real images only, several seeds.

    python benchmarks/recipe.py --root FOLDER --weights FOLDER/yolov3-tiny.weights develop shrunk crops
    python benchmarks/recipe.py --root FOLDER --weights FOLDER/yolov3-tiny.weights report default --seeds 3 --steps 1200

``develop`` compares rows without looking at the test images: it halves the training and validation images of s1 by
scene, trains on 40 images of each half and tests on the other half. ``report`` trains on s1 and s2 and tests on the
test images. Each run is one command of ``train.py`` with one thread, ``--jobs`` of them side by side; finished runs are
skipped, so a stopped benchmark goes on where it was. CPU-minutes are of the whole process, start-up and test included.

Rows whose names begin with ``ten`` are for ``develop``: 10 of the 40 images, alone or with variations of each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]

# Every row says all that rows differ in, so that it stays the same when the defaults move on. docs/detector.md tells
# what came of each.
_AUGMENTATION = "dataset.augmentation"
_ONE = ("detector.objectness_target=one",)
_SHRUNK = ("detector=yolov3_tiny", "dataset.image_size=512", "detector.crop=512", *_ONE)
_CROPS = ("detector.crop=416", f"{_AUGMENTATION}.object_crop_fraction=0.7")
_HALF = (f"{_AUGMENTATION}.mosaic=0.5",)
_MOSAIC = ("detector=yolov3_tiny_3l", *_CROPS, f"{_AUGMENTATION}.mosaic=1.0")
_RESAMPLED = (*_MOSAIC, "dataset.image_size=832")
_TEN = ("split.train=40", "split.train_size=10", "quality=false")
_TEN_VARIED = (*_TEN, "variations=10", "variations.synthetic_fraction=0.5", "variations.validation=false")
_PASTED = (*_TEN_VARIED, "generator=copy_paste")
_DRAWN = (*_TEN_VARIED, "generator=pixel_ddpm_sketch")
_HULLS = ("generator.angle=180", "generator.stretch=0.25", "generator.brightness=0.3")
_GROUNDS = ("generator.grounds=2",)
ROWS: dict[str, tuple[str, ...]] = {
    "default": (),  # experiment=hrsid200 as it stands
    "shrunk": (*_SHRUNK, f"{_AUGMENTATION}.object_crop_fraction=0", *_HALF),
    "crops": ("detector=yolov3_tiny", "dataset.image_size=800", *_CROPS, *_HALF, *_ONE),
    "three_heads": ("detector=yolov3_tiny_3l", "dataset.image_size=800", *_CROPS, *_HALF, *_ONE),
    "mosaic": (*_MOSAIC, "dataset.image_size=800", *_ONE),
    "unzoomed": (*_MOSAIC, "dataset.image_size=800", f"{_AUGMENTATION}.unscaled_fraction=0.5", *_ONE),
    "resampled": (*_RESAMPLED, *_ONE),
    "larger": (*_MOSAIC, "dataset.image_size=1024", *_ONE),
    "focus_03": (*(v.replace("fraction=0.7", "fraction=0.3") for v in _RESAMPLED), *_ONE),
    "three_cells": (*_RESAMPLED, "detector.cells_per_object=3", "detector.scale_xy=2", *_ONE),
    "iou_objectness": (*_RESAMPLED, "detector.objectness_target=iou"),
    # Ten real images: which variations of them help most?
    "ten": (*_TEN, "variations=0"),
    "ten_repeat": (*_TEN_VARIED, "generator=repeat"),
    "ten_pasted": _PASTED,
    "ten_pasted_hulls": (*_PASTED, *_HULLS),
    "ten_pasted_grounds": (*_PASTED, *_GROUNDS),
    "ten_pasted_both": (*_PASTED, *_HULLS, *_GROUNDS),
    "ten_drawn": _DRAWN,
    "ten_drawn_objects": (*_DRAWN, "generator.strength=0", "generator.object_strength=0.65", *_HULLS),
    "ten_drawn_all": (*_DRAWN, "generator.strength=0.3", "generator.object_strength=0.65", *_HULLS, *_GROUNDS),
}


class Trial(NamedTuple):
    """One run of a row."""

    row: str
    split: str
    seed: int


class Outcome(NamedTuple):
    """What a run gave: metrics of result.json and CPU-minutes."""

    metrics: dict[str, float]
    minutes: float


def halves(root: Path, to: Path) -> None:
    """Write the splits ``half_a`` and ``half_b``: each trains on 40 images of its half of s1's training and
    validation images, validates on the rest of it, and tests on the other half. Scenes stay together.

    Images with over 50 objects are left out: one of them would outweigh all others in a half of 50 images.
    """
    content = json.loads((root / "annotations" / "train_test2017.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    objects: dict[str, int] = defaultdict(int)
    for annotation in content["annotations"]:
        objects[names[annotation["image_id"]]] += 1
    s1 = json.loads((root / "splits" / "scene_disjoint.json").read_text())["s1"]
    scenes: dict[str, list[str]] = defaultdict(list)
    for name in (*s1["train"], *s1["val"]):
        if objects[name] <= 50:
            scenes[name.split("_")[0]].append(name)

    names_kept = [name for name in (*s1["train"], *s1["val"]) if objects[name] <= 50]

    def imbalance(first: list[str]) -> int:
        there, all_there = sum(objects[name] for name in first), sum(objects[name] for name in names_kept)
        return abs(2 * there - all_there) + 5 * abs(2 * len(first) - len(names_kept))

    first = min((_draw(scenes, len(names_kept) // 2, seed) for seed in range(2000)), key=imbalance)
    second = [name for name in names_kept if name not in first]
    splits = {}
    for split, half, other in (("half_a", first, second), ("half_b", second, first)):
        members = {scene: [name for name in files if name in half] for scene, files in scenes.items()}
        tries = (_draw({k: v for k, v in members.items() if v}, len(half) - 40, seed) for seed in range(5000))
        val = next(names for names in tries if len(names) == len(half) - 40)
        splits[split] = {"train": [name for name in half if name not in val], "val": val, "test": other}
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(splits, indent=1))


def _draw(scenes: dict[str, list[str]], most: int, seed: int) -> list[str]:
    """The images of scenes in random order, as long as they are no more than ``most``."""
    order = sorted(scenes)
    random.Random(seed).shuffle(order)
    taken: list[str] = []
    for scene in order:
        if len(taken) + len(scenes[scene]) <= most:
            taken += scenes[scene]
    return taken


def run(trial: Trial, split_file: Path, arguments: argparse.Namespace) -> Outcome:
    """Train one run, unless it is done."""
    study = f"recipe-{trial.row}-{arguments.steps}"
    folder = arguments.folder / f"{trial.row}-{arguments.steps}-{trial.split}-{trial.seed}"
    note = folder / "minutes.json"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, str(ROOT / "train.py"), "experiment=hrsid200", f"dataset.root={arguments.root}"),
            *(f"detector.weights={arguments.weights}", f"split.file={split_file}", f"split.name={trial.split}"),
            *(f"seed={trial.seed}", f"study={study}", f"trainer.steps={arguments.steps}", "trainer.threads=1"),
            *(f"hydra.run.dir={folder}/run", f"tracking.folder={folder}/mlruns", *ROWS[trial.row]),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / "log.txt").open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{trial} failed; see {folder}/log.txt")
        note.write_text(json.dumps((usage.ru_utime + usage.ru_stime) / 60))
    result = json.loads((folder / "run" / "result.json").read_text())
    return Outcome(result["metrics"], json.loads(note.read_text()))


def table(outcomes: dict[Trial, Outcome]) -> Iterator[str]:
    """Markdown: mean over seeds, and the standard deviation between them."""
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for trial, outcome in outcomes.items():
        groups[trial.row, trial.split].append(outcome)
    yield "| row | split | seeds | AP | AP50 | count MAE | CPU-minutes |"
    yield "|---|---|---|---|---|---|---|"
    for (row, split), found in groups.items():

        def spread(name: str, factor: float, digits: int, found: list[Outcome] = found) -> str:
            values = [factor * outcome.metrics[name] for outcome in found]
            text = f"{statistics.mean(values):.{digits}f}"
            return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"

        metrics = spread("test/map", 100, 1), spread("test/map_50", 100, 1), spread("test/count_mae", 1, 2)
        minutes = statistics.mean(outcome.minutes for outcome in found)
        yield f"| {row} | {split} | {len(found)} | {' | '.join(metrics)} | {minutes:.1f} |"


def main() -> None:
    """Run the rows named on the command line and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("purpose", choices=("develop", "report"))
    parser.add_argument("rows", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--root", type=Path, required=True, help="folder of the HRSID chips")
    parser.add_argument("--weights", type=Path, required=True, help="the published yolov3-tiny.weights")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0, 1 … of each (default: 1)")
    parser.add_argument("--steps", type=int, default=402, help="optimiser steps, a multiple of 6 (default: 402)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/runs"), help="where runs are kept")
    arguments: Any = parser.parse_args()
    arguments.root, arguments.weights = arguments.root.resolve(), arguments.weights.resolve()
    arguments.folder = arguments.folder.resolve()
    split_file = arguments.root / "splits" / "scene_disjoint.json"
    splits = ("s1", "s2")
    if arguments.purpose == "develop":
        split_file, splits = arguments.folder / "halves.json", ("half_a", "half_b")
        halves(arguments.root, split_file)
    trials = [Trial(row, split, seed) for row in arguments.rows for seed in range(arguments.seeds) for split in splits]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = dict(zip(trials, pool.map(lambda trial: run(trial, split_file, arguments), trials), strict=True))
    print("\n".join(table(outcomes)))


if __name__ == "__main__":
    main()
