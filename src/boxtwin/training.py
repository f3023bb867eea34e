"""Training a detector under Lightning: averaged weights, the best checkpoint, one bar, going on after a kill."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar, Timer, WeightAveraging
from pytorch_lightning.loggers import Logger
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from boxtwin.detector.module import DetectorModule
from boxtwin.mixing.datamodule import StudyDataModule

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """What a training gave."""

    seconds: float  # of all attempts together
    best: DetectorModule  # with the weights that real validation images chose


def fit(
    module: DetectorModule,
    data: StudyDataModule,
    *,
    steps: int,
    log_every: int,
    ema_span: float,
    gradient_clip: float,
    accelerator: str,
    devices: int,
    precision: str,
    compile_network: bool,
    logger: Logger | None,
    checkpoints: Path,
    title: str,
) -> Trained:
    """Train a detector, going on from the last checkpoint if there is one.

    Args:
        steps: optimiser steps in all.
        log_every: steps between two lines of the logger.
        ema_span: the weights that are kept average over about this share of the steps. An average with decay d spans
            about 1 / (1 - d) steps; one that reaches back to early steps mixes weights whose batch statistics do not
            fit each other, so the span is a share of the run, whatever its length.
        accelerator, devices, precision: as Lightning's Trainer calls them.
        compile_network: whether torch compiles the network first.
        logger: None keeps no record of the losses.
        checkpoints: folder of the last and the best checkpoint.
        title: of the progress bar.
    """
    quieten_lightning()
    # In place and all weights in one call; Lightning's EMAWeightAveraging makes three new tensors of every weight.
    average = WeightAveraging(multi_avg_fn=partial(_average, 1 - 1 / max(ema_span * steps, 1)))
    timer = Timer()
    best = ModelCheckpoint(
        dirpath=checkpoints,
        filename="best",
        monitor="val/map",
        mode="max",
        save_last=True,
        enable_version_counter=False,
    )
    trainer = pl.Trainer(
        default_root_dir=checkpoints,
        accelerator=accelerator,
        devices=devices,
        # Spawned, the other processes do training only, and the cell's files and run stay with this one.
        strategy="ddp_spawn" if devices > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
        max_steps=steps,
        gradient_clip_val=gradient_clip,
        num_sanity_val_steps=0,
        log_every_n_steps=log_every,
        use_distributed_sampler=False,
        enable_model_summary=False,
        logger=logger or False,
        callbacks=[average, best, timer, StepsBar(title)],
    )
    last = checkpoints / "last.ckpt"
    if last.exists():
        log.info("going on from %s", last)
    module.compile_network = compile_network
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    done, seconds = trainer.global_step, timer.time_elapsed("train")
    if devices > 1:  # what spawned processes counted is in their last checkpoint
        content = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
        done, seconds = content["global_step"], content["callbacks"]["Timer"]["time_elapsed"]["train"]
    if done < steps:
        raise RuntimeError(f"training stopped at step {done} of {steps}")
    chosen = DetectorModule.load_from_checkpoint(checkpoints / "best.ckpt", map_location="cpu", weights_only=True)
    return Trained(float(seconds), chosen)


def _average(decay: float, *arguments: Any) -> None:
    """`get_ema_multi_avg_fn`, whose own result cannot be sent to the process of another device."""
    get_ema_multi_avg_fn(decay)(*arguments)  # type: ignore[no-untyped-call]


class StepsBar(ProgressBar):
    """One bar over all optimiser steps of a cell; Lightning's own starts anew after every validation."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self._bar: tqdm[Any] | None = None

    def disable(self) -> None:
        """Not asked for: the bar is short and stays on."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc=self._title,
            unit="step",
            disable=not trainer.is_global_zero,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any, **keywords: Any) -> None:  # noqa: ARG002
        assert self._bar is not None
        self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        figures = trainer.callback_metrics
        if self._bar is not None and "val/map_50" in figures:
            self._bar.set_postfix_str(f"val AP50 {float(figures['val/map_50']):.3f}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        if self._bar is not None:
            self._bar.close()


def quieten_lightning() -> None:
    """Leave out Lightning's hints at other products and hardware that is not there, and its lists of GPUs."""
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "lightning.pytorch.utilities.rank_zero",
        "pytorch_lightning.accelerators.cuda",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 asks torch 2.13 for a class that goes away later; nothing a user can act on.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    # Going on from a checkpoint is what the folder is for.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
