"""Training a detector under Lightning: averaged weights, checkpoints, one progress bar, resuming after a kill."""

from __future__ import annotations

import logging
import re
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ProgressBar, Timer, WeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from boxtwin.detector.module import DetectorModule
from boxtwin.detector.options import TrainerOptions
from boxtwin.errors import InputError, WriteError
from boxtwin.files import atomic_path
from boxtwin.mixing.datamodule import StudyDataModule
from boxtwin.weights import check_archive, count_not_finite

log = logging.getLogger(__name__)

BEST, LAST, EARLIER = "best.ckpt", "last.ckpt", "earlier.ckpt"  # earlier: the last one before the last
# An average with decay d spans about 1 / (1 - d) steps. One that reaches back to early steps mixes weights whose batch
# statistics do not fit each other, so it spans a share of the run, whatever its length.
EMA_SPAN = 0.1
LINES = 10  # of the log, about the progress of a training without a bar
KEY = "Checkpoints"  # of the class below; Lightning keeps its state in a checkpoint by its name


class Trained(NamedTuple):
    """What a training gave."""

    seconds: float  # of all attempts together
    validation: tuple[tuple[int, float], ...]  # step, AP on the real validation images
    best: DetectorModule  # with the weights that real validation images chose; without any, the last


def fit(
    module: DetectorModule,
    data: StudyDataModule,
    options: TrainerOptions,
    *,
    log_every: int,
    accelerator: str,
    precision: str,
    logger: Logger | None,
    checkpoints: Path,
    title: str,
    identity: str = "",
) -> Trained:
    """Train a detector, resuming from the last checkpoint if there is one.

    Without validation images the last weights, averaged as all are, take the place of the best.

    Args:
        log_every: steps between two lines of the logger.
        accelerator, precision: of this machine, as Lightning's Trainer calls them.
        logger: None keeps no record of the losses.
        checkpoints: folder of the last and the best checkpoint.
        identity: of the training; checkpoints of another one are not resumed.

    Raises:
        InputError: the weights are no longer finite, or the disk does not take a checkpoint.
    """
    quieten_lightning()
    steps = module.steps
    machine = f"{accelerator}, {precision}"
    # In place and all weights in one call; Lightning's EMAWeightAveraging makes three new tensors of every weight.
    average = WeightAveraging(multi_avg_fn=partial(_average, 1 - 1 / max(EMA_SPAN * steps, 1)))
    trainer = pl.Trainer(
        default_root_dir=checkpoints,
        accelerator=accelerator,
        devices=options.devices,
        # Spawned, the other processes do training only, and the run's files and its MLflow run stay with this one.
        strategy="ddp_spawn" if options.devices > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
        max_steps=steps,
        gradient_clip_val=options.gradient_clip,
        num_sanity_val_steps=0,
        log_every_n_steps=log_every,
        limit_val_batches=1.0 if data.validation_samples else 0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        logger=logger or False,
        callbacks=[average, Timer(), StepsBar(title), Checkpoints(checkpoints, machine, identity)],
        plugins=[CheckpointFiles()],
    )
    start = start_from(checkpoints, machine, identity)
    if start is not None:
        log.info("going on from %s", start)
    module.compile_network = options.compile
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    except SystemExit as error:  # of Lightning, for a stop by the user
        raise KeyboardInterrupt from error
    except ProcessRaisedException as error:  # of a spawned process, as text
        match = re.search(r"^boxtwin\.errors\.(InputError|WriteError): (.*)", str(error), re.DOTALL | re.MULTILINE)
        if match is None:
            raise
        raise {"InputError": InputError, "WriteError": WriteError}[match[1]](match[2].strip()) from None
    # From the last checkpoint, as counts of spawned processes are known to them alone.
    last, best = (torch.load(checkpoints / name, "cpu", weights_only=True, mmap=True) for name in (LAST, BEST))
    if last["global_step"] < steps:
        raise RuntimeError(f"training stopped at step {last['global_step']} of {steps}")
    chosen = DetectorModule.from_values(best["hyper_parameters"])
    chosen.load_state_dict(best["state_dict"])
    validation = tuple((int(step), float(value)) for step, value in last["callbacks"][KEY]["validation"])
    return Trained(float(last["callbacks"]["Timer"]["time_elapsed"]["train"]), validation, chosen)


def _average(decay: float, *arguments: Any) -> None:
    """`get_ema_multi_avg_fn`, whose own result cannot be sent to the process of another device."""
    get_ema_multi_avg_fn(decay)(*arguments)  # type: ignore[no-untyped-call]


def start_from(checkpoints: Path, machine: str, identity: str = "") -> Path | None:
    """The last undamaged checkpoint; None to start from the first step.

    Damaged files, and those of another training, are named in the log. Without the best weights, which no later step
    gives again, nothing is resumed; nor is it on another kind of device or in another precision (``machine``), since
    runs are paired by these.
    """
    if not any((checkpoints / name).exists() for name in (LAST, EARLIER)):
        return None
    if (problem := damage(checkpoints / BEST, identity)) is not None:
        log.warning("%s", problem)
    else:
        for name in (LAST, EARLIER):
            if (problem := damage(checkpoints / name, identity)) is None:
                earlier = torch.load(checkpoints / name, "cpu", weights_only=True, mmap=True)["callbacks"][KEY]
                if earlier.get("machine", machine) == machine:  # older versions did not record it
                    return checkpoints / name
                problem = f"{checkpoints / name} is of a training on {earlier['machine']}, and this one is on {machine}"
                log.warning("%s; training begins again, from its first step", problem)
                return None
            log.warning("%s%s", problem, "; the checkpoint before it is tried" if name == LAST else "")
    log.warning("training begins again, from its first step")
    return None


