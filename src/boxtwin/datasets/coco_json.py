"""The text of a COCO file: what tools write in different ways is normalised, or refused with its place.

The format: https://cocodataset.org/#format-data (object detection).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from boxtwin.datasets.coco_boxes import outline
from boxtwin.datasets.image_folder import files_below
from boxtwin.datasets.problems import Problems, shown
from boxtwin.errors import InputError

LONGEST_NUMBER = 100  # digits; longer ones are read as floating point, which no id or size may be
UTF16 = "text in UTF-16; save it as UTF-8"
# First bytes of files that are often taken for JSON text.
NOT_JSON = {
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), UTF16),
}
NO_TEXT = "file names that are no valid text"
LONGEST_PART = 255  # bytes of a file's or folder's name, on all common file systems
LONGEST_PATH = 4000  # bytes, a little below Linux's limit
LONGEST_CLASS = 200  # characters of a class's name, which names metrics too
FIELDS: dict[str, tuple[str, ...]] = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}
FLAGS = {"": False, "0": False, "0.0": False, "false": False, "no": False}
FLAGS |= {"1": True, "1.0": True, "true": True, "yes": True}


def load_json(path: Path, *, setting: str = "", cure: str = "", damaged: str = "") -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark; `InputError` if that cannot be done.

    Errors call it ``setting`` (such as ``split.file=``) and its path; ``cure`` is what to do if there is no such file,
    ``damaged`` if it is not valid JSON.
    """
    where = f"{setting}{path}"
    try:
        encoded = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{where} does not exist{cure and '; '}{cure}") from None
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from None
    other = next((what for start, what in NOT_JSON.items() if encoded.startswith(start)), None)
    if other is not None or b"\0" in encoded[:4]:
        raise InputError(f"{where} is {other or UTF16}")
    try:
        # A function that is called for each number takes a third of the time: only where there is a long one.
        has_long_number = b"0" * (LONGEST_NUMBER + 1) in encoded.translate(bytes.maketrans(b"123456789", b"0" * 9))
        parse_int = _integer if has_long_number else None
        return json.loads(encoded.decode("utf-8-sig"), object_pairs_hook=_object, parse_int=parse_int)
    except RecursionError:
        raise InputError(f"{where} is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            error = ValueError(f"its text is not UTF-8, see byte {error.start}; save it as UTF-8")
        raise InputError(f"{where} is not valid JSON: {error}{damaged and '; '}{damaged}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key '{shown(name)}' occurs twice in one object")
    return content


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_NUMBER else float(digits)


def read_content(path: Path, problems: Problems) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a COCO detection file, every entry in one form; `InputError` if the file is none.

    Ids are integers of any size; ``iscrowd`` is a bool; ``bbox`` is there, None where the file has none; ``width`` and
    ``height`` are integers, left out if not stated; ``name`` of a category is text, and of one category alone.
    """
    return check_content(load_content(path), problems)


def load_content(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a COCO detection file, of which ids and file names alone are checked.

    Raises `InputError` if the file is none.
    """
    content = load_json(path)
    for key, fields in FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: a COCO detection file needs a list under '{key}'")
        for position, entry in enumerate(content[key]):
            where = f"{path}: {key}[{position}]"
            if missing := [name for name in fields if not isinstance(entry, dict) or name not in entry]:
                raise InputError(f"{where} lacks {', '.join(missing)}")
            for name in (name for name in fields if name.endswith("id")):
                number, entry[name] = entry[name], whole(entry[name])
                if entry[name] is None:
                    raise InputError(f"{where}: {name} must be a whole number, not {shown(repr(number))}")
            if key == "images" and not isinstance(entry["file_name"], str):
                raise InputError(f"{where}: file_name must be text, not {shown(repr(entry['file_name']))}")
    return {key: content[key] for key in FIELDS}


def of_images(content: dict[str, list[dict[str, Any]]], names: Container[str]) -> dict[str, list[dict[str, Any]]]:
    """The content that concerns images of these file names; other images with the id of one of them stay."""
    kept = {entry["id"] for entry in content["images"] if entry["file_name"] in names}
    left_out = {entry["id"] for entry in content["images"]} - kept
    parts = {
        key: [entry for entry in content[key] if entry[field] not in left_out]
        for key, field in (("images", "id"), ("annotations", "image_id"))
    }
    return content | parts


def check_content(content: dict[str, list[dict[str, Any]]], problems: Problems) -> dict[str, list[dict[str, Any]]]:
    """Bring what `load_content` gives into the form of `read_content`, in place, and name what is wrong."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for image in content["images"]:
        for side in ("width", "height"):
            value = image.pop(side, None)
            try:
                size = stated_size(value)
            except ValueError:
                problems.add("widths or heights that are no whole numbers", f"{image['file_name']}: {side} {value!r}")
                continue
            if size is not None:
                image[side] = size
    without_box: list[str] = []
    for annotation in content["annotations"]:
        if annotation.get("bbox") in (None, []) and (around := outline(annotation)) is not None:
            x1, y1, x2, y2 = around
            annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            without_box.append(names.get(annotation["image_id"], "unknown image"))
        annotation.setdefault("bbox", None)
        crowd = flag(annotation.get("iscrowd"))
        if crowd is None:
            place = f"{names.get(annotation['image_id'], 'unknown image')}: {shown(repr(annotation['iscrowd']))}"
            problems.add("iscrowd is neither 0 nor 1", f"{place} (annotation {annotation['id']})")
        annotation["iscrowd"] = bool(crowd)
    problems.remark(without_box, "annotations have no bbox", "the box around their segmentation is used")
    for category in content["categories"]:
        name = category["name"]
        if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
            problems.add("names of categories that are no text", f"{category['id']}: {name!r}")
        category["name"] = str(name).strip()
        if len(category["name"]) > LONGEST_CLASS or not category["name"].isprintable():
            problems.add(f"names of categories with control characters, or above {LONGEST_CLASS} characters", category)
    _check_ids(content, names, problems)
    _merge_categories(content, problems)
    return content


def whole(value: object) -> int | None:
    """A whole number as tools write it, 7 or 7.0; None for anything else."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if type(value) is int else None


def flag(value: object) -> bool | None:
    """Yes or no as tools write it: true, 1, 1.0, "1", "true"; nothing at all is no. None for anything else."""
    text = "" if value is None else str(value).strip().lower()
    return FLAGS.get(text) if value is None or isinstance(value, bool | str | int | float) else None


def stated_size(value: object) -> int | None:
    """A width or height as tools write it, as text too; None where it is missing. ValueError: no whole number."""
    if isinstance(value, str):
        value = float(value) if value.strip() else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    size = whole(value)
    if size is None:
        raise ValueError(f"{value!r} is no whole number")
    return size


def file_key(name: str) -> str:
    """Equal for all ways of writing one file's name: Windows' separators, composed or decomposed letters."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name.replace("\\", "/"))))


def fault_of_name(name: str) -> str:
    """Why a file name cannot be that of an image in the folder; "" if it can."""
    path = PurePosixPath(name.replace("\\", "/"))
    # A drive's letter; other colons are part of names, as in times of day.
    if not path.parts or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", path.parts[0]):
        return "file names that point outside the image folder"
    try:
        longest = max(len(part.encode()) for part in path.parts)
    except UnicodeEncodeError:
        return NO_TEXT
    too_long = longest > LONGEST_PART or len(name.encode()) > LONGEST_PATH
    return "file names that no file can have" if "\0" in name or too_long else ""


def find_files(names: Sequence[str], folder: Path) -> list[Path]:
    """The file that each name means, in the form that it has in the folder.

    Forms are `file_key`'s, that of addresses (``%20``), and those in other capital letters where one file alone fits:
    many systems know no case.
    """
    paths = [folder / name for name in names]
    if all(path.exists() for path in paths):
        return paths
    found = files_below(folder) if folder.is_dir() else ()
    present = {file_key(path.relative_to(folder).as_posix()): path for path in found}
    in_any_case: dict[str, list[Path]] = defaultdict(list)
    for key, path in present.items():
        in_any_case[key.casefold()].append(path)
    for index, (name, path) in enumerate(zip(names, paths, strict=True)):
        for key in () if path.exists() else (file_key(unquote(name)), file_key(name)):  # the last one counts most
            alike = [present[key]] if key in present else in_any_case[key.casefold()]
            if len(alike) == 1:
                paths[index] = alike[0]
    return paths


def _merge_categories(content: dict[str, list[dict[str, Any]]], problems: Problems) -> None:
    """Make categories of one name one category, with the smallest id that annotations use.

    Merged files repeat their categories, and Roboflow writes a root category that may have the name of a class.
    """
    used = Counter(annotation["category_id"] for annotation in content["annotations"])
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    in_any_case: dict[str, list[str]] = defaultdict(list)
    merged: dict[int, int] = {}
    for category in content["categories"]:
        by_name[unicodedata.normalize("NFC", category["name"].strip())].append(category)
    for name, categories in by_name.items():
        categories.sort(key=lambda category: (not used[category["id"]], category["id"]))
        first, *others = ids = [category["id"] for category in categories]
        merged |= dict.fromkeys({*others} - {first}, first)
        if others:
            same = f"category '{shown(name)}' stands there {len(ids)} times (ids {ids}): taken for one class"
            problems.remarks.append(same)
        if used[first]:
            in_any_case[categories[0]["name"].strip().casefold()].append(f"'{shown(categories[0]['name'])}' ({first})")
        if len({str(category.get("supercategory")) for category in categories if used[category["id"]]}) > 1:
            cure = "Rename the categories, or give their annotations one category_id."
            what = "categories of one name but different supercategories"
            problems.add(what, f"'{name}': ids {', '.join(map(str, ids))}", cure)
    content["categories"] = [one for one in content["categories"] if one["id"] not in merged]
    for annotation in content["annotations"]:
        annotation["category_id"] = merged.get(annotation["category_id"], annotation["category_id"])
    for alike in in_any_case.values():
        if len(alike) > 1:
            what = f"the names of {', '.join(alike)} differ in capital letters alone: each is a class of its own"
            problems.remarks.append(f"{what}. If they are one, give the annotations of both one category_id")


def _check_ids(content: dict[str, list[dict[str, Any]]], names: dict[int, str], problems: Problems) -> None:
    for key, label in (("images", "file_name"), ("annotations", "image_id"), ("categories", "name")):
        owners: dict[int, list[str]] = defaultdict(list)
        for entry in content[key]:
            owners[entry["id"]].append(str(names.get(entry[label], entry[label])))
        for number, entries in owners.items():
            if len(entries) > 1:
                problems.add(f"duplicate ids in {key}", f"{number}: {', '.join(entries[:3])}")
    categories = {entry["id"] for entry in content["categories"]}
    for entry in content["annotations"]:
        if entry["image_id"] not in names:
            problems.add("annotations of unknown images", f"annotation {entry['id']}: image_id {entry['image_id']}")
        elif entry["category_id"] not in categories:
            place = f"{names[entry['image_id']]}: category_id {entry['category_id']} (annotation {entry['id']})"
            problems.add("annotations of unknown categories", place)
