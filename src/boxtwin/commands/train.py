"""One run: make its variations, train, test, write its files, log it to MLflow."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import MLFlowLogger

from boxtwin.commands.generate import contact_sheet, make_variations, quality_card, sheet_of
from boxtwin.commands.reuse import mend, reuse_run
from boxtwin.config.compose import to_object
from boxtwin.config.identity import RECIPE_VERSION, extra_images, flat_params, run_name, setting_hash
from boxtwin.config.launch import note_run, typed_words
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.datasets.splits import SIDES, describe
from boxtwin.datasets.training_images import TrainingImages
from boxtwin.detector.checkpoint import FILE as DETECTOR_FILE
from boxtwin.detector.checkpoint import TrainedDetector, damage, write_detector
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.training import quieten_lightning
from boxtwin.evaluation.coco_metrics import DETECTIONS_FILE, VALIDATION_DETECTIONS_FILE
from boxtwin.evaluation.counts import Thresholds
from boxtwin.evaluation.examples import EXAMPLES_FILE
from boxtwin.evaluation.resampled_ap import MATCHES_FILE
from boxtwin.evaluation.tested import PICTURES, Evaluation, run_test
from boxtwin.files import exclusive_lock, link_file, remove_leftovers, write_bytes_atomically
from boxtwin.hardware import torch_device, use_threads
from boxtwin.memory import keep_freed_blocks
from boxtwin.mixing.plan import Plan, make_plan
from boxtwin.quality.card import QualityCard, metrics_of
from boxtwin.run import label_detectors
from boxtwin.run.build import Prepared, make_data, make_detector, prepare, train
from boxtwin.run.checks import warn_of_random_weights
from boxtwin.run.pretraining import pretraining_metrics, pretraining_run, variations_run
from boxtwin.run.unlabelled import label_unlabelled
from boxtwin.synthesis.store import StoreUpdate
from boxtwin.tracking.broken_off import run_ended_on_error
from boxtwin.tracking.mlflow_runs import REUSED_TAGS, Store, store_uri
from boxtwin.tracking.mlflow_view import NOTE_TAG, note
from boxtwin.tracking.provenance import code_of, provenance, tags
from boxtwin.tracking.run_folders import (
    CONFIGURATION,
    RESULT_FILE,
    SPLIT_FILE,
    RunResult,
    find_folder,
    own_folder,
    recorded_path,
)
from boxtwin.tracking.study_names import IDENTITY_TAG

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # in the run's folder
# Of a tested run, for MLflow.
FILES = (*PICTURES, DETECTIONS_FILE, VALIDATION_DETECTIONS_FILE, MATCHES_FILE, EXAMPLES_FILE, RESULT_FILE)


def train_run(composed: DictConfig) -> dict[str, float]:
    """Train, test and log one run; return its metrics. A finished run is skipped, an interrupted one is continued."""
    quieten_lightning()
    prepared = prepare(to_object(composed, BoxtwinConfig))
    config = prepared.config
    folder, identities = Path(HydraConfig.get().runtime.output_dir), (prepared.identity, *prepared.earlier_identities)
    name, tracking = run_name(config), Path(config.tracking.folder)
    # One lock of the folder, and one of the run: another study may be at the same run.
    waiting = f"{name}: another process is at it; waiting"
    of_all_studies = tracking / "runs" / f"{prepared.identity}.lock"
    tracked = {"study": config.study, "identity": prepared.identity, "uri": store_uri(config.tracking.uri, tracking)}
    with (
        exclusive_lock(folder / ".lock", waiting),
        exclusive_lock(of_all_studies, waiting),
        run_ended_on_error(**tracked),
    ):
        output, store = own_folder(folder, *identities), Store(uri=config.tracking.uri, folder=tracking)
        work = _RunInProgress(prepared, store, output)
        note_run(**tracked, lock=str(of_all_studies.absolute()))
        run = store.begin_run(
            study=config.study,
            name=name,
            identity=prepared.identity,
            earlier_identities=prepared.earlier_identities,
            params=flat_params(config),
            tags=work.tags,
        )
        work.run_id = run.run_id
        if finished := run.status == "FINISHED":
            data = store.client.get_run(run.run_id).data
            if not config.rerun and work.is_whole(data.tags, identities):
                shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)  # of a process killed right after its end
                before, now = code_of(data.tags), code_of(tags(work.provenance))
                log.info(f"{name}: finished before by {before}, skipped (rerun=true runs it again with {now})")
                return dict(data.metrics)
            store.reopen(run.run_id, work.tags)
        write_bytes_atomically(output / CONFIGURATION, OmegaConf.to_yaml(composed, resolve=True).encode())
        source = None if config.rerun or finished else store.finished_elsewhere(*identities)
        if source is not None and (metrics := work.reuse(source)) is not None:
            outcome = f"reused from study {store.study_of(source)}, made by {code_of(source.data.tags)}"
        else:
            store.tag(run.run_id, tags(work.provenance))  # of the code that makes the result
            metrics = work.run()
            outcome = f"{metrics['time/total'] / 60:.1f} minutes"
        if (output / DETECTOR_FILE).exists():
            label_detectors.keep_detector(prepared, output / DETECTOR_FILE)
            store.tag(run.run_id, {NOTE_TAG: note(recorded_path(output, tracking), DETECTOR_FILE)})
        store.end(run.run_id, "FINISHED")
        # Not before: killed in between, the run needs no new training.
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    log.info(
        f"{name}: AP {metrics['test/map']:.3f}, AP50 {metrics['test/map_50']:.3f}, "
        f"count MAE {metrics['test/count_mae']:.2f} on {len(prepared.split.test)} test images; {outcome}"
    )
    return metrics


class Pretrained(NamedTuple):
    """What a run takes over from its pre-training; nothing without one."""

    file: Path | None  # its detector
    metrics: dict[str, float]
    images: tuple[Sample, ...] = ()  # to be shown again in the batches of the run
    levels: Levels = Levels()  # of these


def pretrained(prepared: Prepared) -> Pretrained:
    """The pre-training of a run, which is trained first if it is missing.

    `InputError` if the images of the pre-training cannot be used.
    """
    run, options = pretraining_run(prepared), prepared.config.pretraining
    if run is None:
        return Pretrained(None, {})
    if run.library:
        make_variations(variations_run(prepared))
    file = label_detectors.trained_file(run, f"pretraining={options.name}")
    first = Pretrained(file, pretraining_metrics(run, file))
    return first._replace(images=run.split.train, levels=run.levels) if options.share else first


class RunLogger(MLFlowLogger):
    """Lightning's logger for an MLflow run that `Store` begins, with its parameters, and ends."""

    def log_hyperparams(self, params: Any) -> None:
        """Do nothing."""

    def finalize(self, status: str = "success") -> None:
        """Do nothing: the run continues with evaluation."""


