"""Pictures of detections and of variations, written as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from boxtwin.boxes import area_xyxy, iou_matrix
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.levels import to_8_bit
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.counts import counted
from boxtwin.evaluation.matching import match
from boxtwin.files import write_bytes_atomically
from boxtwin.lettering import class_colour, legend, lettering, put, readable_on, shorten

# Bright on dark sea; told apart by lightness and line style as well as by hue.
TRUE, RIGHT, WRONG, MISSED, CROWD = "#4cc9f0", "#52e06b", "#ff5a5f", "#ffd23f", "#b8b8b8"
DPI = 110
TILE = 3.2  # inches, the longer side of one picture
# Score labels cover what they name: beyond this many in one picture they hide more than they say.
MAX_CAPTIONS = 30
CAPTION = 6  # points, the size of letters
LETTER = 0.75 * CAPTION  # points, more than the mean width of one
LEGEND = 0.3  # inches, a line of it
MOST_NAMED = 10  # classes in a legend
FLATTEST = 0.2  # height of a row, in widths of a picture, so that titles of very long images have room
Window = tuple[int, int, int, int]  # xyxy, pixels of the image
NOTHING = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))


def pick_examples(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` samples from the emptiest to the most crowded, evenly spaced in the order of object count, then name.

    Every run of a study shows the same images, whatever its detections are.
    """
    ordered = sorted(samples, key=lambda sample: (len(sample.object_boxes), sample.name))
    if len(ordered) <= count:
        return ordered
    return [ordered[index] for index in np.linspace(0, len(ordered) - 1, count).round().astype(int)]


