"""What labels of the images that `review.py next=` chooses are worth, against as many images at random: on HRSID.

    python benchmarks/next_images.py --root FOLDER --weights FOLDER/yolov3-tiny.weights

Detectors are trained on the first 20 training images of s2. Of the 40 training images of s1 that s2 lacks, whose labels
are hidden, 20 are added: those that the rule chooses, or 20 at random, drawn anew for each seed. A seed's rule asks the
detectors of three seeds, its own and the next two. Each run is one command of ``train.py`` with one thread, ``--jobs``
of them side by side; finished runs and choices are kept, so a stopped benchmark goes on where it was. With six seeds
these are 18 runs of 402 steps, 4.6 CPU-minutes each on an idle core.

The table has the mean over seeds of each arm on the 100 test images, then the differences, rule less random in pairs of
equal seeds: mean, 95 % interval (Student's t), and p of all sign flips.
"""
# ruff: noqa: E402

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from boxtwin.config.launch import set_environment

set_environment()  # as the root scripts do, before torch is imported

import numpy as np
from scipy.stats import t

from boxtwin.commands.review_next import rank
from boxtwin.datasets.coco import read_coco
from boxtwin.detector.checkpoint import FILE, read_detector
from boxtwin.hardware import use_threads

ROOT = Path(__file__).resolve().parents[1]
START, ADDED, ENSEMBLE = 20, 20, 3
METRICS = {"AP": ("test/map", 100), "AP50": ("test/map_50", 100), "count MAE": ("test/count_mae", 1)}


def run(name: str, seed: int, settings: Sequence[str], arguments: argparse.Namespace) -> Path:
    """Train one run, unless it is done; returns its folder."""
    folder: Path = arguments.folder / f"{name}-{arguments.steps}-{seed}"
    if not (folder / "run" / "result.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, str(ROOT / "train.py"), "experiment=hrsid200", f"dataset.root={arguments.root}"),
            *(f"detector.weights={arguments.weights}", f"seed={seed}", f"study=next-{name}", "variations=0"),
            *(f"trainer.steps={arguments.steps}", "trainer.threads=1", "quality=false", *settings),
            *arguments.overrides,
            *(f"hydra.run.dir={folder}/run", f"tracking.folder={folder}/mlruns", f"data={arguments.folder}/data"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / "log.txt").open("w") as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{name}, seed {seed}, failed; see {folder}/log.txt")
    return folder / "run"


def choices(starts: Sequence[Path], seed: int, arguments: argparse.Namespace) -> Path:
    """The file of the splits ``rule`` and ``random`` of a seed, made once."""
    file: Path = arguments.folder / f"choice-{arguments.steps}-{seed}.json"
    if not file.exists():
        splits = json.loads((arguments.root / "splits" / "scene_disjoint.json").read_text())
        ((_, start),) = json.loads((starts[0] / "split.json").read_text()).items()
        hidden = [name for name in splits["s1"]["train"] if name not in set(splits["s2"]["train"])]
        dataset = read_coco(
            name="hrsid",
            images=arguments.root / "JPEGImages",
            annotations=arguments.root / "annotations" / "train_test2017.json",
        )
        samples = {Path(sample.name).name: sample for sample in dataset.samples}
        asked = [starts[(seed + number) % len(starts)] for number in range(min(ENSEMBLE, len(starts)))]
        chosen = rank(
            [read_detector(folder / FILE) for folder in asked],
            [samples[Path(name).name] for name in hidden],
            [samples[Path(name).name] for name in start["train"]],
            ADDED,
        )
        by_rule = [each.sample.name for each in chosen]
        at_random = np.random.default_rng(seed).permutation(hidden)[:ADDED].tolist()
        arms = {"rule": by_rule, "random": at_random}
        content = {arm: {**start, "train": [*start["train"], *added]} for arm, added in arms.items()}
        file.write_text(json.dumps(content, indent=1))
    return file


def table(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Markdown."""
    yield f"| images | seeds | {' | '.join(METRICS)} |"
    yield "|---|---|---|---|---|"
    values = {
        arm: {name: np.array([factor * each[key] for each in runs]) for name, (key, factor) in METRICS.items()}
        for arm, runs in found.items()
    }
    names = {"start": f"{START}", "random": f"{START} + {ADDED} at random", "rule": f"{START} + {ADDED} by the rule"}
    for arm, of_arm in values.items():
        means = " | ".join(f"{of_arm[name].mean():.2f}" for name in METRICS)
        yield f"| {names[arm]} | {len(found[arm])} | {means} |"
    yield f"| rule less random | {len(found['rule'])} | {' | '.join(_paired(values, name) for name in METRICS)} |"


def _paired(values: dict[str, dict[str, Any]], name: str) -> str:
    changes = values["rule"][name] - values["random"][name]
    if len(changes) < 2:
        return f"{changes.mean():+.2f}"
    half = t.ppf(0.975, len(changes) - 1) * changes.std(ddof=1) / len(changes) ** 0.5
    flipped = np.array(list(itertools.product((-1, 1), repeat=len(changes)))) @ changes
    p = float((np.abs(flipped) >= abs(changes.sum()) - 1e-12).mean())
    return f"{changes.mean():+.2f} ({changes.mean() - half:+.2f} to {changes.mean() + half:+.2f}), p = {p:.2f}"


def main() -> None:
    """Train, choose, train again, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the HRSID chips")
    parser.add_argument("--weights", type=Path, required=True, help="the published yolov3-tiny.weights")
    parser.add_argument("--seeds", type=int, default=6, help="seeds 0, 1 … of each arm (default: 6)")
    parser.add_argument("--steps", type=int, default=402, help="optimiser steps, a multiple of 6 (default: 402)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/runs/next"), help="where runs are kept")
    parser.add_argument("overrides", nargs="*", help="further settings of train.py, the same for every run")
    arguments: Any = parser.parse_args()
    for name in ("root", "weights", "folder"):
        setattr(arguments, name, getattr(arguments, name).resolve())
    arguments.folder.mkdir(parents=True, exist_ok=True)
    use_threads(1)
    few = ["split=s2", f"split.train_size={START}"]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        starts = list(pool.map(lambda seed: run("start", seed, few, arguments), range(max(arguments.seeds, 2))))
        files = [choices(starts, seed, arguments) for seed in range(arguments.seeds)]

        def grown(arm: str, seed: int) -> Path:
            size = START + ADDED
            split = [
                f"split.file={files[seed]}",
                f"split.name={arm}",
                f"split.train={size}",
                f"split.train_pool={size}",
            ]
            return run(arm, seed, split, arguments)

        trials = [(arm, seed) for seed in range(arguments.seeds) for arm in ("random", "rule")]
        folders = dict(zip(trials, pool.map(lambda trial: grown(*trial), trials), strict=True))
    found = {"start": starts[: arguments.seeds]}
    found |= {arm: [folders[arm, seed] for seed in range(arguments.seeds)] for arm in ("random", "rule")}
    metrics = {
        arm: [json.loads((folder / "result.json").read_text())["metrics"] for folder in of_arm]
        for arm, of_arm in found.items()
    }
    print("\n".join(table(metrics)))


if __name__ == "__main__":
    main()
