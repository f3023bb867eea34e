"""The detectors to use after a study: its recommended condition, trained on all labelled images.

No image is left to choose a checkpoint or to test on: the last weights are kept, averaged as in every run. Thresholds
are chosen on out-of-fold detections: the images are divided into parts, whole scenes each, and each part is detected by
a detector that was trained on the others, in the same way.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from boxtwin.commands.generate import make_variations
from boxtwin.commands.recommended import Recommended, recommended_condition
from boxtwin.commands.train import finite, pretrained
from boxtwin.config.compose import to_object
from boxtwin.config.identity import RECIPE_VERSION, flat_params, long_hash, run_name, setting_hash
from boxtwin.config.launch import task_overrides, typed_words
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.copies import alike
from boxtwin.datasets.options import SplitOptions
from boxtwin.datasets.sample import Dataset, Detections
from boxtwin.datasets.splits import Split, describe, folds, scenes_of
from boxtwin.datasets.training_images import TrainingImages
from boxtwin.detector.checkpoint import FILE, TrainedDetector, read_detector, weights_digests, write_detector
from boxtwin.detector.training import quieten_lightning
from boxtwin.errors import InputError
from boxtwin.evaluation.coco_metrics import DETECTIONS_FILE, coco_by_class, write_results
from boxtwin.evaluation.count_intervals import calibrate_folds
from boxtwin.evaluation.counts import THRESHOLD_WITHOUT_DETECTIONS, choose_thresholds, count_by_class
from boxtwin.evaluation.matching import match_detections, outside_crowds
from boxtwin.files import exclusive_lock, remove_leftovers, write_bytes_atomically
from boxtwin.hardware import torch_device, use_threads
from boxtwin.memory import keep_freed_blocks
from boxtwin.mixing.plan import make_plan
from boxtwin.run.build import (
    Prepared,
    detector_file,
    load_dataset,
    make_data,
    make_detector,
    prepared_from,
    train,
)
from boxtwin.run.checks import check_settings
from boxtwin.run.extra_images import ExtraImages, read_extra_images
from boxtwin.run.generators import make_generator, make_labels
from boxtwin.run.label_detectors import trained_file
from boxtwin.run.pretraining import pretraining_run
from boxtwin.run.unlabelled import label_unlabelled
from boxtwin.studies.comparison import EXTRA_IMAGES
from boxtwin.studies.condition_values import flatten
from boxtwin.tracking.broken_off import ended_on_error
from boxtwin.tracking.mlflow_runs import Store
from boxtwin.tracking.provenance import provenance, tags
from boxtwin.tracking.run_folders import CONFIGURATION, FINAL, FOLDS_FILE, RESULT_FILE, RunResult, read_result

log = logging.getLogger(__name__)

# What may be said beside final=: settings of the machine and places. All others are those of the study.
OF_MACHINE = re.compile(
    r"final(_seeds|_folds)?|study|rerun|data|tracking\.\w+|hydra\..+"
    r"|dataset\.(root|images|annotations|unlabelled|empty|max_pixels)|detector\.weights|generator\.(device|dtype)"
    r"|trainer\.(precision|accelerator|devices|threads|batch_threads|cache|compile)"
)
# Of these, the ones that change a condition in which they are null, or if they become null.
OF_CONDITION = ("dataset.unlabelled", "dataset.empty", "detector.weights", "generator.device", "generator.dtype")
NO_TEST = "no test metrics: every labelled image was trained on"


@dataclass(frozen=True)
class Work:
    """The trainings of a study's final detectors."""

    seeds: Sequence[Prepared]  # on all labelled images
    folds: Sequence[Prepared]  # each without the images that are its test side

    @property
    def identity(self) -> str:
        """The hash of all that the final detectors follow from."""
        return long_hash([each.identity for each in (*self.seeds, *self.folds)])


