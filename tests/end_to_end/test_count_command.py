"""From a run to counts of images, with ``count.py``."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import rasterio
import tifffile
from affine import Affine
from commands import ENVIRONMENT, run, start
from omegaconf import OmegaConf
from trained_detectors import detect_as_studies_do, make_trained

from boxtwin.commands.count import count_images
from boxtwin.commands.export import export_detector
from boxtwin.config.schema import CountConfig, ExportConfig
from boxtwin.counting.detectors import find_detectors
from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.training_images import TrainingImages
from boxtwin.detector.checkpoint import TrainedDetector, write_detector
from boxtwin.errors import InputError
from boxtwin.evaluation.count_intervals import CountCalibration
from boxtwin.evaluation.counts import counted
from boxtwin.files import exclusive_lock
from boxtwin.labels.exchange import export_store, read_back
from boxtwin.labels.formats import FORMATS
from boxtwin.labels.store_images import read_store

Rows = dict[str, dict[str, str]]


WITHOUT_TORCH = """
import sys
from pathlib import Path
from boxtwin.commands.count import count_images
from boxtwin.counting.detectors import open_detectors
(detector,) = open_detectors([Path(sys.argv[1])], "auto", 1)
assert detector.compute.__self__._session.get_session_options().intra_op_num_threads == 1
assert "torch" not in sys.modules
"""


def count(images: Any, detector: Any, **settings: Any) -> Rows:
    """Count in this process; the lines of counts.csv by file."""
    config = CountConfig(run=detector, images=images, pictures=False, device="cpu", **settings)
    return rows(count_images(OmegaConf.structured(config)))


def rows(folder: Path) -> Rows:
    with (folder / "counts.csv").open(newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with one finished run."""
    folder = tmp_path_factory.mktemp("my project (1), a=b")
    run("train.py experiment=tiny_control variations=0", folder)
    return folder


