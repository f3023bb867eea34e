import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from boxtwin.boxes import iou_matrix, xyxy_to_xywh
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.detector.anchors import group_anchors, kmeans_anchors
from boxtwin.detector.module import DetectorModule
from boxtwin.hardware import has_bfloat16
from boxtwin.mixing.datamodule import Batch
from boxtwin.mixing.letterbox import Letterbox

SIZE = 128
Image = tuple[np.ndarray, np.ndarray, np.ndarray]  # pixels, boxes, labels


def draw_images(count: int, classes: int, seed: int) -> list[Image]:
    """Bright rectangles that do not touch each other on a noisy ground; each class has its colour."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        pixels = random.normal(0.2, 0.05, (SIZE, SIZE, 3)).clip(0, 1).astype(np.float32)
        boxes = np.zeros((0, 4))
        labels: list[int] = []
        while len(boxes) < 5:
            left, top = random.integers(0, SIZE - 40, 2)
            width, height = random.integers(8, 40, 2)
            box = np.array([[left, top, left + width, top + height]], dtype=np.float64)
            if (iou_matrix(box + np.array([-3, -3, 3, 3]), boxes) > 0).any():
                continue
            label = int(random.integers(classes))
            pixels[top : top + height, left : left + width] = 0.3
            pixels[top : top + height, left : left + width, label % 3] = 0.9
            boxes, labels = np.concatenate((boxes, box)), [*labels, label]
        images.append((np.rint(pixels * 255).astype(np.float32) / 255, boxes, np.array(labels)))
    return images


def collate(items: list[tuple[int, Image]]) -> Batch:
    boxes = [image[1] for _, image in items]
    return Batch(
        images=torch.stack([torch.from_numpy(image[0]).permute(2, 0, 1) for _, image in items]),
        boxes=torch.from_numpy(np.concatenate(boxes)).float(),
        labels=torch.from_numpy(np.concatenate([image[2] for _, image in items])),
        box_image=torch.tensor([place for place, b in enumerate(boxes) for _ in b], dtype=torch.long),
        crowds=torch.zeros(0, 4),
        crowd_image=torch.zeros(0, dtype=torch.long),
        image_ids=tuple(number for number, _ in items),
        letterbox=(Letterbox(SIZE, SIZE, 1.0, 0.0, 0.0),) * len(items),
    )


def loader(images: list[Image], repeats: int = 1) -> DataLoader[Batch]:
    numbered: Any = list(enumerate(images)) * repeats  # a list serves as a torch data set
    return DataLoader(numbered, batch_size=len(images), collate_fn=collate)


def as_read(images: list[Image]) -> list[tuple[int, np.ndarray]]:
    """The same images as an image file holds them."""
    return [(number, np.rint(pixels * 255).astype(np.uint8)) for number, (pixels, _, _) in enumerate(images)]


class Images(pl.LightningDataModule):
    def __init__(self, images: list[Image]) -> None:
        super().__init__()
        self.images = images

    def train_dataloader(self) -> DataLoader[Batch]:
        return loader(self.images)

    def val_dataloader(self) -> DataLoader[Batch]:
        return loader(self.images)

    @property
    def validation_samples(self) -> list[Sample]:
        return [
            Sample(
                name=f"{number}.png",
                path=Path(f"{number}.png"),
                width=SIZE,
                height=SIZE,
                image_id=number,
                boxes=boxes,
                labels=labels,
                areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
                crowd=np.zeros(len(boxes), dtype=bool),
            )
            for number, (_, boxes, labels) in enumerate(self.images)
        ]


def make_module(images: list[Image], classes: int, steps: int, **arguments: Any) -> DetectorModule:
    sizes = np.concatenate([boxes[:, 2:] - boxes[:, :2] for _, boxes, _ in images])
    recipe: dict[str, Any] = {
        "architecture": "yolov3_nano",
        "classes": [f"class {number}" for number in range(classes)],
        "category_ids": [10 * number + 3 for number in range(classes)],
        "anchors": group_anchors(kmeans_anchors(sizes, 4, np.random.default_rng(0)), 2),
        "image_size": SIZE,
        "white": 255,
        "learning_rate": 2e-3,
        "steps": steps,
        "warmup_steps": min(10, steps - 1),
    }
    return DetectorModule.from_values(recipe | arguments)


def make_trainer(steps: int, folder: Path, *callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "gradient_clip_val": 10.0,
    }
    return pl.Trainer(max_steps=steps, default_root_dir=folder, callbacks=list(callbacks), **quiet | arguments)


# A user's own pipelines have workers; these four images need none.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    # A run resumed into another folder, so that the two do not write over each other.
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    # Some tests only train.
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`:UserWarning"),
    # Frozen convolutions, on purpose.
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*is deprecated:FutureWarning"),
]


def average_precision(
    images: list[Image], found: dict[int, Detections], category_ids: list[int]
) -> tuple[float, float]:
    """AP and AP50 by pycocotools alone."""
    truth = {
        "images": [{"id": number, "width": SIZE, "height": SIZE} for number in range(len(images))],
        "categories": [{"id": number} for number in category_ids],
        "annotations": [],
    }
    for number, (_, boxes, labels) in enumerate(images):
        for box, label in zip(xyxy_to_xywh(boxes).tolist(), labels, strict=True):
            entry = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": category_ids[label]}
            truth["annotations"].append(entry | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    results = [
        {"image_id": number, "category_id": category_ids[label], "bbox": box, "score": score}
        for number, image in found.items()
        for box, score, label in zip(xyxy_to_xywh(image.boxes).tolist(), image.scores, image.labels, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


EMULATED = pytest.mark.skipif(
    not has_bfloat16("cpu"), reason="this processor has no bfloat16; emulated, it takes a minute"
)


@pytest.mark.parametrize(("classes", "precision"), [(1, "32-true"), pytest.param(3, "bf16-mixed", marks=EMULATED)])
def test_four_images_are_learnt_by_heart(classes: int, precision: str, tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    images = draw_images(4, classes, seed=classes)
    steps = 120
    module = make_module(images, classes, steps)
    # The average spans 10 steps: over too many of them, weights and batch statistics of a short run no longer match.
    trainer = make_trainer(steps, tmp_path, EMAWeightAveraging(decay=0.9), precision=precision)
    trainer.fit(module, loader(images, repeats=30))
    found = module.eval().detect_all(as_read(images), "cpu")
    ap, ap50 = average_precision(images, found, list(module.spec.category_ids))
    assert ap50 > 0.95
    assert ap > 0.8
    for image in found.values():
        assert len(image.boxes) <= 300
        assert (np.diff(image.scores) <= 0).all()


def test_a_checkpoint_loads_by_itself_and_safely(tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    images = draw_images(2, 2, seed=0)
    data = Images(images)
    module = make_module(images, 2, steps=4)
    average = EMAWeightAveraging(decay=0.9)
    saver = ModelCheckpoint(tmp_path, monitor="val/map", mode="max", save_last=True)
    trainer = make_trainer(4, tmp_path, average, saver)
    trainer.fit(module, datamodule=data)
    assert {"train/loss", "train/box", "train/objectness", "train/class", "val/map", "val/map_50"} <= set(
        trainer.callback_metrics
    )

    path = tmp_path / "last.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["classes"] == ["class 0", "class 1"]
    again = DetectorModule.from_values(content["hyper_parameters"]).eval()
    again.load_state_dict(content["state_dict"])
    assert again.classes == module.classes
    assert again.network.anchors == module.network.anchors
    module.load_state_dict(content["state_dict"])
    batch = collate(list(enumerate(images)))
    module.eval()
    for (number, ours), (other, theirs) in zip(module.detect(batch), again.detect(batch), strict=True):
        assert number == other
        assert np.array_equal(ours.boxes, theirs.boxes)
        assert np.array_equal(ours.scores, theirs.scores)


def test_the_loss_is_written_down_as_often_as_asked_for(tmp_path: Path) -> None:
    images = draw_images(2, 1, seed=0)
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(6, tmp_path, logger=logger, log_every_n_steps=2)
    trainer.fit(make_module(images, 1, steps=6), loader(images, repeats=6))
    logger.save()
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    assert "train/loss" in lines[0].split(",")
    assert [int(line.split(",")[column]) for line in lines[1:]] == [1, 3, 5]


def test_predictions_follow_the_weights() -> None:
    images = draw_images(2, 1, seed=0)
    module = make_module(images, 1, steps=2)
    first = module.detect_all(as_read(images), "cpu")
    with torch.no_grad():
        for parameter in module.network.heads.parameters():
            parameter.add_(0.1)
    second = module.detect_all(as_read(images), "cpu")
    assert first[0].scores.tolist() != second[0].scores.tolist()
    ((_, plain), *_) = module.eval().detect(collate(list(enumerate(images))))
    np.testing.assert_allclose(second[0].scores, plain.scores, atol=1e-4)
    assert not any("folded" in name for name in module.state_dict())


def test_a_run_resumes_where_it_was_stopped(tmp_path: Path) -> None:
    images = draw_images(2, 1, seed=0)

    def run(folder: Path, steps: int, resume: Path | None) -> DetectorModule:
        pl.seed_everything(0, verbose=False)
        module = make_module(images, 1, steps=6)
        saver = ModelCheckpoint(folder, save_last=True)
        trainer = make_trainer(steps, folder, EMAWeightAveraging(decay=0.9), saver, limit_val_batches=0)
        trainer.fit(module, datamodule=Images(images), ckpt_path=resume, weights_only=True)
        return module

    straight = run(tmp_path / "straight", 6, None)
    run(tmp_path / "stopped", 3, None)
    resumed = run(tmp_path / "resumed", 6, tmp_path / "stopped" / "last.ckpt")
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_rate_warms_up_and_follows_a_cosine(tmp_path: Path) -> None:
    images = draw_images(1, 1, seed=0)
    module = make_module(images, 1, steps=20, warmup_steps=5, learning_rate=0.1)
    trainer = make_trainer(20, tmp_path)
    module.trainer = trainer
    configured: Any = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert np.allclose(rates[:6], 0.1 * np.arange(1, 7) / 6)
    assert (np.diff(rates[5:]) < 0).all()
    assert rates[-1] < 0.004


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_vectors_do_not_decay(name: str, tmp_path: Path) -> None:
    module = make_module(draw_images(1, 1, seed=0), 1, steps=2, optimizer=name)
    module.trainer = make_trainer(2, tmp_path)
    kernels, vectors = module.configure_optimizers()["optimizer"].param_groups
    assert kernels["weight_decay"] == 0.05
    assert vectors["weight_decay"] == 0
    assert {parameter.ndim for parameter in kernels["params"]} == {4}
    assert {parameter.ndim for parameter in vectors["params"]} == {1}
    assert len(kernels["params"]) + len(vectors["params"]) == len(list(module.parameters()))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped(precision: str, tmp_path: Path) -> None:
    sizes = []

    class Watched(DetectorModule):
        def configure_gradient_clipping(
            self, optimizer: torch.optim.Optimizer, *arguments: Any, **options: Any
        ) -> None:
            super().configure_gradient_clipping(optimizer, *arguments, **options)
            flat = torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None])
            sizes.append(flat.norm().item())

    images = draw_images(2, 1, seed=0)
    trainer = make_trainer(3, tmp_path, precision=precision, gradient_clip_val=1e-3)
    module = Watched.from_values(make_module(images, 1, steps=3).hparams)
    trainer.fit(module, loader(images, repeats=3))
    assert len(sizes) == 3
    assert max(sizes) < 1.01e-3


def test_batches_without_objects_train(tmp_path: Path) -> None:
    images = [(pixels, np.zeros((0, 4)), np.zeros(0, dtype=np.int64)) for pixels, _, _ in draw_images(2, 1, seed=0)]
    module = make_module(draw_images(2, 1, seed=0), 1, steps=2)
    make_trainer(2, tmp_path).fit(module, loader(images, repeats=2))
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_validation_without_ground_truth_is_refused(tmp_path: Path) -> None:
    images = draw_images(1, 1, seed=0)
    with pytest.raises(ValueError, match="validation needs a datamodule"):
        make_trainer(1, tmp_path).validate(make_module(images, 1, steps=2), loader(images), verbose=False)


@pytest.mark.parametrize(("limit", "expected"), [(300, 51 / 101), (400, 1.0)])
def test_weights_for_full_images_are_chosen_by_all_their_objects(limit: int, expected: float, tmp_path: Path) -> None:
    corner = np.stack(np.meshgrid(np.arange(20), np.arange(10)), axis=-1).reshape(-1, 2) * 3.0
    boxes, labels = np.concatenate([corner, corner + 2], axis=1), np.zeros(200, dtype=np.int64)
    images = [(draw_images(1, 1, seed=0)[0][0], boxes, labels)]

    class Seer(DetectorModule):
        def detect(self, batch: Batch, network: object = None) -> list[tuple[int, Detections]]:  # noqa: ARG002
            return [(0, Detections(boxes, np.linspace(1, 0.5, 200), labels))]

    seer = Seer.from_values(make_module(images, 1, steps=2, max_detections=limit).hparams)
    (metrics,) = make_trainer(1, tmp_path).validate(seer, datamodule=Images(images), verbose=False)
    assert metrics["val/map"] == pytest.approx(expected)  # COCO's AP sees 100 of the 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_ids": [1]}, "2 classes need as many category ids, got 1"),
        ({"warmup_steps": 9}, "got 9 of 4 steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_arguments_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(draw_images(1, 1, seed=0), 2, steps=4, **change)
