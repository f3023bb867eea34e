"""Which condition of a study to use from now on: what its answer says to do, as one row of its table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from boxtwin.errors import InputError
from boxtwin.evaluation.scoring import VALIDATION_AP
from boxtwin.studies.comparison import EXTRA_IMAGES, Contrast
from boxtwin.studies.conditions import Estimate, Row
from boxtwin.studies.equivalence import setup_without_treatment
from boxtwin.studies.report.primary_answer import primary_gains
from boxtwin.studies.report.sections import is_treated
from boxtwin.studies.report.summary import AP50, answers, beaten_by_pixels
from boxtwin.studies.study import Study


def recommended(study: Study) -> tuple[Row, str]:
    """The condition to use, and why, as the end of a sentence.

    Only conditions on the largest number of real images count. Of those that the answer calls significantly better in
    AP50 than without what they add, the one with the highest AP50 is taken; with primary comparisons these decide
    alone. Where there is none, real images alone. Of several setups (two detectors or numbers of steps, say), each with
    its own such condition, the one with the highest AP on validation images is taken.

    Raises:
        InputError: the study has no finished run, or runs on several data sets.
    """
    if not study.rows:
        raise InputError(f"study {study.name} has no finished run yet; run its train.py command again to continue it")
    if len(names := sorted({row.first.dataset for row in study.rows})) > 1:
        raise InputError(
            f"study {study.name} has runs on {len(names)} data sets ({', '.join(names)}), of which no condition is "
            "best: repeat the command of one of them with study=NAME; finished runs are reused"
        )
    most = max(row.real_images for row in study.rows)
    rows = [row for row in study.rows if row.real_images == most] or study.rows
    for side in ("val", "test"):
        kinds = {row.first.condition.get(f"data.{side}") for row in rows} - {None}
        if len(kinds) > 1:
            what = {"val": "validation", "test": "test"}[side]
            raise InputError(
                f"study {study.name} has runs on {len(kinds)} sets of {what} images or labels, whose AP cannot be "
                "compared: repeat the command of one of them with study=NAME; finished runs are reused"
            )
    of_rows = [contrast for contrast in study.contrasts if contrast.new in rows]
    gains = [contrast for contrast in primary_gains(study.contrasts) if contrast.new in rows]
    for each in answers(rows, of_rows) if not study.primary else ():
        gains += each.advice.get("gaining", [])
        gains += [contrast for contrast, control in each.pretrainings if not beaten_by_pixels(control)]
        gains += each.extra_images
    gains = [contrast for contrast in gains if contrast.differences[AP50].gain_significant]
    plain = [row for row in rows if not is_treated(row)]
    if not gains:
        row = max(plain or rows, key=_validation_ap)
        return row, _why_nothing(study, rows)
    # 1. Of each setup its greatest gain; without any, real images alone, unless another setup's gain is over these.
    best: dict[object, Contrast] = {}
    for contrast in sorted(gains, key=lambda contrast: -contrast.new.estimates[AP50].mean):
        best.setdefault(setup_without_treatment(contrast.new), contrast)
    candidates: list[tuple[Row, Contrast | None]] = [(each.new, each) for each in best.values()]
    if study.primary:
        candidates = candidates[:1]
    else:
        gaining = {contrast.new.run_ids for contrast in gains}
        beaten = {contrast.old.run_ids for contrast in of_rows if contrast.new.run_ids in gaining}
        candidates += [
            (row, None) for row in plain if setup_without_treatment(row) not in best and row.run_ids not in beaten
        ]
    # 2. Of these the best on validation images; where that is not known of any, the greatest gain.
    row, gain = max(candidates, key=lambda each: _validation_ap(each[0]))
    if gain is None:
        return row, "it is better on validation images than what gains significantly in other setups"
    points = 100 * gain.differences[AP50].mean
    return row, f"it is significantly better than {gain.old.name}, by {points:.1f} points of AP50"


def _why_nothing(study: Study, rows: Sequence[Row]) -> str:
    """Why none of the rows, those with the most real images, is recommended for what it gains."""
    kinds = ("primary",) if study.primary else ("variations", "pretraining", *EXTRA_IMAGES)
    wins = [each for each in study.contrasts if each.kind in kinds and each.differences[AP50].gain_significant]
    wins.sort(key=lambda each: -each.differences[AP50].mean)
    reason = f"no condition on {rows[0].real_images:g} real images gains significantly over real images alone"
    if beaten := next((each for each in wins if each.new in rows and not each.new.is_control), None):
        reason += f" and is not beaten by a control, as {beaten.new.name} is"
    if fewer := next((each for each in wins if each.new not in rows), None):
        points, images = 100 * fewer.differences[AP50].mean, fewer.new.real_images
        reason += f"; on {images:g} images {fewer.new.name} gains {points:.1f} points of AP50 over {fewer.old.name}"
    return reason


def _validation_ap(row: Row) -> float:
    mean = Estimate.of((run.seed, run.metrics.get(VALIDATION_AP)) for run in row.runs).mean
    return -1.0 if math.isnan(mean) else mean
