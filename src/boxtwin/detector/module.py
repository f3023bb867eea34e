"""The detector as a LightningModule: glue between network, loss, decoding and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from boxtwin.datasets.batch import Batch
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.sample import Detections
from boxtwin.detector.assign import AnchorsPerObject, CellsPerObject
from boxtwin.detector.decode import detect
from boxtwin.detector.loss import BoxLoss, ObjectnessTarget, detection_loss
from boxtwin.detector.network import Architecture, Raw, YOLOv3, folded
from boxtwin.detector.nms import DETECTIONS, merge_tiles
from boxtwin.evaluation.coco_metrics import CocoEvaluator, coco_figures
from boxtwin.evaluation.matching import match_detections
from boxtwin.evaluation.metrics import coco_by_class

SGD_MOMENTUM = 0.9  # Darknet's yolov3.cfg
FINAL_RATE = 0.01  # share of the learning rate at which the cosine ends: the last steps still learn a little


class DetectorModule(pl.LightningModule):
    """YOLOv3 with its training recipe. A checkpoint holds all arguments as plain values and loads by itself.

    Under Lightning's ``EMAWeightAveraging`` let the average span about a tenth of the steps, a decay of
    ``1 - 10 / steps``: averages that reach back to early steps mix weights whose batch statistics do not fit each
    other, and AP collapses.

    Args:
        architecture: see `YOLOv3`.
        classes: class names; label ``i`` is ``classes[i]``.
        category_ids: the number that the COCO file gives each class.
        anchors: for each head, coarsest first, (width, height) in pixels at ``image_size``.
        image_size: what the longer side of an image is scaled to, pixels.
        tile: side of the squares that images are looked at in; None for whole images, in an ``image_size`` square.
        channels: 1 for grey images, 3 for colour.
        white, black: the pixel values that were scaled to 1 and 0 (255 and 0 for 8 bit); kept so that new images are
            scaled alike.
        reading: how image files became pixels, the fields of `Reading`, kept likewise; None where that is not known.
        learning_rate: at the end of the warm-up; then a cosine down to a hundredth of it.
        weight_decay: on convolution weights only, neither on biases nor on batch normalisation.
        steps: optimiser steps of the whole run, which the schedule spans; 0 for weights that stay as they are.
        warmup_steps: linear warm-up at the start.
        optimizer: "adamw" or "sgd" (momentum 0.9, Nesterov).
        box_loss: "ciou" or "mse".
        anchors_per_object, cells_per_object: see `assign`; three cells need a ``scale_xy`` of 2.
        scale_xy: how far centres reach beyond their cell (see `boxtwin.detector.decode`).
        objectness_target, ignore_iou, focal_gamma: see `detection_loss`.
        box_weight, objectness_weight, class_weight: weights of the loss terms.
        nms_iou: detections of one class that overlap by more are one.
        score_floor: detections below are dropped; low, because AP counts the whole precision-recall curve.
        max_detections: per image.
        freeze: number of first convolutions that are not trained.
        channels_last: memory format of the convolutions; the faster one on CPUs and GPUs with bfloat16.
        coco_evaluator: what computes the figures of a validation (see `coco_figures`).
    """

    def __init__(
        self,
        *,
        architecture: Architecture,
        classes: Sequence[str],
        category_ids: Sequence[int],
        anchors: Sequence[Sequence[Sequence[int | float]]],
        image_size: int,
        white: int,
        black: int = 0,
        reading: Mapping[str, Any] | None = None,  # noqa: ARG002 (kept with the others)
        channels: int = 3,
        tile: int | None = None,
        learning_rate: float,
        weight_decay: float,
        steps: int,
        warmup_steps: int,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        box_loss: BoxLoss = "ciou",
        objectness_target: ObjectnessTarget = "one",
        anchors_per_object: AnchorsPerObject = "iou_above",  # more positives pay where images are few
        cells_per_object: CellsPerObject = 1,
        scale_xy: float = 1.0,
        ignore_iou: float = 0.5,  # YOLOv3, section 2.1
        focal_gamma: float = 0.0,
        box_weight: float = 5.0,  # YOLOX (arXiv:2107.08430), whose loss is a mean per positive too
        objectness_weight: float = 1.0,
        class_weight: float = 1.0,
        nms_iou: float = 0.45,  # Darknet's detector.c
        score_floor: float = 0.001,
        max_detections: int = DETECTIONS,
        freeze: int = 0,
        channels_last: bool = True,
        coco_evaluator: CocoEvaluator = "faster",
    ) -> None:
        super().__init__()
        # Plain values only, whatever sequence types the caller has: the safe loader takes nothing else.
        classes = [str(name) for name in classes]
        category_ids = [int(number) for number in category_ids]
        anchors = [[[float(side) for side in anchor] for anchor in group] for group in anchors]
        if len(classes) != len(category_ids):
            raise ValueError(f"{len(classes)} classes need as many category ids, got {len(category_ids)}")
        if steps and not 0 <= warmup_steps < steps:
            raise ValueError(f"warm-up must be shorter than the run, got {warmup_steps} of {steps} steps")
        if learning_rate <= 0:
            raise ValueError(f"the learning rate must be above 0, got {learning_rate}")
        if scale_xy < 1 or (cells_per_object == 3 and scale_xy < 2):
            raise ValueError(
                f"scale_xy must be at least 1, and 2 for three cells an object; got {scale_xy} for {cells_per_object}"
            )
        for name, value, choices in (
            ("optimizer", optimizer, ("adamw", "sgd")),
            ("box_loss", box_loss, get_args(BoxLoss)),
            ("objectness_target", objectness_target, get_args(ObjectnessTarget)),
            ("cells_per_object", cells_per_object, get_args(CellsPerObject)),
            ("anchors_per_object", anchors_per_object, get_args(AnchorsPerObject)),
            ("coco_evaluator", coco_evaluator, get_args(CocoEvaluator)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is one of {choices}, got {value!r}")
        self.save_hyperparameters()
        self.network = YOLOv3(architecture, len(classes), anchors, channels)
        self.network.freeze(freeze)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = self.network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self._loss = partial(
            detection_loss,
            anchors=self.network.anchors,
            strides=self.network.strides,
            box_loss=box_loss,
            objectness_target=objectness_target,
            anchors_per_object=anchors_per_object,
            cells_per_object=cells_per_object,
            scale_xy=scale_xy,
            ignore_iou=ignore_iou,
            focal_gamma=focal_gamma,
            box_weight=box_weight,
            objectness_weight=objectness_weight,
            class_weight=class_weight,
        )
        self._detect = partial(
            detect,
            anchors=self.network.anchors,
            strides=self.network.strides,
            scale_xy=scale_xy,
            score_floor=score_floor,
            nms_iou=nms_iou,
            max_detections=max_detections,
        )
        self._merge = partial(merge_tiles, nms_iou=nms_iou, max_detections=max_detections)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.optimizer = optimizer
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids)
        self.image_size = image_size
        self.tile = tile
        self.levels = Levels(black, white)
        self.coco_evaluator = coco_evaluator
        self._validation: list[tuple[int, Detections]] = []
        self._folded: list[YOLOv3] = []  # in a list, out of nn.Module's sight: a copy is no part of the weights
        self.compile_network = False

    def forward(self, images: Float[Tensor, "batch _channels height width"]) -> Raw:
        """Images in [0, 1] -> raw maps (see `YOLOv3`)."""
        raw: Raw = self.network(images.contiguous(memory_format=self.memory_format))
        return raw

    def on_fit_start(self) -> None:
        """Compile the network where that is asked for: here, as a compiled network cannot be sent to a process."""
        if self.compile_network:
            self.network.compile()

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:  # noqa: ARG002
        """One step's loss."""
        losses = self._loss(self(batch.images), boxes=batch.boxes, labels=batch.labels, box_image=batch.box_image)
        # Only where the Trainer writes them down: Lightning's bookkeeping of numbers that nobody sees costs time too.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            terms = {
                "train/loss": losses.total,
                "train/box": losses.box,
                "train/objectness": losses.objectness,
                "train/class": losses.classes,
            }
            self.log_dict({name: value.detach() for name, value in terms.items()}, batch_size=len(batch.images))
        return losses.total

    def detect(self, batch: Batch) -> list[tuple[int, Detections]]:
        """(image id, detections in pixels of the image file) of every image of a batch."""
        return self._detections(self, batch)

    def _detections(self, network: Callable[[Tensor], Raw], batch: Batch) -> list[tuple[int, Detections]]:
        images = batch.images.contiguous(memory_format=self.memory_format)
        with torch.no_grad():
            found = self._detect(network(images), letterbox=batch.letterbox, file_size=batch.file_size, own=batch.own)
        return list(zip(batch.image_ids, found, strict=True))

    def merge(self, found: Iterable[tuple[int, Detections]]) -> dict[int, Detections]:
        """Detections of many batches by image id, the tiles of an image put together."""
        return self._merge(found)

    def on_predict_start(self) -> None:
        """Predict with batch normalisation folded into the convolutions (see `folded`)."""
        self._folded = [folded(self.network)]

    def on_predict_end(self) -> None:
        """Forget the folded copy: the weights may change."""
        self._folded = []

    def predict_step(self, batch: Batch, batch_idx: int) -> list[tuple[int, Detections]]:  # noqa: ARG002
        """As `detect`, up to rounding."""
        (network,) = self._folded
        return self._detections(network, batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's detections."""
        self._validation = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Collect detections; the figures come at the end of the epoch."""
        self._validation += self.detect(batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/map`` and ``val/map_50`` against the ``validation_samples`` of the datamodule."""
        if self.trainer.sanity_checking:  # sees a part of the images only
            return
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise ValueError("validation needs a datamodule with `validation_samples`, the ground truth")
        samples, found = datamodule.validation_samples, self.merge(self._validation)
        if self.hparams["max_detections"] > DETECTIONS:
            # Images fuller than COCO's AP looks at: it would call weights equal of which one finds twice as much.
            figures, _ = coco_by_class(match_detections(samples, found, len(self.classes)))
            figures |= {name: figures.get(f"{name}_unlimited", figures[name]) for name in ("map", "map_50")}
        else:
            figures = coco_figures(samples, found, self.category_ids, evaluator=self.coco_evaluator)
        # Every device looks at all images, each with its own batch statistics.
        self.log_dict({f"val/{name}": figures[name] for name in ("map", "map_50")}, batch_size=1, sync_dist=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says.

        Lightning refuses to clip for fused optimisers in mixed precision, because they undo a gradient scaler's scale
        by themselves. Without a scaler, as with bfloat16, there is nothing to undo; with one, `configure_optimizers`
        does not take the fused form.
        """
        if not gradient_clip_val:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser, and linear warm-up with cosine decay step by step."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            # Vectors are biases and batch normalisation; decay there only disturbs their statistics.
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ]
        fused = self.trainer.precision != "16-mixed" and self.device.type in ("cpu", "cuda")
        if self.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, fused=fused)
        else:
            optimizer = torch.optim.SGD(
                groups, lr=self.learning_rate, momentum=SGD_MOMENTUM, nesterov=True, fused=fused
            )
        steps, warmup = self.steps, self.warmup_steps

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            progress = min(1.0, (step - warmup) / (steps - warmup))
            return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