def test_a_count_is_the_same_everywhere(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the run's own test, counted with its detector, with the exported one, and by the served model."""
    monkeypatch.chdir(study)
    (run_folder,) = Path().glob("multirun/*/*/")
    result = json.loads((run_folder / "result.json").read_text())
    (images,) = (path.parent for path in Path("data").rglob(result["counts"][0]["file_name"]))
    names = Path("new images (1), a=b/test images.txt")
    names.parent.mkdir()
    names.write_text("".join(f"{(images / entry['file_name']).resolve()}\n" for entry in result["counts"]))
    expected = {entry["file_name"]: (entry["found"], entry["true"]) for entry in result["counts"]}

    printed = run(["count.py", f"study={run_folder.parent.name}", "threads=1", f"images={names}"], study)
    assert "8 images as in training, 64 pixels along the longer side" in printed
    assert "Intervals are meant to hold the true count in 80 % of images" in printed
    assert "in 4 labelled images, too few for 90 %. Each of these was counted by a detector that had not" in printed
    folder = Path("counts") / names.stem
    ours = rows(folder)
    assert {name: int(row["total"]) for name, row in ours.items()} == {
        name: found for name, (found, _) in expected.items()
    }
    errors = [abs(int(ours[name]["total"]) - true) for name, (_, true) in expected.items()]
    assert np.mean(errors) == result["metrics"]["test/count_mae"]
    assert all(int(row["total_low"]) <= int(row["total"]) <= int(row["total_high"]) for row in ours.values())
    page = (folder / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert not re.search(r"(src|href)=\"(?!data:|pictures/)", page)
    assert len(list((folder / "pictures").iterdir())) == 8
    coco = json.loads((folder / "detections.json").read_text())
    assert [one["file_name"] for one in coco["images"]] == list(ours)
    assert all(Path(one["path"]).is_file() for one in coco["images"])
    assert len(coco["annotations"]) == sum(found for found, _ in expected.values())

    export_detector(OmegaConf.structured(ExportConfig(run=str(run_folder), formats=["onnx", "mlflow"])))
    exported = count(str(names), str(run_folder / "export" / "detector.onnx"), folder="by onnx")
    same = ("total", "total_low", "total_high", "unlike_training", "scale")
    assert [[row[name] for name in same] for row in exported.values()] == [
        [row[name] for name in same] for row in ours.values()
    ]
    # The number of threads reaches ONNX Runtime, and torch is not imported for it.
    words = ["-c", WITHOUT_TORCH, str(run_folder / "export" / "detector.onnx")]
    subprocess.run([sys.executable, *words], env=ENVIRONMENT, check=True)
    model = mlflow.pyfunc.load_model(str(run_folder / "export" / "mlflow"))
    answers = model.predict(pd.DataFrame({"image": [(images / name).read_bytes() for name in expected]}))
    assert [answer["count"] for answer in answers] == [found for found, _ in expected.values()]


def test_annotations_give_the_metrics_of_the_run(
    study: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(study)
    (run_folder,) = Path().glob("multirun/*/*/")
    result = json.loads((run_folder / "result.json").read_text())
    (images,) = (path.parent for path in Path("data").rglob(result["counts"][0]["file_name"]))
    (annotations,) = Path("data").rglob("annotations.json")
    files = [str(images / entry["file_name"]) for entry in result["counts"]]
    with caplog.at_level("INFO"):
        count(files, str(run_folder), annotations=str(annotations), folder="scored")
    metrics = result["metrics"]
    assert f"on 8 annotated images: AP {metrics['test/map']:.3f}, AP50 {metrics['test/map_50']:.3f}" in caplog.text
    assert f"count MAE {metrics['test/count_mae']:.2f}, RMSE {metrics['test/count_rmse']:.2f}" in caplog.text
    assert re.search(r"the interval holds the true count in \d of 8 images", caplog.text)

    content = json.loads(annotations.read_text())
    content["categories"][0]["name"] = "aeroplane"
    other = annotations.with_name("other.json")
    other.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"has objects of aeroplane; the detector knows ship"):
        count(str(images), str(run_folder), annotations=str(other), folder="not made")
    assert not Path("not made").exists()


def calibrated(seed: int = 0, **changes: Any) -> TrainedDetector:
    """A detector of random weights that knows what its training images were like."""
    trained = make_trained(**changes)
    rng = np.random.default_rng(seed)
    calibration = CountCalibration(
        tuple(f"{number}.png" for number in range(12)),
        0.3 + 0.02 * rng.random((12, len(trained.module.classes))),
        np.array([[a + b, a, b] for a, b in rng.integers(-3, 4, (12, 2))]),
    )
    return TrainedDetector(
        trained.module,
        trained.count_threshold,
        trained.origin,
        calibration=calibration,
        images=TrainingImages((64, 64, 64), (0.2, 0.8), (0.0, 3.0)),
    )


@pytest.fixture
def detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainedDetector:
    monkeypatch.chdir(tmp_path)
    trained = calibrated()
    write_detector(trained, tmp_path / "detector.safetensors")
    return trained


def noise(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def test_images_of_any_kind_are_counted_and_unreadable_ones_listed(detector: TrainedDetector, tmp_path: Path) -> None:
    folder = tmp_path / "new images"
    (folder / "below").mkdir(parents=True)
    write_png(folder / "a, b=(1).png", noise(0))
    write_png(folder / "below" / "colour.png", np.repeat(noise(1)[:, :, None], 3, axis=2))
    tifffile.imwrite(folder / "stack.tif", np.stack([noise(2), noise(3), noise(4)]), photometric="minisblack")
    (folder / "cut.png").write_bytes((folder / "a, b=(1).png").read_bytes()[:200])
    write_png(folder / "deep.png", (noise(5).astype(np.uint16) + 1000))
    with pytest.raises(InputError) as caught:
        count(str(folder), "detector.safetensors", formats=["yolo", "voc"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 5 files could not be counted:"
    assert "cut.png cannot be decoded" in lines[1]
    assert "deep.png has 16 bit; the detector was trained on values up to 255" in lines[2]
    found = rows(Path("counts") / "new images")
    texts = {path.stem: path.read_text().splitlines() for path in Path("counts/new images/yolo/labels").glob("*.txt")}
    assert sorted(map(len, texts.values())) == sorted(int(row["total"]) for row in found.values())
    assert len(list(Path("counts/new images/voc").rglob("*.xml"))) == len(found)
    assert list(found) == ["a, b=(1).png", "below/colour.png", "stack.tif#0", "stack.tif#1", "stack.tif#2"]
    paths = [folder / "a, b=(1).png", folder / "below" / "colour.png"]
    for number in (2, 3, 4):
        paths.append(tmp_path / f"page{number}.png")
        write_png(paths[-1], noise(number))
    for row, each in zip(found.values(), detect_as_studies_do(detector, paths), strict=True):
        labels = counted(each, detector.spec.class_thresholds).labels
        assert [int(row[name]) for name in ("total", "ship", "buoy")] == [
            len(labels),
            (labels == 0).sum(),
            (labels == 1).sum(),
        ]


def test_images_are_named_in_several_ways(detector: TrainedDetector, tmp_path: Path) -> None:
    for number in range(3):
        write_png(tmp_path / "images" / f"{number}.png", noise(number))
    (tmp_path / "images" / "names.txt").write_text("0.png\n\n2.png\n")
    assert list(count("images/1.png", "detector.safetensors", folder="one")) == ["1.png"]
    assert list(count("images/[02].png", "detector.safetensors", folder="two")) == ["0.png", "2.png"]
    assert list(count("images/names.txt", "detector.safetensors", folder="three")) == ["0.png", "2.png"]
    assert list(count(["images/2.png", "images"], "detector.safetensors", folder="four")) == ["2.png", "0.png", "1.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        count("empty", "detector.safetensors")
    with pytest.raises(InputError, match="there is no such file or folder"):
        count("nothing/*.png", "detector.safetensors")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"mine holds files that count\.py did not write, .*: letter\.txt"):
        count("images", "detector.safetensors", folder="mine")
    assert not list(Path().glob(".*part"))


def test_an_earlier_count_is_replaced_and_nothing_that_people_made(detector: TrainedDetector) -> None:
    write_png(Path("images/0.png"), noise(0))
    for _ in range(2):
        count("images", "detector.safetensors", formats=["yolo", "voc"])
    folder = Path("counts/images")
    for file in ("labels-1.json", "to_label/labels.xml", "below/a.geojson", "yolo/labels/0.txt", "counts.csv"):
        changed = folder / file
        changed.parent.mkdir(exist_ok=True)
        changed.write_text("by hand")
        with pytest.raises(InputError, match=f"were changed since: .*{file}"):
            count("images", "detector.safetensors")
        assert changed.read_text() == "by hand"
        changed.unlink()


def test_labels_of_other_images_are_no_counts(detector: TrainedDetector) -> None:
    write_png(Path("images/0.png"), noise(0))
    count("images", "detector.safetensors", formats=["yolo", "voc"])
    own = Path("counts/images/yolo/labels/by_hand.txt")
    own.write_text("0 0.5 0.5 0.1 0.1")
    os.utime(own, (0, 0))  # moved here, it keeps its time
    with pytest.raises(InputError, match=r"were changed since: .*by_hand\.txt"):
        count("images", "detector.safetensors")


def test_a_folder_that_is_a_link_is_filled_where_it_leads(detector: TrainedDetector, tmp_path: Path) -> None:
    write_png(Path("images/0.png"), noise(0))
    (tmp_path / "disk").mkdir()
    Path("out").symlink_to(tmp_path / "disk")
    for _ in range(2):
        assert list(count("images", "detector.safetensors", folder="out")) == ["0.png"]
    assert Path("out").is_symlink()
    assert (tmp_path / "disk" / "counts.csv").is_file()


def test_blanks_around_names_of_classes_do_no_harm(detector: TrainedDetector) -> None:
    trained = make_trained(classes=("ship ", "buoy"))
    write_detector(TrainedDetector(trained.module, 0.3, detector.origin), Path("blank.safetensors"))
    write_png(Path("images/0.png"), noise(0))
    found = count("images", "blank.safetensors", formats=["yolo", "voc"])
    assert len(Path("counts/images/yolo/labels/0.txt").read_text().splitlines()) == int(found["0.png"]["total"])


def test_names_with_dots_stay_in_the_folder(detector: TrainedDetector) -> None:
    write_png(Path("images/0.png"), noise(0))
    write_png(Path("lists/1.png"), noise(1))
    Path("lists/names.txt").write_text("../images/0.png\n1.png\n")
    config = CountConfig(run="detector.safetensors", images="lists/names.txt", device="cpu", folder="out/a")
    assert list(rows(count_images(OmegaConf.structured(config)))) == ["images/0.png", "lists/1.png"]
    assert sorted(path.name for path in Path("out/a/pictures").rglob("*.jpg")) == ["0.png.jpg", "1.png.jpg"]
    assert not list(Path("out").glob("*.jpg"))


def test_annotated_images_that_cannot_be_read_leave_the_list_of_files(
    detector: TrainedDetector, caplog: pytest.LogCaptureFixture
) -> None:
    write_png(Path("images/deep.png"), noise(0).astype(np.uint16) + 1000)
    write_png(Path("images/plain.png"), noise(1))
    image = {"id": 1, "file_name": "deep.png", "width": 64, "height": 64}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, 9, 9], "area": 81, "iscrowd": 0}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "ship"}]}
    Path("annotations.json").write_text(json.dumps(content))
    with caplog.at_level("INFO"), pytest.raises(InputError, match=r"1 of 2 files could not be counted:\n.*16 bit"):
        count("images", "detector.safetensors", annotations="annotations.json")
    assert "none of the annotated images could be read" in caplog.text