def damage(path: Path, identity: str = "") -> str | None:
    """Check a checkpoint by the CRC-32 of its members, and whose it is; say what is wrong, or None if nothing is."""
    try:
        check_archive(path)
        content = torch.load(path, "cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        return f"{path} is missing"
    except Exception as error:  # whatever a zip reader or an unpickler meets in bytes that are not theirs
        return f"{path} is damaged: {error}"
    if (state := content.get("callbacks", {}).get(KEY)) is None:
        return f"{path} was left by another version"
    # Older versions did not record it.
    return f"{path} is of another training" if state.get("identity", identity) != identity else None


class CheckpointFiles(TorchCheckpointIO):
    """Write checkpoints atomically, read them back, and keep the one before the last."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ARG002
        path = Path(path)
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
            try:
                check_archive(temporary)
            except ValueError:
                raise OSError(f"{path} was written, and is read back otherwise: is the disk broken?") from None
            if path.name == LAST and path.exists():
                path.replace(path.with_name(EARLIER))


class Checkpoints(Checkpoint):
    """Write a checkpoint after every validation to resume from, and another if it is the best so far.

    Both are written when an epoch is over, and a resumed training begins the next one. Lightning's own way back into
    the middle of an epoch repeats validations and counts a step too many.
    """

    def __init__(self, folder: Path, machine: str, identity: str = "") -> None:
        super().__init__()
        self._folder, self._machine, self._identity = folder, machine, identity
        self._validation: list[tuple[int, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"validation": self._validation, "machine": self._machine, "identity": self._identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validation = [(step, value) for step, value in state_dict["validation"]]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Begin the epoch after the one that the checkpoint ended."""
        if trainer.global_step:
            loop, batches = trainer.fit_loop, int(trainer.num_training_batches)
            loop._restarting = loop.epoch_loop.restarting = False
            loop.reset_restart_stage()
            loop.epoch_loop.reset_restart_stage()
            loop.epoch_loop._batches_that_stepped = trainer.global_step
            done = trainer.global_step // batches
            current: Any = loop.epoch_progress.current
            current.ready = current.started = current.processed = current.completed = done

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoints; an `InputError` if a weight is not finite."""
        if bad := count_not_finite(pl_module.state_dict()):
            raise InputError(
                f"training diverged: at step {trainer.global_step} of {trainer.max_steps} {bad:,} weights are not "
                "finite (NaN or infinite). Lower detector.learning_rate, set trainer.gradient_clip (10, say), or "
                "compute in trainer.precision=float32"
            )
        validated = trainer.callback_metrics.get("val/map")
        # Where AP tells nothing, since it is 0 so far or there are no objects, the latest weights are the best known.
        earlier = [value for _, value in self._validation if value > 0]
        is_best = validated is None or not any(value >= float(validated) for value in earlier)
        if validated is not None:  # numbered as the logger does: the first step is 0
            self._validation.append((trainer.global_step - 1, float(validated)))
        # Saving is done by all devices together, which have the same AP.
        if is_best:
            trainer.save_checkpoint(self._folder / BEST, weights_only=False)
        trainer.save_checkpoint(self._folder / LAST, weights_only=False)


class StepsBar(ProgressBar):
    """One bar over all optimiser steps of a run; Lightning's own restarts after every validation.

    Where bars are off, as for runs side by side, and no terminal shows one for all, the log gets `LINES` lines instead.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self._bar: tqdm[Any] | None = None

    def disable(self) -> None:
        """Do nothing: the bar stays on."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        steps, done = trainer.max_steps, trainer.global_step
        hidden = {} if trainer.is_global_zero else {"disable": True}  # else TQDM_DISABLE decides, as in other bars
        self._bar = tqdm(total=steps, initial=done, desc=self._title, unit="step", **hidden)
        self._logs = bool(self._bar.disable) and trainer.is_global_zero and not sys.stderr.isatty()
        self._done, self._start, self._begun = done, done, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any, **keywords: Any) -> None:  # noqa: ARG002
        assert self._bar is not None
        self._bar.update(trainer.global_step - self._bar.n)
        before, self._done = self._done, trainer.global_step
        total = trainer.max_steps
        if self._logs and before * LINES // total < self._done * LINES // total and self._done < total:
            seconds = (time.monotonic() - self._begun) / (self._done - self._start) * (total - self._done)
            log.info("%s: step %d of %d, %s left", self._title, self._done, total, tqdm.format_interval(seconds))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        metrics = trainer.callback_metrics
        if self._bar is not None and "val/map_50" in metrics:
            self._bar.set_postfix_str(f"val AP50 {float(metrics['val/map_50']):.3f}")

    def on_train_end(self, *arguments: Any) -> None:  # noqa: ARG002
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, *arguments: Any) -> None:  # noqa: ARG002
        self.on_train_end()  # so that the error stands on a line of its own


def quieten_lightning() -> None:
    """Silence Lightning's advertising, hardware hints and lists of GPUs."""
    for name in ("utilities.rank_zero", "accelerators.cuda"):
        logging.getLogger(f"pytorch_lightning.{name}").setLevel(logging.WARNING)
    # Lightning 2.6 asks torch 2.13 for a class that goes away later; nothing a user can act on.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    # On a machine of a cluster, it advises to start every command by srun; Hydra's launcher for Slurm does.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
