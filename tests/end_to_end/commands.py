"""Running the root scripts as a user does: as processes, in a folder of their own.

Importing torch, Lightning and MLflow takes most of the time of a short command. One process imports them, and the
processes of `run` are its forks. `start` and what commands start themselves are processes from scratch.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
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
FORKS.set_forkserver_preload([f"boxtwin.commands.{name}" for name in COMMANDS])


def run(command: str | Sequence[str], folder: Path, *, code: int = 0, within: float = 240) -> str:
    """Run a command in ``folder`` and return what it printed; it must end with ``code`` within so many seconds."""
    with tempfile.TemporaryDirectory() as temporary:
        printed = [Path(temporary) / name for name in ("stdout", "stderr")]
        process = FORKS.Process(target=_fork, args=(script(command)[1:], folder, printed))
        process.start()
        process.join(within)
        if process.exitcode is None:
            process.kill()
            process.join()
        text = "".join(path.read_text() for path in printed)
    assert process.exitcode == code, f"{command} ended with {process.exitcode}:\n{text}"
    return text


def _fork(arguments: list[str], folder: Path, printed: list[Path]) -> None:
    """Become the process of a script: its standard streams, environment, folder, and modules but for `__main__`."""
    for descriptor, path in zip((1, 2), printed, strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.environ |= ENVIRONMENT
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


def start(command: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a command and come back at once. It has a process group of its own, to be killed with all it started."""
    return subprocess.Popen(
        script(command),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


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
