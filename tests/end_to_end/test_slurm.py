"""A sweep on a real Slurm cluster (`slurm_cluster`): one of its jobs is killed, one meets its time limit."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from commands import ENVIRONMENT, runs, script
from services import wait_for
from slurm_cluster import missing, slurm_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1900),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]

# Steps of four runs, one of which takes longer than two minutes, on any machine: the shortest limit is one minute, and
# Slurm may send its signal up to a minute before the limit. Checkpoints are made at validations.
STEPS = "100,200,300,8000"
SWEEP = (
    f"train.py -m experiment=tiny_control split=s2 variations=0 trainer.steps={STEPS} trainer.validations=100 "
    "trainer.threads=1 hydra/launcher=submitit_slurm hydra.launcher.partition=all hydra.launcher.cpus_per_task=1 "
    "hydra.launcher.timeout_min=2 hydra.launcher.signal_delay_s=5 hydra.launcher.max_num_timeout=20 "
    "hydra.launcher.array_parallelism=2"
)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Mapping[str, str]]:
    with slurm_cluster() as environment:
        yield environment


def ask(slurm: Mapping[str, str], *words: str) -> list[list[str]]:
    """What a command of Slurm prints, line by line and word by word."""
    done = subprocess.run(words, env=slurm, stdout=subprocess.PIPE, text=True, check=True)
    return [line.split("|") for line in done.stdout.splitlines()]


def test_all_runs_of_a_job_array_end_once(tmp_path: Path, slurm: Mapping[str, str]) -> None:
    with (tmp_path / "printed").open("w") as printed:
        environment = {**ENVIRONMENT, **{name: slurm[name] for name in ("PATH", "SLURM_CONF")}}
        sweep = subprocess.Popen(script(SWEEP), cwd=tmp_path, env=environment, stdout=printed, stderr=printed)

    def running() -> list[str]:
        jobs = ask(slurm, "squeue", "--array", "--noheader", "--format=%i|%T")
        return [job for job, state in jobs if state == "RUNNING"]

    killed = wait_for(running)[0]
    assert re.fullmatch(r"\d+_\d+", killed)  # of an array
    wait_for(lambda: list(tmp_path.glob("multirun/*/*/train.log")))
    ask(slurm, "scancel", "--full", "--signal=KILL", killed)
    code = sweep.wait(1700)
    text = (tmp_path / "printed").read_text()
    assert code == 0, text
    assert len(list(tmp_path.glob("multirun/*/*/result.json"))) == 4
    assert [r.info.status for r in runs(tmp_path)] == ["FINISHED"] * 4
    # The killed job alone was sent again, after all others had ended; the long one was requeued by Slurm.
    words = ("sacct", "--duplicates", "--allocations", "--noheader", "--parsable2", "--format=JobID,State")

    def ended() -> list[tuple[str, str]]:  # accounting hears of the end of a job a little later than its sweep
        states = [(job.partition("_")[0], state.split()[0]) for job, state in ask(slurm, *words)]
        return [] if {"RUNNING", "COMPLETING"} & {state for _, state in states} else states

    states = wait_for(ended)
    arrays = list(dict.fromkeys(array for array, _ in states))
    assert len(arrays) == 2, states
    assert [state for array, state in states if array == arrays[1]] == ["COMPLETED"], states
    first = Counter(state for array, state in states if array == arrays[0])
    assert first["CANCELLED"] == 1, states
    assert first["REQUEUED"] >= 1, states
    assert sum(first.values()) == 4 + first["REQUEUED"], states