def train_final(composed: DictConfig) -> Path:
    """Train the final detectors of a study; returns their folder. What is finished is not trained again.

    Raises:
        InputError: settings are given that are the study's, it has no finished run, or there are too few scenes.
    """
    quieten_lightning()
    _check_words(composed)
    found = recommended_condition(composed, composed.final)
    config = _configuration(composed, found)
    output = Path(HydraConfig.get().runtime.output_dir)
    log.info("final detectors of study %s: %s, as %s", found.study, found.row.name, found.reason)
    dataset = load_dataset(config)
    work = prepare_final(config, dataset, seeds=composed.final_seeds, parts=composed.final_folds)
    check_files(config, work.seeds[0].condition, found.row.first.condition, found.row.name)
    use_threads(config.trainer.threads)
    keep_freed_blocks()
    store = Store(uri=composed.tracking.uri, folder=Path(composed.tracking.folder))
    with exclusive_lock(output / ".lock", f"{output}: another process is at it; waiting"):
        files = [detector_of(output, each) for each in work.seeds]
        for folder in {output, *(file.parent for file in files)}:
            remove_leftovers(folder)
        result = read_result(output)
        is_made = all(_is_of(file, each) for file, each in zip(files, work.seeds, strict=True))
        made = result is not None and result.identity == work.identity and is_made
        if made and not composed.rerun and store.has_finished(found.study, FINAL):
            log.info("%s: finished before, skipped (rerun=true makes it again)", output)
            return output
        if composed.rerun:
            for each in (*work.seeds, *work.folds):
                detector_file(each).unlink(missing_ok=True)
        # In MLflow it is no run of the study. It is running until all is there, so that another call completes it.
        name = run_name(work.seeds[0].config).rpartition("-seed")[0]  # of the split `FINAL`
        run_id = store.begin_comparison(study=found.study, kind=FINAL, name=name)
        what = f"the final detector of study {found.study}"
        # Which run that is can change in the block.
        with ended_on_error(lambda status, reason: store.end(run_id, status, reason), what):
            if composed.rerun or not made:
                _train_all(work, found, config, output, name)
            metrics = _metrics_of(output)
            run_id = store.without_other_metrics(run_id, metrics)
            _log_result(store, run_id, output, metrics)
        store.end(run_id, "FINISHED")
    return output


def prepare_final(config: BoxtwinConfig, dataset: Dataset, *, seeds: int, parts: int) -> Work:
    """Check all that the trainings need, before the first begins.

    Args:
        config: of the condition to train.
        seeds: how many detectors to train on all images.
        parts: how many to train on a part, for thresholds.

    Raises:
        InputError: too few seeds or scenes, labels made by hand, or a part that holds all objects.
    """
    if seeds < 1:
        raise InputError(f"final_seeds={seeds} must be at least 1")
    try:
        divided = folds(dataset.samples, parts)
    except InputError as error:
        raise InputError(f"final_folds={parts}: {error}") from None
    config = _for_split(config, FINAL, len(dataset.samples))
    check_settings(config)
    if config.variations.per_image and make_labels(config, dataset, make_generator(config)).by_hand:
        raise InputError(
            f"people labelled the variations of the recommended condition (labels={config.labels.name}), and those of "
            "the other images have no labels; add a condition with automatic labels, such as labels=carry, to the study"
        )
    everything = Split(FINAL, dataset.samples, (), ())
    extra = read_extra_images(config, dataset, everything)
    whole = [prepared_from(replace(config, seed=seed), dataset, everything, extra) for seed in range(seeds)]
    left_out = []
    for number, part in enumerate(divided, start=1):
        names, scenes = {sample.name for sample in part}, scenes_of(part, config.split.group_by)
        train = tuple(sample for sample in dataset.samples if sample.name not in names)
        if not sum(len(sample.object_boxes) for sample in train):
            raise InputError(f"final_folds={parts}: no object outside part {number}; choose another number of parts")
        split = Split(f"fold{number}of{parts}", train, (), part)
        # Images beside the data set show no scene of the part, and are no copies of its images.
        beside = {}
        for name, side in (("unlabelled", extra.unlabelled), ("empty", extra.empty)):
            copies = alike(side, part, train)
            beside[name] = tuple(each for each in side if each.group not in scenes and each.name not in copies)
        # Another seed for each part: thresholds are to suit every seed of the final detectors.
        of_part = replace(_for_split(config, split.name, len(train)), seed=number - 1)
        left_out.append(prepared_from(of_part, dataset, split, ExtraImages(**beside, values=extra.values)))
        if not config.pretraining.simulates:  # simulated images show no scene of the data set
            try:
                pretraining_run(left_out[-1])
            except InputError as error:
                what = "thresholds are chosen on labelled images that a detector has seen in no training"
                raise InputError(f"final=: {what}. {error}") from None
    return Work(whole, left_out)


def check_files(config: BoxtwinConfig, condition: Mapping[str, Any], recorded: Mapping[str, str], name: str) -> None:
    """Check that files named by settings of this machine are those that the runs of the study had, by their content.

    ``recorded`` is the condition of these runs, called ``name``, flat; ``condition`` is that of the final detectors.
    Raises `InputError` for other initial weights. Other images beside the data set are warned of.
    """
    weights, digest = config.detector.weights, recorded.get("detector.weights")
    if weights is not None and digest is not None and digest not in weights_digests(Path(weights)):
        raise InputError(
            f"detector.weights={weights}: these are not the weights that {name} started from. Give the same file, or "
            "make runs of the study with these weights first"
        )
    ours = flatten(condition)
    for key in EXTRA_IMAGES.values():
        if key in recorded and ours.get(key) != recorded[key]:
            has, had = (each.partition("-")[0] for each in (ours.get(key, "0"), recorded[key]))
            text = "%s: the %s %s are not the %s that its runs had, or an earlier version labelled or showed them"
            log.warning(f"{text} in another way", name, has, key.replace("_", " "), had)


