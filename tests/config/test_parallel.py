"""How many runs of a sweep are made at once where nobody says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from boxtwin.config.compose import register
from boxtwin.config.parallel import MEMORY_OF_A_RUN, cores, jobs_at_once
from boxtwin.memory import free_memory

ROOT = Path(__file__).parents[2]
CPU = "trainer.accelerator=cpu"
Composed = Callable[[str], DictConfig]


@pytest.fixture
def composed() -> Iterator[Composed]:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda line: compose("config", line.split(), return_hydra_config=True)


def test_small_networks_take_the_cores_that_memory_holds(composed: Composed) -> None:
    room = max(1, min(cores(), int(free_memory() // MEMORY_OF_A_RUN)))
    assert jobs_at_once([composed(CPU)], 1000) == pytest.approx(room, abs=1)  # other processes take memory meanwhile
    assert jobs_at_once([composed(CPU)], 1) == 1  # the others are finished
    assert jobs_at_once([composed(CPU)], 0) == 1
    assert jobs_at_once([composed(f"{CPU} trainer.threads={cores()}")], 1000) == 1


@pytest.mark.parametrize(
    "line",
    ["detector=yolov3", "detector=yolov3_spp", "trainer.devices=2", "jobs=1"]
    + [f"trainer.accelerator={name}" for name in ("cuda", "gpu", "mps")],
)
def test_one_after_the_other(composed: Composed, line: str) -> None:
    line = line if "accelerator" in line else f"{line} {CPU}"
    assert jobs_at_once([composed(CPU), composed(line)][:: -1 if line.startswith("jobs") else 1], 1000) == 1


def test_what_is_asked_for_is_taken(composed: Composed) -> None:
    assert jobs_at_once([composed("jobs=7 detector=yolov3")], 1000) == 7
    assert jobs_at_once([composed("jobs=7 hydra/launcher=joblib hydra.launcher.n_jobs=2")], 1000) == 1


def test_a_setting_of_the_machine_defines_no_run(composed: Composed) -> None:
    from boxtwin.config.identity import defining_values, setting_hash

    one, two = composed("jobs=1"), composed("jobs=2")
    assert OmegaConf.select(one, "jobs") != OmegaConf.select(two, "jobs")
    assert defining_values(one) == defining_values(two)
    assert setting_hash(one) == setting_hash(two)


def test_memory_that_is_left(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000000 kB\nMemAvailable:    5000000 kB\n")
    assert free_memory(tmp_path) == 5_000_000 * 1024
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("1000000000\n")
    assert free_memory(tmp_path) == 5_000_000 * 1024
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("3000000000\n")
    assert free_memory(tmp_path) == 2e9
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("900000000\n")
    assert free_memory(tmp_path) == 0
