"""Images a second on their way to the network: decoded each time, held in memory, and from the memory-mapped file.

python benchmarks/data_loading.py
python benchmarks/data_loading.py --batch-threads 1 2     batches by so many threads, in turns: take the ratio
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from measuring import Clock, parser, prepared, report

from boxtwin.datasets.image_cache import DecodedImages
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.mixing.options import AugmentationOptions
from boxtwin.mixing.plan import Plan, make_plan
from boxtwin.run.build import Prepared, make_data


class InMemory(DecodedImages):
    """All images in the memory of one process."""

    def __init__(self) -> None:
        super().__init__(None)
        self._held: dict[str, Pixels] = {}

    def read(self, sample: Sample) -> Pixels:
        if sample.sha256 not in self._held:
            self._held[sample.sha256] = sample.read()
        return self._held[sample.sha256]


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--batches", type=int, default=20)
    options.add_argument("--batch-threads", type=int, nargs="+", help="compare trainer.batch_threads instead")
    options.add_argument("--rounds", type=int, default=5, help="turns of that comparison")
    arguments = options.parse_intermixed_args()
    run = prepared(arguments, f"trainer.steps={arguments.batches}", "trainer.validations=1", "detector.warmup_steps=0")
    plan = make_plan(run.split, ())
    if arguments.batch_threads:
        _compare_threads(run, plan, arguments.batch_threads, arguments.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        mapped = DecodedImages(Path(folder))
        with Clock() as filling:
            mapped.add("benchmark", plan.train)
        samples = [plan.train[index % len(plan.train)] for index in range(200)]
        rows: list[tuple[str, float, float, float, float]] = []
        for name, images in (
            ("decoded each time", DecodedImages(None)),
            ("in memory", InMemory()),
            ("memory-mapped", mapped),
        ):
            for sample in plan.train:
                images.read(sample).max()
            with Clock() as reading:
                for sample in samples:
                    images.read(sample)
            speeds = []
            for augmentation in (AugmentationOptions(), None):
                data = make_data(run, plan)
                data._images = images
                if augmentation is not None:
                    data.augmentation = augmentation
                with Clock() as batches:
                    for _ in data.train_dataloader():
                        pass
                speeds.append(batches)
            drawn = arguments.batches * arguments.batch
            rows.append(
                (
                    name,
                    reading.cpu / len(samples) * 1e3,
                    drawn / speeds[0].cpu,
                    drawn / speeds[1].cpu,
                    drawn / speeds[1].wall,
                )
            )
    report(
        f"Batches of {arguments.batch} images of {arguments.image_size} pixels from files of "
        f"{plan.train[0].width} x {plan.train[0].height}; filling the file took "
        f"{filling.cpu / len(plan.train) * 1e3:.3g} CPU ms an image",
        ("images", "CPU ms to read", "images a CPU second, plain", "augmented", "augmented, a wall second"),
        rows,
    )


def _compare_threads(run: Prepared, plan: Plan, threads: list[int], rounds: int) -> None:
    """Batches a second by so many threads, in turns, since other work comes and goes; nothing but batches runs."""
    seconds: dict[int, list[float]] = {number: [] for number in threads}
    loads = []
    with tempfile.TemporaryDirectory() as folder:
        mapped = DecodedImages(Path(folder))
        mapped.add("benchmark", plan.train)
        for _ in range(rounds):
            loads.append(os.getloadavg()[0])
            for number in threads:
                run.config.trainer.batch_threads = number
                data = make_data(run, plan)
                data._images = mapped
                with Clock() as clock:
                    count = sum(1 for _ in data.train_dataloader())
                seconds[number].append(clock.wall / count)
    rows = []
    for number in threads:
        ratios = [first / own for first, own in zip(seconds[threads[0]], seconds[number], strict=True)]
        each = statistics.median(seconds[number])
        rows.append((str(number), 1 / each, statistics.median(ratios), min(ratios), max(ratios)))
    met = f"load met, before each of {rounds} turns: {', '.join(f'{load:.1f}' for load in loads)}"
    header = ("batch threads", "batches a second, median", f"times those of {threads[0]}", "least", "most")
    report(f"Augmented batches from the memory-mapped file; {met}", header, rows)


if __name__ == "__main__":
    main()
