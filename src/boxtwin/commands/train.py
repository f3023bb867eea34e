"""One cell: make its variations, train, test, write its files, log it to MLflow."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf

from boxtwin.commands.generate import contact_sheet, make, quality_card
from boxtwin.commands.reuse import mend, take_over
from boxtwin.config.compose import to_object
from boxtwin.config.identity import RECIPE_VERSION, cell_name, flat_params, setting_hash
from boxtwin.config.launch import note_run, typed
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.datasets.splits import describe
from boxtwin.detector.checkpoint import FILE as DETECTOR_FILE
from boxtwin.detector.checkpoint import TrainedDetector, damage, write_detector
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.training import Trained, fit, quieten_lightning
from boxtwin.evaluation.examples import EXAMPLES_FILE
from boxtwin.evaluation.metrics import Thresholds
from boxtwin.evaluation.resampled_ap import MATCHES_FILE
from boxtwin.evaluation.tested import PICTURES, Evaluation, run_test
from boxtwin.files import exclusive_lock, link_file, remove_leftovers, write_bytes_atomically
from boxtwin.hardware import keep_freed_blocks
from boxtwin.mixing.datamodule import StudyDataModule
from boxtwin.mixing.plan import Plan, make_plan
from boxtwin.quality.card import figures_of
from boxtwin.run import label_detectors
from boxtwin.run.build import Prepared, make_data, make_detector, prepare
from boxtwin.synthesis.store import StoreUpdate
from boxtwin.tracking.cell_logger import CellLogger
from boxtwin.tracking.interrupted import ended_if_stopped
from boxtwin.tracking.mlflow_runs import IDENTITY_TAG, TAKEN_OVER_TAG, CellRun, Store, store_uri
from boxtwin.tracking.mlflow_view import NOTE_TAG, note
from boxtwin.tracking.provenance import code_of, provenance, record_of, tags
from boxtwin.tracking.run_folders import find_folder, own_folder, recorded_path

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # below the run's folder


def run_cell(composed: DictConfig) -> dict[str, float]:
    """Train, test and log one run; return its metrics. A finished run is skipped, a broken-off one goes on."""
    _quieten()
    config = to_object(composed, BoxtwinConfig)
    cell = prepare(config)
    folder, identities = Path(HydraConfig.get().runtime.output_dir), (cell.identity, *cell.earlier_identities)
    name, tracking = cell_name(config), Path(config.tracking.folder)
    # Of the folder, and of the cell: another study may be at the same one.
    waiting = f"{name}: another process is at it; waiting"
    of_all_studies = tracking / "cells" / f"{cell.identity}.lock"
    begun = (store_uri(config.tracking.uri, tracking), config.study, cell.identity)
    with exclusive_lock(folder / ".lock", waiting), exclusive_lock(of_all_studies, waiting), ended_if_stopped(*begun):
        output, store = own_folder(folder, *identities), Store(uri=config.tracking.uri, folder=tracking)
        made_by, own_tags = _made_by(cell), _tags(cell, output)
        note_run(*begun, of_all_studies)
        run = store.begin_cell(
            study=config.study,
            name=name,
            identity=cell.identity,
            earlier_identities=cell.earlier_identities,
            params=flat_params(config),
            tags=own_tags,
        )
        again = run.finished and (config.rerun or not _is_whole(name, store, run, output, identities))
        if run.finished and not again:
            shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)  # of a process killed right after its end
            log.info(
                "%s: finished before by %s, skipped (rerun=true runs it again with %s)",
                *(name, code_of(record_of(run.tags)), code_of(made_by)),
            )
            return run.metrics
        work = _Cell(cell, store, run.run_id, output, OmegaConf.to_yaml(composed, resolve=True))
        source = None if config.rerun or again else store.finished_elsewhere(*identities)
        try:
            if run.finished:
                store.reopen(run.run_id, own_tags)
            taken = None if source is None else work.take_over(source)
            source = None if taken is None else source
            if taken is None:
                store.tag(run.run_id, tags(made_by))  # of the code that makes the result
            metrics = work.run() if taken is None else taken
        except Exception as error:
            _end(store, run.run_id, "FAILED", f"{type(error).__name__}: {error}")
            raise
        except (KeyboardInterrupt, SystemExit) as error:  # Lightning turns the first into the second
            _end(store, run.run_id, "KILLED", "stopped")
            raise KeyboardInterrupt from error
        if (output / DETECTOR_FILE).exists():
            recorded = recorded_path(output, tracking)
            store.tag(run.run_id, {NOTE_TAG: note(recorded, DETECTOR_FILE)})
        store.end(run.run_id, "FINISHED")
        # Not before: killed in between, the run needs no new training.
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    took = (
        f"{metrics['time/total'] / 60:.1f} minutes"
        if source is None
        else f"reused from study {store.study_of(source)}, made by {code_of(record_of(source.data.tags))}"
    )
    log.info(
        "%s: AP %.3f, AP50 %.3f, count MAE %.2f on %d test images; %s",
        name,
        metrics["test/map"],
        metrics["test/map_50"],
        metrics["test/count_mae"],
        len(cell.split.test),
        took,
    )
    return metrics


def _tags(cell: Prepared, output: Path) -> dict[str, str]:
    """What MLflow records of a run, whatever code makes its result."""
    return {
        IDENTITY_TAG: cell.identity,
        "boxtwin.setting": setting_hash(cell.config),
        "boxtwin.output_dir": recorded_path(output, Path(cell.config.tracking.folder)),
        "boxtwin.overrides": json.dumps(typed()),
        "boxtwin.dataset_sha256": cell.dataset.digest,
        "boxtwin.split_sha256": cell.split.digest,
        **({"boxtwin.store": cell.library.key} if cell.library else {}),
    }


def _is_whole(name: str, store: Store, run: CellRun, output: Path, identities: Sequence[str]) -> bool:
    """Whether a finished run has all its files, after those that MLflow has were brought back."""
    there = find_folder(run.tags.get("boxtwin.output_dir", ""), Path(store.folder), run.tags.get(IDENTITY_TAG, ""))
    lacking = mend(store, run.run_id, there or output, identities)
    detector = (there or output) / DETECTOR_FILE
    wrong = damage(detector)
    if wrong is not None and (detector.exists() or TAKEN_OVER_TAG not in run.tags):
        if store.is_server and not lacking and not (output / DETECTOR_FILE).exists():
            log.warning("%s: its detector is not on this machine; rerun=true trains it again here", name)
        else:
            lacking.append(wrong)
    if lacking:
        log.warning("%s: finished before, but is run again: %s", name, "; ".join(lacking))
    return not lacking


def _end(store: Store, run_id: str, status: str, reason: str) -> None:
    """Note how a run ended; that MLflow does not take it must not hide what went wrong before."""
    try:
        store.end(run_id, status, reason)
    except Exception as error:
        first, *_ = str(error).splitlines() or [""]
        log.warning("MLflow does not take that run %s is %s: %s", run_id, status, first)


class _Cell:
    """One run at work: variations, plan, training, testing, files, metrics."""

    def __init__(self, cell: Prepared, store: Store, run_id: str, output: Path, composed: str) -> None:
        self.cell, self.config, self.store, self.run_id, self.output = cell, cell.config, store, run_id, output
        self.composed = composed  # the configuration as YAML
        self.validation: tuple[tuple[int, float], ...] = ()
        # Named by the identity: data that changed under the same settings must not meet an older checkpoint.
        self.checkpoints = output / CHECKPOINTS / cell.identity[:12]
        if self.config.rerun:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        remove_leftovers(self.output)
        if self.config.trainer.threads is not None:
            torch.set_num_threads(self.config.trainer.threads)
            cv2.setNumThreads(self.config.trainer.threads)
        keep_freed_blocks()
        # Made now, so that a full disk or weights that do not fit show before any variation is made.
        module = make_detector(self.cell)
        made = make(self.cell) if self.cell.library else StoreUpdate()
        if made.made:
            contact_sheet(self.cell)
        looking = time.perf_counter()
        card = quality_card(self.cell) if self.cell.library else None
        started += time.perf_counter() - looking  # a report for people is no time of the run
        if card:
            self.store.log_files(self.run_id, [card.report, card.picture], "store")
            self._link(card.report, card.picture)
        plan = self._plan()
        self._log_inputs(plan)
        data = make_data(self.cell, plan)
        log.info(
            "%s: %d real + %d synthetic training images, %d steps of %d, %s",
            cell_name(self.config),
            plan.real_train,
            plan.synthetic_train,
            self.config.trainer.steps,
            self.config.trainer.batch_size,
            f"{self.cell.accelerator}, {self.cell.precision}",
        )
        train_seconds, best = 0.0, module
        if self.config.trainer.steps:
            train_seconds, self.validation, best = self._train(data, module)
        evaluating = time.perf_counter()
        tested = self._evaluate(plan, data, best)
        metrics = dict(tested.metrics)
        self._keep(best, tested.thresholds)
        if card:
            metrics |= {f"data/{name}": value for name, value in figures_of(card.summary).items()}
        metrics |= {
            "data/real_images": float(plan.real_train),
            "data/synthetic_images": float(plan.synthetic_train),
            "data/boxes": float(sum(len(sample.object_boxes) for sample in plan.train)),
            **label_detectors.label_figures(self.cell),
            "time/generate": made.fit_seconds + made.vary_seconds,
            "time/train": train_seconds,
            "time/evaluate": time.perf_counter() - evaluating,
            "time/total": time.perf_counter() - started,
        }
        self._write(metrics, tested)
        return metrics

    def take_over(self, source: Run) -> dict[str, float] | None:
        """Have what another study has of this very run; None if that study has lost it."""
        write_bytes_atomically(self.output / "config.yaml", self.composed.encode())
        try:
            metrics = take_over(
                *(self.store, self.run_id, source, self.output),
                tracking=Path(self.config.tracking.folder),
                own_identity=self.cell.identity,
                condition=self.cell.condition,
                study=self.config.study,
                overrides=typed(),
                detector=DETECTOR_FILE,
            )
        except (FileNotFoundError, MlflowException) as error:
            log.warning("study %s has lost files of its run (%s); it is run here", self.store.study_of(source), error)
            return None
        self.store.log_files(self.run_id, [self.output / "config.yaml"])
        if (self.output / DETECTOR_FILE).exists():
            label_detectors.keep_detector(self.cell, self.output / DETECTOR_FILE)
        return metrics

    def _plan(self) -> Plan:
        cell = self.cell
        variations = cell.library.variations(cell.sources, cell.per_image) if cell.library else ()
        return make_plan(cell.split, variations)

    def _train(self, data: StudyDataModule, module: DetectorModule) -> Trained:
        settings = self.config.trainer
        return fit(
            module,
            data,
            settings,
            log_every=max(1, min(50, settings.steps // settings.validations)),
            accelerator=self.cell.accelerator,
            precision=self.cell.precision,
            logger=CellLogger(experiment_name=self.config.study, tracking_uri=self.store.uri, run_id=self.run_id),
            checkpoints=self.checkpoints,
            title=cell_name(self.config),
        )

    def _keep(self, module: DetectorModule, thresholds: Thresholds) -> None:
        """The run's own file to use elsewhere, without what only training needs."""
        origin = {"study": self.config.study, "cell": cell_name(self.config), "identity": self.cell.identity}
        trained = TrainedDetector(module, thresholds.together, origin, class_thresholds=thresholds.by_class)
        write_detector(trained, self.output / DETECTOR_FILE)
        label_detectors.keep_detector(self.cell, self.output / DETECTOR_FILE)

    def _evaluate(self, plan: Plan, data: StudyDataModule, module: DetectorModule) -> Evaluation:
        """Figures on real test images, at the count thresholds that suit the real validation images best."""
        # Full precision: a figure must not depend on what the machine computes in.
        trainer = pl.Trainer(
            accelerator=self.cell.accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )

        def detect(samples: Sequence[Sample]) -> dict[int, Detections]:
            batches = trainer.predict(module, data.letterboxed(samples))
            return module.merge(pair for batch in batches or () for pair in batch)

        dataset = self.cell.dataset
        return run_test(
            detect,
            validation=plan.val,
            synthetic=plan.val_synthetic,
            test=plan.test,
            classes=dataset.classes,
            category_ids=dataset.category_ids,
            folder=self.output,
        )

    def _log_inputs(self, plan: Plan) -> None:
        dataset = self.cell.dataset
        for side in ("train", "val", "test"):
            samples = self.cell.split.side(side)
            log.info("%s: %s", side, describe(samples))
            self.store.log_data(
                self.run_id,
                name=f"{dataset.name}-{self.cell.split.name}-{side}",
                digest=_digest_of_samples(samples),
                source=self.config.dataset.root,
                side=side,
                images=len(samples),
            )
        if self.cell.library:
            synthetic = [sample for sample in plan.train if sample.lineage]
            self.store.log_data(
                self.run_id,
                name=self.cell.library.folder.name,
                digest=_digest_of_samples(synthetic),
                source=str(self.cell.library.folder),
                side="train",
                images=len(synthetic),
            )
        self.cell.split.save(self.output / "split.json")
        write_bytes_atomically(self.output / "config.yaml", self.composed.encode())
        self.store.log_files(self.run_id, [self.output / "split.json", self.output / "config.yaml"])

    def _link(self, *files: Path) -> None:
        """Keep files of the store as they are now with the cell: whoever gets its folder gets them."""
        for file in files:
            if file.exists():
                link_file(file, self.output / file.name)

    def _write(self, metrics: dict[str, float], tested: Evaluation) -> None:
        """result.json is written last: where it stands, everything else does."""
        result = {
            "cell": cell_name(self.config),
            "study": self.config.study,
            "identity": self.cell.identity,
            "setting": setting_hash(self.config),
            "overrides": typed(),
            "params": flat_params(self.config),
            "metrics": _finite(metrics),
            "classes": [{**entry, "metrics": _finite(entry["metrics"])} for entry in tested.classes],
            "data": {
                "dataset_sha256": self.cell.dataset.digest,
                "split_sha256": self.cell.split.digest,
                "store": self.cell.library.folder.name if self.cell.library else None,
                "bad_boxes": self.cell.dataset.repairs,
                "levels": asdict(self.cell.levels),
            },
            "condition": self.cell.condition,
            "provenance": _made_by(self.cell),
            "counts": tested.counts,
            # [step, AP on the real validation images], of all attempts at the cell.
            "validation": self.validation,
        }
        pictures = [self.output / name for name in PICTURES]
        # On disk first: a server may be gone by now.
        write_bytes_atomically(self.output / "result.json", json.dumps(result, indent=1).encode())
        self.store.log_metrics(self.run_id, metrics)
        names = ("detections.json", MATCHES_FILE, EXAMPLES_FILE, "result.json")
        files = [*pictures, *(self.output / name for name in names)]
        if self.cell.library:
            cards = label_detectors.write_label_card(self.cell)
            self._link(*cards)
            files += [self.cell.library.folder / "contact_sheet.png", *cards]
        self.store.log_files(self.run_id, [path for path in files if path.exists()])


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has no nan."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _made_by(cell: Prepared) -> dict[str, object]:
    return provenance(
        accelerator=cell.accelerator,
        precision=cell.precision,
        threads=cell.config.trainer.threads,
        recipe=RECIPE_VERSION,
    )


def _digest_of_samples(samples: Sequence[Sample]) -> str:
    return hashlib.sha256("".join(f"{sample.name}{sample.sha256}" for sample in samples).encode()).hexdigest()


def _quieten() -> None:
    """Leave out Lightning's hints and what MLflow says of its own tables."""
    quieten_lightning()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