def test_how_images_were_read_is_recorded(detector: TrainedDetector) -> None:
    reading = Reading(Orientation.ignore, page=1, channels=[2])
    changed = TrainedDetector(make_trained(reading=reading.plain()).module, 0.3, detector.origin)
    write_detector(changed, Path("other.safetensors"))
    tifffile.imwrite("stack.tif", np.stack([np.stack([noise(n)] * 3, axis=2) for n in range(2)]), photometric="rgb")
    count("stack.tif", "other.safetensors", folder="out")
    (entry,) = json.loads(Path("out/detections.json").read_text())["images"]
    assert (entry["orientation"], entry["page"], entry["channels"]) == ("ignore", 1, [2])
    assert entry["confirmed"] is False


def test_counts_that_nobody_has_seen_come_back_as_not_confirmed(detector: TrainedDetector) -> None:
    write_png(Path("images/0.png"), noise(0))
    assert int(count("images", "detector.safetensors")["0.png"]["total"]) > 0
    store = read_store(Path("counts/images"))
    for name in FORMATS:
        export_store(store, name, Path("out") / name)
        content, _ = read_back(Path("out") / name, store)
        assert [image["confirmed"] for image in content["images"]] == [False], name


def test_a_count_waits_for_the_lock_of_its_folder(detector: TrainedDetector) -> None:
    write_png(Path("images/0.png"), noise(0))
    with exclusive_lock(Path(".a.lock"), ""):
        command = "count.py run=detector.safetensors images=images folder=a pictures=false threads=1"
        waiting, stopped = (start(command, Path()) for _ in range(2))
        for process in (stopped, waiting):
            until = time.monotonic() + 240
            while "another process writes a" not in process.text() and time.monotonic() < until:
                time.sleep(0.02)
        stopped.kill(signal.SIGTERM)  # as Ctrl-C; a process in the background may ignore SIGINT
        assert stopped.wait() != 0
        assert "stopped; the same command starts from the beginning" in stopped.text()
        assert waiting.poll() is None
        Path(".a.123.part").mkdir()
    assert waiting.wait() == 0
    assert "another process writes a" in waiting.text()
    assert not Path(".a.123.part").exists()


