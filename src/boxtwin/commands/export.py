"""From a finished run to the files that are used elsewhere: ONNX, an MLflow model, Darknet."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from boxtwin.command_line import quoted, setting
from boxtwin.config.compose import to_object
from boxtwin.config.schema import ExportConfig
from boxtwin.detector.checkpoint import FILE, TrainedDetector, read_detector
from boxtwin.detector.darknet import darknet_cfg, write_darknet
from boxtwin.detector.onnx_export import require_packages, write_onnx
from boxtwin.errors import InputError
from boxtwin.files import check_target, lock_beside, remove_leftovers, write_bytes_atomically

log = logging.getLogger(__name__)

FORMATS = ("onnx", "mlflow", "darknet")
LISTED = 20  # runs that an error names


def export_detector(composed: DictConfig) -> list[Path]:
    """Write a run's detector in the formats that the configuration names; returns what was written.

    Raises `InputError`, before anything is written, for a missing detector or package, an unknown format or a target
    that exists as a file.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise InputError(f"these settings need a value: {', '.join(missing)}\n{_detectors_near(Path('multirun'))}")
    config = to_object(composed, ExportConfig)
    formats = [config.formats] if isinstance(config.formats, str) else list(config.formats or ())
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise InputError(f"formats=[{','.join(map(str, unknown))}] must name one or more of {', '.join(FORMATS)}")
    if config.register is not None and "mlflow" not in formats:
        raise InputError(f"register={config.register} registers the MLflow model; add mlflow to formats")
    if config.register is not None and (re.search(r"[/:.%\"']", config.register) or not config.register.strip()):
        raise InputError(f"register={config.register}: MLflow takes no name of a model with / : . % or quotes")
    if {"onnx", "mlflow"} & set(formats):
        require_packages()
    run = Path(config.run)
    source = run / FILE if run.is_dir() else run
    if not source.is_file():
        raise InputError(f"run={run}: there is no {source}\n{_detectors_near(run)}")
    detector = read_detector(source)
    to = Path(config.to) if config.to is not None else source.parent / "export"
    check_target(to, "to")
    written = _write(detector, formats, to)
    thresholds = ", ".join(f"{threshold:.3f}" for threshold in detector.spec.class_thresholds)
    log.info("%s: %s, counts at confidence %s", source, detector.spec.architecture, thresholds)
    width = max(len(str(path)) for path in written)
    for path in written:
        size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
        log.info("  %-*s %9s kB", width, path, f"{size / 1e3:,.1f}")
    if (name := config.register) is not None:
        from boxtwin.tracking.mlflow_runs import Store  # late, as in `_write`

        store, origin = Store(uri=config.tracking.uri, folder=Path(config.tracking.folder)), detector.origin
        study, identity = origin.get("study", name), origin.get("identity")
        version = store.register_model(to / "mlflow", name=name, study=study, identity=identity)
        log.info("registered: models:/%s/%d in %s", name, version, store.uri)
    return written


@contextmanager
def _unfinished(to: Path) -> Iterator[Path]:
    """A folder in ``to`` for unfinished files, removed at the end: files can be moved whole from there."""
    to.mkdir(parents=True, exist_ok=True)
    with lock_beside(to, "exports to"):
        remove_leftovers(to, "export")
        with tempfile.TemporaryDirectory(prefix=f".export.{os.getpid()}.part", dir=to) as temporary:
            yield Path(temporary)


def _write(detector: TrainedDetector, formats: Sequence[str], to: Path) -> list[Path]:
    written = []
    with _unfinished(to) as temporary:
        onnx = temporary / "detector.onnx"
        if {"onnx", "mlflow"} & set(formats):
            write_onnx(detector, onnx)
        if "mlflow" in formats:
            # MLflow 3.17 warns of its own type hints when it is imported.
            warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType")
            # Late: MLflow takes seconds, and the other formats do without.
            from boxtwin.tracking.mlflow_model import save_mlflow_model

            save_mlflow_model(onnx, detector.spec, to / "mlflow")
            written.append(to / "mlflow")
        if "onnx" in formats:
            written.append(onnx.replace(to / onnx.name))
    if "darknet" in formats:
        network = detector.module.network
        weights, cfg, names = (to / f"detector.{ending}" for ending in ("weights", "cfg", "names"))
        write_darknet(network, weights, seen=0)
        text = darknet_cfg(network, detector.spec.side, detector.module.loss.scale_xy)
        write_bytes_atomically(cfg, text.encode())
        write_bytes_atomically(names, "".join(f"{name}\n" for name in detector.spec.classes).encode())
        written += [weights, cfg, names]
    return written


def _detectors_near(near: Path) -> str:
    """Which detectors there are in the nearest folder that exists."""
    folder = next((folder for folder in (near, *near.parents) if folder.is_dir()), Path())
    runs = sorted(path.parent for depth in ("*/", "*/*/", "*/*/*/") for path in folder.glob(f"{depth}{FILE}"))
    if not runs:
        return f"no finished run lies in {folder}; python train.py trains one"
    more = f"\n  and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
    return "finished runs:" + "".join(f"\n  {quoted(setting('run', str(run)))}" for run in runs[:LISTED]) + more
