"""Label files as tools and people write them: nothing in them is left out, or taken for something else, unsaid."""

from pathlib import Path
from typing import Any

import pytest
from test_manual import BOX, boxes_of, content, judge_of, manual

from boxtwin.errors import InputError

STORED = "images/a_v01.png"


@pytest.mark.parametrize("image_id", ["1", 99, None, 1.5])
def test_boxes_of_no_image_of_the_file_are_not_lost_unsaid(
    tmp_path: Path, image_id: Any, caplog: pytest.LogCaptureFixture
) -> None:
    changed = content()
    changed["annotations"][0]["image_id"] = image_id
    if image_id == 99:  # images may have been taken out of a file, and their boxes forgotten
        assert boxes_of(manual(tmp_path, changed), STORED) == []
        assert "1 boxes are of images that the file lacks" in caplog.text
        changed["annotations"][1]["image_id"] = 98
    with pytest.raises(InputError, match=r"labels\.file=.*, annotation 1: image_id .* is of no image"):
        manual(tmp_path, changed)
    changed["annotations"][0]["image_id"] = 1.0
    changed["annotations"][1]["image_id"] = 2  # of an image that is not confirmed
    assert boxes_of(manual(tmp_path, changed), STORED) == [BOX]


@pytest.mark.parametrize("bbox", [None, [], [10, 20, 5], [10, 20, 5, 6, 30], {"x": 1}, "here", [[10, 20, 5, 6]]])
def test_what_is_no_box_is_named(tmp_path: Path, bbox: Any) -> None:
    changed = content()
    changed["annotations"][0]["bbox"] = bbox
    with pytest.raises(InputError, match=r"annotation 1: bbox .* is no box"):
        manual(tmp_path, changed)
    del changed["annotations"][0]["bbox"]
    with pytest.raises(InputError, match="annotation 1: bbox None is no box"):
        manual(tmp_path, changed)


@pytest.mark.parametrize(("mark", "confirmed"), [("true", True), (1, True), (1.0, True), ("no", False), (0, False)])
def test_a_mark_means_the_same_however_it_is_written(tmp_path: Path, mark: Any, confirmed: bool) -> None:
    changed = content()
    changed["images"][0]["confirmed"] = mark
    for every_image in (False, True):
        judge = manual(tmp_path, changed, every_image=every_image)
        assert boxes_of(judge, STORED) == ([BOX] if confirmed else None)
        # Versions that took the word true alone read another set of labels.
        assert judge.read_as_before == (not confirmed)
    changed["images"][0]["confirmed"] = "perhaps"
    with pytest.raises(InputError, match=r"images/a/v01\.png: confirmed is neither yes nor no, 'perhaps'"):
        manual(tmp_path, changed)


@pytest.mark.parametrize("size", ["", None, " ", "80", 80.0])
def test_sizes_are_read_as_those_of_data_sets(tmp_path: Path, size: Any) -> None:
    changed = content()
    changed["images"][0]["width"] = size
    assert boxes_of(manual(tmp_path, changed), STORED) == [BOX]
    for wrong in ("wide", 80.6, [80], True):
        changed["images"][0]["width"] = wrong
        with pytest.raises(InputError, match=r"images/a/v01\.png: width or height is no whole number"):
            manual(tmp_path, changed)


def test_suspicious_boxes_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed = content()
    changed["annotations"] = [changed["annotations"][0] | {"id": number} for number in range(6)]
    for number, annotation in enumerate(changed["annotations"]):
        annotation["bbox"] = [10 * (number // 2), 20, 5, 6]  # each twice
    changed["annotations"][0]["iscrowd"] = "1"
    for annotation in changed["annotations"][:2]:
        annotation["attributes"] = {"rotation": 30.0}
    found = boxes_of(manual(tmp_path, changed), STORED)
    assert found is not None
    assert len(found) == 6
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.split(": ", 1)[1].split(",")[0] for message in said] == [
        "3 boxes stand there twice (same class",
        "1 boxes are crowds (iscrowd 1)",
        "2 boxes are of turned rectangles (attributes.rotation)",
    ]
    assert all("images/a/v01.png" in message for message in said)
    caplog.clear()
    judge_of(tmp_path / "confirmed.json", every_image=True)
    manual(tmp_path, content())
    assert len(caplog.records) == 3
