"""Sweeps through an MLflow server that keeps its runs in a real PostgreSQL and serves the artifacts itself."""

from __future__ import annotations

import csv
import getpass
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run, run_folders, start
from mlflow.tracking import MlflowClient
from services import free_port, wait_for

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))  # Debian's place for its newest
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not (PROGRAMS / "initdb").exists(), reason="PostgreSQL is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("psycopg") is None, reason="psycopg is not installed"),
]
SWEEPS = 4  # at once, of two runs each
SWEEP = "train.py -m experiment=tiny_control split=s2 variations=0 seed={},{} study=at_once tracking.uri={}"


@pytest.fixture
def database() -> Iterator[str]:
    """Address of an empty database; PostgreSQL refuses to run as root and takes the user of its package then."""
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    as_user: dict[str, Any] = {"user": user} if os.geteuid() == 0 else {}
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-")), free_port()
    shutil.chown(folder, user)
    initdb, postgres, pg_isready = (str(PROGRAMS / name) for name in ("initdb", "postgres", "pg_isready"))
    subprocess.run(
        [initdb, "--auth=trust", "--username=mlflow", "--encoding=UTF8", "--no-sync", str(folder / "tables")],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        **as_user,
    )
    options = ["-D", str(folder / "tables"), "-k", str(folder), "-h", "127.0.0.1", "-p", str(port), "-F"]
    server = subprocess.Popen([postgres, *options], cwd=folder, stderr=subprocess.DEVNULL, **as_user)
    there = [pg_isready, "--host=127.0.0.1", f"--port={port}"]
    try:
        wait_for(lambda: subprocess.run(there, stdout=subprocess.DEVNULL, check=False).returncode == 0)
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # ends the sessions of its clients
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[str]:
    """As docs/cluster.md says to start it."""
    port, log = free_port(), tmp_path / "server.log"
    command = (
        f"{sys.executable} -m mlflow server --host 127.0.0.1 --port {port} --workers 2 --backend-store-uri {database} "
        f"--serve-artifacts --artifacts-destination {tmp_path / 'artifacts'}"
    )
    with log.open("wb") as out:
        process = subprocess.Popen(
            command.split(),
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1):
                return True
        except OSError:
            return False

    try:
        wait_for(ready)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def test_four_sweeps_at_once_and_a_comparison_elsewhere(tmp_path: Path, server: str) -> None:
    folders = [tmp_path / f"machine{number}" for number in range(SWEEPS)]
    sweeps = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        sweeps.append(start(SWEEP.format(2 * number, 2 * number + 1, server), folder))
    assert [sweep.wait(600) for sweep in sweeps] == [0] * SWEEPS
    assert [len(run_folders(folder)) for folder in folders] == [2] * SWEEPS
    client = MlflowClient(server)
    (experiment,) = (found for found in client.search_experiments() if found.name == "at_once")
    found = client.search_runs([experiment.experiment_id], "tags.`boxtwin.kind` = 'run'")
    assert {each.info.status for each in found} == {"FINISHED"}
    assert sorted(each.data.params["seed"] for each in found) == [str(seed) for seed in range(2 * SWEEPS)]
    assert all(each.info.artifact_uri.startswith("mlflow-artifacts:") for each in found)
    expected = [each.data.metrics["test/map"] for each in found]
    for folder in folders:  # what is left is in PostgreSQL and with the server
        shutil.rmtree(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(f"compare.py study=at_once tracking.uri={server}", elsewhere)
    (table,) = elsewhere.glob("reports/*/comparison.csv")
    (line,) = csv.DictReader(table.read_text().splitlines())
    assert line["seeds"].split() == [str(seed) for seed in range(2 * SWEEPS)]
    mean = sum(expected) / len(expected)
    assert float(line["map_mean"]) == pytest.approx(mean, abs=1e-9)
