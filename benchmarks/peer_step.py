"""One package's network: CPU-seconds of a training step and of a forward pass, printed as JSON. Run by peers.py.

It imports nothing but torch, numpy and the package measured, so that each can have an environment of its own. The
others are called as they are through their public names; nothing of theirs is used in this project.
"""

import argparse
import json
import time
from argparse import Namespace
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

Loss = Callable[[], torch.Tensor]
OBJECTS = 5  # an image


def boxes(count: int) -> torch.Tensor:
    """Random boxes for every image, (count, OBJECTS, 4), centre and size as shares of the image."""
    rng = np.random.default_rng(0)
    centre, size = rng.uniform(0.3, 0.7, (count, OBJECTS, 2)), rng.uniform(0.05, 0.3, (count, OBJECTS, 2))
    return torch.tensor(np.concatenate([centre, size], axis=2), dtype=torch.float32)


def ultralytics(settings: Namespace, images: torch.Tensor) -> tuple[nn.Module, Loss]:
    """Network and loss of Ultralytics' package (AGPL-3.0), with one class."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    name = {"yolov3_tiny": "yolov3-tiny.yaml", "yolov3": "yolov3.yaml"}[settings.architecture]
    network = DetectionModel(name, nc=1, verbose=False)
    network.args = get_cfg()
    count = len(images)
    batch = {
        "img": images,
        "cls": torch.zeros(count * OBJECTS, 1),
        "bboxes": boxes(count).flatten(0, 1),
        "batch_idx": torch.arange(count).repeat_interleave(OBJECTS).float(),
    }
    return network, lambda: network(batch)[0].sum()


def pytorchyolo(settings: Namespace, images: torch.Tensor) -> tuple[nn.Module, Loss]:
    """Network and loss of PyTorch-YOLOv3 (GPL-3.0), built from a Darknet file."""
    from pytorchyolo.models import load_model
    from pytorchyolo.utils.loss import compute_loss

    network = load_model(settings.cfg)
    count = len(images)
    number = torch.arange(count).repeat_interleave(OBJECTS)[:, None].float()
    targets = torch.cat([number, torch.zeros_like(number), boxes(count).flatten(0, 1)], dim=1)
    return network, lambda: compute_loss(network(images), targets, network)[0]


def boxtwin(settings: Namespace, images: torch.Tensor) -> tuple[nn.Module, Loss]:
    """Network and loss of this project."""
    from boxtwin.detector.loss import detection_loss
    from boxtwin.detector.module import DetectorModule
    from boxtwin.detector.network import PUBLISHED_ANCHORS
    from boxtwin.detector.options import LossOptions, OptimizerOptions
    from boxtwin.detector.spec import NetworkSpec
    from boxtwin.memory import keep_freed_blocks

    keep_freed_blocks()
    module = DetectorModule(
        NetworkSpec(
            architecture=settings.architecture,
            classes=("object",),
            category_ids=(1,),
            image_size=images.shape[2],
            white=255,
        ),
        PUBLISHED_ANCHORS[settings.architecture],
        loss=LossOptions(),
        optimizer=OptimizerOptions(learning_rate=1e-3, warmup_steps=10),
        steps=1000,
    )
    count, side = len(images), images.shape[2]
    shares = boxes(count).flatten(0, 1)
    corners = torch.cat([shares[:, :2] - shares[:, 2:] / 2, shares[:, :2] + shares[:, 2:] / 2], dim=1) * side
    labels = torch.zeros(count * OBJECTS, dtype=torch.int64)
    owner = torch.arange(count).repeat_interleave(OBJECTS)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            raw = module(images)
        anchors, strides = module.network.anchors, module.network.strides
        return detection_loss(raw, corners, labels, owner, anchors, strides, module.loss).total

    return module, loss


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=("boxtwin", "ultralytics", "pytorchyolo"))
    parser.add_argument("--architecture", choices=("yolov3_tiny", "yolov3"), default="yolov3_tiny")
    parser.add_argument("--cfg", help="Darknet file, for pytorchyolo")
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bfloat16", action="store_true")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.rand(settings.batch, 3, settings.size, settings.size)
    if settings.package == "boxtwin":
        images = images.to(memory_format=torch.channels_last)  # as its datamodule hands them over
    network, loss = globals()[settings.package](settings, images)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=settings.package == "boxtwin")

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            looking(images)

    found = {}
    for name, work in (("step", step), ("forward", forward)):
        network.train(name == "step")
        looking = network
        if settings.package == "boxtwin" and name == "forward":
            from boxtwin.detector.network import folded

            looking = folded(network.network)  # as it predicts
        work()
        started = time.process_time()
        for _ in range(settings.repeats):
            work()
        found[name] = (time.process_time() - started) / settings.repeats / settings.batch
    found["parameters"] = sum(weight.numel() for weight in network.parameters())
    found["torch"] = torch.__version__
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
