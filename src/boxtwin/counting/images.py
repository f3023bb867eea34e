"""The images to count in: folders, files, patterns and lists, and the pages of TIFF files."""

from __future__ import annotations

import glob
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from boxtwin.counting.scenes import Scene, open_scene
from boxtwin.datasets import tiff
from boxtwin.datasets.image_folder import (
    ENDINGS,
    folders_of_pictures,
    image_files,
    is_image,
    is_picture_of_count,
    other_files,
)
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.problems import some
from boxtwin.detector.predict import read_pixels
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError

log = logging.getLogger(__name__)

PREFETCHED = 2  # files that are decoded while another is counted in


@dataclass(frozen=True)
class ImageList:
    """Image files, and the folder that their names start from."""

    folder: Path
    files: tuple[Path, ...]

    def name(self, file: Path) -> str:
        """The name of a file in results."""
        return Path(os.path.relpath(file, self.folder)).as_posix()


@dataclass(frozen=True, eq=False)
class Read:
    """One image: pixels, or a scene that is read in windows."""

    name: str  # FILE, or FILE#page
    path: Path
    page: int | None
    content: Pixels | Scene

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        if isinstance(self.content, Scene):
            return self.content.size
        return self.content.shape[1], self.content.shape[0]


def list_images(asked: str | Sequence[str]) -> ImageList:
    """The images that ``asked`` names; raises `InputError` if there are none."""
    values = [asked] if isinstance(asked, str) else list(asked)
    by_path: dict[str, Path] = {}  # a file that is named in two ways is one image
    for file in (file for value in values for file in _files_of(value)):
        by_path.setdefault(os.path.abspath(file), file)  # noqa: PTH100 - links are files of their own
    files = list(by_path.values())
    if not files:
        raise InputError(f"images={asked} holds no images ({', '.join(ENDINGS)})")
    if len(values) == 1 and Path(values[0]).is_dir():
        return ImageList(Path(values[0]), tuple(files))
    # Without "..": names lead into the folder of the results, never out of it.
    folders = [os.path.dirname(os.path.abspath(file)) for file in files]  # noqa: PTH100, PTH120
    return ImageList(Path(os.path.commonpath(folders)), tuple(files))


def _files_of(value: str) -> list[Path]:
    path = Path(value)
    if path.is_dir():
        files = list(image_files(path).values())
        if not files:
            raise InputError(f"images={value} holds no images ({', '.join(ENDINGS)})")
        _tell(value, "files whose names do not end as images' do", other_files(path))
        _tell(value, "folders of pictures that count.py drew", folders_of_pictures(path))
        return files
    if path.is_file():
        if path.suffix.lower() != ".txt":
            return [path]
        return _named_in(path)
    matching = [Path(name) for name in sorted(glob.glob(value, recursive=True)) if Path(name).is_file()]  # noqa: PTH207
    if not matching:
        raise InputError(f"images={value}: there is no such file or folder, and nothing that matches as a pattern")
    _tell(value, "files whose names do not end as images' do", [str(file) for file in matching if not is_image(file)])
    images = list(filter(is_image, matching))
    drawn = {file for file in images if is_picture_of_count(file)}
    if len(drawn) == len(images):  # the pattern names them
        return images
    _tell(value, "pictures that count.py drew", sorted(map(str, drawn)))
    return [file for file in images if file not in drawn]


def _tell(value: str, what: str, others: list[str]) -> None:
    if others:
        log.info("images=%s: not counted: %d %s: %s", value, len(others), what, some(others))


def _named_in(path: Path) -> list[Path]:
    """The images named in a text file, one a line, from its folder or the working folder on."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"images={path} cannot be read as a list of names: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    files = [beside if (beside := path.parent / name).exists() else Path(name) for name in names]
    if not any(file.is_file() for file in files):
        raise InputError(
            f"images={path}: none of its {len(files)} lines is the path of an image file, from the folder "
            "of the text file or from the working folder"
        )
    return files


def read_all(images: ImageList, spec: DetectorSpec) -> Iterator[tuple[Path, list[Read] | str]]:
    """Each file with its images, or with what is wrong with it; one thread reads ahead."""

    def read(file: Path) -> list[Read] | str:
        try:
            return _read(file, images.name(file), spec)
        except (InputError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as thread:
        waiting = deque((file, thread.submit(read, file)) for file in images.files[:PREFETCHED])
        rest = iter(images.files[PREFETCHED:])
        while waiting:
            file, future = waiting.popleft()
            content = future.result()
            if (following := next(rest, None)) is not None:
                waiting.append((following, thread.submit(read, following)))
            yield file, content


def _read(file: Path, name: str, spec: DetectorSpec) -> list[Read]:
    if (scene := open_scene(file, spec)) is not None:
        return [Read(name, file, None, scene)]
    encoded = file.read_bytes()
    may_have_pages = tiff.is_tiff(encoded) and spec.how_to_read.page is None
    pages = tiff.count_pages(encoded, str(file)) if may_have_pages else 1
    if pages == 1:
        return [Read(name, file, None, read_pixels(encoded, str(file), spec))]
    return [Read(f"{name}#{page}", file, page, read_pixels(encoded, str(file), spec, page)) for page in range(pages)]
