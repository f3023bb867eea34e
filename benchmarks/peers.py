"""YOLOv3-tiny here beside other packages that have it: seconds of a training step and of looking at an image.

    python benchmarks/peers.py --image-size 416 --batch-size 8

Measured is what is installed; what is missing is said. None of the other packages is a dependency of this project, and
none is needed to run this script's own part. They are run as they are through their public calls, nothing of theirs is
used: Ultralytics' package is AGPL-3.0, PyTorch-YOLOv3 (pip name pytorchyolo) is GPL-3.0. Both bring torchvision and
another OpenCV, and may exchange torch and numpy: give each an environment of its own, with this project in it.

    pip install ultralytics
    pip install pytorchyolo     # and a Darknet file: --darknet-cfg yolov3-tiny.cfg

A package trains with its own recipe (augmentation, loss, optimiser), and its step is the difference between a run of
three epochs and one of one epoch; so it holds the loading of images, which the step here does not. Looking at images
goes from a numpy image in memory to boxes, NMS included, one image at a time, on random weights at a confidence floor
of 0.25.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from boxtwin.datasets.batch import Batch
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.yolov3 import PUBLISHED_ANCHORS

CLASSES = 1
FLOOR = 0.25


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall-seconds of a call, after one that does not count."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def own_module(size: int) -> DetectorModule:
    """YOLOv3-tiny as `detector=yolov3_tiny` makes it, on colour images."""
    scale = size / 416  # the size that the anchors are published for
    return DetectorModule(
        architecture="yolov3_tiny",
        classes=["object"],
        category_ids=[1],
        anchors=[[[w * scale, h * scale] for w, h in head] for head in PUBLISHED_ANCHORS["yolov3_tiny"]],
        image_size=size,
        white=255,
        learning_rate=1e-3,
        weight_decay=5e-4,
        steps=1000,
        warmup_steps=10,
        score_floor=FLOOR,
    )


def random_batch(images: np.ndarray, objects: int) -> Batch:
    """Images as they come out of a datamodule, each with ``objects`` random boxes."""
    n, size = images.shape[:2]
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.7 * size, (n * objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.3, (n * objects, 2)) * size], axis=1)
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255,
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        labels=torch.zeros(n * objects, dtype=torch.int64),
        box_image=torch.arange(n).repeat_interleave(objects),
        image_ids=torch.arange(n),
        letterbox=torch.tensor([[1.0, 0.0, 0.0]]).repeat(n, 1),
        file_size=torch.tensor([[size, size]]).repeat(n, 1),
        own=torch.tensor([[0.0, 0.0, float(size), float(size)]]).repeat(n, 1),
    )


def measure_own(images: np.ndarray, repeats: int, bfloat16: bool) -> tuple[float, float]:
    """Seconds of a training step (forward, loss, backward, AdamW) and of one image from pixels to boxes."""
    module = own_module(images.shape[1])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    batch = random_batch(images, objects=5)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = module.training_step(batch, 0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*self\.log.*")  # there is no Trainer to log to, and none is needed
        trained = seconds(step, repeats)
    module.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        looked = seconds(lambda: module.detect(random_batch(images[:1], objects=0)), repeats)
    return trained, looked


def measure_ultralytics(images: np.ndarray, repeats: int) -> tuple[float, float]:
    """The same of Ultralytics' package, through its documented Python calls."""
    from ultralytics import YOLO  # type: ignore[import-not-found]

    size, per_epoch = images.shape[1], 4
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rng = np.random.default_rng(0)
        for side, count in (("train", per_epoch * len(images)), ("val", 1)):
            (root / "images" / side).mkdir(parents=True)
            (root / "labels" / side).mkdir(parents=True)
            for number in range(count):
                cv2.imwrite(str(root / "images" / side / f"{number}.png"), images[number % len(images)])
                lines = [f"0 {x:.4f} {y:.4f} 0.1 0.1" for x, y in rng.uniform(0.2, 0.8, (5, 2))]
                (root / "labels" / side / f"{number}.txt").write_text("\n".join(lines))
        (root / "data.yaml").write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames:\n  0: object\n")

        def train(epochs: int) -> float:
            started = time.perf_counter()
            YOLO("yolov3-tiny.yaml").train(
                data=str(root / "data.yaml"),
                epochs=epochs,
                imgsz=size,
                batch=len(images),
                device="cpu",
                workers=0,
                val=False,
                plots=False,
                project=str(root / "runs"),
                exist_ok=True,
                verbose=False,
            )
            return time.perf_counter() - started

        train(1)
        trained = statistics.median((train(3) - train(1)) / (2 * per_epoch) for _ in range(min(repeats, 3)))
    model = YOLO("yolov3-tiny.yaml")
    looked = seconds(lambda: model.predict(images[0], imgsz=size, conf=FLOOR, device="cpu", verbose=False), repeats)
    return trained, looked


def measure_pytorchyolo(images: np.ndarray, repeats: int, darknet_cfg: Path) -> float:
    """Seconds of one image from pixels to boxes; it documents no call for a training step."""
    from pytorchyolo import detect, models  # type: ignore[import-not-found]

    model = models.load_model(str(darknet_cfg))
    return seconds(lambda: detect.detect_image(model, images[0], img_size=images.shape[1], conf_thres=FLOOR), repeats)


def main() -> None:
    """Measure what is there, say what is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--bfloat16", action="store_true", help="train and look in bfloat16 here; the others choose")
    parser.add_argument("--darknet-cfg", type=Path, default=None, help="yolov3-tiny.cfg, for pytorchyolo")
    settings = parser.parse_args()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    size = settings.image_size
    images = np.random.default_rng(0).integers(0, 256, (settings.batch_size, size, size, 3), dtype=np.uint8)

    rows: list[tuple[str, str, str]] = []
    left_out: list[str] = []
    trained, looked = measure_own(images, settings.repeats, settings.bfloat16)
    rows.append((f"boxtwin, {'bfloat16' if settings.bfloat16 else 'float32'}", f"{trained:.3f}", f"{looked:.3f}"))
    if importlib.util.find_spec("ultralytics") is None:
        left_out.append("ultralytics: not installed (pip install ultralytics; AGPL-3.0, needs torchvision)")
    else:
        trained, looked = measure_ultralytics(images, settings.repeats)
        rows.append(("ultralytics yolov3-tiny", f"{trained:.3f}", f"{looked:.3f}"))
    if importlib.util.find_spec("pytorchyolo") is None:
        left_out.append("pytorchyolo: not installed (pip install pytorchyolo; GPL-3.0, needs torchvision)")
    elif settings.darknet_cfg is None:
        left_out.append("pytorchyolo: needs --darknet-cfg yolov3-tiny.cfg")
    else:
        looked = measure_pytorchyolo(images, settings.repeats, settings.darknet_cfg)
        rows.append(("pytorchyolo", "no documented call", f"{looked:.3f}"))
    print(f"YOLOv3-tiny, {size} pixels, {CLASSES} class, {torch.get_num_threads()} thread(s), CPU\n")
    print(f"| package | seconds a training step of {settings.batch_size} images | seconds an image |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    if left_out:
        print("\nNot run:")
        for line in left_out:
            print(f"  {line}")


if __name__ == "__main__":
    main()
