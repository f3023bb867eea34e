"""Hydra sweeper: every run once, several at once, runs that break down once more, and a list of failures."""

from __future__ import annotations

import contextlib
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
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from boxtwin.config.arguments import with_variations
from boxtwin.config.identity import NO_PRETRAINING, uses_generator
from boxtwin.config.launch import ATTEMPTS, SWEEP_VARIABLE, check_all, report_failures
from boxtwin.config.notes import Note, names_of, note_path, notes_in
from boxtwin.config.parallel import ONE_THREAD, cores, joblib_launcher, jobs_at_once, sweep_bar
from boxtwin.config.submitted import submitted_jobs, wait_for
from boxtwin.tracking.run_folders import RESULT_FILE

log = logging.getLogger(__name__)

NOTES = ".sweeps"  # below the sweep's folder
LONGEST = 30 * 24 * 3600  # seconds, after which notes are of sweeps that were killed


class RunSweeper(BasicSweeper):
    """Launch every combination of what the command line lists, as Hydra's own sweeper, with four differences.

    Combinations that are one run (``variations=0`` under several generators) are launched once. Runs of small networks
    are made several at once (`boxtwin.config.parallel`). What fails for another reason than the user's settings is
    launched once more, after all others. What fails again is listed.

    It reads the notes of its jobs (`boxtwin.config.notes`), so any launcher will do.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what another launcher needs, too."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._task_function = task_function

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Launch what ``arguments`` combine to; `boxtwin.config.launch.launch` gives the exit status."""
        assert self.config is not None
        at_once, combinations = self._at_once(self._jobs(arguments))  # not before all are checked is a folder made
        root = Path(self.config.hydra.sweep.dir).absolute()
        root.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, root / "multirun.yaml")
        for abandoned in (root / NOTES).glob("*"):
            if time.time() - abandoned.stat().st_mtime > LONGEST:
                shutil.rmtree(abandoned, ignore_errors=True)
        folder = root / NOTES / uuid.uuid4().hex
        jobs: dict[str, list[str]] = {}  # overrides, by the file of the note
        for output, overrides in combinations:
            path, new = note_path(folder, overrides), not (output / RESULT_FILE).exists()
            jobs[Note(path, output.name, new, words=overrides).write().path] = overrides
        os.environ[SWEEP_VARIABLE] = str(folder)
        returned: list[JobReturn] = []
        notes: list[Note] = []
        open_jobs, begun = list(jobs), -1
        # A launcher that stops when a job is killed leaves others that were not begun; but each round must begin some.
        while open_jobs and (attempts := sum(note.attempts for note in notes)) > begun:
            if notes:
                names = [name for note, name in zip(notes, names_of(notes), strict=True) if note.path in open_jobs]
                log.warning("running again, after failures that no setting caused: %s", ", ".join(names))
            try:
                with sweep_bar(folder, at_once):
                    returned += self._launch([jobs[path] for path in open_jobs], len(returned))
            finally:
                end_killed(folder)
            notes, begun = [Note.read(path) for path in jobs], attempts
            broken = [note for note in notes if note.failure is not None and not note.repairable]
            open_jobs = [note.path for note in broken if note.attempts < ATTEMPTS]
        shutil.rmtree(folder, ignore_errors=True)  # a job that its launcher left may be writing there
        report_failures(notes)
        return returned

    def _at_once(
        self, combinations: Sequence[tuple[Path, list[str], DictConfig]]
    ) -> tuple[int, list[tuple[Path, list[str]]]]:
        """How many jobs to run at once, and folder and overrides of each; for several the launcher is exchanged."""
        assert self.hydra_context is not None
        assert self.config is not None
        listed = [(folder, overrides) for folder, overrides, _ in combinations]
        new = sum(not (folder / RESULT_FILE).exists() for folder, _ in listed)
        jobs = jobs_at_once([config for _, _, config in combinations], new)
        if jobs == 1:
            return 1, listed
        self.launcher = joblib_launcher(jobs, self.config, self.hydra_context, self._task_function)
        text = "%d runs at once on %d cores, with trainer.threads=%d; jobs=1 makes one after the other"
        log.info(text, jobs, cores(), combinations[0][2].trainer.threads or 1)
        return jobs, [
            (folder, overrides if config.trainer.threads else [*overrides, ONE_THREAD])
            for folder, overrides, config in combinations
        ]

    def _jobs(self, arguments: Sequence[str]) -> list[tuple[Path, list[str], DictConfig]]:
        """Folder, overrides and settings of every job; two with equal settings are one job."""
        assert self.hydra_context is not None
        assert self.config is not None
        loader, global_config = self.hydra_context.config_loader, HydraConfig.instance()
        listed = with_variations(self._parse_config(), loader.get_group_options("variations"))
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*listed, *arguments])
        drop_repeated(overrides)
        (combinations,) = self.split_arguments(overrides, None)
        jobs: dict[str, tuple[Path, list[str], DictConfig]] = {}
        before = global_config.cfg
        try:
            for number, combination in enumerate(combinations):
                # Composed as a launcher does it later, so that wrong settings are reported before any work.
                config = loader.load_sweep_config(self.config, combination)
                with open_dict(config):
                    config.hydra.job.num, config.hydra.job.id = number, str(number)
                global_config.set_config(config)
                folder = Path(config.hydra.sweep.dir).absolute() / config.hydra.sweep.subdir
                jobs.setdefault(settings_key(config), (folder, combination, config))
        finally:
            global_config.cfg = before
        if len(jobs) < len(combinations):
            unused = "settings that a run does not use, such as a generator without variations, make no difference"
            text = f"%d combinations are %d runs: {unused}"
            log.info(text, len(combinations), len(jobs))
        check_all([(words, config) for _, words, config in jobs.values()])
        return list(jobs.values())

    def _launch(self, jobs: list[list[str]], number: int) -> list[JobReturn]:
        assert self.launcher is not None
        returned: list[JobReturn] = []
        for batch in self.split_overrides_to_chunks(jobs, self.max_batch_size):
            with submitted_jobs() as jobs_sent:
                try:
                    returned += self.launcher.launch(batch, initial_job_idx=number)
                except Exception as error:
                    # Some launchers stop at a job that was killed. The others go on; then those without an end are
                    # launched again.
                    log.error("the launcher gave up: %s: %s", type(error).__name__, error)
                    wait_for(jobs_sent)
            number += len(batch)
        for job in returned:
            if job.status is JobStatus.FAILED:
                failure: Any = job._return_value
                log.error("%s: %s: %s", " ".join(job.overrides or ()), type(failure).__name__, failure)
        return returned


