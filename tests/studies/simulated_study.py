"""Studies with a known truth: runs whose metrics are a condition's own, plus what seed and test images do to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from boxtwin.studies.comparison import ResampledMetrics, contrasts
from boxtwin.studies.conditions import Row, condition_table
from boxtwin.studies.inference import image_counts
from boxtwin.studies.primary import PrimaryComparison
from boxtwin.studies.runs import StudyRun
from boxtwin.studies.study import Study

IMAGES = 100

Simulated = tuple[str, int, str, float, float]  # split, variations, generator, real images, AP50 of a condition


class SimulatedMetrics(ResampledMetrics):
    """Metrics that are means over images, so that their resamples are weighted means."""

    def __init__(self, by_image: Mapping[str, Mapping[str, np.ndarray]], resamples: int) -> None:
        super().__init__({})
        counts = np.concatenate([np.ones((1, IMAGES)), image_counts(IMAGES, resamples, seed=0)])
        self._simulated = {
            run: {metric: counts @ values / IMAGES for metric, values in metrics.items()}
            for run, metrics in by_image.items()
        }

    def of(self, run: str) -> dict[str, np.ndarray] | None:
        return self._simulated.get(run)

    def without(self, resamples: Sequence[int]) -> SimulatedMetrics:
        """The same, undefined on some resamples: as AP is on those without an object."""
        other = SimulatedMetrics({}, 0)
        for run, metrics in self._simulated.items():
            other._simulated[run] = {metric: values.copy() for metric, values in metrics.items()}
            for values in other._simulated[run].values():
                values[list(resamples)] = np.nan
        return other

    def images(self, run: str) -> tuple[str, ...]:
        return tuple(map(str, range(IMAGES))) if run in self._simulated else ()


def simulate(
    conditions: Sequence[Simulated],
    *,
    seeds: int,
    seed_noise: float = 0.015,
    image_noise: float = 0.3,
    own_image_noise: float = 0.05,
    run_image_noise: float = 0.0,
    rng: int = 0,
    resamples: int = 200,
    steps: Sequence[int] = (1200,),
) -> tuple[list[StudyRun], list[Row], SimulatedMetrics]:
    """Runs of conditions.

    Images are as hard for every run (``image_noise``); beyond that a condition (``own_image_noise``), and every run
    (``seed_noise`` of its mean, ``run_image_noise`` by image), has chance of its own. A count MAE falls as AP50 rises.
    """
    random = np.random.default_rng(rng)
    hard = random.normal(0, image_noise, IMAGES)
    by_image, runs = {}, []
    for length in steps:
        by_seed = random.normal(0, seed_noise, seeds)
        for split, variations, generator, real, ap50 in conditions:
            taste = random.normal(0, own_image_noise, IMAGES)
            for seed in range(seeds):
                run = f"{split}-{variations}-{generator}-{length}-{seed}"
                values = ap50 + hard + taste + by_seed[seed] + random.normal(0, seed_noise)
                if run_image_noise:
                    values = values + random.normal(0, run_image_noise, IMAGES)
                by_image[run] = {"map": values / 2, "map_50": values, "count_mae": 2 * (1 - values)}
                size = split.rpartition("n")[2]
                runs.append(
                    StudyRun(
                        study="simulated",
                        dataset="sar_scenes",
                        split=split,
                        variations=variations,
                        generator=generator,
                        detector="yolov3_nano",
                        seed=seed,
                        steps=length,
                        setting=f"set{length}",
                        metrics={
                            "test/map": float(values.mean() / 2),
                            "test/map_50": float(values.mean()),
                            "test/count_mae": float(2 * (1 - values).mean()),
                            "test/count_bias": 0.0,
                            "data/real_images": real,
                            "data/synthetic_images": real * variations,
                        },
                        run_id=run,
                        minutes=3.0 + variations / 10,
                        output_dir="",
                        status="FINISHED",
                        overrides=f"experiment=study split={split.partition('n')[0]} variations={variations} "
                        f"generator=pixel_ddpm seed={seed} trainer.steps={length}",
                        train_size=int(size) if "n" in split else None,
                        validation=tuple(
                            (length * k // 6, 0.3 * (1 - 0.5**k) + random.normal(0, 0.002)) for k in range(1, 7)
                        ),
                    )
                )
    return runs, condition_table(runs), SimulatedMetrics(by_image, resamples)


def study_of(
    runs: Sequence[StudyRun],
    rows: list[Row],
    resampled: ResampledMetrics,
    primary: Sequence[PrimaryComparison] = (),
) -> Study:
    """A study with the comparisons of its rows."""
    return Study(runs, {}, {}, rows, resampled, contrasts(rows, resampled, primary), {}, primary)


# Settings that define each condition of `simulate_settings` unless said otherwise.
SETTINGS = {
    "dataset.name": "hrsid",
    "data.test": "5" * 64,
    "split.name": "s2",
    "variations.per_image": "0",
    "detector.name": "tiny",
    "trainer.steps": "402",
}


def simulate_settings(
    conditions: Sequence[tuple[Mapping[str, str], float, float, int]], **noise: Any
) -> tuple[list[StudyRun], SimulatedMetrics]:
    """Runs that record their conditions: settings on top of `SETTINGS`, real images, AP50 and seeds of each."""
    places = [("s2", place, "repeat", real, ap50) for place, (_, real, ap50, _) in enumerate(conditions)]
    made, _, figures = simulate(places, seeds=max(seeds for *_, seeds in conditions), **noise)
    runs = []
    for run in made:
        settings, real, _, seeds = conditions[run.variations]
        if run.seed < seeds:
            condition = SETTINGS | {"data.train": f"{real:g}", "split.train_size": f"{real:g}"} | dict(settings)
            variations = int(condition["variations.per_image"])
            metrics = run.metrics | {"data/synthetic_images": real * variations}
            runs.append(
                replace(
                    run,
                    condition=condition,
                    metrics=metrics,
                    variations=variations,
                    generator=condition.get("generator.name", "none"),
                    split=f"{condition['split.name']}n{real:g}",
                    train_size=int(real),
                    steps=int(condition["trainer.steps"]),
                )
            )
    return runs, figures
