"""Running the root scripts as a user does: as processes, in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlflow.entities import DatasetInput, Run
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[2]
CONF = Path(__file__).parent / "conf"
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(Path(__file__).parent))),
}


def script(command: str) -> list[str]:
    """``train.py -m split=s1`` -> the arguments of a process that finds the test's configurations as well."""
    name, *arguments = command.split()
    return [sys.executable, str(ROOT / name), "--config-dir", str(CONF), *arguments]


def run(command: str, folder: Path, *, code: int = 0, within: float = 240) -> str:
    """Run a command in ``folder`` and return what it printed; it must end with ``code`` within so many seconds."""
    process = subprocess.run(
        script(command), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=within, check=False
    )
    printed = process.stdout + process.stderr
    assert process.returncode == code, f"{command} ended with {process.returncode}:\n{printed}"
    return printed


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
