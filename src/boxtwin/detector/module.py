"""The detector as a LightningModule: glue between network, loss, decoding and evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Detections
from boxtwin.detector.decode import boxes_and_scores
from boxtwin.detector.loss import Crowds, Losses, detection_loss
from boxtwin.detector.network import Raw, YOLOv3, folded
from boxtwin.detector.nms import DETECTIONS, detections_in_file, merge_tiles
from boxtwin.detector.options import LossOptions, ObjectnessTarget, Optimizer, OptimizerOptions
from boxtwin.detector.predict import BoxesAndScores, Compute, detect_objects
from boxtwin.detector.spec import NetworkSpec
from boxtwin.evaluation.coco_metrics import coco_by_class
from boxtwin.evaluation.matching import match_detections
from boxtwin.mixing.datamodule import Batch

WEIGHT_DECAY = 0.05  # of convolution weights
SGD_MOMENTUM = 0.9  # Darknet's yolov3.cfg
FINAL_RATE = 0.01  # share of the learning rate at which the cosine ends: the last steps still learn a little
# Arguments whose plain values in files are of another type.
TYPES = {"classes": tuple, "category_ids": tuple, "objectness_target": ObjectnessTarget, "optimizer": Optimizer}
# Arguments of older versions, which are in their files and make no difference to a trained network.
RETIRED = {
    *("anchors_per_object", "box_loss", "box_weight", "channels_last", "class_weight", "coco_evaluator"),
    *("focal_gamma", "freeze", "ignore_iou", "objectness_weight", "weight_decay"),
}


class DetectorModule(pl.LightningModule):
    """YOLOv3 with its training recipe. Checkpoints hold all arguments as plain values (see `from_values`).

    Args:
        spec: the network, its input and its postprocessing.
        anchors: for each head, coarsest first, (width, height) in pixels at ``spec.image_size``.
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
        # By class, as options may be of a subclass.
        parts = ((spec, NetworkSpec), (loss, LossOptions), (optimizer, OptimizerOptions))
        values = {field.name: getattr(part, field.name) for part, kind in parts for field in fields(kind)}
        # Lists for tuples and strings for enums: the safe loader of checkpoints takes nothing else.
        plain = json.loads(json.dumps(values | {"anchors": self.network.anchors, "steps": steps}))
        self.save_hyperparameters(plain)
        self.compile_network = False
        self._validation: list[tuple[int, Detections]] = []

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> DetectorModule:
        """Build a module from the plain values of a checkpoint; what older files lack has its default.

        A missing or unknown value raises `TypeError` or `KeyError`, a wrong one `ValueError`.
        """
        values = {name: TYPES[name](value) if name in TYPES else value for name, value in values.items()}
        of_spec, of_loss, of_optimizer = (
            {field.name: values[field.name] for field in fields(kind) if field.name in values}
            for kind in (NetworkSpec, LossOptions, OptimizerOptions)
        )
        if unknown := set(values) - {*RETIRED, "anchors", "steps", *of_spec, *of_loss, *of_optimizer}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        loss, optimizer = LossOptions(**of_loss), OptimizerOptions(**of_optimizer)
        return cls(NetworkSpec(**of_spec), values["anchors"], loss=loss, optimizer=optimizer, steps=values["steps"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; label ``i`` is ``classes[i]``."""
        return self.spec.classes

    def forward(self, images: Float[Tensor, "batch _channels height width"]) -> Raw:
        """Images in [0, 1] -> raw maps (see `YOLOv3`)."""
        return self.network(images.contiguous(memory_format=torch.channels_last))

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
        crowds = Crowds(batch.crowds, batch.crowd_image)
        return detection_loss(raw, batch.boxes, batch.labels, batch.box_image, anchors, strides, self.loss, crowds)

    def compute(
        self, images: Float[Tensor, "batch _channels height width"], network: Callable[[Tensor], Raw] | None = None
    ) -> BoxesAndScores:
        """Images in [0, 1], on the device -> boxes and scores, of ``network`` if it is another form of this network."""
        anchors, strides = self.network.anchors, self.network.strides
        with torch.no_grad():
            raw = (network or self)(images.contiguous(memory_format=torch.channels_last))
            boxes, scores = boxes_and_scores(raw, anchors, strides, scale_xy=self.loss.scale_xy)
        return boxes.cpu().numpy(), scores.cpu().numpy()

    def detect(self, batch: Batch) -> list[tuple[int, Detections]]:
        """(image id, detections in pixels of the image file) of every image or tile of a batch; see `compute`."""
        boxes, scores = self.compute(batch.images)
        letterboxed = zip(boxes, scores, batch.letterbox, strict=True)
        detections = (detections_in_file(*outputs, self.spec) for outputs in letterboxed)
        return list(zip(batch.image_ids, detections, strict=True))

    def on_device(self, device: str) -> Compute:
        """What `detect_objects` takes. Batch normalisation is folded: the same as `compute` gives, up to rounding."""
        network = folded(self.network).to(device)
        return lambda images: self.compute(torch.from_numpy(images).to(device), network)

    def detect_all(
        self, images: Iterable[tuple[int, Pixels]], device: str, spec: NetworkSpec | None = None
    ) -> dict[int, Detections]:
        """Detections by image id, from pixels as they are read; what `count.py` and a served model find as well.

        The latter know thresholds, in ``spec``, and leave out no detection above them (`always_kept`).
        """
        compute, spec = self.on_device(device), spec or self.spec
        return {image_id: detect_objects(pixels, spec, compute) for image_id, pixels in images}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Collect detections; the metrics come at the end of the epoch."""
        self._validation += self.detect(batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/map`` and ``val/map_50`` against the ``validation_samples`` of the datamodule."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise ValueError("validation needs a datamodule with `validation_samples`, the ground truth")
        detections, self._validation = merge_tiles(self._validation, self.spec), []
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

        Lightning refuses to for fused optimisers in mixed precision, because they undo a gradient scaler's scale by
        themselves. With bfloat16 there is none; with float16 `configure_optimizers` takes no fused form.
        """
        if gradient_clip_val:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser, and linear warm-up with cosine decay step by step."""
        steps, warmup, parameters = self.steps, self.optimizer.warmup_steps, list(self.parameters())
        groups = [
            # Vectors are biases and batch normalisation; decay there only disturbs their statistics.
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        fused = self.trainer.precision != "16-mixed" and self.device.type in ("cpu", "cuda")
        rate = self.optimizer.learning_rate
        optimizer: torch.optim.Optimizer
        if self.optimizer.optimizer is Optimizer.adamw:
            optimizer = torch.optim.AdamW(groups, lr=rate, fused=fused)
        else:
            optimizer = torch.optim.SGD(groups, lr=rate, momentum=SGD_MOMENTUM, nesterov=True, fused=fused)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            progress = min(1.0, (step - warmup) / (steps - warmup))
            return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