@pytest.mark.parametrize("scale", [0.0, -1.0, 0.0001, 100.0, 1e9])
def test_a_scale_that_cannot_be_meant_is_refused(detector: TrainedDetector, scale: float) -> None:
    write_png(Path("chip.png"), noise(0))
    with pytest.raises(InputError, match=r"scale=\S+ must lie between 0\.001 and 8"):
        count("chip.png", "detector.safetensors", scale=scale)
    assert not Path("counts").exists()


def test_larger_images_are_looked_at_at_the_scale_of_training(detector: TrainedDetector, tmp_path: Path) -> None:
    chips = [noise(number) for number in range(6)]
    wide = np.full((200, 300), 128, np.uint8)
    for number, chip in enumerate(chips):
        wide[100 * (number // 3) :, 100 * (number % 3) :][:64, :64] = chip
    write_png(tmp_path / "wide.png", wide)
    row = count("wide.png", "detector.safetensors")["wide.png"]
    assert (row["scale"], row["unlike_training"], row["total_low"]) == ("1", "size", "")
    assert "size" in row["unlike_training"]
    # As a scene with coordinates, which is read in windows.
    profile = {"crs": "EPSG:32631", "transform": Affine(1, 0, 500_000, 0, -1, 5_000_000), "dtype": "uint8", "count": 1}
    with rasterio.open("scene.tif", "w", "GTiff", 300, 200, **profile) as file:
        file.write(wide[None])
    scene = count("scene.tif", "detector.safetensors")["scene.tif"]
    assert {**scene, "file": ""} == {**row, "file": ""}
    places = json.loads(Path("counts/scene/scene.tif.geojson").read_text())["features"]
    assert len(places) == int(row["total"]) > 0
    halved = count("wide.png", "detector.safetensors", scale=0.5, folder="halved")["wide.png"]
    assert (halved["scale"], halved["unlike_training"], halved["total_low"]) == ("0.5", "size; scale", "")
    # By a detector of an older version as a whole, as then.
    write_detector(make_trained(), tmp_path / "old.safetensors")
    old = count("wide.png", "old.safetensors", folder="old")["wide.png"]
    (expected,) = detect_as_studies_do(detector, [tmp_path / "wide.png"])
    assert int(old["total"]) == len(counted(expected, 0.3).scores)
    assert float(old["scale"]) == pytest.approx(64 / 300, rel=1e-5)
    assert old["unlike_training"] == ""


def test_several_seeds_count_as_their_median(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "image.png", noise(0))
    each = []
    for seed, threshold in enumerate((0.2, 0.3, 0.45)):
        folder = Path(f"multirun/ships/s1-x0-none-nano-seed{seed}")
        trained = calibrated(seed, count_threshold=threshold)
        write_detector(trained, folder / "detector.safetensors")
        each.append(count("image.png", str(folder), folder=f"by {seed}")["image.png"])
    together = count("image.png", "s1-x0-none-nano", study="ships")["image.png"]
    for name in ("ship", "buoy"):
        numbers = [int(row[name]) for row in each]
        assert int(together[name]) == np.median(numbers)
        assert int(together[f"{name}_spread"]) == max(numbers) - min(numbers) > 0
        assert int(together[f"{name}_low"]) <= int(together[name]) <= int(together[f"{name}_high"])
    assert int(together["total"]) == int(together["ship"]) + int(together["buoy"])
    with pytest.raises(InputError, match="no condition with finished runs in multirun/ships"):
        find_detectors("s2-x0", "ships")
    write_detector(make_trained(classes=["cell", "dust"]), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="detectors of other classes cannot count together"):
        count("image.png", [str(folder), "other.safetensors"])


@pytest.mark.slow
def test_real_chips_are_counted_as_in_the_test_of_the_run(tmp_path: Path, hrsid200: Path) -> None:
    cheap = "trainer.steps=2 trainer.validations=1 detector.warmup_steps=1 detector.image_size=96 trainer.threads=1"
    run(f"train.py experiment=hrsid200 dataset.root={hrsid200} split=s2 variations=0 quality=false {cheap}", tmp_path)
    (file,) = tmp_path.glob("multirun/*/*/result.json")
    result = json.loads(file.read_text())
    (annotations,) = (hrsid200 / "annotations").iterdir()
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{hrsid200 / 'JPEGImages' / entry['file_name']}\n" for entry in result["counts"]))
    printed = run(f"count.py images=names.txt annotations={annotations} pictures=false", tmp_path)
    ours = rows(tmp_path / "counts" / "names")
    assert [int(ours[entry["file_name"]]["total"]) for entry in result["counts"]] == [
        entry["found"] for entry in result["counts"]
    ]
    assert len(ours) == 100
    assert f"count MAE {result['metrics']['test/count_mae']:.2f}, RMSE" in printed
    assert "Intervals are meant to hold the true count in 90 % of images" in printed
