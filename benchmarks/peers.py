"""YOLOv3 here beside other packages that have it: CPU-seconds an image, one thread, of a training step, of a forward
pass, and of training as each package ships it.

    python benchmarks/peers.py --ultralytics FOLDER/bin/python --pytorchyolo OTHER/bin/python

Measured is what is named; none of the other packages is a dependency of this project. Each wants another torch, numpy
or OpenCV, so each has an environment of its own, and is run as it is, by its commands:

    pip install ultralytics     # AGPL-3.0
    pip install pytorchyolo     # PyTorch-YOLOv3, GPL-3.0

"As shipped" is the package's own training command with no validation between, on the same 64 images of random scenes: a
run of three epochs less a run of one, so that start-up and the end are not counted. Every package trains with its own
recipe (augmentation, loss, optimiser). Ultralytics' yolov3 configurations have another, larger head.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from boxtwin.detector.darknet import darknet_cfg
from boxtwin.detector.network import PUBLISHED_ANCHORS, YOLOv3
from boxtwin.detector.options import Architecture

ROOT = Path(__file__).resolve().parents[1]
IMAGES, SHORT, LONG = 64, 1, 3
ENVIRONMENT = {
    **os.environ,
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONPATH": "",
}


def write_data(folder: Path, size: int) -> None:
    """The same images in COCO's and in Darknet's form: noise with five bright rectangles each."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: list[str] = []
    for side in ("images", "labels"):
        (folder / side).mkdir()
    for number in range(IMAGES + 2):
        picture = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
        lines = []
        for _ in range(5):
            w, h = rng.integers(16, size // 4, 2).tolist()
            x, y = int(rng.integers(0, size - w)), int(rng.integers(0, size - h))
            picture[y : y + h, x : x + w] += 120
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, "category_id": 1, "iscrowd": 0})
            annotations[-1] |= {"bbox": [x, y, w, h], "area": w * h}
            lines.append(f"0 {(x + w / 2) / size:.6f} {(y + h / 2) / size:.6f} {w / size:.6f} {h / size:.6f}")
        name = f"{number:03d}.png"
        cv2.imwrite(str(folder / "images" / name), picture)
        (folder / "labels" / f"{number:03d}.txt").write_text("\n".join(lines) + "\n")
        images.append({"id": number + 1, "file_name": name, "width": size, "height": size})
        names.append(name)
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / "annotations.json").write_text(json.dumps(coco))
    split = {"all": {"train": names[:IMAGES], "val": names[IMAGES:-1], "test": names[-1:]}}
    (folder / "split.json").write_text(json.dumps(split))
    for side, members in (("train", names[:IMAGES]), ("val", names[IMAGES:-1])):
        (folder / f"{side}.txt").write_text("".join(f"{folder}/images/{name}\n" for name in members))
    (folder / "names.txt").write_text("object\n")
    (folder / "yolo.data").write_text(
        f"classes=1\ntrain={folder}/train.txt\nvalid={folder}/val.txt\nnames={folder}/names.txt\n"
    )
    (folder / "yolo.yaml").write_text(f"path: {folder}\ntrain: train.txt\nval: val.txt\nnames:\n  0: object\n")


def write_cfg(file: Path, architecture: Architecture, size: int, batch: int) -> None:
    """The network as a Darknet file, with the settings that a training reads from it."""
    network = YOLOv3(architecture, 1, PUBLISHED_ANCHORS[architecture])
    settings = f"batch={batch}\nsubdivisions=1\nmomentum=0.9\ndecay=0.0005\nlearning_rate=0.0001\nburn_in=10\n"
    settings += "max_batches=100000\npolicy=steps\nsteps=90000\nscales=.1\n"
    settings += "angle=0\nsaturation=1.5\nexposure=1.5\nhue=.1\n"
    text = darknet_cfg(network, size, 1.0).replace("[net]\n", f"[net]\n{settings}", 1)
    file.write_text(text.replace("scale_x_y=1\n", "ignore_thresh=0.7\ntruth_thresh=1\nrandom=0\njitter=.3\n"))


