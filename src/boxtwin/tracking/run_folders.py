"""Folders of runs, which are recorded relative to the project so that it may be moved, and their result.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from boxtwin.files import write_bytes_atomically

log = logging.getLogger(__name__)

MARK = ".identity"  # file in a run's folder
RESULT_FILE = "result.json"  # the last file that a run writes
CONFIGURATION = "config.yaml"  # the settings of a run
SPLIT_FILE = "split.json"  # of a run
FOLDS_FILE = "folds.json"  # of the final detector
FINAL = "final"  # folder of a study's final detectors, and the name of their split
FORMER_KEYS = {"cell": "run", "taken_over_from": "reused_from"}  # of fields of RunResult, in earlier versions


@dataclass(frozen=True)
class RunResult:
    """Content of result.json, as JSON has it. Older versions lack some fields, which then have their defaults."""

    kind: str = "run"  # or "final": detectors trained on all labelled images, without a test
    run: str = ""  # name of the run
    study: str = ""
    identity: str = ""
    setting: str = ""  # short hash of everything configured that has no parameter of its own
    overrides: str | Sequence[str] = ()  # what followed ``python train.py``
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, int | float | None] = field(default_factory=dict)  # named as in MLflow; None: not defined
    classes: Sequence[Mapping[str, Any]] = ()  # name, count_threshold and metrics of each class
    data: Mapping[str, Any] = field(default_factory=dict)  # hashes of data set and split, variation store, repairs
    condition: Mapping[str, Any] = field(default_factory=dict)  # everything that defines the run but its seed
    provenance: Mapping[str, Any] = field(default_factory=dict)
    counts: Sequence[Mapping[str, Any]] = ()  # true and counted objects of each test image
    calibration: Mapping[str, Any] = field(default_factory=dict)  # of counts: fields of CountCalibration
    validation_images: Sequence[Mapping[str, Any]] = ()  # id, name and size in pixels of each real validation image
    validation: Sequence[Sequence[int | float]] = ()  # step, AP on the real validation images
    reused_from: Mapping[str, str] | None = None  # study and run_id of the run that was reused

    def write(self, folder: Path) -> Path:
        """Write the file into the folder of the run; returns its path."""
        path = folder / RESULT_FILE
        write_bytes_atomically(path, json.dumps(asdict(self), indent=1).encode())
        return path


def recorded_path(output: Path, tracking: Path) -> str:
    """The folder of a run as MLflow's tag holds it: relative to the parent of the folder ``tracking`` if inside."""
    project, output = tracking.resolve().parent, output.resolve()
    return output.relative_to(project).as_posix() if output.is_relative_to(project) else str(output)


def find_folder(recorded: str, tracking: Path, identity: str) -> Path | None:
    """The folder of a finished run in the current place of its project; None if it is gone or another run's.

    Runs of older versions recorded an absolute path. Its end below the current project comes first, so that a copy of a
    project does not read from the original.
    """
    if not recorded:
        return None
    project, path = tracking.resolve().parent, Path(recorded)
    firsts = range(1, len(path.parts)) if path.is_absolute() else (0,)
    for folder in (*(project.joinpath(*path.parts[first:]) for first in firsts), path):
        if (result := read_result(folder)) is not None and result.identity == identity:
            return folder
    return None


def own_folder(output: Path, *identities: str) -> Path:
    """Mark and return the folder that a run may write to: ``output``, or one beside it if that holds another run.

    The caller holds the lock of ``output``. ``identities`` are those of the run in this version and earlier ones.
    """
    beside = output.with_name(f"{output.name}-{identities[0][:8]}")
    for folder in (output, beside):
        mark, result = folder / MARK, read_result(folder)
        identity = mark.read_text() if mark.exists() else result.identity if result else ""
        if not identity or identity in identities:
            break
        log.info("%s holds a run of this name with other settings or images; this run is kept in %s", output, beside)
    write_bytes_atomically(mark, identities[0].encode())
    return folder


def read_result(folder: Path) -> RunResult | None:
    """The result.json of a run; None where there is none, or it is damaged. Fields of other versions are ignored."""
    try:
        content = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    content = {FORMER_KEYS.get(key, key): value for key, value in content.items()}
    return RunResult(**{each.name: content[each.name] for each in fields(RunResult) if each.name in content})