def detector_of(output: Path, prepared: Prepared) -> Path:
    """The file of the final detector of a seed, in a folder of its own, as those of runs are."""
    return output.with_name(f"{output.name}-seed{prepared.config.seed}") / FILE


def _is_of(file: Path, prepared: Prepared) -> bool:
    """Whether a file is the undamaged detector of this training, not that of other labels or settings."""
    try:
        return read_detector(file).origin.get("identity") == prepared.identity
    except InputError:
        return False


def _check_words(composed: DictConfig) -> None:
    keys = [word.partition("=")[0].lstrip("+~") for word in task_overrides()]
    if wrong := [key for key in keys if not OF_MACHINE.fullmatch(key)]:
        raise InputError(
            f"final={composed.final} takes its settings from the runs of the study; leave out {', '.join(wrong)}. "
            "Settings of the machine may be given, such as dataset.root and trainer.threads"
        )
    if composed.study != composed.final:
        raise InputError(f"final={composed.final} writes beside the runs of that study; leave out study=")


def _configuration(composed: DictConfig, found: Recommended) -> BoxtwinConfig:
    """The settings of the condition, with those of this machine from the command line.

    `InputError` if one of these would make another condition of it.
    """
    settings = found.settings
    with open_dict(settings):
        for word in task_overrides():
            key = word.partition("=")[0].lstrip("+~")
            if key.startswith(("final", "hydra.", "study")):
                continue
            new, old = (OmegaConf.select(each, key) for each in (composed, settings))
            if key in OF_CONDITION and None in (new, old):
                has = f"{key}={'null' if old is None else old}"
                raise InputError(
                    f"{word} would train another condition than {found.row.name}, the one that study {found.study} "
                    f"recommends: it has {has}. Leave {key} out"
                )
            OmegaConf.update(settings, key, new)
        settings.rerun, settings.study = False, found.study
        settings.trainer.steps, settings.trainer.epochs = found.row.first.steps, None
        settings.trainer.threads = composed.trainer.threads  # a sweep has set one, to make several runs at once
    return to_object(settings, BoxtwinConfig)


def _for_split(config: BoxtwinConfig, name: str, images: int) -> BoxtwinConfig:
    split = SplitOptions(name, train=images, val=0, test=0, train_pool=images, group_by=config.split.group_by)
    return replace(config, split=split)


def _train(prepared: Prepared, path: Path, title: str) -> None:
    """Train as a run of the study does, and write the detector; its thresholds are not known yet."""
    first = pretrained(prepared)
    unlabelled, _ = label_unlabelled(prepared)
    if prepared.library:
        make_variations(prepared)
    variations = prepared.library.variations(prepared.sources, prepared.per_image) if prepared.library else ()
    plan = make_plan(prepared.split, variations, [*unlabelled, *prepared.extra.empty], first.images)
    log.info("%s: %s, %d variations", title, describe(prepared.split.train), plan.synthetic_train)
    data = make_data(prepared, plan, first.levels)
    checkpoints = path.with_suffix(".checkpoints")
    trained = train(prepared, data, make_detector(prepared, first.file), checkpoints, title, logger=None)
    origin = {**prepared.origin, "seconds": f"{trained.seconds:.1f}"}
    write_detector(TrainedDetector(trained.best, THRESHOLD_WITHOUT_DETECTIONS, origin), path)
    shutil.rmtree(checkpoints, ignore_errors=True)


def amount(work: Work, minutes: float) -> str:
    """How much there is to train, and how long it takes if each training takes the minutes of a run of the study."""
    trainings, steps, images = [*work.seeds, *work.folds], work.seeds[0].steps, work.seeds[0].split.train
    left = sum(not detector_file(each).exists() for each in trainings)
    text = f"{len(trainings)} trainings of {steps} steps, {len(trainings) * steps} in all: {len(work.seeds)} on all "
    text += f"labelled images ({describe(images)}), and {len(work.folds)} on all but one of as many parts"
    text += f"; {len(trainings) - left} of them are kept from before" if left < len(trainings) else ""
    if not left or math.isnan(minutes):
        return text
    total = f"{left * minutes:.0f} minutes" if left * minutes >= 1.5 else "a minute"
    return f"{text}; about {total}, as a run of the study took {minutes:.1f}"


