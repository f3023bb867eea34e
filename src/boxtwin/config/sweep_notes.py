"""Notes that the jobs of a sweep leave on disk, from which the sweep learns how they ended, whatever the launcher."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from boxtwin.config.identity import short_hash
from boxtwin.files import write_bytes_atomically

ATTEMPTS = 2  # at a run that breaks down
SWEEP_VARIABLE = "BOXTWIN_SWEEP"


@dataclass(frozen=True)
class Note:
    """State of one job of a sweep, written when the job begins, so that a killed job is known too."""

    path: str = ""  # of the file
    run_name: str = ""
    attempts: int = 0  # that were begun
    new: bool = False  # had no result before
    ended: bool = False
    reason: str | None = None  # of the failure
    repairable: bool = False  # by the user: another attempt would change nothing
    data: str | None = None  # hash of the data settings, if the data set is wrong
    host: str = field(default_factory=platform.node)
    run: dict[str, str] | None = None  # in MLflow: address of the store, study, identity; and the lock of the run

    @classmethod
    def read(cls, path: Path, name: str = "") -> Note:
        """The note of a job; for one that never began, a note of run ``name`` that says so."""
        if not path.exists():
            return cls(str(path), name, reason="it was never started")
        return cls(**json.loads(path.read_text()))

    def update(self, **changes: Any) -> Note:
        """Write the note with changes."""
        note = replace(self, **changes)
        write_bytes_atomically(Path(self.path), json.dumps(asdict(note)).encode())
        return note

    @property
    def failure(self) -> str | None:
        """Why the job failed; None if it did not."""
        return "it was killed" if self.attempts and not self.ended else self.reason

    @property
    def worth_another_try(self) -> bool:
        """Whether the job broke down, and has an attempt left."""
        return self.failure is not None and not self.repairable and self.attempts < ATTEMPTS


@dataclass(frozen=True)
class Sweep:
    """A sweep at work, as its jobs know it from the environment."""

    folder: str  # of the notes, absolute
    jobs: int
    finished: int  # of the jobs, that had a result before
    started: float  # seconds since the epoch

    def publish(self) -> None:
        """Put the sweep into the environment of the jobs."""
        os.environ[SWEEP_VARIABLE] = json.dumps(asdict(self))

    @classmethod
    def of_this_process(cls) -> Sweep | None:
        """The sweep that started this process; None if another sweeper did."""
        value = os.environ.get(SWEEP_VARIABLE)
        return None if value is None else cls(**json.loads(value))

    def note_of(self, overrides: Sequence[str], name: str) -> Note:
        """The note of the job with these overrides, a run called ``name``."""
        return Note.read(Path(self.folder) / f"{short_hash(list(overrides))}.json", name)

    def progress(self) -> str:
        """How many jobs have ended, and how long the rest will take at the same pace."""
        notes = self._notes()
        new = sum(note.new for note in notes if note.ended)
        text = f"{sum(note.ended for note in notes)} of {self.jobs} runs of this sweep have ended"
        if new and (rest := self.jobs - self.finished - new) > 0:
            minutes = max(1, round((time.time() - self.started) / new * rest / 60))
            text += f"; about {f'{minutes // 60} h {minutes % 60:02d} min' if minutes >= 60 else f'{minutes} min'} left"
        return text

    def data_error(self, data: str) -> str | None:
        """The error that another job has met in the same data set."""
        return next((note.reason for note in self._notes() if note.data == data), None)

    def _notes(self) -> list[Note]:
        return [Note.read(path) for path in Path(self.folder).glob("*.json")]
