"""File names of variations: those in stores, and what annotation tools make of them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from boxtwin.datasets.image_names import AFTER, BEFORE

_NUMBER = re.compile(r"v0*([1-9]\d*)", re.I)
_IN_STORE = re.compile(r"(images/.+?)[_/]v0*([1-9]\d*)\.png", re.I)
_SUFFIXED = re.compile(r"(.+?)[_\-. ]v0*([1-9]\d*)", re.I)


def image_name(source: str, variation: int) -> str:
    """The path of a variation in its store, by the name of its source.

    Annotation tools flatten folders, so that base names alone tell variations apart.
    """
    return f"images/{_stem(source).replace('/', '__')}_v{variation:02d}.png"


def earlier_image_name(source: str, variation: int) -> str:
    """As `image_name`, in stores of earlier versions."""
    return f"images/{_stem(source)}/v{variation:02d}.png"


def match_names(names: Iterable[str], sources: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Source and number of the variation for each of ``names`` that identifies them."""
    by_name: dict[str, set[str]] = defaultdict(set)
    in_store: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        stem = _stem(source).replace("\\", "/")  # as ``names`` are read
        for known in (stem, stem.replace("/", "__")):
            in_store[unicodedata.normalize("NFC", f"images/{known}")].add(source)
        for known in (stem, *(stem.replace("/", separator) for separator in ("__", "_", "-")), Path(stem).name):
            by_name[unicodedata.normalize("NFC", known)].add(source)
    matched = {}
    for name in names:
        # A path as stores write it means one source, whatever other sources could be called.
        exact = _IN_STORE.fullmatch(unicodedata.normalize("NFC", name.replace("\\", "/")))
        candidates = [(in_store.get(exact[1], set()), int(exact[2]))] if exact else []
        candidates += [(by_name.get(stem, set()), number) for stem, number in _parse(name)]
        for matching, number in candidates:
            if len(matching) == 1:
                matched[name] = (next(iter(matching)), number)
                break
    return matched


def _stem(name: str) -> str:
    return Path(name).with_suffix("").as_posix()


def _parse(name: str) -> Iterable[tuple[str, int]]:
    """Names of sources (without ending) and numbers that a file's name may stand for, the most specific first."""
    path = PurePosixPath(unicodedata.normalize("NFC", unquote(name)).replace("\\", "/"))
    for stem in dict.fromkeys((path.stem, AFTER.sub("", path.stem), BEFORE.sub("", AFTER.sub("", path.stem)))):
        number, suffixed = _NUMBER.fullmatch(stem), _SUFFIXED.fullmatch(stem)
        parts = path.parts[:-1]
        for first in range(len(parts) + 1):
            folder = "/".join(parts[first:])
            if number and folder:
                yield folder, int(number[1])
            elif suffixed:
                yield f"{folder}/{suffixed[1]}".lstrip("/"), int(suffixed[2])
        if suffixed:
            yield re.sub(r"^images[_\-]+", "", suffixed[1]), int(suffixed[2])
