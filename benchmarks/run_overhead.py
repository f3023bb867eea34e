"""Seconds of the first and the second run of a sweep outside the training steps, by part.

    python benchmarks/cell_overhead.py

Runs a small sweep of two runs without variations (`train.py -m split=s1,s2 variations=0`) in a folder of its own,
with clocks around the parts. Parts do not overlap; "rest" is what no clock covers. Training steps, the predictions on
validation and test images, and imports are shown apart: they are not overhead, or are paid once. The first run also
builds the embedded data set and makes the MLflow store.
"""

from __future__ import annotations

import argparse
import gc
import os
import runpy
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Seconds = tuple[float, float]  # CPU, wall


def now() -> Seconds:
    """Clocks of this process and of the wall."""
    return time.process_time(), time.perf_counter()


class Clocks:
    """Time by part and run. Inside a part that is being timed an inner part takes its own time out of it."""

    def __init__(self, clock: Callable[[], Seconds] = now) -> None:
        self.runs: list[dict[str, list[float]]] = []
        self._clock = clock
        self._open: list[tuple[str, Seconds]] = []

    def start(self, part: str) -> None:
        """Stop the clock of the part around and start this one."""
        self._book()
        self._open.append((part, self._clock()))

    def stop(self) -> None:
        """Stop the innermost clock, go on with the one around."""
        self._book()
        self._open.pop()
        if self._open:
            self._open[-1] = (self._open[-1][0], self._clock())

    def _book(self) -> None:
        if not self._open or not self.runs:
            return
        part, since = self._open[-1]
        for index, (end, begin) in enumerate(zip(self._clock(), since, strict=True)):
            self.runs[-1].setdefault(part, [0.0, 0.0])[index] += end - begin

    def around(self, owner: Any, name: str, part: str) -> None:
        """Put a clock around a function or method."""
        plain: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            self.start(part)
            try:
                return plain(*arguments, **keywords)
            finally:
                self.stop()

        setattr(owner, name, timed)

    def runs_of(self, owner: Any, name: str) -> None:
        """Every call of this function is a run."""
        plain: Callable[..., Any] = getattr(owner, name)

        def run(*arguments: Any, **keywords: Any) -> Any:
            self.runs.append({})
            self.start("rest")
            try:
                return plain(*arguments, **keywords)
            finally:
                self.stop()

        setattr(owner, name, run)


APART = ("training steps", "prediction")


def install(clocks: Clocks) -> None:
    """Clocks around the parts of a run."""
    import pytorch_lightning as pl

    from boxtwin.commands import train
    from boxtwin.datasets.simulated_sar import scenes
    from boxtwin.detector import module
    from boxtwin.evaluation import overlays, plots, tested
    from boxtwin.tracking.mlflow_runs import Store

    clocks.runs_of(train, "train_run")
    clocks.around(train, "prepare", "data and split, checked")
    clocks.around(scenes, "build", "embedded data set")
    clocks.around(train, "make_data", "datamodule")
    clocks.around(train, "make_detector", "detector, anchors")
    clocks.around(pl.Trainer, "__init__", "Trainers set up")
    clocks.around(pl.Trainer, "fit", "fit around the steps, checkpoints")
    clocks.around(module.DetectorModule, "detect_all", "prediction")
    for name in ("match_detections", "coco_by_class"):
        clocks.around(module, name, "COCO metrics")
        clocks.around(tested, name, "COCO metrics")
    clocks.around(overlays, "side_by_side", "pictures")
    for name in ("precision_recall_curve", "count_scatter"):
        clocks.around(plots, name, "pictures")
    for name in ("__init__", "begin_run", "log_data", "log_files", "log_metrics", "end"):
        clocks.around(Store, name, "MLflow")

    def begin(self: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG001
        clocks.start("training steps")

    def end(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG001
        clocks.stop()

    def collect(phase: str, info: dict[str, int]) -> None:  # noqa: ARG001
        if phase == "start":
            clocks.start("garbage collection")
        else:
            clocks.stop()

    gc.callbacks.append(collect)
    module.DetectorModule.on_train_batch_start = begin  # type: ignore[method-assign]
    module.DetectorModule.on_train_batch_end = end  # type: ignore[method-assign]


def run_train(arguments: Sequence[str]) -> None:
    """Run train.py in this process, in a folder of its own that is removed afterwards."""
    sys.argv = [str(ROOT / "train.py"), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as left:
            if left.code:
                raise
        finally:
            os.chdir(ROOT)


def main() -> None:
    """Run the sweep, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("overrides", nargs="*", help="more settings, such as dataset.image_size=64")
    settings = parser.parse_args()
    command = (
        *("-m", "split=s1,s2", "variations=0", f"trainer.steps={settings.steps}", "trainer.validations=1"),
        *("detector.warmup_steps=1", "study=overhead", *settings.overrides),
    )
    from boxtwin.config import launch

    launch.set_environment()  # before MLflow is imported, as train.py does it
    clocks, started = Clocks(), now()
    install(clocks)
    imports = tuple(end - begin for end, begin in zip(now(), started, strict=True))
    run_train(command)
    rows: dict[str, list[Seconds]] = defaultdict(lambda: [(0.0, 0.0)] * len(clocks.runs))
    for number, run in enumerate(clocks.runs):
        for part, (cpu, wall) in run.items():
            rows[part][number] = (cpu, wall)
    overhead = [part for part in rows if part not in APART]
    rows["**overhead, all of the above**"] = [
        (sum(rows[part][n][0] for part in overhead), sum(rows[part][n][1] for part in overhead))
        for n in range(len(clocks.runs))
    ]
    print(f"\npython train.py {' '.join(command)}\nimports: {imports[0]:.2f} CPU-seconds, {imports[1]:.2f} wall\n")
    print("| part | first run, CPU-s | second run, CPU-s | first, wall | second, wall |\n|---|---|---|---|---|")
    for part in (*overhead, "**overhead, all of the above**", *APART):
        (cpu_1, wall_1), (cpu_2, wall_2) = rows[part]
        print(f"| {part} | {cpu_1:.2f} | {cpu_2:.2f} | {wall_1:.2f} | {wall_2:.2f} |")


if __name__ == "__main__":
    main()
