"""Names of images, and what annotation tools make of them: folders before them, a prefix, another ending."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

from boxtwin.datasets.coco_json import file_key
from boxtwin.datasets.image_folder import ENDINGS

# Label Studio puts eight hexadecimal digits before a name, Roboflow the ending and a hash behind it.
BEFORE, AFTER = re.compile(r"^[0-9a-f]{8}-"), re.compile(r"_(?:png|jpe?g|tiff?|bmp|webp)\.rf\.\w+$", re.I)
_ENDING = re.compile(rf"(?:{'|'.join(map(re.escape, ENDINGS))})$", re.I)


def without_ending(name: str) -> str:
    """A name without the ending of an image file; some tools leave it out."""
    return _ENDING.sub("", name)


class ImageNames:
    """Finds the image that a name in a label file means, among images whose names are known."""

    def __init__(self, known: Sequence[Iterable[str]]) -> None:
        """``known`` holds the names of each image: its path, and others under which tools may have got it."""
        self._whole: dict[str, set[int]] = defaultdict(set)
        self._ends: dict[str, set[int]] = defaultdict(set)  # of the paths, cut at borders of folders
        for number, names in enumerate(known):
            for name in names:
                parts = PurePosixPath(file_key(name)).parts
                for first in range(len(parts)):
                    end = _path(*parts[first:])
                    for key in (end, without_ending(end)):
                        self._ends[key].add(number)
                        if first == 0:
                            self._whole[key].add(number)

    def find(self, name: str, among: Collection[int] | None = None) -> int | None:
        """The index of the image that ``name`` means, by default among all; None if that is none, or one of several.

        Of two paths one has to be the end of the other, cut at the border of a folder: ``a/1.png`` may be ``1.png`` or
        ``data/a/1.png``, and is never ``b/1.png`` or ``a-1.png``. A path that is equal goes before others. Endings of
        image files, the eight digits that Label Studio puts before a name, and Roboflow's hash behind it may differ;
        files that these two have renamed lie in folders of their own, so that their base name alone counts.
        """
        for path in dict.fromkeys((file_key(name), file_key(unquote(name)))):
            for indices in self._candidates(path):
                fitting = indices if among is None else indices.intersection(among)
                if len(fitting) == 1:
                    return next(iter(fitting))
                if fitting:
                    return None
        return None

    def _candidates(self, path: str) -> Iterator[set[int]]:
        """Images that a path may mean, the most certain first."""
        *folders, last = PurePosixPath(path).parts or ("",)
        stem = without_ending(last)
        cut = (BEFORE.sub("", last), BEFORE.sub("", stem), AFTER.sub("", stem), BEFORE.sub("", AFTER.sub("", stem)))
        renamed = [each for each in dict.fromkeys(cut) if each not in (last, stem)]
        for first in range(len(folders) + 1):
            for base in (last, stem, *renamed):
                key = _path(*folders[first:], base)
                yield self._whole.get(key, set())
                if first == 0:
                    yield self._ends.get(key, set())
        for base in renamed:
            yield self._ends.get(base, set())


def _path(*parts: str) -> str:
    return "/".join(parts).replace("//", "/")  # an absolute path begins with two
