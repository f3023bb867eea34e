"""Chips joined to a scene: counts of the scene beside those of its chips, with empty margins between them and without.

python benchmarks/scene_seams.py --run multirun/STUDY/RUN --images FOLDER
"""

from __future__ import annotations

import math
from pathlib import Path

from measuring import counting, counting_parser, report

import numpy as np  # isort: skip  (measuring sets the environment that torch reads)

from boxtwin.counting.ensemble import Counter
from boxtwin.counting.images import Read, read_all
from boxtwin.mixing.letterbox import OVERLAP


def main() -> None:
    options = counting_parser(__doc__, "square, grey, of one size")
    options.add_argument("--side", type=int, default=4, help="chips along a side of a scene")
    options.add_argument("--scenes", type=int, default=3)
    arguments = options.parse_args()
    number = arguments.side**2
    detector, images = counting(arguments, number * arguments.scenes)
    counter = Counter([detector], None)
    chips: list[np.ndarray] = []
    for _, read in read_all(images, detector.spec):
        assert not isinstance(read, str)
        assert isinstance(read[0].content, np.ndarray)
        chips.append(read[0].content if read[0].content.ndim == 2 else read[0].content[:, :, 0])
    alone = [int(counter(Read("chip", Path(), None, chip)).counts[0]) for chip in chips]
    # Every second tile falls on a chip.
    margin = math.floor(chips[0].shape[0] * (1 - 2 * OVERLAP))
    rows: list[list[str | float]] = []
    for start in range(0, number * arguments.scenes, number):
        of_scene = chips[start : start + number]
        joined = [
            int(counter(Read("scene", Path(), None, scene_of(of_scene, arguments.side, gap))).counts[0])
            for gap in (margin, 0)
        ]
        sums = (start // number + 1, sum(alone[start : start + number]), *joined)
        rows.append([str(value) for value in sums])
    form = f"scenes of {arguments.side} x {arguments.side} chips of {chips[0].shape[0]} pixels"
    report(
        f"{detector.path.parent.name}: {form}",
        ("scene", "its chips, one by one", f"scene with margins of {margin} pixels", "scene without margins"),
        rows,
    )


def scene_of(chips: list[np.ndarray], side: int, gap: int) -> np.ndarray:
    """Chips in rows on ground as dark as their median."""
    length = chips[0].shape[0]
    scene = np.full((side * length + (side - 1) * gap,) * 2, np.median(chips), chips[0].dtype)
    for place, chip in enumerate(chips):
        top, left = ((length + gap) * index for index in divmod(place, side))
        scene[top : top + length, left : left + length] = chip
    return scene


if __name__ == "__main__":
    main()
