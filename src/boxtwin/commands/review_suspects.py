"""Labels of real images that the finished runs of a study contradict: a list for people.

Validation and test images are checked by the runs of a condition. Training images are checked where `train.py
final=` has left out-of-fold detections, each by the one detector that was trained without it.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from boxtwin.command_line import command_line, setting
from boxtwin.commands.compare import of_store
from boxtwin.commands.recommended import final_command
from boxtwin.commands.stored_runs import collect_runs, copies_of
from boxtwin.config.compose import read_config, to_object
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.problems import some
from boxtwin.datasets.sample import Dataset, Detections
from boxtwin.errors import InputError
from boxtwin.evaluation.coco_metrics import DETECTIONS_FILE, VALIDATION_DETECTIONS_FILE, read_results
from boxtwin.evaluation.scoring import VALIDATION_AP
from boxtwin.files import check_name, check_target
from boxtwin.run.build import load_dataset
from boxtwin.studies.archive import ARCHIVE, runs_folder
from boxtwin.studies.conditions import Row, condition_table
from boxtwin.studies.relabelled import NEEDED, FinishedRun, finished_run
from boxtwin.studies.report.suspects import write_page
from boxtwin.studies.report.words import several
from boxtwin.studies.runs import StudyRun, find_file, runs_in
from boxtwin.studies.suspects import SUGGESTED_FILE, SUSPECTS_FOLDER, TRAINING, Found, find_suspects, in_order
from boxtwin.studies.suspects_files import write_suspects
from boxtwin.tracking.mlflow_runs import Store
from boxtwin.tracking.run_folders import CONFIGURATION, FINAL, RESULT_FILE, read_result
from boxtwin.tracking.study_names import find_study

log = logging.getLogger(__name__)

ENOUGH_RUNS = 3  # seeds from which on a condition is chosen by its AP alone


def list_suspects(config: DictConfig) -> Path:
    """Write the suspects of a study, given by its name or as a folder of runs; returns the page's path.

    Raises:
        InputError: there are no finished runs, they keep no detections, or their data set cannot be read.
    """
    with tempfile.TemporaryDirectory() as temporary:
        given = Path(config.suspects)
        if (
            given.is_file() or (given / ARCHIVE).exists() or any(given.glob(f"*/{RESULT_FILE}"))
        ):  # a data set's folder may be called as the study
            with runs_folder(given) as folder:
                return _list(runs_in(folder), {}, config, given=config.suspects)
        tracking = Path(config.tracking.folder)
        study = find_study(config.suspects, config.tracking.uri, tracking)
        store = Store(uri=config.tracking.uri, folder=tracking)
        runs = collect_runs(store, study, tracking, Path(temporary))
        copies = copies_of(store, runs, Path(temporary), (*NEEDED, CONFIGURATION))
        return _list(runs, copies, config)


def _list(
    runs: Sequence[StudyRun], copies: Mapping[str, Path], config: DictConfig, *, given: str | None = None
) -> Path:
    """Write the suspects of runs, which are in the folder or archive ``given`` if no MLflow store knows them."""
    study = runs[0].study
    check_name(study, "study")
    folder = Path(config.folder) if config.folder else Path("reports") / study / SUSPECTS_FOLDER
    check_target(folder, "folder")
    if len(names := sorted({run.dataset for run in runs})) > 1:
        raise InputError(
            f"study {study} has runs on {len(names)} data sets ({', '.join(names)}), whose labels are in different "
            "files: repeat the command of one of them with study=NAME; finished runs are reused"
        )
    kept = best_condition(runs, copies)
    dataset, annotations = dataset_of(kept[0], copies)
    # 1. The images that no run was trained on, with their present labels.
    samples = {sample.name: sample for sample in dataset.samples}
    test, validation = ([str(entry["file_name"]) for entry in images] for images in images_of(kept))
    lacking = [name for name in (*test, *validation) if name not in samples]
    if lacking:
        raise InputError(
            f"{annotations} lacks {len(lacking)} validation or test images of the runs of {study}: {some(lacking)}. "
            "Restore them in this file, or repeat the runs on the new data"
        )
    sides = dict.fromkeys(test, "test") | dict.fromkeys(validation, "validation")
    remarks = _remarks(kept, dataset)
    # 2. What the runs find there.
    ids = {name: sample.image_id for name, sample in samples.items()}
    suspects = find_suspects([samples[name] for name in sides], found_by(kept, ids))
    final = _out_of_fold(kept)
    if final is not None:
        names = [str(entry["file_name"]) for entry in final.result.counts]
        training = {name: TRAINING for name in names if name in samples and name not in sides}
        found = Found(
            _with_ids(read_results(final.test, final.category_ids), final.result.counts, ids), thresholds_of(final)
        )
        suspects = in_order([*suspects, *find_suspects([samples[name] for name in training], [found])])
        sides |= training
        if gone := [name for name in names if name not in samples]:
            remarks.append(
                f"{several(len(gone), 'image')} that the final detectors were trained on are not in {annotations}, and "
                f"were not checked ({some(gone)})."
            )
    if unchecked := len(samples) - len(sides):
        remarks.append(
            f"{several(unchecked, 'other image')} of the data set were not checked. After "
            f"{final_command(study, config.tracking)} they are, by detectors trained without them."
        )
    # 3. Files.
    write_suspects(
        folder,
        suspects,
        annotations=annotations,
        samples=samples,
        classes=dataset.classes,
        category_ids=dataset.category_ids,
        sides=sides,
    )
    page = write_page(
        folder,
        study,
        suspects,
        {name: samples[name] for name in sides},
        sides=sides,
        classes=dataset.classes,
        runs=[each.run.name for each in kept],
        remarks=remarks,
        command=compare_command(study, folder, config.tracking, given),
    )
    counts = Counter(each.kind for each in suspects)
    listed = ", ".join(f"{number} {kind}" for kind, number in counts.most_common()) or "none"
    log.info("study %s: %d suspects in %d images (%s)", study, len(suspects), len(sides), listed)
    for remark in remarks:
        log.warning("%s", remark)
    log.info("look at them: %s", page)
    return page


def best_condition(runs: Sequence[StudyRun], copies: Mapping[str, Path]) -> list[FinishedRun]:
    """The runs of the condition with the best AP on validation images, of those with enough seeds.

    Detections of weaker conditions make the list worse, see docs/suspects.md.
    """
    rows: list[tuple[Row, list[FinishedRun]]] = []
    for row in condition_table(runs):
        of_row = [kept for run in row.runs if (kept := finished_run(run, copies)) is not None]
        rows += [(row, of_row)] if of_row else []
    if not rows:
        raise InputError(
            "no finished run of this study has kept its detections, which are needed to find suspect labels; repeat "
            "one of its commands with rerun=true"
        )
    enough = min(ENOUGH_RUNS, max(len(of_row) for _, of_row in rows))

    def validation_ap(each: tuple[Row, list[FinishedRun]]) -> float:
        values = [kept.run.metrics.get(VALIDATION_AP, math.nan) for kept in each[1]]
        known = [value for value in values if math.isfinite(value)]
        return math.fsum(known) / len(known) if known else -1.0

    row, best = max((each for each in rows if len(each[1]) >= enough), key=validation_ap)
    log.info("detections of %s, %s: best AP on validation images", row.name, several(len(best), "run"))
    return best


def images_of(kept: Sequence[FinishedRun]) -> tuple[Sequence[Mapping[str, object]], Sequence[Mapping[str, object]]]:
    """Test images, and validation images if all runs keep what they found there."""
    result = kept[0].result
    return result.counts, result.validation_images if all(each.validation is not None for each in kept) else ()


def found_by(kept: Sequence[FinishedRun], ids: Mapping[str, int]) -> list[Found]:
    """What each run finds in the images of `images_of`; ``ids`` are those of the images now, by name."""
    _, validation = images_of(kept)
    found = []
    for each in kept:
        detections = _with_ids(read_results(each.test, each.category_ids), each.result.counts, ids)
        if validation and each.validation is not None:
            on_validation = read_results(each.validation, each.category_ids)
            detections |= _with_ids(on_validation, each.result.validation_images, ids)
        found.append(Found(detections, thresholds_of(each)))
    return found


def _with_ids(
    detections: Mapping[int, Detections], images: Sequence[Mapping[str, Any]], ids: Mapping[str, int]
) -> dict[int, Detections]:
    """Detections by the ids that images have now: annotation tools number anew."""
    now = {int(entry["image_id"]): ids.get(str(entry["file_name"])) for entry in images}
    return {new: found for old, found in detections.items() if (new := now.get(old)) is not None}


def thresholds_of(kept: FinishedRun) -> list[float]:
    """The count threshold of each class."""
    return [float(entry["count_threshold"]) for entry in kept.result.classes]


def _out_of_fold(kept: Sequence[FinishedRun]) -> FinishedRun | None:
    """The record of the study's final detectors, as long as the classes are the same; None if there is none."""
    folder = Path(kept[0].run.output_dir).parent / FINAL
    result, file = read_result(folder), folder / DETECTIONS_FILE
    if not kept[0].run.output_dir or result is None or result.kind != FINAL or not file.is_file():
        return None
    final = FinishedRun(kept[0].run, result, file, None)
    return final if final.classes == kept[0].classes else None