class _RunInProgress:
    """The work of one run, and its files and records."""

    run_id: str  # of the MLflow run, once it has begun

    def __init__(self, prepared: Prepared, store: Store, output: Path) -> None:
        self.prepared, self.config, self.store, self.output = prepared, prepared.config, store, output
        threads = self.config.trainer.threads
        self.provenance = provenance(prepared.accelerator, prepared.precision, threads, recipe=RECIPE_VERSION)
        self.tags = {
            IDENTITY_TAG: prepared.identity,
            "boxtwin.setting": setting_hash(self.config),
            "boxtwin.output_dir": recorded_path(output, store.folder),
            "boxtwin.overrides": json.dumps(typed_words()),
            "boxtwin.dataset_sha256": prepared.dataset.digest,
            "boxtwin.split_sha256": prepared.split.digest,
            **({"boxtwin.store": prepared.library.key} if prepared.library else {}),
        }
        # Named by the identity: data that changed under the same settings must not meet an older checkpoint.
        self.checkpoints = output / CHECKPOINTS / prepared.identity[:12]
        if self.config.rerun:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def is_whole(self, run_tags: Mapping[str, str], identities: Sequence[str]) -> bool:
        """Whether the run, which has finished, has all its files, after those that MLflow has were brought back."""
        recorded, identity = (run_tags.get(tag, "") for tag in ("boxtwin.output_dir", IDENTITY_TAG))
        folder, name = find_folder(recorded, self.store.folder, identity) or self.output, run_name(self.config)
        problems = mend(self.store, self.run_id, folder, identities)
        damaged = damage(folder / DETECTOR_FILE, self.prepared.identities)
        if damaged is not None and ((folder / DETECTOR_FILE).exists() or not set(REUSED_TAGS) & set(run_tags)):
            if self.store.is_server and not problems and not (self.output / DETECTOR_FILE).exists():
                log.warning("%s: its detector is not on this machine; rerun=true trains it again here", name)
            else:
                problems.append(damaged)
        if problems:
            log.warning("%s: finished before, but is run again: %s", name, "; ".join(problems))
        return not problems

    def run(self) -> dict[str, float]:
        """Make variations, train and test; returns the metrics."""
        prepared = self.prepared
        remove_leftovers(self.output)
        use_threads(self.config.trainer.threads)
        keep_freed_blocks()
        # First, so that a full disk or weights that do not fit show before any variation is made.
        first = pretrained(prepared)
        unlabelled, labelling = label_unlabelled(prepared)
        started = time.perf_counter()  # a pre-training and labels are shared, and are no time of the run
        module = make_detector(prepared, first.file)
        update, card, seconds = self._make_variations()
        started += seconds  # a report for people is no time of the run
        variations = prepared.library.variations(prepared.sources, prepared.per_image) if prepared.library else ()
        plan = make_plan(prepared.split, variations, [*unlabelled, *prepared.extra.empty], first.images)
        self._log_inputs(plan)
        data = make_data(prepared, plan, first.levels)
        self._announce(plan)
        logger = RunLogger(experiment_name=self.config.study, tracking_uri=self.store.uri, run_id=self.run_id)
        training = time.perf_counter()
        trained = train(prepared, data, module, self.checkpoints, run_name(self.config), logger)
        evaluating = time.perf_counter()
        started -= max(trained.seconds - (evaluating - training), 0.0)  # of attempts that were stopped
        tested = self._test(trained.best, plan)
        metrics = {
            **tested.metrics,
            **first.metrics,
            **{f"data/{name}": value for name, value in (metrics_of(card.summary) if card else {}).items()},
            "data/real_images": float(plan.real_train),
            "data/synthetic_images": float(plan.synthetic_train),
            **labelling,
            **({"data/empty_images": float(len(prepared.extra.empty))} if prepared.extra.empty else {}),
            "data/boxes": float(sum(len(sample.object_boxes) for sample in plan.pool)),
            **label_detectors.label_metrics(prepared),
            "time/generate": update.fit_seconds + update.vary_seconds,
            "time/train": trained.seconds,
            "time/evaluate": time.perf_counter() - evaluating,
            "time/total": time.perf_counter() - started,
        }
        self._write(metrics, tested, trained.validation)
        return metrics

    def _make_variations(self) -> tuple[StoreUpdate, QualityCard | None, float]:
        """Make missing variations, contact sheet and quality card; with the seconds that the card took."""
        prepared = self.prepared
        if not prepared.library:
            return StoreUpdate(), None, 0.0
        update = make_variations(prepared)
        if update.made or not sheet_of(prepared).exists():  # a killed run may have left none
            contact_sheet(prepared)
        measuring = time.perf_counter()
        card = quality_card(prepared)
        seconds = time.perf_counter() - measuring
        if card:
            self.store.log_files(self.run_id, [card.report, card.picture], "store")
            for file in (card.report, card.picture):  # as they are now
                link_file(file, self.output / file.name)
        return update, card, seconds

    def _announce(self, plan: Plan) -> None:
        """Log what is trained on."""
        prepared = self.prepared
        warn_of_random_weights(self.config)
        log.info(
            f"{run_name(self.config)}: {plan.real_train} real + {plan.synthetic_train} synthetic training images, "
            f"{f'{len(plan.extra)} images beside the data set, ' if plan.extra else ''}"
            f"{prepared.steps} steps of {self.config.trainer.batch_size}, {prepared.accelerator}, {prepared.precision}"
        )

    def _test(self, best: DetectorModule, plan: Plan) -> Evaluation:
        """Choose thresholds, test, and write the detector with these thresholds to the run's folder."""
        prepared = self.prepared
        device = torch_device(prepared.accelerator)

        def detect(samples: Sequence[Sample], chosen: Thresholds | None) -> dict[int, Detections]:
            # In float32: a metric must not depend on what the machine computes in.
            pixels = ((sample.image_id, prepared.images.read(sample)) for sample in samples)
            spec = best.spec
            if chosen is not None:
                spec = TrainedDetector(best, chosen.together, class_thresholds=chosen.by_class).spec
            return best.detect_all(pixels, device, spec)

        tested = run_test(
            detect,
            validation=plan.val,
            synthetic=plan.val_synthetic,
            test=plan.test,
            classes=prepared.dataset.classes,
            category_ids=prepared.dataset.category_ids,
            folder=self.output,
        )
        sides = [prepared.split.side(side) for side in SIDES]
        learnt = (*prepared.split.train, *prepared.split.val)
        detector = TrainedDetector(
            best,
            tested.thresholds.together,
            prepared.origin,
            class_thresholds=tested.thresholds.by_class,
            calibration=tested.calibration,
            images=TrainingImages.of(learnt, list(chain(*sides)), prepared.images.read, prepared.levels),
        )
        write_detector(detector, self.output / DETECTOR_FILE)
        return tested

    def reuse(self, source: Run) -> dict[str, float] | None:
        """Reuse the same run of another study; returns its metrics, or None if that study has lost it."""
        try:
            metrics = reuse_run(
                self.store,
                self.run_id,
                source,
                self.output,
                tracking=Path(self.config.tracking.folder),
                result={
                    "identity": self.prepared.identity,
                    "condition": self.prepared.condition,
                    "study": self.config.study,
                    "overrides": typed_words(),
                },
                detector=DETECTOR_FILE,
            )
        except (FileNotFoundError, MlflowException) as error:
            log.warning("study %s has lost files of its run (%s); it is run here", self.store.study_of(source), error)
            return None
        self.store.log_files(self.run_id, [self.output / CONFIGURATION])
        return metrics

    def _log_inputs(self, plan: Plan) -> None:
        """Log images, split and configuration, before training."""
        prepared = self.prepared
        inputs = []
        for side in SIDES:
            log.info("%s: %s", side, describe(prepared.split.side(side)))
            name = f"{prepared.dataset.name}-{prepared.split.name}-{side}"
            inputs.append((name, prepared.split.side(side), self.config.dataset.root, side))
        if plan.extra:
            folders = [self.config.dataset.unlabelled, self.config.dataset.empty]
            source = ", ".join(folder for folder in folders if folder)
            inputs.append((f"{prepared.dataset.name}-{extra_images(self.config)}", plan.extra, source, "train"))
        if prepared.library:
            synthetic = tuple(sample for sample in plan.train if sample.lineage)
            inputs.append((prepared.library.folder.name, synthetic, str(prepared.library.folder), "train"))
        for name, samples, source, side in inputs:
            digest = hashlib.sha256("".join(f"{sample.name}{sample.sha256}" for sample in samples).encode()).hexdigest()
            self.store.log_data(self.run_id, name=name, digest=digest, source=source, side=side, images=len(samples))
        prepared.split.save(self.output / SPLIT_FILE)
        self.store.log_files(self.run_id, [self.output / SPLIT_FILE, self.output / CONFIGURATION])

    def _write(self, metrics: dict[str, float], tested: Evaluation, validation: Sequence[tuple[int, float]]) -> None:
        """Write result.json, after all other files of the run, and log files and metrics."""
        prepared = self.prepared
        result = RunResult(
            run=run_name(self.config),
            study=self.config.study,
            identity=prepared.identity,
            setting=setting_hash(self.config),
            overrides=typed_words(),
            params=flat_params(self.config),
            metrics=finite(metrics),
            classes=[{**entry, "metrics": finite(entry["metrics"])} for entry in tested.classes],
            data={
                "dataset_sha256": prepared.dataset.digest,
                "split_sha256": prepared.split.digest,
                "store": prepared.library.folder.name if prepared.library else None,
                "bad_boxes": prepared.dataset.repairs,
                "levels": {"black": prepared.levels.black, "white": prepared.levels.full_scale},
            },
            condition=prepared.condition,
            provenance=self.provenance,
            counts=tested.counts,
            calibration=tested.calibration.plain() if tested.calibration else {},
            validation_images=[
                {
                    "image_id": sample.image_id,
                    "file_name": sample.name,
                    "width": sample.width,
                    "height": sample.height,
                }
                for sample in prepared.split.val
            ],
            validation=validation,  # step, AP on the real validation images, of all attempts
        )
        result.write(self.output)  # on disk first: the server may be away
        self.store.log_metrics(self.run_id, metrics)
        files = [self.output / name for name in FILES]
        if prepared.library:
            cards = label_detectors.write_label_card(prepared)
            for file in cards:
                link_file(file, self.output / file.name)
            files += [sheet_of(prepared), *cards]
        self.store.log_files(self.run_id, [path for path in files if path.exists()])


def finite(metrics: Mapping[str, float]) -> dict[str, Any]:
    """The metrics with None in place of nan and infinity, which JSON lacks."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