def _train_all(work: Work, found: Recommended, config: BoxtwinConfig, output: Path, name: str) -> None:
    images = work.seeds[0].split.train
    log.info("%s", amount(work, found.row.minutes))
    # 1. Out-of-fold detections of every image, and the thresholds.
    detections: dict[int, Detections] = {}
    for each in work.folds:
        detector = read_detector(trained_file(each, f"final {each.split.name}", _train))
        pixels = ((sample.image_id, each.images.read(sample)) for sample in each.split.test)
        detections |= detector.module.detect_all(pixels, torch_device(each.accelerator))
    dataset = work.seeds[0].dataset
    counted_in = outside_crowds(images, detections)
    thresholds = choose_thresholds(images, counted_in, len(dataset.classes))
    calibration = calibrate_folds([each.split.test for each in work.folds], counted_in, len(dataset.classes))
    # 2. The detectors. All are trained before the first replaces one of an earlier call, which may be in use.
    trainings = [trained_file(each, f"final seed {each.config.seed}", _train) for each in work.seeds]
    seen = TrainingImages.of(images, images, work.seeds[0].images.read, work.seeds[0].levels)
    files = []
    (output / RESULT_FILE).unlink(missing_ok=True)  # what an interrupted call leaves counts for nothing
    for each, file in zip(work.seeds, trainings, strict=True):
        trained = read_detector(file)
        detector = TrainedDetector(
            trained.module,
            thresholds.together,
            each.origin,
            class_thresholds=thresholds.by_class,
            calibration=calibration,
            images=seen,
        )
        files.append(detector_of(output, each))
        write_detector(detector, files[-1])
    # 3. What is known of them.
    metrics, by_class = coco_by_class(match_detections(images, detections, len(dataset.classes)))
    counted, _, counts = count_by_class(images, counted_in, thresholds)
    metrics = {f"out_of_fold/{name}": value for name, value in {**metrics, **counted}.items()}
    write_results(output / DETECTIONS_FILE, detections, dataset.category_ids)
    write_bytes_atomically(output / CONFIGURATION, OmegaConf.to_yaml(OmegaConf.structured(config)).encode())
    folders = {each.split.name: [sample.name for sample in each.split.test] for each in work.folds}
    write_bytes_atomically(output / FOLDS_FILE, json.dumps(folders, indent=1).encode())
    first, threads = work.seeds[0], config.trainer.threads
    record = provenance(first.accelerator, first.precision, threads, recipe=RECIPE_VERSION)
    result = RunResult(
        kind=FINAL,
        run=name,
        study=found.study,
        identity=work.identity,
        setting=setting_hash(config),
        overrides=typed_words(),
        params={**flat_params(first.config), "seeds": len(work.seeds), "folds": len(work.folds)},
        metrics=finite(metrics),
        classes=[
            {"name": each, "category_id": number, "count_threshold": threshold, "metrics": finite(values)}
            for each, number, threshold, values in zip(
                dataset.classes, dataset.category_ids, thresholds.by_class, by_class, strict=True
            )
        ],
        data={"dataset_sha256": dataset.digest, "images": len(images), "note": NO_TEST, "condition": found.row.name},
        condition=first.condition,
        provenance=record,
        counts=counts,
        calibration=calibration.plain(),
    )
    _remove_others(files, output)
    result.write(output)
    log.info(
        "%s: %s; out of fold AP %.3f, AP50 %.3f, count MAE %.2f (thresholds were chosen on these detections)",
        *(name, NO_TEST, metrics["out_of_fold/map"], metrics["out_of_fold/map_50"], metrics["out_of_fold/count_mae"]),
    )
    for file in files:
        log.info("  %s", file)


def _remove_others(files: Sequence[Path], output: Path) -> None:
    """Remove the detectors of an earlier call with more seeds, which may be of another condition or other labels."""
    for other in output.parent.glob(f"{output.name}-seed*/{FILE}"):
        if other not in files:
            log.info("%s is of an earlier call, removed", other)
            other.unlink()
            if not any(other.parent.iterdir()):
                other.parent.rmdir()


def _metrics_of(output: Path) -> dict[str, float]:
    """The metrics that `_train_all` has written."""
    result = read_result(output)
    assert result is not None
    known = {name: value for name, value in result.metrics.items() if value is not None}
    return known | {"data/real_images": float(result.data["images"])}


def _log_result(store: Store, run_id: str, output: Path, metrics: Mapping[str, float]) -> None:
    """Log what `_train_all` has written."""
    result = read_result(output)
    assert result is not None
    named = {"boxtwin.condition_name": result.data["condition"], "boxtwin.note": NO_TEST}
    store.tag(run_id, {**tags(dict(result.provenance)), **named})
    store.log_metrics(run_id, metrics)
    files = (RESULT_FILE, DETECTIONS_FILE, CONFIGURATION, FOLDS_FILE)
    store.log_files(run_id, [output / name for name in files])
