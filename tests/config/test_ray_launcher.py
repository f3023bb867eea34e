"""A sweep on a real Ray cluster of two nodes, which are processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray", reason="needs boxtwin[ray]")
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield str(cluster.address)
    cluster.shutdown()


def test_a_killed_job_is_tried_once_more_and_the_others_end_once(tmp_path: Path, address: str) -> None:
    names = [f"s1-x0-none-yolov3_tiny_3l-seed{seed}" for seed in range(4)]
    (tmp_path / "attempts").mkdir()
    (tmp_path / "plan.json").write_text(json.dumps({names[1]: ["kill"], names[2]: ["refuse"]}))
    words = ["-m", "seed=range(4)", "hydra/launcher=ray", f"hydra.launcher.address={address}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "sweeping.py"), *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    attempts = Counter(file.name.split(".")[0] for file in (tmp_path / "attempts").iterdir())
    assert attempts == {names[0]: 1, names[1]: 2, names[2]: 1, names[3]: 1}
    assert len({file.read_text() for file in (tmp_path / "attempts").iterdir()}) == 5  # processes
    assert "1 run(s) of this sweep failed" in done.stdout
    results = sorted(file.parent.name.rpartition("-")[0] for file in tmp_path.glob("multirun/*/*/result.json"))
    assert results == [names[0], names[1], names[3]]
