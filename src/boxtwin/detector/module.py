"""The detector as a LightningModule: glue between network, loss, decoding and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from enum import Enum
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Float32
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from boxtwin.datasets.sample import Detections
from boxtwin.detector.decode import boxes_and_scores
from boxtwin.detector.loss import Losses, detection_loss
from boxtwin.detector.network import Raw, YOLOv3, folded
from boxtwin.detector.nms import DETECTIONS, detections_in_file, merge_tiles
from boxtwin.detector.options import LossOptions, Optimizer, OptimizerOptions
from boxtwin.detector.spec import NetworkSpec
from boxtwin.evaluation.coco_metrics import coco_by_class
from boxtwin.evaluation.matching import match_detections
from boxtwin.mixing.datamodule import Batch

WEIGHT_DECAY = 0.05  # of convolution weights
SGD_MOMENTUM = 0.9  # Darknet's yolov3.cfg
FINAL_RATE = 0.01  # share of the learning rate at which the cosine ends: the last steps still learn a little
# Arguments of older versions, which are in their files and make no difference to a trained network.
RETIRED = {
    *("box_loss", "box_weight", "channels_last", "class_weight", "coco_evaluator"),
    *("focal_gamma", "freeze", "ignore_iou", "objectness_weight", "weight_decay"),
}
Options = TypeVar("Options", LossOptions, OptimizerOptions)


class DetectorModule(pl.LightningModule):
    """YOLOv3 with its training recipe. Checkpoints hold all arguments as plain values (see `from_values`).

    Under Lightning's ``EMAWeightAveraging`` let the average span about a tenth of the steps, a decay of
    ``1 - 10 / steps``: averages that reach back to early steps mix weights whose batch statistics do not fit each
    other, and AP collapses.

    Args:
        spec: the network, its input and its postprocessing.
        anchors: for each head, coarsest first, (width, height) in pixels at ``spec.image_size``.
        loss: the training loss.
        optimizer: the optimiser and its schedule.
        steps: optimiser steps of the whole run, which the schedule spans; 0 for weights that stay as they are.

    Raises:
        ValueError: the warm-up is not shorter than the run, or network and anchors do not fit.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        anchors: Sequence[Sequence[Sequence[int | float]]],
        *,
        loss: LossOptions,
        optimizer: OptimizerOptions,
        steps: int,
    ) -> None:
        super().__init__()
        if steps and not 0 <= optimizer.warmup_steps < steps:
            raise ValueError(f"warm-up must be shorter than the run, got {optimizer.warmup_steps} of {steps} steps")
        self.network = YOLOv3(spec.architecture, len(spec.classes), anchors, spec.channels)
        self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.spec, self.loss, self.optimizer, self.steps = spec, loss, optimizer, steps
        values = asdict(spec) | _values(loss, LossOptions) | _values(optimizer, OptimizerOptions)
        self.save_hyperparameters(_plain(values | {"anchors": self.network.anchors, "steps": steps}))
        self.compile_network = False
        self._validation: list[tuple[int, Detections]] = []

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> DetectorModule:
        """Build a module from the plain values that a checkpoint holds; what older files lack has its default.

        Raises:
            TypeError: a value is missing or unknown.
            ValueError: a value is refused.
        """
        known = {field.name for kind in (NetworkSpec, LossOptions, OptimizerOptions) for field in fields(kind)}
        if unknown := set(values) - known - RETIRED - {"anchors", "steps"}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        of_spec = {field.name: values[field.name] for field in fields(NetworkSpec) if field.name in values}
        of_spec |= {name: tuple(values[name]) for name in ("classes", "category_ids")}
        return cls(
            NetworkSpec(**of_spec),
            values["anchors"],
            loss=_options(LossOptions, values),
            optimizer=_options(OptimizerOptions, values),
            steps=values["steps"],
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; label ``i`` is ``classes[i]``."""
        return self.spec.classes

    def forward(self, images: Float[Tensor, "batch _channels height width"]) -> Raw:
        """Images in [0, 1] -> raw maps (see `YOLOv3`)."""
        raw: Raw = self.network(images.contiguous(memory_format=torch.channels_last))
        return raw

    def on_fit_start(self) -> None:
        """Compile the network where that is asked for: here, as a compiled network cannot be sent to a process."""
        if self.compile_network:
            self.network.compile()

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:  # noqa: ARG002
        """One step's loss."""
        losses = self.losses(self(batch.images), batch)
        # Only where the Trainer writes them down: Lightning's bookkeeping of numbers that nobody sees costs time too.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            names = ("train/loss", "train/box", "train/objectness", "train/class")
            terms = {name: value.detach() for name, value in zip(names, losses, strict=True)}
            self.log_dict(terms, batch_size=len(batch.images))
        return losses.total

    def losses(self, raw: Raw, batch: Batch) -> Losses:
        """The loss of raw maps, and its terms."""
        anchors, strides = self.network.anchors, self.network.strides
        return detection_loss(raw, batch.boxes, batch.labels, batch.box_image, anchors, strides, self.loss)

    def compute(
        self, images: Float[Tensor, "batch _channels height width"], network: Callable[[Tensor], Raw] | None = None
    ) -> tuple[Float32[np.ndarray, "batch places 4"], Float32[np.ndarray, "batch places classes"]]:
        """Images in [0, 1] -> boxes (xyxy, pixels of the network input) and scores.

        Args:
            images: on the device of the network.
            network: another form of this network; None for itself.
        """
        anchors, strides = self.network.anchors, self.network.strides
        with torch.no_grad():
            raw = (network or self)(images.contiguous(memory_format=torch.channels_last))
            boxes, scores = boxes_and_scores(raw, anchors, strides, scale_xy=self.loss.scale_xy)
        return boxes.cpu().numpy(), scores.cpu().numpy()

    def detect(self, batch: Batch, network: Callable[[Tensor], Raw] | None = None) -> list[tuple[int, Detections]]:
        """(image id, detections in pixels of the image file) of every image or tile of a batch; see `compute`."""
        boxes, scores = self.compute(batch.images, network)
        return [
            (image_id, detections_in_file(boxes[place], scores[place], letterbox, self.spec))
            for place, (image_id, letterbox) in enumerate(zip(batch.image_ids, batch.letterbox, strict=True))
        ]

    def detect_all(self, batches: Iterable[Batch], device: str) -> dict[int, Detections]:
        """Detections by image id. Batch normalisation is folded: the same as `detect` gives, up to rounding."""
        network = folded(self.network).to(device)
        moved = (batch._replace(images=batch.images.to(device)) for batch in batches)
        return merge_tiles((pair for batch in moved for pair in self.detect(batch, network)), self.spec)

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's detections."""
        self._validation = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Collect detections; the metrics come at the end of the epoch."""
        self._validation += self.detect(batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/map`` and ``val/map_50`` against the ``validation_samples`` of the datamodule."""
        if self.trainer.sanity_checking:  # sees a part of the images only
            return
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise ValueError("validation needs a datamodule with `validation_samples`, the ground truth")
        detections = merge_tiles(self._validation, self.spec)
        matching = match_detections(datamodule.validation_samples, detections, len(self.classes), {"all": None})
        metrics, _ = coco_by_class(matching)
        if self.spec.max_detections > DETECTIONS:
            # Images fuller than COCO's AP looks at: it would call weights equal of which one finds twice as much.
            metrics |= {name: metrics.get(f"{name}_unlimited", metrics[name]) for name in ("map", "map_50")}
        # Every device looks at all images, each with its own batch statistics.
        self.log_dict({f"val/{name}": metrics[name] for name in ("map", "map_50")}, batch_size=1, sync_dist=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002 (always the norm)
    ) -> None:
        """Clip the norm of the gradients.

        Lightning refuses to clip for fused optimisers in mixed precision, because they undo a gradient scaler's scale
        by themselves. Without a scaler, as with bfloat16, there is nothing to undo; with one, `configure_optimizers`
        does not take the fused form.
        """
        if gradient_clip_val:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser, and linear warm-up with cosine decay step by step."""
        options = self.optimizer
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            # Vectors are biases and batch normalisation; decay there only disturbs their statistics.
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ]
        fused = self.trainer.precision != "16-mixed" and self.device.type in ("cpu", "cuda")
        rate, optimizer = options.learning_rate, options.optimizer
        made: torch.optim.Optimizer
        if optimizer is Optimizer.adamw:
            made = torch.optim.AdamW(groups, lr=rate, fused=fused)
        else:
            made = torch.optim.SGD(groups, lr=rate, momentum=SGD_MOMENTUM, nesterov=True, fused=fused)
        steps, warmup = self.steps, options.warmup_steps

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            progress = min(1.0, (step - warmup) / (steps - warmup))
            return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(made, factor)
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _values(options: Options, kind: type[Options]) -> dict[str, Any]:
    """The fields of ``kind``, of which ``options`` may be a subclass."""
    return {field.name: getattr(options, field.name) for field in fields(kind)}


def _options(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """The inverse of `_values`, from plain values."""
    known: dict[str, Any] = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    enums = {field.name: type(field.default) for field in fields(kind) if isinstance(field.default, Enum)}
    return kind(**known | {name: enums[name](value) for name, value in known.items() if name in enums})


def _plain(value: Any) -> Any:
    """With lists for tuples and strings for enums: the safe loader of checkpoints takes nothing else."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Enum) else value
