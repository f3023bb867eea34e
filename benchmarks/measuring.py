"""What the benchmarks share: the run they measure, clocks, and tables that say which machine and day they are of."""
# ruff: noqa: E402

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.launch import set_environment

set_environment()  # as the root scripts do, before torch is imported

import torch
from hydra import compose, initialize_config_dir

from boxtwin.config.compose import register, to_object
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.counting.detectors import Detector, find_detectors, open_detectors
from boxtwin.counting.images import ImageList, list_images
from boxtwin.hardware import use_threads
from boxtwin.memory import keep_freed_blocks
from boxtwin.run.build import Prepared, prepare

ROOT = Path(__file__).resolve().parents[1]


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--threads", type=int, default=1, help="threads of torch and OpenCV")
    options.add_argument("--architecture", default="yolov3_tiny", help="a file of conf/detector")
    options.add_argument("--image-size", type=int, default=416, help="side of the network's input, pixels")
    options.add_argument("--batch", type=int, default=8, help="images a step")
    options.add_argument(
        "--give-memory-back",
        action="store_true",
        help="let the allocator hand large blocks back to the system (see boxtwin.hardware)",
    )
    options.add_argument(
        "overrides",
        nargs="*",
        help="any settings of train.py, such as dataset=hrsid dataset.root=FOLDER; default: simulated images",
    )
    return options


def prepared(arguments: argparse.Namespace, *more: str) -> Prepared:
    """The run that the options describe, and the process set up as for training it."""
    register()
    use_threads(arguments.threads)
    if not arguments.give_memory_back:
        keep_freed_blocks()
    overrides = [
        "variations=0",
        f"detector={arguments.architecture}",
        f"dataset.image_size={arguments.image_size}",
        f"trainer.batch_size={arguments.batch}",
        f"trainer.threads={arguments.threads}",
        *more,
        *arguments.overrides,
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return prepare(
            to_object(compose("config", quote_numbers(overrides, ROOT / "conf" / "variations")), BoxtwinConfig)
        )


def counting_parser(description: str, images: str) -> argparse.ArgumentParser:
    """The options of benchmarks that count; ``images`` says what the images must be like."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--run", required=True, help="as run= of count.py")
    options.add_argument("--images", required=True, help=f"as images= of count.py; {images}")
    return options


def counting(arguments: argparse.Namespace, number: int) -> tuple[Detector, ImageList]:
    """The detector and the first images that the options name, and the process set up to count on one thread."""
    use_threads(1)
    keep_freed_blocks()
    (detector,) = open_detectors(find_detectors(arguments.run, None), "cpu")
    listed = list_images(arguments.images)
    return detector, ImageList(listed.folder, listed.files[:number])


@dataclass
class Clock:
    """Seconds between entering and leaving, added up: of the processor (all threads), and on the wall."""

    cpu: float = 0.0
    wall: float = 0.0

    def __enter__(self) -> Self:
        self._started = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.cpu += time.process_time() - self._started[0]
        self.wall += time.perf_counter() - self._started[1]


def report(title: str, header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """Print a table in Markdown under the machine and the day."""
    print(f"\n{title}\n{machine()}; {datetime.date.today()}\n")
    runs = [[f"{value:.4g}" if isinstance(value, float) else value for value in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in runs) for column in range(len(header))]
    runs.insert(1, ["-" * width for width in widths])
    for row in runs:
        print("| " + " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)) + " |")


def machine() -> str:
    """Processor, cores, arithmetic, torch."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    bfloat16 = "with" if torch.cpu._is_avx512_bf16_supported() else "without"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{os.cpu_count()} cores of {model} {bfloat16} avx512_bf16, {gpu}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads{load}"
    )
