"""Running the root scripts as a user does: as processes, in a folder of their own.

Importing torch, Lightning and MLflow takes most of the time of a short command. One process imports them, and the
commands are its forks. What commands start themselves are processes from scratch.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import DatasetInput, Run
from mlflow.tracking import MlflowClient
from ready_store import copy_tables

ROOT = Path(__file__).parents[2]
CONF = Path(__file__).parent / "conf"
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(Path(__file__).parent))),
}


def script(command: str | Sequence[str]) -> list[str]:
    """``train.py -m split=s1`` -> the arguments of a process that finds the test's configurations as well.

    Words that hold blanks are given one by one, as a shell passes them.
    """
    name, *arguments = command.split() if isinstance(command, str) else command
    return [sys.executable, str(ROOT / name), "--config-dir", str(CONF), *arguments]


FORKS = multiprocessing.get_context("forkserver")
COMMANDS = ("train", "compare", "export", "count", "review", "generate")
# What commands import only when they need it, and most of these tests need.
LATE = ("mlflow.store.tracking.sqlalchemy_store", "diffusers.models.unets.unet_2d", "matplotlib.backends.backend_agg")
FORKS.set_forkserver_preload([*(f"boxtwin.commands.{name}" for name in COMMANDS), *LATE])


class Command:
    """A command at work in a process group of its own, which may be killed with all that it starts.

    Args:
        words: the arguments of Python.
        folder: where it runs.
        environment: variables beside those of this process.
    """

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        temporary = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, temporary)
        self.printed = [Path(temporary) / name for name in ("stdout", "stderr")]
        variables = {**ENVIRONMENT, **(environment or {})}
        self.process = FORKS.Process(target=_fork, args=(list(words), folder, self.printed, variables))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def poll(self) -> int | None:
        """Its exit status, below 0 if a signal ended it; None while it is at work."""
        return self.process.exitcode

    def wait(self, within: float = 240) -> int:
        """Its exit status; it is killed if it has not ended within so many seconds."""
        self.process.join(within)
        if (code := self.process.exitcode) is None:
            self.kill()
            self.process.join()
            raise TimeoutError(f"no end within {within} s:\n{self.text()}")
        return code

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to it and to all that it started."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(self.pid, number)

    def text(self) -> str:
        """What it has printed so far, first to stdout, then to stderr."""
        return "".join(path.read_text() for path in self.printed if path.exists())


def start(command: str | Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Command:
    """Start a command in ``folder`` and come back at once."""
    return Command(script(command)[1:], folder, environment)


def run(
    command: str | Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    code: int = 0,
    within: float = 240,
) -> str:
    """Run a command in ``folder`` and return what it printed; it must end with ``code`` within so many seconds."""
    process = start(command, folder, environment)
    ended = process.wait(within)
    assert ended == code, f"{command} ended with {ended}:\n{process.text()}"
    return process.text()


def _fork(arguments: list[str], folder: Path, printed: list[Path], environment: dict[str, str]) -> None:
    """Become the process of a script: its standard streams, environment, folder, and modules but for `__main__`."""
    os.setsid()
    for descriptor, path in zip((1, 2), printed, strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.environ |= environment
    os.chdir(folder)
    sys.argv = arguments
    sys.path[:0] = [str(Path(arguments[0]).parent), *ENVIRONMENT["PYTHONPATH"].split(os.pathsep)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    copy_tables()
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:  # in the order of an interpreter that ends; multiprocessing would wait for joblib's idle workers
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


def runs(folder: Path, kind: str = "run") -> list[Run]:
    """All runs of a kind in the store of ``folder``."""
    client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`boxtwin.kind` = '{kind}'"))


def run_folders(folder: Path) -> dict[str, dict[str, object]]:
    """What every run found, without what a clock measured."""
    found = {}
    for file in folder.glob("multirun/*/*/result.json"):
        result = json.loads(file.read_text())
        metrics = {name: value for name, value in result["metrics"].items() if not name.startswith("time/")}
        detections = (file.parent / "detections.json").read_text()
        found[result["run"]] = {"metrics": metrics, "counts": result["counts"], "detections": detections}
    return found


def inputs_of(run: Run) -> list[DatasetInput]:
    """The data sets that a run has logged."""
    assert run.inputs is not None
    return list(run.inputs.dataset_inputs)


def manifests(folder: Path) -> list[list[dict[str, Any]]]:
    """The manifests of all stores, line by line."""
    return [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("data/synthetic/*/manifest.jsonl"))
    ]
