"""Finished runs of a study, as the comparison reads them: what its tests begin with."""

from __future__ import annotations

from typing import Any

from boxtwin.studies.runs import StudyRun


def finished_run(run: str, variations: int, seed: int, *, metrics: dict[str, float], **changes: Any) -> StudyRun:
    """A run of split s2 with so many variations of a generator, ``repeat`` unless said."""
    settings: dict[str, Any] = {
        "study": "demo",
        "dataset": "sar_scenes",
        "split": "s2",
        "variations": variations,
        "generator": "repeat" if variations else "none",
        "detector": "yolov3_nano",
        "seed": seed,
        "steps": 300,
        "setting": "3f2a",
        "metrics": metrics,
        "run_id": run,
        "minutes": 1.0,
        "output_dir": "",
        "status": "FINISHED",
    }
    return StudyRun(**settings | changes)