def draw_boxes(
    axes: Axes,
    boxes: Float[np.ndarray, "n 4"],
    *,
    colour: str,
    line_style: str = "-",
    captions: Sequence[str] = (),
    corners: Sequence[str] = (),
) -> None:
    """Draw xyxy boxes (pixels of the image) on axes that `show_image` prepared.

    ``captions`` stand above the boxes. ``corners`` are colours of marks in upper left corners and behind captions.
    """
    if corners:
        axes.scatter(boxes[:, 0], boxes[:, 1], s=9, marker="s", c=list(corners), linewidths=0, zorder=3)
    for x1, y1, x2, y2 in boxes.tolist():
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.3, linestyle=line_style)
        axes.add_patch(frame)
    (top, bottom), (left, right) = sorted(axes.get_ylim()), axes.get_xlim()
    width = axes.get_window_extent().width * 72 / axes.figure.get_dpi()  # points
    backgrounds = corners or [colour] * len(captions)
    for (x1, y1, x2, y2), caption, background in zip(boxes.tolist(), captions, backgrounds, strict=bool(captions)):
        if x1 >= right or x2 <= left or y1 >= bottom or y2 <= top:  # outside of what is shown
            continue
        room = 0.05 * (bottom - top)
        below = y1 - top < room  # no room above the box: below it, or in it if there is none there either
        y = y1 if not below else y2 if bottom - y2 > room else max(y1, top)
        at_border = (right - x1) / (right - left) * width < LETTER * len(caption)  # no room on its right
        axes.annotate(
            caption,
            (min(x2, right) if at_border else max(x1, left), y),
            xytext=(0, -1 if below else 1),
            textcoords="offset points",
            ha="right" if at_border else "left",
            va="top" if below else "bottom",
            fontsize=CAPTION,
            color=readable_on(background),
            bbox={"facecolor": background, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            annotation_clip=True,
            **lettering(caption),
        )


def show_image(axes: Axes, pixels: Pixels, window: Window | None = None) -> None:
    """Show pixels of any size and depth in axes whose coordinates are pixels of the image; ``window`` zooms."""
    x1, y1, x2, y2 = window or (0, 0, pixels.shape[1], pixels.shape[0])
    shown = shrunk(to_8_bit(pixels)[y1:y2, x1:x2], round(2 * TILE * DPI))
    # Colour images ignore the map of grey levels.
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=(x1, x2, y2, y1), interpolation="antialiased")
    axes.set(xlim=(x1, x2), ylim=(y2, y1), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color("#888888")


def _show_truth(
    axes: Axes, sample: Sample, pixels: Pixels, named: _Classes, colour: str, window: Window | None = None
) -> None:
    """Show an image with its boxes."""
    show_image(axes, pixels, window)
    draw_boxes(axes, sample.boxes[sample.crowd], colour=CROWD, line_style=":")
    captions, corners = named.captions(sample.object_labels), named.corners(sample.object_labels)
    draw_boxes(axes, sample.object_boxes, colour=colour, captions=captions, corners=corners)


def side_by_side(
    samples: Sequence[Sample],
    detections: Mapping[int, Detections],
    threshold: float | Sequence[float],
    path: Path,
    classes: Sequence[str],
    chosen_of: int | None = None,
) -> None:
    """Truth on the left, detections from the threshold (or that of their class) on the right, for each sample.

    Right detections are green, wrong ones red, missed objects dashed yellow, those in a crowd grey and dotted. Where
    there are several classes, a box's corner and caption have the colour of its class, which the legend names. Where
    the samples are a choice of ``chosen_of`` images, the legend says so.
    """
    pairs_across = 1 if len(samples) <= 2 else 2
    named = _Classes(classes)
    flat = [_flatness(samples[place : place + pairs_across]) for place in range(0, len(samples), pairs_across)]
    figure, grid = _grid(flat, 2 * pairs_across, legend_lines=2 if len(classes) > 1 else 1)
    for sample, (left, right) in zip(samples, grid.reshape(-1, 2), strict=False):
        pixels = sample.read()
        detected = counted(detections.get(sample.image_id, NOTHING), threshold)
        matches = match(sample, detected)

        _show_truth(left, sample, pixels, named, TRUE)
        put(left.set_title(" ", fontsize=7, loc="left"), sample.name.rsplit("/", 1)[-1])

        show_image(right, pixels)
        captions = named.captions(detected.labels, detected.scores)
        missed = named.corners(sample.object_labels[matches.missed])
        draw_boxes(right, sample.object_boxes[matches.missed], colour=MISSED, line_style="--", corners=missed)
        wrong = ~matches.right & ~matches.ignored
        for chosen, colour, style in ((matches.ignored, CROWD, ":"), (matches.right, RIGHT, "-"), (wrong, WRONG, "-")):
            texts = [caption for caption, take in zip(captions, chosen, strict=False) if take]
            corners = named.corners(detected.labels[chosen])
            draw_boxes(right, detected.boxes[chosen], colour=colour, line_style=style, captions=texts, corners=corners)
        counts = f"true {len(sample.object_boxes)}, found {int((~matches.ignored).sum())}"
        right.set_title(counts, fontsize=8, loc="left", fontweight="bold")
    for axes in grid.ravel()[2 * len(samples) :]:
        axes.set_axis_off()
    colours = {"true": TRUE, "right": RIGHT, "wrong": WRONG, "missed": MISSED}
    lines = {name: Line2D([], [], color=colour, linewidth=2) for name, colour in colours.items()}
    lines["missed"].set_linestyle("--")
    if any(sample.crowd.any() for sample in samples):
        lines["crowd"] = Line2D([], [], color=CROWD, linewidth=2, linestyle=":")
    if chosen_of is not None and chosen_of > len(samples):
        lines[f"{len(samples)} of {chosen_of} images"] = Line2D([], [], linestyle="")
    _dark_legend(figure, list(lines.values()), list(lines), 1.0)
    named.legend(figure, top=LEGEND)
    save(figure, path)


def contact_sheet(
    sources: Sequence[Sample],
    variations: Sequence[Sequence[Sample | None]],
    path: Path,
    classes: Sequence[str] = (),
    *,
    columns: int = 6,
    titles: Sequence[Sequence[str]] = (),
    unchecked: bool = False,
) -> None:
    """Each source beside its first ``columns - 1`` variations, boxes drawn, and a row of close-ups below.

    Sources with few variations stand side by side, as many as ``columns`` have room for. The close-up shows the same
    window of every picture: of objects that variations have and their source lacks, or else of the source's objects,
    the window around one of them that holds most. ``titles`` replace those of
    the variations; None leaves a place empty below its title. With ``unchecked``, the legend says that nothing has
    checked the boxes of variations.
    """
    across = 1 + min(columns - 1, max(len(of_source) for of_source in variations))
    beside = min(len(sources), max(1, columns // across))
    named = _Classes(classes)
    flat = [_flatness(sources[place : place + beside]) for place in range(0, len(sources), beside)]
    heights = [height for row in flat for height in (row, 1.0)]  # close-ups are square
    figure, grid = _grid(heights, across * beside, legend_lines=2 if len(classes) > 1 else 1)
    unused = set(grid.ravel())
    for index, (source, of_source) in enumerate(zip(sources, variations, strict=True)):
        pictured, (row, place) = of_source[: across - 1], divmod(index, beside)
        window = _busiest_window(source, _new_boxes(source, pictured))
        for column, sample in enumerate([source, *pictured]):
            axes = grid[2 * row : 2 * row + 2, across * place + column]
            title = source.name.rsplit("/", 1)[-1]
            if sample is not None:
                unused.difference_update(axes)
                pixels = sample.read()
                for target, view in zip(axes, (None, window), strict=True):
                    _show_truth(target, sample, pixels, named, MISSED if column else TRUE, view)
                if sample.lineage is not None:
                    title = f"v{sample.lineage.variation:02d} {sample.lineage.generator}"
            if titles and column:
                title = titles[index][column - 1]
            put(axes[0].set_title(" ", fontsize=7, loc="left"), title, 48)
    for empty in unused:
        empty.set_axis_off()
    lines = [Line2D([], [], color=colour, linewidth=2) for colour in (TRUE, MISSED)]
    names = ["box in the source", "unchecked box" if unchecked else "box in the variation"]
    if any(sample.crowd.any() for sample in sources):
        lines.append(Line2D([], [], color=CROWD, linewidth=2, linestyle=":"))
        names.append("crowd")
    _dark_legend(figure, lines, names, 1.0)
    named.legend(figure, top=LEGEND)
    save(figure, path)


def shrunk(pixels: UInt8[np.ndarray, "..."], side: int) -> UInt8[np.ndarray, "..."]:
    """An image whose longer side is at most ``side``: averaged, as nearest pixels make or swallow small objects."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


class _Classes:
    """Captions, colours and legend of the classes in a picture; none where there is only one class."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._names = classes
        self._seen: set[int] = set()

    def captions(self, labels: Int[np.ndarray, " n"], scores: Float[np.ndarray, " n"] | None = None) -> list[str]:
        """Class and score of each box; none where there are too many to be read."""
        if len(labels) > MAX_CAPTIONS or (scores is None and len(self._names) < 2):
            return []
        names = [shorten(self._names[label], 12) if len(self._names) > 1 else "" for label in labels]
        return names if scores is None else [f"{a} {b:.2f}".strip() for a, b in zip(names, scores, strict=True)]

    def corners(self, labels: Int[np.ndarray, " n"]) -> list[str]:
        """The colour of each box's class."""
        if len(self._names) < 2:
            return []
        self._seen |= set(labels.tolist())
        return [class_colour(label) for label in labels.tolist()]

    def legend(self, figure: Figure, *, top: float) -> None:
        """Name the classes that were drawn, ``top`` inches below the upper edge."""
        shown = sorted(self._seen)[:MOST_NAMED]
        if not shown:
            return
        marks = [Line2D([], [], color=class_colour(label), marker="s", linestyle="") for label in shown]
        names = [self._names[label] for label in shown]
        if len(self._seen) > len(shown):
            marks.append(Line2D([], [], linestyle=""))
            names.append(f"and {len(self._seen) - len(shown)} more")
        _dark_legend(figure, marks, names, 1 - top / figure.get_figheight())


def _new_boxes(source: Sample, variations: Sequence[Sample | None]) -> Float[np.ndarray, "n 4"]:
    """The boxes of objects in variations that lie on no object of their source."""
    boxes = np.concatenate([np.zeros((0, 4)), *(each.object_boxes for each in variations if each is not None)])
    return boxes[iou_matrix(boxes, source.object_boxes).max(axis=1, initial=0.0) == 0]


def _busiest_window(source: Sample, new: Float[np.ndarray, "n 4"]) -> Window:
    """A square around one of the new objects, or of the source's if there are none, that holds as many of their centres
    as possible, inside the image."""
    boxes, width, height = new if len(new) else source.object_boxes, source.width, source.height
    shorter = min(width, height)
    if not len(boxes):
        side = max(1, shorter // 4)
        x, y = (width - side) // 2, (height - side) // 2
        return x, y, x + side, y + side
    longest = float(np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]).max())
    side = int(min(shorter, max(shorter / 4, 1.5 * longest, 1)))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (np.abs(centres[:, None] - centres[None]) < side / 2).all(axis=-1).sum(axis=1)
    areas = area_xyxy(boxes)
    busiest = (near + 0.5 * areas / max(areas.sum(), 1e-12)).argmax()  # of equally busy windows, the largest object's
    x, y = np.clip(centres[busiest] - side / 2, 0, (width - side, height - side)).round().tolist()
    return int(x), int(y), int(x) + side, int(y) + side


def _flatness(samples: Sequence[Sample]) -> float:
    """The height of a row of images, in widths of a picture, at most 1."""
    return min(1.0, max(FLATTEST, *(sample.height / sample.width for sample in samples)))


def _grid(heights: Sequence[float], columns: int, *, legend_lines: int) -> tuple[Figure, np.ndarray]:
    """Axes, ``(rows, columns)``, below room for so many lines of legend; rows have ``heights``, in widths of axes."""
    gap, below, title, top = 0.06, 0.04, 0.22, 0.05 + LEGEND * legend_lines
    rows = [TILE * each for each in heights]
    width, height = columns * (TILE + gap) + gap, sum(rows) + len(rows) * (below + title) + top
    figure = Figure(figsize=(width, height))
    places = {"left": gap / width, "right": 1 - gap / width}
    places |= {"bottom": below / height, "top": 1 - (top + title) / height}
    # Matplotlib takes the space between axes in shares of their mean height.
    places |= {"wspace": gap / TILE, "hspace": (title + below) / (sum(rows) / len(rows))}
    shape = {**places, "height_ratios": rows}
    return figure, figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=shape)


def _dark_legend(figure: Figure, lines: Sequence[Line2D], names: Sequence[str], top: float) -> None:
    """A line of legend on dark ground, as the pictures are; ``top`` in shares of the figure's height."""
    style = {"loc": "upper left", "bbox_to_anchor": (0, top), "ncols": len(lines), "fontsize": 8, "borderaxespad": 0.2}
    drawn = legend(figure, lines, names, 24, labelcolor="white", **style)
    drawn.get_frame().set(facecolor="#222222", edgecolor="none", alpha=1)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    write_bytes_atomically(path, encoded.getvalue())
