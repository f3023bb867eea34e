"""Runs of a sweep at once: how many, and the launcher for them.

A step of a small network keeps one core busy, and hardly more than one: two runs with a thread each take less time than
one after the other with two threads. Start-up, evaluation and plots, which use one core, overlap as well.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from boxtwin.config.launch import BAR_VARIABLE
from boxtwin.config.notes import notes_in, time_left
from boxtwin.detector.options import Architecture
from boxtwin.errors import InputError
from boxtwin.memory import free_memory

SMALL = (Architecture.yolov3_nano, Architecture.yolov3_tiny, Architecture.yolov3_tiny_3l)
# Bytes. Measured peaks: yolov3_nano on images of 128 pixels 0.8 GB, of which libraries are two thirds; yolov3_tiny_3l
# with crops of 416 pixels and test images of 832 2.4 GB.
MEMORY_OF_A_RUN = 3 * 2**30
ONE_THREAD = "trainer.threads=1"


def jobs_at_once(configs: Sequence[DictConfig], new: int) -> int:
    """How many of the runs of a sweep with these configurations to make at once, of which ``new`` have no result yet.

    What ``jobs`` says. Without it, one on a GPU and with a large network, and otherwise as many as there are cores and
    memory for. Raises `InputError` if ``jobs`` is below 1, or above 1 without the package that it needs.
    """
    config = configs[0]
    if not str(config.hydra.launcher._target_).endswith("BasicLauncher"):
        return 1  # the user has chosen a launcher
    installed = importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is not None
    if config.jobs is not None:
        if config.jobs < 1:
            raise InputError(f"jobs={config.jobs} must be at least 1")
        if config.jobs > 1 and not installed:
            raise InputError(f"jobs={config.jobs} needs a package that is missing: pip install 'boxtwin[cluster]'")
        return int(config.jobs)
    if not installed or any(_is_large(each) for each in configs):
        return 1
    threads = max(each.trainer.threads or 1 for each in configs)
    return max(1, min(cores() // threads, int(free_memory() // MEMORY_OF_A_RUN), new))


def _is_large(config: DictConfig) -> bool:
    """Whether a run is of a large network, on a GPU or on several devices."""
    trainer = config.trainer
    found = shutil.which("nvidia-smi") is not None
    gpu = trainer.accelerator != "cpu" and (trainer.accelerator != "auto" or found)
    return gpu or trainer.devices > 1 or config.detector.architecture not in SMALL


def cores() -> int:
    """Cores that this process may use, within the limit of a container."""
    import joblib  # late, as --help does without

    return int(joblib.cpu_count())


@contextmanager
def sweep_bar(folder: Path, jobs: int) -> Iterator[None]:
    """A bar of the jobs with notes in ``folder``, ``jobs`` at once, drawn every second while the block works.

    There is none for one job at a time, whose runs have bars of their own, or without a terminal.
    """
    if jobs == 1 or not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm  # late, as --help does without

    os.environ[BAR_VARIABLE] = "true"
    shape, over = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]", Event()
    # Not disabled, as the bars of the runs are.
    with tqdm(total=len(notes_in(folder)), desc="runs of this sweep", bar_format=shape, disable=False) as bar:

        def draw() -> None:
            notes = notes_in(folder)
            bar.n = sum(note.ended for note in notes)
            at_work = sum(note.at_work for note in notes)
            parts = f"{at_work} at work" if at_work else "", time_left(notes, jobs)
            bar.set_postfix_str(", ".join(filter(None, parts)))

        def keep_drawing() -> None:
            while not over.wait(1.0):
                draw()

        thread = Thread(target=keep_drawing, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            draw()
            del os.environ[BAR_VARIABLE]


def joblib_launcher(jobs: int, config: DictConfig, context: HydraContext, function: TaskFunction) -> Launcher:
    """Hydra's joblib launcher for ``jobs`` processes, which write no progress bars: two would overwrite each other.
    `sweep_bar` is one for all.

    The launcher itself writes nothing: its list of all settings is longer than what the runs write.
    """
    os.environ["TQDM_DISABLE"] = "1"
    logging.getLogger("hydra_plugins.hydra_joblib_launcher").setLevel(logging.WARNING)
    from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf

    changed = config.copy()
    with open_dict(changed):
        changed.hydra.launcher = OmegaConf.structured(JobLibLauncherConf(n_jobs=jobs))
    return Plugins.instance().instantiate_launcher(context, function, changed)
