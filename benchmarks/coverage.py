"""Do the intervals hold the truth, and does "significant" mean it? Simulated studies with a known effect on AP50.

    python benchmarks/coverage.py --studies 1000 --jobs 2

A study is two conditions, six seeds each, on the same 100 test images. Every image has objects of its own difficulty
and its own number of false alarms; every run has a skill of its own; a detection's score follows skill, difficulty and
chance. The spreads are set so that AP50 differs between seeds, between resamples of the images and between two runs on
resampled images as it does for YOLOv3-tiny on hrsid200 (printed beside the table). The true effect is the difference of
AP50 over 100 sets of 1,000 fresh images with fresh runs. Then counted: in how many studies the 95 % interval holds the
truth, and in how many the sign-flip test calls a difference significant, alone and among four comparisons (Holm).

Studies are written down as they are done; a stopped run goes on.

    python benchmarks/coverage.py --pretrainings 3

Nine pairs that share so many pre-trainings, on test images that are the same for all. A pre-training changes the
difference by a normal chance of its own; its standard deviation, as a multiple of that of a seed, is in the table.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.matching import match_detections
from boxtwin.evaluation.resampled_ap import ResampledAP
from boxtwin.studies.inference import (
    SIGNIFICANT,
    hierarchical_interval,
    holm,
    image_counts,
    mean_interval,
    sign_flip_p,
)

IMAGES, SEEDS, RESAMPLES = 100, 6, 500
SKILL, SEED_SPREAD, CHANCE = 1.45, 0.05, 0.20
IMAGE_DIFFICULTY, OBJECT_DIFFICULTY = 1.3, 0.9
FALSE_ALARMS, FALSE_SPREAD = 1.5, 1.2
EFFECTS = {"none": 0.0, "gain": 0.163}  # of skill; what they come to in AP50 is measured


class World:
    """A set of test images: objects, their difficulty, and how many false alarms each image draws."""

    def __init__(self, rng: np.random.Generator, images: int) -> None:
        self.objects = 1 + rng.geometric(1 / 2.76, images) - 1
        hard = rng.normal(0, IMAGE_DIFFICULTY, images)
        self.difficulty = [hard[n] + rng.normal(0, OBJECT_DIFFICULTY, k) for n, k in enumerate(self.objects)]
        self.alarms = rng.gamma(0.6, FALSE_ALARMS / 0.6, images)
        self.samples = [_sample(number, int(k)) for number, k in enumerate(self.objects, start=1)]
        # What is mistaken for an object looks alike to every run: a place, and how likely it seems.
        self.likeness = [rng.normal(-1.0, FALSE_SPREAD, 12) for _ in range(images)]

    def run(self, rng: np.random.Generator, skill: float) -> ResampledAP:
        """What one trained detector finds."""
        found = {}
        for sample, difficulty, alarms, likeness in zip(
            self.samples, self.difficulty, self.alarms, self.likeness, strict=True
        ):
            certainty = skill - difficulty + rng.normal(0, CHANCE, len(difficulty))
            hit = certainty > 0
            false = min(int(rng.poisson(alarms)), len(likeness))
            wrong = likeness[:false] + rng.normal(0, CHANCE, false) - 0.5 * (skill - SKILL)
            boxes = np.concatenate([sample.boxes[hit], _places(np.arange(50, 50 + false))])
            scores = 1 / (1 + np.exp(-np.concatenate([certainty[hit], wrong])))
            order = np.argsort(-scores)
            found[sample.image_id] = Detections(boxes[order], scores[order], np.zeros(len(order), dtype=np.int64))
        return ResampledAP.of(match_detections(self.samples, found, 1))


def _places(numbers: np.ndarray) -> np.ndarray:
    corner = np.stack([numbers % 10, numbers // 10], axis=1) * 100.0
    return np.concatenate([corner, corner + 20.0], axis=1)


def _sample(number: int, objects: int) -> Sample:
    return Sample(
        name=str(number),
        path=Path(str(number)),
        width=2000,
        height=2000,
        image_id=number,
        boxes=_places(np.arange(objects)),
        labels=np.zeros(objects, dtype=np.int64),
        areas=np.full(objects, 400.0),
        crowd=np.zeros(objects, dtype=bool),
    )


def study(number: int) -> dict[str, object]:
    """One study of each effect on the same images: AP50 by seed, interval, p."""
    rng = np.random.default_rng([1, number])
    world, counts = World(rng, IMAGES), image_counts(IMAGES, RESAMPLES, number)
    whole = np.ones((1, IMAGES))

    def runs(effect: float) -> tuple[np.ndarray, np.ndarray]:
        found = [world.run(rng, SKILL + effect + rng.normal(0, SEED_SPREAD)) for _ in range(SEEDS)]
        return np.array([run(whole)[0, 0] for run in found]), np.stack([run(counts)[:, 0] for run in found])

    base, base_resampled = runs(0.0)
    result: dict[str, object] = {
        "seeds": float(base.std(ddof=1)),
        "images": float(base_resampled.std(axis=1).mean()),
        "pair": float((base_resampled[0] - base_resampled[1]).std()),
        "ap50": float(base.mean()),
    }
    for name, effect in EFFECTS.items():
        other, other_resampled = runs(effect)
        interval = hierarchical_interval(other - base, other_resampled - base_resampled, images=IMAGES, seed=number)
        result[name] = [interval.mean, interval.low, interval.high, sign_flip_p((other - base).tolist())]
    return result


def truth(effect: float) -> float:
    """AP50 gained by ``effect``, over 100 sets of 1,000 images. Chance is the same on both sides, so little is left."""
    gains = []
    for number in range(100):
        world, whole = World(np.random.default_rng([2, number]), 1000), np.ones((1, 1000))
        chances = (np.random.default_rng([3, number]) for _ in range(2))
        base, other = (
            world.run(rng, SKILL + add + rng.normal(0, SEED_SPREAD))
            for rng, add in zip(chances, (0.0, effect), strict=True)
        )
        gains.append(other(whole)[0, 0] - base(whole)[0, 0])
    return float(np.mean(gains))


def nested(pretrainings: int, studies: int) -> None:
    """Without an effect: how often is 0 outside of the interval, and p below 0.05, where seeds share pre-trainings?"""
    rng, clusters = np.random.default_rng(0), (np.arange(9) % pretrainings).tolist()
    print("| spread of pre-trainings | seeds independent | clusters | p at most 0.05 | p and clusters | width |")
    print("|---|---|---|---|---|---|")
    for spread in (0.0, 0.25, 0.5, 1.0, 2.0):
        found = []
        for _ in range(studies):
            values = (rng.normal(0, spread, pretrainings)[clusters] + rng.normal(0, 1, 9)).tolist()
            both = [mean_interval(values), mean_interval(values, clusters)]
            widths = [high - low for low, high in (each for each in both if each)]
            out = [not low <= 0 <= high for low, high in (each for each in both if each)]
            small = sign_flip_p(values) <= SIGNIFICANT
            found.append([*out, small, small and out[1], widths[1] / widths[0]])
        *shares, width = np.mean(found, axis=0)
        print(f"| {spread:g} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} | {width:.1f} times |")


def main() -> None:
    """Simulate what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--file", type=Path, default=Path("benchmarks/runs/coverage.jsonl"))
    parser.add_argument("--pretrainings", type=int, help="how many serve nine seeds; simulates these alone")
    settings = parser.parse_args()
    if settings.pretrainings:
        nested(settings.pretrainings, settings.studies)
        return
    settings.file.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in settings.file.read_text().splitlines()] if settings.file.exists() else []
    with ProcessPoolExecutor(settings.jobs) as pool, settings.file.open("a") as file:
        for result in pool.map(study, range(len(done), settings.studies), chunksize=4):
            done.append(result)
            file.write(json.dumps(result) + "\n")
            file.flush()
        effects = dict(zip(EFFECTS, pool.map(truth, EFFECTS.values()), strict=True))
    done = done[: settings.studies]
    spread = {
        name: 100 * float(np.mean([result[name] for result in done])) for name in ("ap50", "seeds", "images", "pair")
    }
    print(
        f"AP50 {spread['ap50']:.1f}; spread between seeds {spread['seeds']:.2f} points, between resamples of the images"
    )
    print(f"{spread['images']:.2f}, of the difference of two runs between resamples {spread['pair']:.2f}\n")
    print(
        "| true effect, AP50 | studies | 95 % interval holds it | half its width | significant alone | of four, Holm |"
    )
    print("|---|---|---|---|---|---|")
    for name, effect in effects.items():
        found = np.array([result[name] for result in done])
        held = ((found[:, 1] <= effect) & (effect <= found[:, 2])).mean()
        # Four comparisons with p values like this one's: the family that Holm corrects is drawn from other studies.
        groups = found[: len(found) // 4 * 4, 3].reshape(-1, 4)
        corrected = np.array([holm(group.tolist()) for group in groups])
        figures = (
            f"{100 * effect:+.2f}",
            str(len(found)),
            f"{100 * held:.1f} %",
            f"{100 * (found[:, 2] - found[:, 1]).mean() / 2:.2f}",
            f"{100 * (found[:, 3] <= SIGNIFICANT).mean():.1f} %",
            f"{100 * (corrected <= SIGNIFICANT).any(axis=1).mean():.1f} %",
        )
        print(f"| {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