def cpu_seconds(command: list[str], folder: Path) -> float:
    """CPU time of a command, its children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def training(package: str, python: str, folder: Path, settings: argparse.Namespace, epochs: int) -> list[str]:
    """The command that trains so many epochs as the package ships it."""
    scripts = Path(python).parent
    match package:
        case "ultralytics":
            name = settings.architecture.replace("_", "-")
            return [
                *(python, str(scripts / "yolo"), "detect", "train", f"model={name}.yaml", f"data={folder}/yolo.yaml"),
                *(f"epochs={epochs}", f"imgsz={settings.size}", f"batch={settings.batch}", "device=cpu", "workers=0"),
                *("val=False", "plots=False", f"project={folder}/ultralytics", "exist_ok=True"),
            ]
        case "pytorchyolo":
            return [
                *(python, str(scripts / "yolo-train"), "--model", str(folder / "yolo.cfg"), "--data"),
                *(str(folder / "yolo.data"), "--epochs", str(epochs), "--n_cpu", "0"),
                *("--evaluation_interval", "1000", "--checkpoint_interval", "1000"),
            ]
    return [
        *(python, str(ROOT / "train.py"), "dataset=coco", "dataset.name=peers", f"dataset.root={folder}"),
        *(f"split.file={folder}/split.json", "split.name=all", f"detector={settings.architecture}"),
        *(f"dataset.image_size={settings.size}", f"detector.crop={settings.size}", "trainer.validations=1"),
        *(f"trainer.batch_size={settings.batch}", f"trainer.steps={epochs * IMAGES // settings.batch}"),
        *("detector.warmup_steps=1", "trainer.threads=1", "variations=0", f"study=epochs{epochs}"),
    ]


def main() -> None:
    """Measure what is named, in turns; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ultralytics", metavar="PYTHON", help="interpreter of an environment that has it")
    parser.add_argument("--pytorchyolo", metavar="PYTHON", help="interpreter of an environment that has it")
    parser.add_argument("--architecture", choices=("yolov3_tiny", "yolov3"), default="yolov3_tiny")
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="steps and passes a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-training", action="store_true", help="networks alone, not the training commands")
    settings = parser.parse_args()
    rows = [("boxtwin, bfloat16", "boxtwin", sys.executable, ["--bfloat16"])]
    rows += [("boxtwin, float32", "boxtwin", sys.executable, [])]
    for package in ("ultralytics", "pytorchyolo"):
        if python := getattr(settings, package):
            rows.append((package, package, str(Path(python).absolute()), []))
        else:
            print(f"{package}: not measured; name an interpreter that has it with --{package}")
    found: dict[str, dict[str, list[float]]] = {label: {"step": [], "forward": [], "shipped": []} for label, *_ in rows}
    sizes = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, settings.size)
        write_cfg(folder / "yolo.cfg", settings.architecture, settings.size, settings.batch)
        for _ in range(settings.rounds):
            for label, package, python, more in rows:
                command = [
                    *(python, str(ROOT / "benchmarks" / "peer_step.py"), package, "--cfg", str(folder / "yolo.cfg")),
                    *("--architecture", settings.architecture, "--size", str(settings.size)),
                    *("--batch", str(settings.batch), "--repeats", str(settings.repeats), *more),
                ]
                done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr[-3000:])
                result = json.loads(done.stdout.splitlines()[-1])
                sizes[label] = (result["parameters"], result["torch"])
                for part in ("step", "forward"):
                    found[label][part].append(result[part])
        for label, package, python, more in rows:
            if settings.no_training or (package == "boxtwin" and not more):
                continue  # as shipped, precision is the machine's best
            short, long = (
                cpu_seconds(training(package, python, folder, settings, epochs), folder) for epochs in (SHORT, LONG)
            )
            found[label]["shipped"].append((long - short) / (LONG - SHORT) / IMAGES)
    print(
        f"\n{settings.architecture}, {settings.size} pixels, batch {settings.batch}, 1 class, 1 thread, CPU-seconds an "
    )
    print("image; median of rounds, ratio to the first row\n")
    print("| package | parameters | torch | training step | forward | training as shipped |\n|---|---|---|---|---|---|")
    first = found[rows[0][0]]
    for label, *_ in rows:
        runs = []
        for part, values in found[label].items():
            value = statistics.median(values) if values else None
            base = statistics.median(first[part]) if first[part] else 1.0
            runs.append("" if value is None else f"{value:.4f} ({value / base:.1f})")
        parameters, torch_version = sizes[label]
        print(f"| {label} | {parameters / 1e6:.1f} M | {torch_version} | {' | '.join(runs)} |")


if __name__ == "__main__":
    main()