def dataset_of(kept: FinishedRun, copies: Mapping[str, Path]) -> tuple[Dataset, Path]:
    """The data set of a run as it is now, and its annotations."""
    file = find_file(kept.run, CONFIGURATION, copies)
    if file is None:
        raise InputError(f"{kept.run.name} keeps no {CONFIGURATION}, which says where its images are")
    config = to_object(read_config(file), BoxtwinConfig)
    dataset = load_dataset(config)
    if [*dataset.classes] != kept.classes:
        raise InputError(
            f"{config.dataset.root} now has the classes {', '.join(dataset.classes)}; the runs had "
            f"{', '.join(kept.classes)}. Restore the annotation file of the runs, or train the study again"
        )
    return dataset, Path(config.dataset.root) / config.dataset.annotations


def _remarks(kept: Sequence[FinishedRun], dataset: Dataset) -> list[str]:
    """What the list cannot say, or what its reader should know."""
    remarks = []
    if len(kept) == 1:
        remarks.append(
            "There is one run only, so nothing can be agreed on: each suspect is what this run alone detects. Train "
            "more seeds (seed=range(3)) for a better list."
        )
    if any(each.validation is None for each in kept):
        remarks.append(
            f"Validation images are left out: some runs keep no {VALIDATION_DETECTIONS_FILE} (older versions)."
        )
    if kept[0].run.data and kept[0].run.data != dataset.digest:
        remarks.append("The data set has changed since the runs: its present labels are checked.")
    return remarks


def compare_command(study: str, folder: Path, tracking: DictConfig, runs: str | None = None) -> str:
    """What scores the runs of a study, or those in the folder or archive ``runs``, again on the suggestions."""
    chosen = [setting("study", study), *of_store(tracking)] if runs is None else [setting("runs", runs)]
    return command_line("compare.py", [*chosen, setting("annotations", str(folder / SUGGESTED_FILE))])
