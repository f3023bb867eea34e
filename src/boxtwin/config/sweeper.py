"""A sweep of cells: each once, those that break down once more, and at the end what could not be had."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict

from boxtwin.config.launch import RESULT_FILE, SWEEP_VARIABLE, Outcome, Sweep, report_failures

log = logging.getLogger(__name__)

NOTES = ".sweeps"  # below the sweep's folder
FORGOTTEN = 30 * 24 * 3600  # seconds


class RunSweeper(BasicSweeper):
    """Every combination of what the command line lists, as Hydra's own sweeper makes them, with three differences.

    Combinations that are one run (``variations=0`` under several generators) are launched once. What fails for
    another reason than the user's settings is launched once more, after all others: by then a full disk, a server that
    was away or a memory that others had taken has had its time, and nothing has waited. What fails again is listed.

    Only the notes that jobs leave (`boxtwin.config.launch.guard`) are looked at, so that it does not matter which
    launcher runs them, or where, and a job that was killed gets its second try too.
    """

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Launch what ``arguments`` combine to; `boxtwin.config.launch.launch` gives the exit status."""
        assert self.config is not None
        root = Path(self.config.hydra.sweep.dir).absolute()
        root.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, root / "multirun.yaml")
        jobs = self._jobs(arguments)
        for left in (root / NOTES).glob("*"):  # of sweeps that were killed; one that is alive has written since
            if time.time() - left.stat().st_mtime > FORGOTTEN:
                shutil.rmtree(left, ignore_errors=True)
        notes = root / NOTES / uuid.uuid4().hex
        notes.mkdir(parents=True)
        sweep = Sweep(
            notes=str(notes),
            jobs=len(jobs),
            there=sum((folder / RESULT_FILE).exists() for folder, _ in jobs.values()),
            started=time.time(),
        )
        os.environ[SWEEP_VARIABLE] = sweep.to_json()
        returned: list[JobReturn] = []
        outcomes: dict[str, Outcome] = {}
        open_jobs, begun = list(jobs), -1
        # A launcher that gives up when a job is killed leaves others that were not begun; but it must get somewhere.
        while open_jobs and (so_far := sum(outcome.attempts for outcome in outcomes.values())) > begun:
            if outcomes:
                log.warning("once more, since they broke down: %s", ", ".join(outcomes[job].cell for job in open_jobs))
            try:
                returned += self._launch([jobs[job][1] for job in open_jobs], len(returned))
            finally:
                end_killed(notes)
            begun = so_far
            outcomes = {
                job: Outcome.read(sweep.note_of(overrides), folder.name) for job, (folder, overrides) in jobs.items()
            }
            open_jobs = [job for job, outcome in outcomes.items() if outcome.worth_another_try]
        shutil.rmtree(notes, ignore_errors=True)  # a job that its launcher left may be writing there
        report_failures(list(outcomes.values()))
        return returned

    def _jobs(self, arguments: Sequence[str]) -> dict[str, tuple[Path, list[str]]]:
        """Folder and overrides of every job, by what is asked for: two that ask for the same are one job."""
        assert self.hydra_context is not None
        assert self.config is not None
        loader, global_config = self.hydra_context.config_loader, HydraConfig.instance()
        parser = OverridesParser.create(config_loader=loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (combinations,) = self.split_arguments(overrides, None)
        jobs: dict[str, tuple[Path, list[str]]] = {}
        before = global_config.cfg
        try:
            for number, combination in enumerate(combinations):
                # Composed here as a launcher does it elsewhere later, so that what cannot be is told before any work.
                config = loader.load_sweep_config(self.config, combination)
                with open_dict(config):
                    config.hydra.job.num, config.hydra.job.id = number, str(number)
                global_config.set_config(config)
                folder = Path(config.hydra.sweep.dir).absolute() / config.hydra.sweep.subdir
                jobs.setdefault(asked(config), (folder, combination))
        finally:
            global_config.cfg = before
        if len(jobs) < len(combinations):
            log.info(
                "%d combinations are %d runs: without variations the generator makes no difference",
                *(len(combinations), len(jobs)),
            )
        return jobs

    def _launch(self, jobs: list[list[str]], number: int) -> list[JobReturn]:
        assert self.launcher is not None
        returned: list[JobReturn] = []
        for batch in self.split_overrides_to_chunks(jobs, self.max_batch_size):
            try:
                returned += self.launcher.launch(batch, initial_job_idx=number)
            except Exception as error:
                # Some launchers stop at a job that was killed; those that left no note get their second chance.
                log.error("the launcher gave up: %s: %s", type(error).__name__, error)
            number += len(batch)
        for job in returned:
            if job.status is JobStatus.FAILED:
                failure: Any = job._return_value
                log.error("%s: %s: %s", " ".join(job.overrides or ()), type(failure).__name__, failure)
        return returned


def asked(config: DictConfig) -> str:
    """All that a combination says, but for what makes no difference to a run without variations."""
    values = {key: value for key, value in config._content.items() if key != "hydra"}  # type: ignore[union-attr]
    if config.get("variations") is not None and config.variations.get("per_image") == 0:
        values = {key: value for key, value in values.items() if key not in ("generator", "labels", "variations")}
    return json.dumps({key: _plain(value) for key, value in values.items()}, sort_keys=True, default=str)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node._value()


def end_killed(notes: Path, patience: float = 5.0) -> None:
    """End the runs of jobs of this machine that were killed: their processes can no longer do so.

    Args:
        notes: folder of the jobs' notes.
        patience: seconds for a process that is being killed to be gone; a job that is at work keeps its run.
    """
    for note in notes.glob("*.json"):
        content = json.loads(note.read_text())
        if content["ended"] or "run" not in content or content["host"] != platform.node():
            continue
        run = content["run"]
        from boxtwin.tracking.interrupted import end_running  # late: --help and small sweeps must not wait for MLflow

        # A server that is gone must not hide why the sweep ended.
        with contextlib.suppress(Exception), FileLock(run["lock"], timeout=patience):
            end_running(run["uri"], run["study"], run["identity"])
