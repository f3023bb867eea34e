"""The table of counts, and the files of a folder that are counted."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxtwin.counting.ensemble import ImageCount
from boxtwin.counting.files import CountedImage, file_of, write_csv
from boxtwin.counting.images import list_images
from boxtwin.datasets.image_folder import image_files
from boxtwin.datasets.sample import Detections
from boxtwin.errors import InputError
from boxtwin.evaluation.count_intervals import CountInterval


@pytest.mark.parametrize(
    "classes",
    [
        ("total", "scale", "ship"),
        ("ship", "ship_low", "ship_2"),
        ("file", "learnt_from", "unlike_training"),
        ("total_2", "total", "total_spread"),
    ],
)
def test_every_column_of_the_table_has_a_name_of_its_own(tmp_path: Path, classes: tuple[str, ...]) -> None:
    counts = np.arange(6, 6 + 1 + len(classes))
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))
    count = ImageCount(
        counts=counts,
        intervals=tuple(CountInterval(int(number) - 1, int(number) + 1) for number in counts),
        spread=np.zeros_like(counts),
        unlike=(),
        scale=1.0,
        near=0,
        found=nothing,
        every=nothing,
    )
    write_csv(
        tmp_path / "counts.csv", [CountedImage("a.png", Path("a.png"), None, 8, 8, count)], classes, ensemble=True
    )
    with (tmp_path / "counts.csv").open(newline="", encoding="utf-8") as file:
        header, row = csv.reader(file)
    assert len(set(header)) == len(header) == len(row)
    of_images = {"file", "total", "scale", "unlike_training", "learnt_from"}
    for name, number in zip(classes, counts[1:], strict=True):
        if name in header and name not in of_images and name not in ("ship_low", "total_spread"):
            assert row[header.index(name)] == str(number)
    assert [row[header.index("total") + 3 * place] for place in range(len(counts))] == [str(each) for each in counts]


def test_what_cannot_be_looked_into_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.png").symlink_to("/mnt/gone/b.png")
    (tmp_path / "c.txt").symlink_to("/mnt/gone/c.txt")
    for name in ("a.png", "lost+found/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(image_files(tmp_path)) == ["a.png", "b.png"]
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refusing(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match="closed cannot be read: Permission denied"):
        image_files(tmp_path)


def test_long_names_of_images_give_names_of_files_that_systems_take() -> None:
    plain, long = "day 1/a.png", "day 1/" + "é" * 118 + ".png"
    assert file_of(plain, ".jpg") == "day 1/a.png.jpg"
    names = [file_of(f"{long[:-5]}{letter}.png", ".geojson") for letter in "éàè"]
    assert len(set(names)) == 3
    assert all(name.startswith("day 1/é") and name.endswith(".geojson") for name in names)
    assert all(len(Path(name).name.encode()) <= 200 for name in names)


def test_folders_are_searched_through_links_and_each_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "images"
    for file in ("images/a.png", "images/day2/b.JP2", "images/.hidden/c.png", "images/.d.png", "elsewhere/e.pgm"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for name in ("images/f.txt", "images/day2/g"):
        (tmp_path / name).touch()
    (folder / "a_link").symlink_to(folder / "day2")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert list(image_files(folder)) == ["a.png", "day2/b.JP2", "linked/e.pgm"]
    with caplog.at_level("INFO"):
        assert len(list_images(str(folder)).files) == 3
    assert "not counted: 2 files whose names do not end as images' do: day2/g, f.txt" in caplog.text


def test_pictures_of_an_earlier_count_are_not_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # A folder of images may have such names, too.
    images = ("a.png", "pictures/b.png", "counts/counts.png")
    of_count = ("counts.csv", "detections.json", "pictures/a.png.jpg", "pictures/counts/counts.png.jpg")
    for file in (*images, *(f"counts/{name}" for name in of_count)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert set(image_files(tmp_path)) == set(images)
    for asked in (str(tmp_path), f"{tmp_path}/**/*.*"):
        with caplog.at_level("INFO"):
            assert {file.relative_to(tmp_path).as_posix() for file in list_images(asked).files} == set(images)
        assert "that count.py drew" in caplog.text
        caplog.clear()
    drawn = tmp_path / "counts" / "pictures"
    for asked in (str(drawn), f"{drawn}/**/*.jpg"):  # where they are asked for
        assert len(list_images(asked).files) == 2


def test_a_file_that_is_named_in_several_ways_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "lists"):
        (tmp_path / folder).mkdir()
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "lists" / "more.txt").write_text("../photos/a.png\n")
    asked = ("photos", "lists/more.txt", str(tmp_path / "photos" / "a.png"), "./photos/*.png")
    assert list_images(asked).files == (Path("photos/a.png"),)
