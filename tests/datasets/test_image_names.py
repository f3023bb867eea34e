"""Which image a name in a label file means."""

from __future__ import annotations

import pytest

from boxtwin.datasets.image_names import ImageNames

KNOWN = ("1.png", "a/2.png", "b/3.png", "c/3.png", "ü/4.tif", "5.png", "5.jpg", "d/1.png")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1.png", "1.png"),  # equal goes before the end of d/1.png
        ("data/set/d/1.png", "d/1.png"),
        ("data/1.png", "1.png"),
        ("2.png", "a/2.png"),
        (r"C:\data\a\2.PNG", "a/2.png"),
        ("0a1b2c3d-1.png", "1.png"),
        ("harbour-1.png", None),
        ("x0a1b2c3d-1.png", None),
        ("b/2.png", None),  # another folder
        ("xa/2.png", None),  # not at the border of a folder
        ("upload/7/0a1b2c3d-2.png", "a/2.png"),
        ("train/2_png.rf.9f8e7d.jpg", "a/2.png"),
        ("3.png", None),  # one of several
        ("b/3", "b/3.png"),
        ("u%CC%88/4.png", "ü/4.tif"),
        ("5.jpg", "5.jpg"),
        ("5.bmp", None),
    ],
)
def test_paths_agree_from_the_end_at_borders_of_folders(name: str, expected: str | None) -> None:
    found = ImageNames([[each] for each in KNOWN]).find(name)
    assert (None if found is None else KNOWN[found]) == expected
