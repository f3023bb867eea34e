"""Which image file a label file belongs to, in the layouts of tools, and where it may be none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from boxtwin.datasets.image_io import write_png
from boxtwin.errors import InputError
from boxtwin.labels.convert import convert
from boxtwin.labels.exchange import export_store, read_back
from boxtwin.labels.formats import FORMATS, get_format
from boxtwin.labels.formats.image_pairs import pair
from boxtwin.labels.store_images import read_store

LINE = "0 0.5 0.5 0.2 0.2\n"
Write = Callable[..., Path]


def xml(name: str, size: tuple[object, object] = (100, 80), corner: object = 10) -> str:
    width, height = size
    return (
        f"<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height></size>"
        f"<object><name>ship</name><difficult>1</difficult><bndbox><xmin>{corner}</xmin><ymin>10</ymin><xmax>30</xmax>"
        "<ymax>30</ymax></bndbox></object></annotation>"
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes images (for None) and texts by their path into a folder."""

    def write(**files: str | None) -> Path:
        root = tmp_path / "set"
        for number, (name, text) in enumerate(files.items()):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                write_png(root / name, np.full((80, 100), number, np.uint8))
            else:
                (root / name).write_text(text)
        return root

    return write


def converted(root: Path, folder: str = "out") -> tuple[dict[str, int], list[str]]:
    """Boxes of each image of a converted data set, and remarks."""
    _, remarks = convert([root], root.parent / folder)
    content = json.loads((root.parent / folder / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    found = dict.fromkeys(names.values(), 0)
    for annotation in content["annotations"]:
        found[names[annotation["image_id"]]] += 1
    return found, remarks


def test_labels_never_go_to_an_image_of_another_folder(write: Write) -> None:
    names = {"data.yaml": "names: [ship]\n", "train/labels/1.txt": LINE, "train/labels/2.txt": LINE}
    root = write(**names, **dict.fromkeys(["train/images/2.png", "val/images/1.png"]))
    with pytest.raises(InputError, match=r"1 labelled images have no image file below .*: train/1"):
        converted(root)
    (root / "train/labels/1.txt").unlink()
    found, remarks = converted(root)
    assert found == {"train/images/2.png": 1, "val/images/1.png": 0}
    assert any("1 images have no label file" in remark and "val/1" in remark for remark in remarks)


def test_names_of_cvat_never_go_to_an_image_of_another_folder(write: Write) -> None:
    box = '<box label="ship" xtl="1" ytl="2" xbr="29" ybr="38"/>'
    entries = "".join(
        f'<image name="{name}" width="100" height="80">{box}</image>' for name in ("s1/a.png", "s2/a.png")
    )
    text = f"<annotations>{entries}</annotations>"
    root = write(**{"annotations.xml": text, "images/s1/a.png": None, "images/s2/a.png": None})
    assert converted(root)[0] == {"images/s1/a.png": 1, "images/s2/a.png": 1}
    (root / "images/s1/a.png").unlink()
    with pytest.raises(InputError, match=r"no image file below .*: s1/a\.png"):
        converted(root, "other")


@pytest.mark.parametrize(
    ("labels", "images"),
    [
        (("x/Annotations/a.xml", "y/Annotations/a.xml"), ("x/JPEGImages/a.png", "y/JPEGImages/a.png")),
        (("Annotations/a.xml", "Annotations/b.xml"), ("images/a.png", "images/b.png")),
        (("annotations/train/a.xml", "annotations/b.xml"), ("images/train/a.png", "images/b.png")),
        (("x/a.xml", "x/b.xml"), ("x/a.png", "x/b.png")),
    ],
)
def test_layouts_of_voc(write: Write, labels: tuple[str, ...], images: tuple[str, ...]) -> None:
    found, remarks = converted(write(**{name: xml("a.png") for name in labels}, **dict.fromkeys(images)))
    assert found == dict.fromkeys(images, 1)
    assert remarks == ["2 objects are marked as difficult and count as any other"]


def test_folders_of_any_name_are_joined_by_file_name_and_told(write: Write) -> None:
    found, remarks = converted(write(**{"xml/a.xml": xml("a.png"), "img/a.png": None, "img/b.png": None}))
    assert found == {"img/a.png": 1, "img/b.png": 0}
    assert "labels belong to images by file name alone: 1 from xml/ to images in img/" in remarks


def test_an_image_that_shares_its_stem_with_a_labelled_one_is_kept(write: Write) -> None:
    found, remarks = converted(write(**{"a.png": None, "a.xml": xml("a.png"), "negatives/a.png": None}))
    assert found == {"a.png": 1, "negatives/a.png": 0}
    assert any("negatives/a.png" in remark for remark in remarks)


@pytest.mark.parametrize("side", ["None", " ", "1e999", "0"])
def test_a_size_that_is_no_number_is_not_known(write: Write, side: str) -> None:
    assert converted(write(**{"a.png": None, "a.xml": xml("a.png", (side, side))}))[0] == {"a.png": 1}


def test_a_corner_has_to_be_finite(write: Write) -> None:
    with pytest.raises(InputError, match=r"a\.xml: <bndbox> needs a number as xmin, not 'nan'"):
        converted(write(**{"a.png": None, "a.xml": xml("a.png", corner="nan")}))
    text = '<annotations><image name="a.png" width="nan" height="80"/></annotations>'
    with pytest.raises(InputError, match="<image> needs a number as width, not 'nan'"):
        get_format("cvat").read(write(**{"annotations.xml": text}))


@pytest.mark.parametrize(
    ("lines", "more"),
    [
        (["0 .5 .5 .2 .2 .45 .45 .55 .52"], {}),
        (["0 .5 .5 .2 .2 .45 .45 1 .55 .52 0"], {}),
        (["0 .5 .5 .2 .2 .45 .45 2 0 0 0", "0 .3 .3 .1 .1 .3 .3 2 .28 .32 1"], {}),
    ],
)
def test_keypoints_are_not_taken_for_a_polygon(write: Write, lines: list[str], more: dict[str, str]) -> None:
    root = write(**{"classes.txt": "person\n", "a.txt": "\n".join(lines), **more})
    with pytest.raises(InputError, match="may be a polygon, or a box with keypoints; put task: segment or task: pose"):
        get_format("yolo").read(root)
    (root / "coco8-pose.yaml").write_text("kpt_shape: [2, 3]\n")
    first = get_format("yolo").read(root).images[0].in_pixels(100, 100).boxes[0]
    np.testing.assert_allclose(first.box, (40, 40, 60, 60))
    (root / "coco8-pose.yaml").unlink()
    (root / "data.yaml").write_text("names: [person]\ntask: segment\n")
    assert get_format("yolo").read(root).images[0].boxes[0].box != first.box


def test_a_track_behind_a_score_is_no_polygon(write: Write) -> None:
    root = write(**{"classes.txt": "person\n", "a.txt": "0 0.5 0.5 0.2 0.2 0.91 1\n"})
    with pytest.raises(InputError, match="number of a track"):
        get_format("yolo").read(root)
    (root / "a.txt").write_text("0 0.5 0.5 0.2 0.2 0.91 inf\n")
    with pytest.raises(InputError, match="not in shares"):
        get_format("yolo").read(root)


@pytest.mark.parametrize(
    "lines",
    [
        ["0 0.1 0.1 0.3 0.1 0.3 0.2"],
        ["0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6"],  # a turned box has four corners
        ["0 .5 .4 .6 .5 .55 .6 .45 .6 .4 .5", "0 .5 .4 .6 .5 .4 .5"],
    ],
)
def test_polygons_stay_polygons(write: Write, lines: list[str]) -> None:
    root = write(**{"classes.txt": "ship\n", "a.txt": "\n".join(lines)})
    for line, box in zip(lines, get_format("yolo").read(root).images[0].boxes, strict=True):
        points = np.array(line.split()[1:], dtype=float).reshape(-1, 2)
        np.testing.assert_allclose(box.box, [*points.min(axis=0), *points.max(axis=0)])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("files", [("1.png", "1.jpg", "2.jpg"), ("a/1.png", "a__1.png", "b/1.png")])
def test_an_export_that_nobody_touched_comes_back_whole(write: Write, name: str, files: tuple[str, ...]) -> None:
    root = write(**dict.fromkeys(f"images/{file}" for file in files))
    boxes = [[10.0 * n, 10.0, 20.0, 20.0] for n in range(len(files))]
    content = {
        "images": [{"id": n, "file_name": file, "width": 100, "height": 80} for n, file in enumerate(files)],
        "annotations": [
            {"id": n + 1, "image_id": n, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0}
            for n, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "ship"}],
    }
    (root / "annotations.json").write_text(json.dumps(content))
    store = read_store(root)
    export_store(store, name, root.parent / "out")
    back, remarks = read_back(root.parent / "out", store)
    assert remarks == []
    assert [image["file_name"] for image in back["images"]] == list(files)
    assert [image["confirmed"] for image in back["images"]] == [name != "label_studio"] * len(files)  # as not looked at
    assert [annotation["bbox"] for annotation in back["annotations"]] == boxes


def test_names_of_coco_are_found_in_any_form(write: Write) -> None:
    root = write(**dict.fromkeys(["images/train/a.png", "images/b.png", "images/p q.png"]))
    names = ["train\\a.png", "B.PNG", "p%20q.png"]
    images = [{"id": n, "file_name": name, "width": 100, "height": 80} for n, name in enumerate(names)]
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "ship"}]}
    (root / "annotations.json").write_text(json.dumps(content))
    assert [image.path.name for image in read_store(root).images] == ["a.png", "b.png", "p q.png"]
    assert sum(converted(root)[0].values()) == 1


def test_the_working_folder_is_no_new_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(**{"a.png": None, "a.xml": xml("a.png")})
    (root.parent / "here").mkdir()
    monkeypatch.chdir(root.parent / "here")
    with pytest.raises(InputError, match=r"folder=\. is the working folder; name a new one"):
        convert([root], Path())


def test_a_base_name_of_two_files_is_no_telling_one() -> None:
    files = ["a/1.png", "b/1.png"]
    assert pair(["a/1", "c/1", "1"], files, of_label_files=True) == ({"a/1": "a/1.png"}, [])
    assert pair(["c/1"], files[:1], of_label_files=False) == ({}, [])
