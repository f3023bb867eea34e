"""Which detectors count: a run's folder, a file, the best of a study, or all seeds of a condition."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2

from boxtwin.command_line import quoted, setting
from boxtwin.datasets.problems import some
from boxtwin.detector.predict import Compute, OnnxDetector
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError, nearest
from boxtwin.evaluation.scoring import VALIDATION_AP
from boxtwin.files import check_name
from boxtwin.tracking.run_folders import FINAL, RunResult, read_result
from boxtwin.tracking.study_names import STUDIES, study_names

log = logging.getLogger(__name__)

DETECTOR_FILE, ONNX = "detector.safetensors", ".onnx"
BEST = "best"
LISTED = 20
# What follows the name of a condition in that of a folder: seed, hash of the settings, and one of data (`own_folder`).
_SEED = re.compile(r"-seed\d+(-\w+){0,2}\Z")


@dataclass(frozen=True, eq=False)
class Detector:
    """A trained detector, ready to compute."""

    path: Path
    spec: DetectorSpec
    compute: Compute


def find_detectors(
    asked: str | Sequence[str], study: str | None, *, uri: str | None = None, tracking: Path = Path("mlruns")
) -> list[Path]:
    """The files of the detectors that ``asked`` names; raises `InputError` if there are none.

    Names are those of the study, or for None of the last one in the MLflow store (`_last_study`).
    """
    names = [asked] if isinstance(asked, str) else list(asked)
    check_name(study, "study")
    if study is not None and not (STUDIES / study).is_dir():
        hint = nearest(study, (folder.name for folder in STUDIES.glob("*/")))
        raise InputError(f"study={study}: there is no folder {STUDIES / study}{hint}")
    found = [path for name in names for path in _find(name, lambda name: study or _last_study(name, uri, tracking))]
    if not found:
        raise InputError("run=[] names no detector; give a run's folder, a detector.safetensors, or run=best")
    if len(set(found)) < len(found):
        raise InputError(f"run= names a detector twice: {', '.join(map(str, found))}")
    return found


def _last_study(name: str, uri: str | None, tracking: Path) -> str:
    """The last study in the store, or for a store without runs the only one whose folder has detectors.

    Raises `InputError` if there is none, which says that ``name`` is no file either.
    """
    folders = sorted({file.parts[-3] for file in STUDIES.glob(f"*/*/{DETECTOR_FILE}")})
    names = study_names(uri, tracking) or (folders if len(folders) == 1 else [])
    if names:
        return names[0]
    start = "" if name in (BEST, FINAL) else f"run={name} is no file or folder; "
    advice = "" if start else "; make some: python train.py -m split=s1,s2 variations=0,2,10"
    if folders:
        advice = f"; name a study: study=NAME (folders in {STUDIES}: {some(folders, LISTED)})"
    raise InputError(f"{start}there are no runs in {uri or tracking}{advice}")


def _find(name: str, study: Callable[[str], str]) -> list[Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        if not (path / DETECTOR_FILE).is_file():
            raise InputError(f"run={name} holds no {DETECTOR_FILE}: the run is not finished, or it is another folder")
        return [path / DETECTOR_FILE]
    if len(path.parts) > 1:
        folder, seeds = path.parent, []
    else:
        folder = STUDIES / study(name)
        if name == BEST:
            return [best_of(folder)]
        seeds = finals_of(folder) if name == FINAL else seeds_of(folder, name)
    if not seeds:
        runs = sorted(run.parent for run in folder.glob(f"*/{DETECTOR_FILE}"))
        more = f"\n  and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
        listed = "".join(f"\n  {quoted(setting('run', str(run)))}" for run in runs[:LISTED])
        known = [BEST, *(each for run in runs for each in (run.name, _SEED.sub("", run.name)))]
        raise InputError(
            f"run={name} is no file or folder, and no condition with finished runs in {folder}"
            + nearest(path.name, known)
            + (f"; its runs:{listed}{more}" if runs else "")
        )
    return seeds


def seeds_of(folder: Path, name: str) -> list[Path]:
    """The detectors of all seeds of a condition; raises `InputError` if the name is that of several conditions."""
    files = [run / DETECTOR_FILE for run in folder.glob("*/") if _SEED.sub("", run.name) == name != run.name]
    files = sorted(file for file in files if file.is_file())
    conditions: dict[str, list[str]] = {}
    for file in files:
        if (result := read_result(file.parent)) is not None:
            conditions.setdefault(_condition(result), []).append(f"{file.parent}{_images(result)}")
    if len(conditions) > 1:
        listed = "".join(f"\n  {', '.join(runs)}" for runs in conditions.values())
        raise InputError(
            f"run={name} is the name of {len(conditions)} conditions; list the runs of one, run=[RUN,RUN]:{listed}"
        )
    return files


def finals_of(folder: Path) -> list[Path]:
    """The final detectors in the folder of a study by seed, as many as the last call of ``train.py final=`` made."""
    result = read_result(folder / FINAL)
    seeds = int(result.params["seeds"]) if result is not None and result.kind == FINAL else 0
    return [file for seed in range(seeds) if (file := folder / f"{FINAL}-seed{seed}" / DETECTOR_FILE).is_file()]


def best_of(folder: Path) -> Path:
    """The final detector of a study with the first seed, or the detector of the run with the best validation AP.

    It is logged which one that is, and what newer detectors of other conditions there are. Raises `InputError` if there
    is none, or if the runs are on several data sets: AP on different images says nothing of the detectors.
    """
    found = {path: read_result(path.parent) for path in sorted(folder.glob(f"*/{DETECTOR_FILE}"))}
    rated = {path: (_validation_ap(result), result) for path, result in found.items() if result is not None}
    rated = {path: rating for path, rating in rated.items() if math.isfinite(rating[0])}
    finals = finals_of(folder)
    if not (finals or rated):
        raise InputError(
            f"run=best: no run in {folder} has both a detector and an AP on validation images; name a run (run=FOLDER) "
            "or another study (study=NAME)"
        )
    if not finals:
        _check_one_data_set(folder, rated)
    best = finals[0] if finals else max(rated, key=lambda path: rated[path][0])
    result = read_result(folder / FINAL) if finals else rated[best][1]
    why = (
        f"the best AP on validation images among all conditions of the study, {100 * rated[best][0]:.1f}"
        if not finals
        else "a final detector"
    )
    newer: dict[str, str] = {}
    for path, (ap, other) in sorted(rated.items(), key=lambda each: -each[1][0]):
        if path.stat().st_mtime > best.stat().st_mtime and (finals or _condition(other) != _condition(result)):
            chosen = quoted(setting("run", str(path.parent)))
            newer.setdefault(_condition(other), f"\n  {chosen}  #{_images(other)} AP {100 * ap:.1f}")
    listed = "".join(list(newer.values())[:LISTED])
    listed = f"; newer detectors of other conditions (choose one with run=):{listed}" if listed else ""
    log.info("run=best: %s%s, %s%s", best.parent, _images(result), why, listed)
    return best


def _check_one_data_set(folder: Path, rated: Mapping[Path, tuple[float, RunResult]]) -> None:
    """Raise `InputError` if runs were validated on images or labels of several kinds, as far as they record them."""
    best: dict[tuple[object, object], Path] = {}
    for path, (_, result) in sorted(rated.items(), key=lambda each: -each[1][0]):
        data = (result.condition or {}).get("data")
        validation = data.get("val") if isinstance(data, dict) else None
        best.setdefault((result.params.get("dataset"), validation), path.parent)
    names = [name for name, _ in best]
    kept = {(name, val): run for (name, val), run in best.items() if val is not None or names.count(name) == 1}
    if len(kept) > 1:
        listed = "".join(f"\n  {quoted(setting('run', str(run)))}  # of {name}" for (name, _), run in kept.items())
        what = "data sets" if len(set(names)) > 1 else "sets of validation images or labels"
        raise InputError(
            f"run=best: {folder} holds runs on {len(kept)} {what}, whose AP cannot be compared; "
            f"name a run, such as the best of each:{listed}"
        )


def _validation_ap(result: RunResult) -> float:
    ap = result.metrics.get(VALIDATION_AP)
    return math.nan if ap is None else float(ap)


def _condition(result: RunResult | None) -> str:
    return json.dumps(result.condition if result else None, sort_keys=True)


def _images(result: RunResult | None) -> str:
    """On how many images the detectors of a result were trained, behind their name; empty if that is not recorded."""
    data = {} if result is None else {"images": result.metrics.get("data/real_images"), **result.data}
    number = data.get("images")
    return f" ({number:g} real images)" if isinstance(number, int | float) else ""


def open_detectors(paths: Sequence[Path], device: str, threads: int | None = None) -> list[Detector]:
    """Read detectors, to be computed by so many threads (None: the libraries' choice).

    Raises `InputError` if one cannot be read, or they have not the same classes, or were trained on images of other
    depths, or read images in other ways.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads={threads} must be at least 1")
    if threads is not None:
        cv2.setNumThreads(threads)
    detectors = [_open(path, device, threads) for path in paths]
    first = detectors[0]
    for other in detectors[1:]:
        if other.spec.classes != first.spec.classes:
            raise InputError(
                f"detectors of other classes cannot count together: {first.path} has {', '.join(first.spec.classes)}, "
                f"{other.path} has {', '.join(other.spec.classes)}"
            )
        if (other.spec.white > 255) != (first.spec.white > 255):  # see `check_depth`
            raise InputError(
                f"detectors of 8 bit and of 16 bit images cannot count together: full scale is {first.spec.white} in "
                f"{first.path}, {other.spec.white} in {other.path}. Count with each alone"
            )
        ways = [replace(each.spec.how_to_read, max_pixels=1).stated() for each in (first, other)]
        if ways[0] != ways[1]:
            raise InputError(
                f"detectors that read image files in different ways cannot count together: {first.path} with "
                f"{_in_words(ways[0])}, {other.path} with {_in_words(ways[1])}. Count with each alone"
            )
    return detectors


def _in_words(reading: Mapping[str, Any]) -> str:
    return ", ".join(f"dataset.{name}={value}" for name, value in reading.items())


def _open(path: Path, device: str, threads: int | None) -> Detector:
    if path.suffix == ONNX:
        try:
            exported = OnnxDetector(path, threads=threads)
        except ImportError:
            raise InputError(f"{path} needs onnxruntime; install with: pip install 'boxtwin[export]'") from None
        return Detector(path, exported.spec, exported.compute)
    # Imported here: an exported detector does without torch.
    from boxtwin.detector.checkpoint import read_detector
    from boxtwin.hardware import choose_device, use_threads

    use_threads(threads)
    trained = read_detector(path)
    return Detector(path, trained.spec, trained.module.on_device(str(choose_device(device, "counting"))))
