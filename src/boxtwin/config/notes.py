"""Notes that the jobs of a sweep leave on disk, from which it learns how they ended, whatever the launcher."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from boxtwin.config.identity import short_hash
from boxtwin.files import write_bytes_atomically


@dataclass(frozen=True)
class Note:
    """State of one job of a sweep, written before the job begins, so that a killed job is known too."""

    path: str = ""  # of the file
    run_name: str = ""
    new: bool = False  # had no result before the sweep
    attempts: int = 0  # that were begun
    begun: float = 0.0  # when the last of them was, seconds since the epoch
    ended: bool = False
    seconds: float = 0.0  # that the last attempt took, if it has ended
    reason: str | None = "it was never started"  # of the failure
    repairable: bool = False  # by the user: another attempt would change nothing
    data: str | None = None  # hash of the data settings, if the data set is wrong
    host: str = ""  # where it was begun
    run: dict[str, str] | None = None  # in MLflow: address of the store, study, identity; and the lock of the run
    words: Sequence[str] = ()  # of the sweep, that choose the job

    @classmethod
    def read(cls, path: str | Path) -> Note:
        """The note in a file."""
        return cls(**json.loads(Path(path).read_text()))

    def write(self, **changes: Any) -> Note:
        """Write the note with changes."""
        note = replace(self, **changes)
        write_bytes_atomically(Path(self.path), json.dumps(asdict(note)).encode())
        return note

    @property
    def failure(self) -> str | None:
        """Why the job failed; None if it did not."""
        return "it was killed" if self.attempts and not self.ended else self.reason

    @property
    def at_work(self) -> bool:
        return self.attempts > 0 and not self.ended


def note_path(folder: str | Path, overrides: Sequence[str]) -> str:
    """The file of the note of the job with these overrides."""
    return str(Path(folder) / f"{short_hash(list(overrides))}.json")


def notes_in(folder: str | Path) -> list[Note]:
    """The notes of all jobs of a sweep."""
    return [Note.read(path) for path in Path(folder).glob("*.json")]


def progress(notes: Sequence[Note]) -> str:
    """How many jobs of a sweep have ended, and how long the rest will take, as seen by a job that has just ended."""
    text = f"{sum(note.ended for note in notes)} of {len(notes)} runs of this sweep have ended"
    left = time_left(notes, 1 + sum(note.at_work for note in notes))
    return f"{text}; {left}" if left else text


def names_of(notes: Sequence[Note]) -> list[str]:
    """The names of runs; those that several runs of ``notes`` share, with the words that tell them apart."""
    names = []
    for note in notes:
        others = [other for other in notes if other.run_name == note.run_name and other is not note]
        own = [word for word in note.words if any(word not in other.words for other in others)]
        names.append(f"{note.run_name} ({' '.join(own)})" if own else note.run_name)
    return names


def time_left(notes: Sequence[Note], at_once: int) -> str:
    """How long the jobs without a result will take, ``at_once`` side by side, if each takes the mean of those that
    have finished; empty where none has, or none is left."""
    finished = [note.seconds for note in notes if note.new and note.ended and note.reason is None]
    rest = [note for note in notes if note.new and not note.ended]
    if not finished or not rest:
        return ""
    mean, now = fmean(finished), time.time()
    spent = sum(min(now - note.begun, mean) for note in rest if note.at_work)
    minutes = max(1, round((mean * len(rest) - spent) / min(at_once, len(rest)) / 60))
    return f"about {f'{minutes // 60} h {minutes % 60:02d} min' if minutes >= 60 else f'{minutes} min'} left"