def settings_key(config: DictConfig) -> str:
    """All settings of a combination, but for those that make no difference to a run without variations."""
    ignored = {"hydra"}
    if OmegaConf.select(config, "pretraining.name", default=None) == NO_PRETRAINING:
        ignored.add("pretraining")
    if OmegaConf.select(config, "variations.per_image", default=None) == 0 and not uses_generator(config):
        ignored |= {"generator", "labels", "variations"}
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key not in ignored])
    return OmegaConf.to_yaml(settings, sort_keys=True)


def end_killed(folder: Path, patience: float = 5.0) -> None:
    """End the MLflow runs of killed jobs of this machine, by their notes in ``folder``.

    A job at work keeps its run: the lock of a killed one is free within ``patience`` seconds.
    """
    for note in notes_in(folder):
        if note.ended or note.run is None or note.host != platform.node():
            continue
        from boxtwin.tracking.broken_off import end_running  # late: --help and small sweeps must not wait for MLflow

        # A server that is away must not hide why the sweep ended.
        with contextlib.suppress(Exception), FileLock(note.run["lock"], timeout=patience):
            end_running(note.run["uri"], note.run["study"], note.run["identity"])


def drop_repeated(overrides: Sequence[Override]) -> None:
    """Leave each value of a sweep once: equal ones would multiply the combinations."""
    for choice in (each.value() for each in overrides):
        if isinstance(choice, ChoiceSweep):
            choice.list = list({repr(value): value for value in choice.list}.values())
